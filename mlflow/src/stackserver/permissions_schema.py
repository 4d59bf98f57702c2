"""The tables of MLflow's permissions (AUTHORIZATION=rbac), in a database of their own.

MLflow's auth app has migrations of its own (mlflow/server/auth/db/migrations of 3.17.2, version
table alembic_version_auth) and would run them at each start; here prepare.py alone does.
"""

from __future__ import annotations

from contextlib import closing
from functools import cache
from pathlib import Path

import mlflow
import psycopg2
import sqlalchemy
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2's own name

from stackserver.database import connect, unknown_revision
from stackserver.errors import RefusedError
from stackserver.settings import Settings


def revision_of(connection: Connection) -> str | None:
    """Return the revision of the tables of permissions, or None where there is no table at all.

    Raise RefusedError for a database with other tables.
    """
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('alembic_version_auth')")
        if cursor.fetchone()[0] is not None:
            cursor.execute("SELECT version_num FROM alembic_version_auth")
            row = cursor.fetchone()
            return row[0] if row else None
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema() LIMIT 1")
        if cursor.fetchone() is None:
            return None
    raise RefusedError(
        f"the database {connection.info.dbname} is for MLflow's permissions (AUTHORIZATION=rbac), and has "
        "tables of something else; nothing was changed",
        f"give the stack an empty database {connection.info.dbname}; one of an MLflow before 3.6 needs "
        "'python -m mlflow.server.auth db upgrade --url' of MLflow 3.17.2",
    )


@cache
def revisions() -> tuple[str, ...]:
    """Return every revision that the installed MLflow can upgrade from, oldest first; its own is the last."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    # By its path: to import it would load the whole auth app.
    scripts_folder = Path(mlflow.__file__).parent / "server/auth/db/migrations"
    configuration = Config()
    configuration.set_main_option("script_location", str(scripts_folder))
    scripts = ScriptDirectory.from_config(configuration)
    return tuple(script.revision for script in scripts.walk_revisions())[::-1]


def connect_to_permissions(settings: Settings) -> Connection:
    """Return a connection to the database of permissions. Raise RefusedError if there is none."""
    try:
        return connect(settings.permissions_uri)
    except psycopg2.OperationalError as error:
        user, name = settings.permissions_owner
        raise RefusedError(
            f"AUTHORIZATION=rbac keeps permissions in the database {name}, which cannot be used: "
            f"{str(error).strip()}; nothing was changed",
            f'make it on the server of DATABASE_URI: CREATE DATABASE "{name}" OWNER "{user}"',
        ) from error


def known_revision(settings: Settings) -> str | None:
    """Return the revision, None where there is no table. Raise RefusedError for one that is not known."""
    with closing(connect_to_permissions(settings)) as connection:
        revision = revision_of(connection)
    if revision is not None and revision not in revisions():
        raise unknown_revision(revision, revisions()[-1])
    return revision


def check_permissions(settings: Settings) -> None:
    """Raise RefusedError unless the tables are absent or the installed MLflow's own."""
    revision = known_revision(settings)
    if revision not in (None, revisions()[-1]):
        raise RefusedError(
            f"the database of permissions has the older schema {revision}, this MLflow needs "
            f"{revisions()[-1]}; nothing was changed",
            "./stack upgrade",
        )


def upgrade_permissions(settings: Settings) -> tuple[str | None, str]:
    """Bring the tables to the installed MLflow's revision, in one transaction; make them if need be.

    Return the revisions before and after. Raise RefusedError for a revision that is not known.
    """
    from mlflow.server.auth.db.utils import migrate

    before = known_revision(settings)
    if before != revisions()[-1]:
        engine = sqlalchemy.create_engine(settings.permissions_uri)
        try:
            migrate(engine, "head")
        finally:
            engine.dispose()
    return before, revisions()[-1]


def check_permissions_ready(settings: Settings) -> None:
    """Raise an exception unless the database of permissions answers and has the right revision."""
    with closing(connect(settings.permissions_uri)) as connection:
        revision = revision_of(connection)
    if revision != revisions()[-1]:
        raise RuntimeError(f"permissions have the revision {revision}, this MLflow needs {revisions()[-1]}")
