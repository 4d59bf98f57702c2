"""The limit: PostgreSQL alone with the same SQL, by its own pgbench."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kit.stack import Stack

FLOW = Path(__file__).with_name("flow.sql")
DATABASE = "limit"


@dataclass(frozen=True)
class Found:
    """What pgbench said: transactions a second, ms of each in the mean, how many, and how many failed."""

    per_second: float
    latency_ms: float
    transactions: int
    failed: int


def parse(text: str) -> Found:
    """Return the figures in pgbench's report (versions 15 to 17). Raise ValueError if one is not there."""

    def figure(pattern: str) -> str:
        found = re.search(pattern, text, re.MULTILINE)
        if found is None:
            raise ValueError(f"pgbench said nothing like {pattern!r}: {text[-500:]}")
        return found[1]

    return Found(
        per_second=float(figure(r"^tps = ([\d.]+) \(without initial connection time\)")),
        latency_ms=float(figure(r"^latency average = ([\d.]+) ms")),
        transactions=int(figure(r"^number of transactions actually processed: (\d+)")),
        failed=int(figure(r"^number of failed transactions: (\d+)")),
    )


def make_database(stack: Stack) -> None:
    """Make a database with the tables and indexes of the stack's own, empty but for one experiment.

    By a dump: a database with open connections cannot be the template of another.
    """
    stack.psql(f'CREATE DATABASE "{DATABASE}"', database="postgres")
    tables = stack.compose(*_in_postgres("pg_dump", "--schema-only", "--schema=public", "mlflow")).stdout
    quiet = ("psql", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", DATABASE)
    # The schema `public` is there already; pg_dump does not ask.
    stack.compose(*_in_postgres(*quiet), given=tables.replace("CREATE SCHEMA public;", ""))
    stack.psql(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
        " VALUES (0, 'Default', 'mlflow-artifacts:/0', 'active', 'default')",
        database=DATABASE,
    )


def run(stack: Stack, clients: int, seconds: int) -> Found:
    """Log runs by SQL, over PostgreSQL's unix socket, one statement for each request of the flow."""
    said = stack.compose(
        *_in_postgres(
            *("pgbench", "--no-vacuum", "--protocol=prepared", "--file=-", f"--client={clients}"),
            *("--jobs=1", f"--time={seconds}", DATABASE),
        ),
        given=FLOW.read_text(),
        timeout=seconds + 120,
    )
    return parse(said.stdout)


def _in_postgres(program: str, *words: str) -> tuple[str, ...]:
    host = ("--host=/run/postgresql", "--username=postgres")
    return ("exec", "-T", "postgres", program, *host, *words)
