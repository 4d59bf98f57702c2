"""A PostgreSQL of a test's own, with MLflow's tables."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pgserver
import sqlalchemy


@contextmanager
def mlflow_tables() -> Iterator[str]:
    """Start PostgreSQL, make the tables as MLflow's migrations do, and yield the database's address."""
    from mlflow.store.db.utils import _initialize_tables

    server = pgserver.get_server(tempfile.mkdtemp(prefix="pg"))
    try:
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf()")  # nothing here outlives the test
        uri = server.get_uri()
        engine = sqlalchemy.create_engine(uri.replace("postgresql://", "postgresql+psycopg2://"))
        _initialize_tables(engine)
        engine.dispose()
        yield uri
    finally:
        server.cleanup()
