"""Indexes of the stack's own, in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import product
from typing import Any

import psycopg2
import pytest

from kit.mlflow_tables import mlflow_tables
from stackfast import logs, runs
from stackfast.database import WRITING
from stackserver.indexes import INDEXES, make_indexes

SOME = (True, False)
LOGS = {f"logs {kinds}": logs._statement(*kinds) for kinds in product(SOME, SOME, SOME) if any(kinds)}
STATEMENTS = {"create": runs.CREATE, "made": runs.MADE, "update": runs.UPDATE, **LOGS}


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a database with MLflow's tables, and a run."""
    with mlflow_tables() as uri:
        with closing(psycopg2.connect(uri)) as connection, connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO runs (run_uuid) VALUES ('a'), ('b')")
            cursor.execute("INSERT INTO params VALUES ('p', 'x', 'a'), ('p', 'x', 'b')")
        yield uri


def test_what_is_missing_or_unfinished_is_made_and_known_to_the_planner(database: str) -> None:
    with closing(psycopg2.connect(database)) as connection:
        assert make_indexes(connection) == list(INDEXES)
        assert make_indexes(connection) == []
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT most_common_vals FROM pg_stats WHERE tablename = 'stack_params_by_value'")
            assert ("{x}",) in cursor.fetchall()
            unfinished = "'stack_metrics_by_value'::regclass"
            cursor.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = {unfinished}")
        assert make_indexes(connection) == ["stack_metrics_by_value"]


def test_a_value_of_any_length_has_its_place(database: str) -> None:
    with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
        make_indexes(connection)
        cursor.execute("INSERT INTO params VALUES (%s, %s, 'a')", ("k" * 250, "\U0001f600" * 6000))
        cursor.execute("INSERT INTO tags VALUES (%s, %s, 'a')", ("\U0001f600" * 250, "\U0001f600" * 8000))
        connection.rollback()


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the tables of a plan that are read without a condition for an index, and how."""
    if plan["Node Type"].endswith("Scan") and "Relation Name" in plan and not looked_up(plan):
        yield plan["Relation Name"], plan["Node Type"]
    for part in plan.get("Plans", []):
        yield from scans(part)


def looked_up(plan: dict[str, Any]) -> bool:
    return "Index Cond" in plan or any(looked_up(part) for part in plan.get("Plans", []))


def test_plans_made_while_the_tables_are_empty_look_into_an_index_for_each_row() -> None:
    """Connections keep them until the next ANALYZE, when the tables may be large."""
    with mlflow_tables() as uri, closing(psycopg2.connect(uri)) as connection:
        make_indexes(connection)
        with connection, connection.cursor() as cursor:
            for name, value in WRITING.items():
                cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
            found = {}
            for name, statement in STATEMENTS.items():
                cursor.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {statement}")
                ((plan,),) = cursor.fetchone()
                found[name] = list(scans(plan["Plan"]))
            assert found == {name: [] for name in STATEMENTS}
