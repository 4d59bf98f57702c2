"""Whole runs a second: eight requests each, by 1, 10 and 50 clients; and by 500 and 1,000 for a minute."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from typing import Any

import pgbench
from figures import Measure, Measured
from peers import Server, experiment
from rows.row import Bench, Options, Row, Spent

MEASURES = (
    Measure("runs/s", "more"),
    Measure("p50, ms", "less"),
    Measure("p99, ms", "less"),
)
TABLES = {"runs/create": "runs", "runs/log-parameter": "params", "runs/log-metric": "metrics"}
"""Where each acknowledged request must have left a row."""
REQUESTS = 8
"""Of a run. Rates are answered requests divided by these: of runs that take seconds, few end in the time."""
WARM_CLIENTS, WARM_RUNS = 16, 4
TAIL_SECONDS = 150
"""The load generator waits for answers under way, at most a minute each; some more to connect."""


def _steps(options: Options) -> list[Any]:
    seconds = 1 if options.quick else 5
    return [(clients, seconds) for clients in (1, 10, 50)]


def _held_steps(options: Options) -> list[Any]:
    seconds = 3 if options.quick else 60
    return [(clients, seconds) for clients in (500, 1000)]


def measure(bench: Bench, name: str, step: tuple[int, int]) -> dict[str, Measured]:
    """Log runs for some seconds, as many clients as `step` says, and look for every acknowledged row."""
    clients, seconds = step
    case = f"{clients:,} client{'s' if clients > 1 else ''}"
    if name == "limit":
        return {case: _limit(bench, clients, seconds)}
    server = bench.server(name)
    experiment_id = experiment(server, f"flow {uuid.uuid4().hex}")
    warm_seconds = min(seconds / 2, 5)
    with Spent(bench.peers.groups(name, "postgres")) as spent:
        found = generate(bench, server, experiment_id, clients, seconds=seconds, warm_seconds=warm_seconds)
    errors = dict(found["errors"])
    lost = _lost_rows(bench, server, experiment_id, found["ok"])
    if lost:
        errors["lost row"] = lost
    cpu_ms = spent.per_request_ms(found["requests"])
    cpu_ms["load"] = found["cpu_seconds"] * 1000 / max(found["requests"], 1)
    values = {"runs/s": found["answered"] / REQUESTS / found["seconds"]}
    if found["fast"]:
        values["by the fast path, %"] = found["fast"] * 100 / found["requests"]
    if found["measured"]:
        values |= {"p50, ms": found["p50_ms"], "p99, ms": found["p99_ms"]}
    return {case: Measured(values, cpu_ms, errors, found["requests"], found["first_error"])}


def generate(
    bench: Bench, server: Server, experiment_id: str, clients: int, *, seconds: float, warm_seconds: float
) -> dict[str, Any]:
    """Run the load generator by the clock and return what it reports (benchmarks/load/main.go)."""
    clock = ("-seconds", str(seconds), "-warm", str(warm_seconds))
    return _load(bench, server, experiment_id, clients, *clock, timeout=warm_seconds + seconds + TAIL_SECONDS)


def warm(bench: Bench) -> None:
    """Log some runs at every server before anything counts.

    A worker process of MLflow opens its database at its first request: that took more than a second.
    """
    for server in bench.peers.servers.values():
        experiment_id = experiment(server, f"warm {uuid.uuid4().hex}")
        _load(bench, server, experiment_id, WARM_CLIENTS, "-runs", str(WARM_RUNS), timeout=600)


def _load(
    bench: Bench, server: Server, experiment_id: str, clients: int, *options: str, timeout: float
) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(str(bench.load), "-target", f"127.0.0.1:{server.port}", "-experiment", experiment_id),
            *("-clients", str(clients), *options),
        ],
        env={**os.environ, "LOAD_AUTHORIZATION": server.authorization},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )
    return json.loads(done.stdout)


def _lost_rows(bench: Bench, server: Server, experiment_id: str, ok: dict[str, int]) -> int:
    """Return how many requests were acknowledged and left no row."""
    counts = ", ".join(
        f"(SELECT count(*) FROM {table} JOIN flow USING (run_uuid))" for table in TABLES.values()
    )
    said = bench.peers.stack.psql(
        f"WITH flow AS (SELECT run_uuid FROM runs WHERE experiment_id = {int(experiment_id)})"
        f" SELECT {counts}",
        server.database,
    )
    rows = dict(zip(TABLES, map(int, said.split("|")), strict=True))
    return sum(max(0, ok.get(route, 0) - count) for route, count in rows.items())


def _limit(bench: Bench, clients: int, seconds: int) -> Measured:
    """PostgreSQL alone. A transaction of pgbench is a whole run, so there are no ms of a request."""
    with Spent(bench.peers.groups("limit", "postgres")) as spent:
        found = pgbench.run(bench.peers.stack, clients, seconds)
    requests = found.transactions * REQUESTS
    errors = {"failed transaction": found.failed} if found.failed else {}
    return Measured({"runs/s": found.per_second}, spent.per_request_ms(requests), errors, requests)


FLOW = Row(
    name="flow",
    title="A whole run: create with name and tags, 2 parameters, 3 metrics, a tag, update to FINISHED",
    servers=("ours", "stock", "stockuv", "fasttrack", "limit"),
    measures=MEASURES,
    steps=_steps,
    measure=measure,
)
HELD = Row(
    name="held",
    title="The same by many clients for 60 s: who is answered, and who is not",
    servers=("ours", "stock", "stockuv", "fasttrack"),
    measures=MEASURES,
    steps=_held_steps,
    measure=measure,
)
