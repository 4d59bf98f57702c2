"""MLflow's own client, one alone: milliseconds of each call, and those that are the client's own."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from figures import Measure, Measured
from rows.row import BENCHMARKS, Bench, Options, Row, client_process

MS = Measure("p50, ms", "less")


def _steps(options: Options) -> list[Any]:
    return [5 if options.quick else 50]


@contextmanager
def canned() -> Iterator[str]:
    """Run the server that answers at once, in a process of its own; yield its address."""
    command = [sys.executable, str(BENCHMARKS / "canned.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()  # then it ends


def measure(bench: Bench, name: str, calls: int) -> dict[str, Measured]:
    """Time each call that many times."""
    if name == "floor":
        with canned() as url:
            found = client_process(
                {"MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true"}, "calls", str(calls)
            )
    else:
        found = client_process(bench.server(name).client_environment, "calls", str(calls))
    return {
        call: Measured(note=times)
        if isinstance(times, str)
        else Measured({MS.name: statistics.median(times)})
        for call, times in found.items()
    }


CLIENT = Row(
    name="client",
    title="MlflowClient 3.17.2, one client alone",
    servers=("ours", "stock", "stockuv", "fasttrack", "floor"),
    measures=(MS,),
    steps=_steps,
    measure=measure,
)
