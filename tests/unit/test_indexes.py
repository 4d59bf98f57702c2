"""Indexes of the stack's own, in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from kit.mlflow_tables import mlflow_tables
from stackserver.indexes import INDEXES, make_indexes


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
