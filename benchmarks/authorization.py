"""What AUTHORIZATION=rbac costs a request: its median time, with roles and with rbac in turn.

Usage: .venv/bin/python benchmarks/authorization.py [--rounds 5] [--calls 300]

Works on a throwaway project, which is started anew with the other setting between two
measurements. One client with a kept connection, through nginx, as a writer with a token, in an
experiment of its own; and as an admin, whom MLflow asks for no permission.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable

import requests

from common import parser, throwaway
from kit.people import add, bearer

API = "/api/2.0/mlflow"
MODES = ("roles", "rbac")


def median_ms(calls: int, call: Callable[[], requests.Response]) -> float:
    """Return the median milliseconds of a call; each must answer 200."""
    found = []
    for number in range(calls + 20):
        started = time.perf_counter()
        answer = call()
        if number >= 20:  # pools and caches are warm by then
            found.append((time.perf_counter() - started) * 1000)
        if answer.status_code != 200:
            raise SystemExit(f"{answer.request.method} {answer.request.path_url}: {answer.status_code}")
    return statistics.median(found)


def measure(url: str, token: str, calls: int) -> dict[str, float]:
    """Return the median milliseconds of each kind of call."""
    session = requests.Session()
    session.trust_env = False
    session.headers.update(bearer(token))

    def post(path: str, **body: object) -> requests.Response:
        return session.post(url + API + path, json=body, timeout=60)

    experiment_id = post("/experiments/create", name=uuid.uuid4().hex).json()["experiment_id"]
    run_id = post("/runs/create", experiment_id=experiment_id).json()["run"]["info"]["run_id"]
    artifact = f"{url}/api/2.0/mlflow-artifacts/artifacts/{experiment_id}/{run_id}/artifacts/a.txt"
    session.put(artifact, data=b"small", timeout=60)
    kinds = {
        "GET experiments/get": lambda: session.get(
            f"{url}{API}/experiments/get", params={"experiment_id": experiment_id}, timeout=60
        ),
        "POST runs/log-metric": lambda: post(
            "/runs/log-metric", run_id=run_id, key="m", value=1, timestamp=1
        ),
        "POST runs/log-batch, 100 metrics": lambda: post(
            "/runs/log-batch",
            run_id=run_id,
            metrics=[{"key": f"m{number}", "value": 1, "timestamp": 1} for number in range(100)],
        ),
        "POST runs/search": lambda: post("/runs/search", experiment_ids=[experiment_id]),
        "GET a small artifact": lambda: session.get(artifact, timeout=60),
    }
    return {kind: median_ms(calls, call) for kind, call in kinds.items()}


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--calls", type=int, default=300)
    arguments = arguments_of.parse_args()
    found: dict[tuple[str, str, str], list[float]] = {}
    with throwaway("authorization") as stack:
        tokens = {role: add(stack, f"a-{role}", role) for role in ("writer", "admin")}
        for number in range(arguments.rounds):
            for mode in MODES if number % 2 else MODES[::-1]:
                stack.extra["AUTHORIZATION"] = mode
                stack.compose("up", "--detach", "--wait", "--no-build")
                stack.wait_ready()
                for role, token in tokens.items():
                    for kind, value in measure(stack.url, token, arguments.calls).items():
                        found.setdefault((kind, role, mode), []).append(value)
                        print(mode, role, kind, round(value, 2), flush=True)
    print("\n| call | as | roles, ms | rbac, ms | more |\n| --- | --- | --- | --- | --- |")
    for kind, role in dict.fromkeys((kind, role) for kind, role, _ in found):
        roles, rbac = (statistics.median(found[kind, role, mode]) for mode in MODES)
        print(f"| {kind} | {role} | {roles:.1f} | {rbac:.1f} | {rbac - roles:+.1f} |")


if __name__ == "__main__":
    main()
