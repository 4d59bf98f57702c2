"""MLflow's own client, timed: run by rows/client.py and rows/models.py in a process of its own.

Usage: MLFLOW_TRACKING_URI=... .venv/bin/python benchmarks/client_calls.py calls COUNT
       MLFLOW_TRACKING_URI=... .venv/bin/python benchmarks/client_calls.py models

Prints one JSON object: of `calls`, the milliseconds of each call by name, or why there are none; of
`models`, the milliseconds of each step and its HTTP calls.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

WARM = 3
"""Calls before those that count: connections, imports."""


def ms_of(count: int, call: Callable[[int], object]) -> list[float] | str:
    """Return the milliseconds of each of `count` calls, which get their number; or why one failed."""
    found = []
    try:
        for number in range(WARM + count):
            started = time.perf_counter()
            call(number)
            found.append((time.perf_counter() - started) * 1000)
    except (MlflowException, requests.RequestException) as error:
        return str(error).splitlines()[0][:200]
    return found[WARM:]


def batch(size: int, number: int) -> list[Metric]:
    """Return metrics of ten keys, at steps that no other batch has."""
    step = number * size
    return [
        Metric(f"b{part % 10}", part / size, 1_763_800_000_000, step + part // 10) for part in range(size)
    ]


def calls(count: int) -> dict[str, list[float] | str]:
    """Time the calls of a training script, one client alone."""
    client = MlflowClient()
    unique = uuid.uuid4().hex
    experiment_id = client.create_experiment(f"{unique} calls")
    run_id = client.create_run(experiment_id).info.run_id
    others = [client.create_run(experiment_id).info.run_id for _ in range(WARM + count)]
    found = {
        "create_experiment": ms_of(count, lambda number: client.create_experiment(f"{unique} {number}")),
        "create_run": ms_of(count, lambda _: client.create_run(experiment_id)),
        "log_param": ms_of(count, lambda number: client.log_param(run_id, f"p{number}", "0.1")),
        "log_metric": ms_of(count, lambda number: client.log_metric(run_id, "m", 0.5, step=number)),
        "set_terminated": ms_of(count, lambda number: client.set_terminated(others[number])),
        "log_batch, 100 metrics": ms_of(
            count, lambda number: client.log_batch(run_id, metrics=batch(100, number))
        ),
        "log_batch, 1,000 metrics": ms_of(
            max(3, count // 5), lambda number: client.log_batch(run_id, metrics=batch(1000, number))
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "bench.bin")
        file.write_bytes(bytes(1_000_000))
        found["log_artifact, 1 MB"] = ms_of(
            count, lambda number: client.log_artifact(run_id, str(file), f"a{number}")
        )
    found["create_model_version"] = _versions(client, unique, run_id, count)
    return found


def _versions(client: MlflowClient, unique: str, run_id: str, count: int) -> list[float] | str:
    try:
        client.create_registered_model(unique)
        source = client.get_run(run_id).info.artifact_uri + "/model"
    except MlflowException as error:
        return str(error).splitlines()[0][:200]
    return ms_of(count, lambda _: client.create_model_version(unique, source, run_id))


IDS = re.compile(r"\bm-[0-9a-f]{32}\b|\b[0-9a-f]{32}\b|(?<=artifacts/)\d+(?=/)|(?<=/)\d+(?=/models/)")


def route(url: str) -> str:
    """Return the path of a URL with every id named ID.

    >>> route("http://h:1/api/2.0/mlflow/logged-models/m-0123456789abcdef0123456789abcdef?x=1")
    '/api/2.0/mlflow/logged-models/ID'
    """
    return IDS.sub("ID", urlsplit(url).path)


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """Record each HTTP call that this process makes by `requests`: method, route, ms, status.

    The time of an answer that is read bit by bit (a download) ends with its headers.
    """
    found: list[dict[str, Any]] = []
    send = requests.Session.send

    def timed(self: requests.Session, request: requests.PreparedRequest, **more: Any) -> requests.Response:
        started = time.perf_counter()
        answer = send(self, request, **more)
        spent = (time.perf_counter() - started) * 1000
        where = {"method": request.method, "route": route(request.url or "")}
        found.append(where | {"ms": round(spent, 2), "status": answer.status_code})
        return answer

    requests.Session.send = timed  # type: ignore[method-assign]
    try:
        yield found
    finally:
        requests.Session.send = send  # type: ignore[method-assign]


def models() -> dict[str, dict[str, Any] | str]:
    """Log, register and load a small model; each once, after the same has been done with another one."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    mlflow.set_experiment(f"{uuid.uuid4().hex} models")
    _model_once(model)
    return _model_once(model)


def _model_once(model: Any) -> dict[str, dict[str, Any] | str]:
    name = uuid.uuid4().hex
    logged: list[Any] = []

    def log() -> None:
        with mlflow.start_run():
            logged.append(mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"]))

    steps: dict[str, Callable[[], object]] = {
        "log_model, with its run": log,
        "register_model": lambda: mlflow.register_model(logged[0].model_uri, name),
        "load_model by its version": lambda: mlflow.sklearn.load_model(f"models:/{name}/1"),
    }
    found: dict[str, dict[str, Any] | str] = {}
    for what, step in steps.items():
        try:
            with recorded() as seen:
                started = time.perf_counter()
                step()
                spent = (time.perf_counter() - started) * 1000
        except (MlflowException, requests.RequestException) as error:
            found[what] = str(error).splitlines()[0][:200]
            break
        found[what] = {"ms": spent, "calls": seen}
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    said = calls(int(sys.argv[2])) if sys.argv[1] == "calls" else models()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
