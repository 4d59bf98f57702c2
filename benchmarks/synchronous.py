"""What BACKUP_SYNCHRONOUS=on costs: time of a log_metric call, one client and eight.

Usage: .venv/bin/python benchmarks/synchronous.py [--rounds 5] [--calls 200]

Works on a throwaway project, whose PostgreSQL is started anew with the other setting between
two measurements. The client is MLflow's own, through nginx.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from mlflow import MlflowClient

from common import parser, throwaway

CLIENTS = 8


def latencies(calls: int) -> list[float]:
    """Return the seconds of each call."""
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_metric(run_id, "warm", 1.0)
    found = []
    for step in range(calls):
        started = time.monotonic()
        client.log_metric(run_id, "point", step, step=step)
        found.append(time.monotonic() - started)
    return found


def measure(calls: int) -> tuple[float, float]:
    """Return the median milliseconds of a call, and calls per second of all clients together."""
    alone = statistics.median(latencies(calls)) * 1000
    started = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(latencies, [calls] * CLIENTS))
    return alone, CLIENTS * calls / (time.monotonic() - started)


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--calls", type=int, default=200)
    arguments = arguments_of.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
    with throwaway("synchronous") as stack, stack.logged_in():
        for number in range(arguments.rounds):
            for setting in ("off", "on") if number % 2 else ("on", "off"):
                stack.extra["BACKUP_SYNCHRONOUS"] = setting
                stack.compose("up", "--detach", "--wait", "--no-build")
                stack.wait_ready()
                found[setting].append(measure(arguments.calls))
                print(setting, found[setting][-1], flush=True)
    for what, index in (("ms per call, one client", 0), (f"calls/s, {CLIENTS} clients", 1)):
        medians = {name: statistics.median(pair[index] for pair in found[name]) for name in found}
        ratio = medians["on"] / medians["off"]
        print(f"{what}: off {medians['off']:.1f}, on {medians['on']:.1f}, on / off {ratio:.2f}")


if __name__ == "__main__":
    main()
