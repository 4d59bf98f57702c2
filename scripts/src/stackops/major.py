"""A database that another major version of PostgreSQL wrote, moved into this one.

The files of the former version cannot be read by this one, so its server runs (in a
container of its own image, on a socket inside the volume) while this one is filled from it.
The former files are only read, and kept as they were.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql

from stackops import backup, barman, cluster, command, postgres, restore
from stackops.errors import FailedError, OperationError
from stackops.settings import Settings

PERMISSIONS_DATABASE = "mlflow_auth"
"""MLflow's permissions: there where AUTHORIZATION=rbac was ever set."""
FORMER_SOCKET = "former-socket"
"""The folder of the volume with the former server's socket (scripts/host/verbs/upgrade.sh)."""
WAIT_SECONDS = 120
LOAD_TIMEOUT_SECONDS = 24 * 3600


def former(settings: Settings) -> dict[str, Any]:
    """Return the major version and folder of a former cluster; empty if there is none.

    Raise OperationError if there are several, or if this version's cluster is there too.
    """
    folders = [path.parent for path in sorted(settings.data.glob("[0-9]*/PG_VERSION"))]
    others = [folder for folder in folders if folder != settings.database_folder]
    if not others:
        return {}
    if len(folders) > 1:
        raise OperationError(
            f"the volume has several databases: {', '.join(folder.name for folder in folders)}",
            "move those that are not in use out of the volume",
        )
    return {"major": others[0].name, "folder": str(others[0])}


def move_over(settings: Settings) -> dict[str, Any]:
    """Fill a new cluster from the running former one, compare every table, and put it into its place.

    Raise FailedError if a table differs: nothing has been replaced then.
    """
    found = former(settings)
    if not found:
        raise OperationError("there is no database of another major version", "./stack up")
    old = Path(found["folder"])
    _check_room(settings, old)
    socket = settings.data / FORMER_SOCKET
    databases = _databases(socket)
    before = _contents(socket, databases)
    fresh = settings.data / "restoring" / settings.database_folder.name
    _make_cluster(fresh)
    with cluster.running(settings, fresh) as new:
        with closing(cluster.connect(new, database="postgres")) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            for role in ("mlflow", "stackops"):
                cursor.execute(f"CREATE ROLE {role} LOGIN")  # passwords come at the start
            for database in databases:
                statement = sql.SQL("CREATE DATABASE {} OWNER mlflow")
                cursor.execute(statement.format(sql.Identifier(database)))
        for database in databases:
            _load(socket, new, database)
        differences = postgres.compare_digests(before, _contents(new, databases))
    if differences:
        raise FailedError(
            "the new database differs from the former one; nothing was replaced:\n" + "\n".join(differences),
            "keep the former version and report this",
        )
    cluster.finish(fresh)
    kept = restore.swap(settings, fresh, "upgrade")
    backup.begin_anew(settings)
    return {"from_major": found["major"], "kept": kept, "tables": len(before)}


def _check_room(settings: Settings, old: Path) -> None:
    needed = sum(path.stat().st_size for path in old.rglob("*") if path.is_file())
    if shutil.disk_usage(settings.data).free < needed * 1.2:
        raise OperationError(
            f"the volume of the database needs {needed >> 20} MB more", "make room on the disk"
        )


def _databases(socket: Path) -> list[str]:
    """Return the names of the former server's databases: MLflow's records, and its permissions if any."""
    with closing(_connect(socket, "postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE datname = %s", (PERMISSIONS_DATABASE,))
        return [postgres.DATABASE, *(name for (name,) in cursor.fetchall())]


def _contents(socket: Path, databases: list[str]) -> postgres.Digests:
    """Return rows and digest of each table of each database."""
    found: postgres.Digests = {}
    for database in databases:
        with closing(cluster.connect(socket, database=database)) as connection:
            tables = postgres.digests(connection)
        found |= {f"{database}: {table}": content for table, content in tables.items()}
    return found


def _connect(socket: Path, database: str) -> psycopg2.extensions.connection:
    """Return a connection to the former server, which may still be starting."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return cluster.connect(socket, database=database)
        except psycopg2.OperationalError as error:
            if time.monotonic() > deadline:
                raise FailedError(
                    f"the former PostgreSQL does not answer: {error}",
                    "is POSTGRES_FORMER_IMAGE its image? docs/upgrade.md",
                ) from error
            time.sleep(0.5)


def _make_cluster(folder: Path) -> None:
    """Make an empty cluster, as postgres/start.sh does."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command.run(
        [
            barman.BINARIES / "initdb",
            *("--pgdata", folder, "--data-checksums", "--username=postgres"),
            *("--locale=C.UTF-8", "--encoding=UTF8", "--auth-local=peer", "--auth-host=scram-sha-256"),
        ],
        fix="is there room on the volume?",
        timeout_seconds=600,
    )


def _load(source: Path, target: Path, database: str) -> None:
    """Pipe a database from one server into the other. Raise FailedError if either end fails."""
    dump = [str(barman.BINARIES / "pg_dump"), "--host", str(source), "--username=postgres", "--format=custom"]
    load = [
        *(str(barman.BINARIES / "pg_restore"), "--host", str(target), "--username=postgres"),
        *(f"--dbname={database}", "--exit-on-error", "--no-privileges"),
    ]
    with subprocess.Popen([*dump, "--compress=0", database], stdout=subprocess.PIPE) as dumping:
        loading = subprocess.run(
            load,
            stdin=dumping.stdout,
            capture_output=True,
            text=True,
            timeout=LOAD_TIMEOUT_SECONDS,
            check=False,
        )
        dumping.stdout.close()
    if dumping.returncode or loading.returncode:
        raise FailedError(
            f"pg_dump ended with {dumping.returncode}, pg_restore with {loading.returncode}: "
            f"{loading.stderr[-2000:]}",
            "nothing was replaced; the former version can go on",
        )
