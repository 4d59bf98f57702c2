"""What a row of the comparison is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes
import seeding
from figures import Measure, Measured
from peers import Peers, Server

BENCHMARKS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options:
    """How thoroughly is measured."""

    rounds: int = 5
    quick: bool = False
    """Seconds instead of minutes: to see that it works, not what it says."""
    long: bool = False
    """Also an experiment of a million runs."""

    @property
    def sizes(self) -> list[int]:
        """How many runs the experiments have that are searched."""
        if self.quick:
            return [1_000]
        return [10_000, 100_000, 1_000_000] if self.long else [10_000, 100_000]


@dataclass(frozen=True)
class Bench:
    """What a row measures with."""

    peers: Peers
    options: Options
    load: Path
    """The load generator."""
    seeded: set[tuple[str, int | str]]
    """The databases, and what was put into each already: see seeding.script."""

    def server(self, name: str) -> Server:
        """Return a server."""
        return self.peers.servers[name]

    def seed(self, names: Sequence[str], wanted: Sequence[int | str]) -> None:
        """Put experiments of these sizes, and what names stand for, into the servers' databases, once."""
        for name in names:
            server = self.server(name)
            due = [what for what in wanted if seeding.takes_part(name, what)]
            new = [what for what in due if (server.database, what) not in self.seeded]
            if new:
                seeding.seed(self.peers.stack, server.database, server.tables, new)
                self.seeded.update((server.database, what) for what in new)


def nothing(bench: Bench) -> None:
    """Prepare nothing."""
    del bench


@dataclass(frozen=True)
class Row:
    """A row: who takes part, in which steps, and what is measured."""

    name: str
    title: str
    servers: tuple[str, ...]
    """In the order of the first round; each later round begins with the next one."""
    measures: tuple[Measure, ...]
    """The first one is what servers are compared by."""
    steps: Callable[[Options], list[Any]]
    """What is measured one after the other in each round."""
    measure: Callable[[Bench, str, Any], dict[str, Measured]]
    """Measure one step of one server; by case."""
    prepare: Callable[[Bench], None] = nothing
    lists_calls: bool = False
    """The table of single HTTP calls belongs to it."""

    @property
    def peers(self) -> tuple[str, ...]:
        """The servers beside the stack that must run for it."""
        return tuple(name for name in self.servers if name in ("stock", "stockuv", "fasttrack"))


class Spent:
    """Processor time of the groups of a server, between the two ends of a `with`."""

    def __init__(self, groups: processes.Groups) -> None:
        self._groups = groups
        self._before: Mapping[str, float] = {}
        self._after: Mapping[str, float] = {}

    def __enter__(self) -> Spent:
        self._before = processes.seconds_by_group(self._groups)
        return self

    def __exit__(self, *_: object) -> None:
        self._after = processes.seconds_by_group(self._groups)

    def per_request_ms(self, requests: int) -> dict[str, float]:
        """Return each group's milliseconds a request."""
        return processes.per_request_ms(self._before, self._after, requests)


def client_process(server_environment: Mapping[str, str], *words: str, timeout: float = 900) -> Any:
    """Run client_calls.py with this environment and return what it found. Raise RuntimeError."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "client_calls.py"), *words],
        env={
            **_without_mlflow(os.environ),
            **server_environment,
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the client ended with {done.returncode}: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _without_mlflow(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which no setting of MLflow's or login of a person's counts."""
    kept = {name: value for name, value in environment.items() if not name.startswith("MLFLOW_")}
    return {**kept, "NETRC": os.devnull}
