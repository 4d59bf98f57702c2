"""The database as seen from outside MLflow: connections and the schema's revision.

Passwords come from PGPASSFILE, which libpq reads at each connection: a rotated password
needs no restart.
"""

from __future__ import annotations

import os
from contextlib import closing
from functools import cache

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2's own name
from sqlalchemy.engine import make_url

from stackserver.errors import RefusedError

CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_MS = 3000


def connect(
    database_uri: str, *, user: str | None = None, timeout_ms: int = STATEMENT_TIMEOUT_MS
) -> Connection:
    """Return a psycopg2 connection to the database of an SQLAlchemy URI.

    `user` takes the place of the URI's. Raise psycopg2.OperationalError.
    """
    url = make_url(database_uri)
    parameters = {key: value for key, value in url.query.items() if isinstance(value, str)}
    parameters.setdefault("connect_timeout", str(CONNECT_TIMEOUT_SECONDS))
    return psycopg2.connect(
        host=parameters.pop("host", url.host),
        port=url.port or 5432,
        dbname=url.database,
        user=user or url.username,
        options=f"{os.environ.get('PGOPTIONS', '')} -c statement_timeout={timeout_ms}",  # both, not one
        application_name="stackserver",
        **parameters,
    )


def schema_revision(connection: Connection) -> str | None:
    """Return the schema's alembic revision, or None if the database has no MLflow tables."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('alembic_version'), to_regclass('experiments')")
        version_table, experiments_table = cursor.fetchone()
        if version_table is None:
            return None if experiments_table is None else "none (tables without a revision)"
        cursor.execute("SELECT version_num FROM alembic_version")
        row = cursor.fetchone()
        return row[0] if row else None


@cache
def pinned_revision() -> str:
    """Return the revision that the installed MLflow works with (67 scripts: cached)."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return _get_latest_schema_revision()


@cache
def revision_chain() -> tuple[str, ...]:
    """Return every revision that the installed MLflow can upgrade from, oldest first, and its own."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config(db_url=""))
    return tuple(script.revision for script in scripts.walk_revisions())[::-1]


def known_revisions() -> frozenset[str]:
    """Return every revision that the installed MLflow can upgrade from, and its own."""
    return frozenset(revision_chain())


def unknown_revision(revision: str, pinned: str) -> RefusedError:
    """Return the refusal of a schema that the installed MLflow does not know."""
    return RefusedError(
        f"the database has the schema {revision}, which this MLflow ({pinned}) does not know: a newer MLflow "
        "wrote it; nothing was changed",
        "run the version of the stack that wrote it",
    )


def check_database(database_uri: str) -> None:
    """Raise an exception unless the database answers and has the pinned revision."""
    with closing(connect(database_uri)) as connection:
        revision = schema_revision(connection)
    if revision != pinned_revision():
        raise RuntimeError(f"schema revision is {revision}, this MLflow needs {pinned_revision()}")
