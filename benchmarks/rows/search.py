"""A page of 100 runs out of 10,000 and more: newest first, by a metric, by a filter."""

from __future__ import annotations

import statistics
import time
from typing import Any

import seeding
from figures import Measure, Measured
from peers import experiment_of
from rows.row import Bench, Options, Row, Spent

SERVERS = ("ours", "stock", "stockuv", "fasttrack")
MEASURES = (Measure("p50, ms", "less"), Measure("answer, KB", "less"))
FEWEST_MATCHES = 10
"""Below this many runs an answer is not what was asked for."""
FEWEST_CALLS, PATIENCE_SECONDS = 3, 20
"""Of a search that takes long fewer calls are timed."""


def _steps(options: Options) -> list[Any]:
    return options.sizes


def _prepare(bench: Bench) -> None:
    bench.seed(SERVERS, bench.options.sizes)


def measure(bench: Bench, name: str, runs: int) -> dict[str, Measured]:
    """Time each search, on one kept connection."""
    if not seeding.takes_part(name, runs):
        return {}
    server = bench.server(name)
    experiment_id = experiment_of(bench.peers, server, seeding.experiment_name(runs))
    url = f"{server.url}/api/2.0/mlflow/runs/search"
    calls = 3 if bench.options.quick else 15
    found = {}
    with server.session() as session:
        for what, body in seeding.searches(experiment_id).items():
            times, errors, note, size, made = [], {}, "", 0, 0
            end = time.monotonic() + PATIENCE_SECONDS
            with Spent(bench.peers.groups(name, "postgres")) as spent:
                while made <= calls and (made <= FEWEST_CALLS or time.monotonic() < end):
                    started = time.perf_counter()
                    answer = session.post(url, json=body, timeout=300)
                    took = (time.perf_counter() - started) * 1000
                    if problem := _problem(answer.status_code, answer.content):
                        errors[problem] = errors.get(problem, 0) + 1
                        note = note or answer.text[:200]
                    elif made:  # the first one warms what is cold
                        times.append(took)
                        size = len(answer.content)
                    made += 1
            values = {"p50, ms": statistics.median(times), "answer, KB": size / 1000} if times else {}
            case = f"{runs:,} runs, {what}"
            found[case] = Measured(values, spent.per_request_ms(made), errors, made, note)
    return found


def _problem(status: int, content: bytes) -> str:
    if status != 200:
        return str(status)
    return "short answer" if content.count(b'"run_id"') < FEWEST_MATCHES else ""


SEARCH = Row(
    name="search",
    title="runs/search for 100 runs with 10 metrics, 10 parameters and 4 tags each",
    servers=SERVERS,
    measures=MEASURES,
    steps=_steps,
    measure=measure,
    prepare=_prepare,
)
