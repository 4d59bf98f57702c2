"""Use the running stack as a client does, through nginx, reading only."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import requests

from stackops.errors import FailedError

DOOR = "http://nginx:8081"
USER = "_stack"
TIMEOUT_SECONDS = 30


def run(public_url: str, token: str) -> dict[str, Any]:
    """Ask for health, experiments, runs and registered models; return how many there are.

    `public_url` is the stack's own address, if it has one: nginx answers no other host.
    Raise FailedError with the first answer that is not 200.
    """
    session = requests.Session()
    session.trust_env = False
    host = urlsplit(public_url).netloc
    if host:
        session.headers["Host"] = host
    _answer(session.get(f"{DOOR}/health", timeout=TIMEOUT_SECONDS))
    session.auth = (USER, token)
    api = f"{DOOR}/api/2.0/mlflow"
    experiments = (
        _answer(
            session.post(f"{api}/experiments/search", json={"max_results": 1000}, timeout=TIMEOUT_SECONDS)
        )
        .json()
        .get("experiments", [])
    )
    ids = [experiment["experiment_id"] for experiment in experiments[:50]]
    runs = (
        _answer(
            session.post(
                f"{api}/runs/search",
                json={"experiment_ids": ids, "max_results": 100},
                timeout=TIMEOUT_SECONDS,
            )
        )
        .json()
        .get("runs", [])
    )
    for run in runs[:3]:
        query = {"run_id": run["info"]["run_id"]}
        _answer(session.get(f"{api}/artifacts/list", params=query, timeout=TIMEOUT_SECONDS))
    models = _answer(session.get(f"{api}/registered-models/search", timeout=TIMEOUT_SECONDS)).json()
    return {
        "experiments": len(experiments),
        "runs": len(runs),
        "registered_models": len(models.get("registered_models", [])),
    }


def _answer(response: requests.Response) -> requests.Response:
    if response.status_code != 200:
        raise FailedError(
            f"{response.request.method} {urlsplit(response.url).path} answered {response.status_code}: "
            f"{response.text[:300]}",
            "./stack logs mlflow nginx",
        )
    return response
