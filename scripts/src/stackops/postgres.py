"""The running database: connections, the maintenance lock, the reference point of a set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from stackops.errors import BusyError, FailedError
from stackops.settings import Settings

ROLE = "backup"
DATABASE = "mlflow"
SLOT = "barman"
LOCK = "stackops maintenance"
"""Held by whoever must not be disturbed: backup, cleanup, upgrade (a session lock of `mlflow`)."""
LOCK_ATTEMPTS = 10
CONNECT_TIMEOUT_SECONDS = 5

Digests = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ReferencePoint:
    """A named place in the write-ahead log, and what every table held exactly there."""

    name: str
    lsn: str
    wal_file: str
    time: str
    timeline: int
    tables: Digests


def connect(settings: Settings, database: str = DATABASE, *, role: str = ROLE, **more: Any) -> Connection:
    """Return a connection, as `backup` unless said. Raise FailedError if the database is away."""
    try:
        return psycopg2.connect(
            host=settings.database_host,
            user=role,
            dbname=database,
            passfile=str(settings.secrets / "pgpass"),
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name="stackops",
            **more,
        )
    except psycopg2.OperationalError as error:
        raise FailedError(f"the database does not answer: {str(error).strip()}", "./stack status") from error


def fetch_one(connection: Connection, statement: str | sql.Composable, values: tuple = ()) -> tuple:
    """Return the first row that a statement gives. Raise FailedError if the database goes away."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchone()
    except psycopg2.OperationalError as error:
        raise FailedError(f"the database failed: {str(error).strip()}", "./stack status") from error


@contextmanager
def maintenance_lock(settings: Settings) -> Iterator[None]:
    """Keep backup, cleanup and upgrade from each other. Raise BusyError if one is at work."""
    with closing(connect(settings)) as connection:
        connection.autocommit = True
        if not fetch_one(connection, "SELECT pg_try_advisory_lock(hashtext(%s))", (LOCK,))[0]:
            raise BusyError(
                "another backup, cleanup or upgrade is at work; this one did nothing", "wait for it"
            )
        yield


def system_identifier(settings: Settings) -> str:
    """Return the identifier that initdb gave this cluster: it survives every restore."""
    with closing(connect(settings, "postgres")) as connection:
        return str(fetch_one(connection, "SELECT system_identifier FROM pg_control_system()")[0])


def schema_revision(connection: Connection) -> str | None:
    """Return the revision of MLflow's schema, or None where there is none."""
    if fetch_one(connection, "SELECT to_regclass('public.alembic_version')")[0] is None:
        return None
    row = fetch_one(connection, "SELECT version_num FROM public.alembic_version")
    return row[0] if row else None


def tables(connection: Connection) -> list[tuple[str, str]]:
    """Return (schema, name) of each table of MLflow and of the stack."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT schemaname, tablename FROM pg_tables"
            " WHERE schemaname IN ('public', 'stackops') ORDER BY 1, 2"
        )
        return cursor.fetchall()


def digests(connection: Connection) -> Digests:
    """Return rows and digest of each table, as the connection's transaction sees them.

    The digest is the sum of a 64-bit hash of every row's text: equal tables have equal ones
    whatever the order; it is no proof against somebody who forges rows.
    """
    found: Digests = {}
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL TIME ZONE 'UTC'")
        cursor.execute("SET LOCAL extra_float_digits = 1")
        for schema, table in tables(connection):
            cursor.execute(
                sql.SQL(
                    "SELECT count(*), coalesce(sum(hashtextextended(row::text, 0)::numeric), 0)::text"
                    " FROM {} AS row"
                ).format(sql.Identifier(schema, table))
            )
            rows, digest = cursor.fetchone()
            found[f"{schema}.{table}"] = {"rows": rows, "digest": digest}
    return found


def compare_digests(expected: Digests, found: Digests) -> list[str]:
    """Return a line for each table that differs; none when all are equal."""
    differences = []
    for name in sorted({*expected, *found}):
        before, after = expected.get(name), found.get(name)
        if before == after:
            continue
        if before is None or after is None:
            differences.append(f"{name}: {'not expected' if before is None else 'missing'}")
        elif before["rows"] != after["rows"]:
            differences.append(f"{name}: {before['rows']} rows expected, {after['rows']} found")
        else:
            differences.append(f"{name}: {before['rows']} rows, but with other contents")
    return differences


def reference_point(settings: Settings, name: str) -> ReferencePoint:
    """Name a place in the log and digest every table as it is exactly there.

    Writers wait for the few milliseconds between the lock on the tables and the restore
    point: no transaction can end between the snapshot and that place. The digests are
    computed afterwards, from the snapshot, while writers go on. Raise FailedError if the
    tables could not be locked (a transaction that writes for more than 10 s).
    """
    with (
        closing(connect(settings)) as locking,
        closing(connect(settings)) as reading,
        closing(connect(settings, "postgres")) as marking,
    ):
        reading.set_session(isolation_level="REPEATABLE READ", readonly=True)
        marking.autocommit = True
        _lock_tables(locking)
        fetch_one(reading, "SELECT 1 FROM pg_tables LIMIT 1")  # takes the snapshot
        # One statement: the server's clock and the place belong together.
        lsn, wal_file, time, timeline = fetch_one(
            marking,
            "SELECT lsn::text, pg_walfile_name(lsn), clock_timestamp()::text,"
            " ('x' || left(pg_walfile_name(lsn), 8))::bit(32)::int"
            " FROM pg_create_restore_point(%s) AS lsn",
            (name,),
        )
        locking.rollback()
        return ReferencePoint(name, lsn, wal_file, time, timeline, digests(reading))


def _lock_tables(connection: Connection) -> None:
    """Keep every writer out until the transaction ends; waits a second at a time."""
    names = sql.SQL(", ").join(sql.Identifier(*name) for name in tables(connection))
    connection.rollback()
    for _ in range(LOCK_ATTEMPTS):
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '1s'")
                cursor.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(names))
            return
        except psycopg2.errors.LockNotAvailable:
            connection.rollback()
    raise FailedError(
        "the tables could not be locked for a moment: a transaction writes for longer than 10 s",
        "./stack backup run when it has ended",
    )


def switch_wal(settings: Settings, name: str) -> str:
    """End the current segment of the log, so that it can be archived; return the segment's name.

    The named restore point makes sure that there is something to end: an idle server would
    not switch.
    """
    with closing(connect(settings, "postgres")) as connection:
        connection.autocommit = True
        query = "SELECT pg_walfile_name(pg_create_restore_point(%s))"
        wal_file = fetch_one(connection, query, (name,))[0]
        fetch_one(connection, "SELECT pg_switch_wal()")
        # A receiver closes a segment when the next one begins: on an idle server 12 s later.
        fetch_one(connection, query, (name,))
        return wal_file
