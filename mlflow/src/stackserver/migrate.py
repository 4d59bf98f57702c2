"""One-shot: bring an older database to this MLflow's schema, and prove that nothing was lost.

Counts and digests of every table are taken before and after MLflow's own migration and
compared; what the migration is known to change stands in moves.py. Digests are made by
PostgreSQL over the columns that both schemas have.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import sqlalchemy
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2's own name

from stackserver.database import connect, pinned_revision, revision_chain, schema_revision, unknown_revision
from stackserver.errors import RefusedError
from stackserver.moves import MOVES, NEW_ROWS, NOT_COMPARED, Move

TESTED_REVISIONS = {
    "acf3f17fdcc7": "2.9.2",
    "0584bdc529eb": "2.22.5",
    "bda7b8c39065": "3.1.4",
    "1b5f0d9ad7c1": "3.10.1",
    "dc11669786a5": "3.17.2",
}
"""Revision -> the MLflow whose database was migrated from it (tests/data/old), and the pinned one.

Other releases have the same revisions, read from their wheels: 2.8.0 to 2.12.2, 2.18.0 to
2.22.5, 3.0.1 and 3.1.1 to 3.1.4, 3.10.0 and 3.10.1.
"""
MAINTENANCE_LOCK = "stackops maintenance"
LOCK_TIMEOUT_SECONDS = 60
"""How long MLflow's migration waits for a table that somebody else reads, before it gives up."""
SESSIONS_GONE_SECONDS = 10
"""PostgreSQL shows a session for a moment after its client is gone."""


@dataclass(frozen=True)
class Content:
    """The rows of a table, or of a query: how many, and a digest that does not depend on their order."""

    rows: int = 0
    digest: str = "0"


Snapshot = Mapping[str, Content]


class MigrationError(Exception):
    """The migration did not end as it must; the message says in which state the database is."""


@dataclass
class Outcome:
    """What one run of the step found and did; `print` of it as JSON is the last line."""

    revision_before: str | None
    revision_after: str | None
    migrated: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        """Return the outcome as one line."""
        versions = [
            TESTED_REVISIONS.get(revision or "") for revision in (self.revision_before, self.revision_after)
        ]
        return json.dumps(
            {
                "ok": not self.differences,
                "mlflow_before": versions[0],
                "mlflow_after": versions[1],
                **vars(self),
            }
        )


def check_hop(revision: str, chain: tuple[str, ...], tested: Mapping[str, str]) -> None:
    """Raise RefusedError unless the migration from this revision was tested.

    `chain` is every revision that the installed MLflow knows, oldest first.
    """
    if revision in tested:
        return
    if revision not in chain:
        raise unknown_revision(revision, chain[-1])
    later = chain[chain.index(revision) + 1 :]
    version = next(tested[candidate] for candidate in later if candidate in tested)
    raise RefusedError(
        f"the database has the schema {revision}, from which no migration was tested (tested: MLflow "
        f"{', '.join(tested.values())}); nothing was changed",
        f"take a backup, run 'mlflow db upgrade' of MLflow {version} on the database, then ./stack upgrade",
    )


def differences(before: Snapshot, after: Snapshot, new_rows: Mapping[str, int] = NEW_ROWS) -> list[str]:
    """Return a sentence for each table that the migration changed and is not known to change."""
    found = []
    for name, old in sorted(before.items()):
        new = after.get(name)
        if new is None:
            found.append(f"{name}: {old.rows} rows before, gone after")
        elif old.rows != new.rows:
            found.append(f"{name}: {old.rows} rows before, {new.rows} after")
        elif old.digest != new.digest:
            found.append(f"{name}: {old.rows} rows before and after, but not the same")
    for name in sorted(after.keys() - before.keys()):
        expected = new_rows.get(name, 0)
        if after[name].rows != expected:
            found.append(f"{name}: new, {after[name].rows} rows, {expected} expected")
    return found


def compared_columns(
    existing: Mapping[str, Iterable[str]], model: Mapping[str, frozenset[str]]
) -> dict[str, list[str]]:
    """Return the columns to compare of each table: those that the new schema has too.

    A table that MLflow does not know is compared whole: its migration must not touch it.
    """
    return {
        table: sorted(
            (frozenset(columns) & model.get(table, frozenset(columns))) - NOT_COMPARED.get(table, frozenset())
        )
        for table, columns in existing.items()
    }


def applicable(moves: Iterable[Move], tables: Iterable[str]) -> list[Move]:
    """Return the moves whose tables are there; of two with one name the later."""
    there = frozenset(tables)
    return list({move.name: move for move in moves if move.needs <= there}.values())


def model_columns() -> dict[str, frozenset[str]]:
    """Return the columns of each table of the installed MLflow."""
    from mlflow.store.db.utils import Base  # this module imports all models

    return {table.name: frozenset(table.columns.keys()) for table in Base.metadata.sorted_tables}


def existing_columns(connection: Connection) -> dict[str, list[str]]:
    """Return the columns of each table of the schema that MLflow uses."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, array_agg(a.attname::text) FROM pg_class c"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')"
            " GROUP BY c.relname"
        )
        return dict(cursor.fetchall())


def content_of(connection: Connection, query: sql.Composable) -> Content:
    """Return how many rows a query gives, and the sum of their hashes."""
    statement = sql.SQL(
        "SELECT count(*), coalesce(sum(hashtextextended(part::text, 0)::numeric), 0)::text FROM ({}) AS part"
    ).format(query)
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return Content(*cursor.fetchone())


def table_query(table: str, columns: Iterable[str], leaving: Iterable[str]) -> sql.Composable:
    """Return the query of a table's compared columns, without the rows whose keys leave it."""
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    query = sql.SQL("SELECT {} FROM {}").format(names, sql.Identifier(table))
    keys = list(leaving)
    return query + sql.SQL(" WHERE key <> ALL({})").format(sql.Literal(keys)) if keys else query


def table_contents(
    connection: Connection, columns: Mapping[str, list[str]], moves: Iterable[Move]
) -> dict[str, Content]:
    """Return the content of each table, without the rows that move."""
    leaving: dict[str, list[str]] = {}
    for move in moves:
        for table, keys in move.leaving:
            leaving.setdefault(table, []).extend(keys)
    return {
        table: content_of(connection, table_query(table, names, leaving.get(table, ())))
        for table, names in columns.items()
    }


def count(connection: Connection, query: str) -> int:
    """Return the one number that a query gives."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


@contextmanager
def maintenance_lock(connection: Connection) -> Iterator[None]:
    """Hold the lock that backup, restore, cleanup and upgrade share. Raise RefusedError if it is taken."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext(%s))", (MAINTENANCE_LOCK,))
        if not cursor.fetchone()[0]:
            raise RefusedError(
                "another maintenance job (backup, restore, cleanup, upgrade) holds the database's lock; "
                "which one is not known; nothing was changed",
                "wait until it is done, then run ./stack upgrade again",
            )
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(hashtext(%s))", (MAINTENANCE_LOCK,))


def check_alone(connection: Connection, *, seconds: float = SESSIONS_GONE_SECONDS) -> None:
    """Raise RefusedError if another session of MLflow's role uses the database: a server still runs."""
    deadline = time.monotonic() + seconds
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"
    )
    while sessions := count(connection, query):
        if time.monotonic() > deadline:
            raise RefusedError(
                f"{sessions} other sessions of MLflow's role use the database: a server still runs; "
                "nothing was changed",
                "stop it (docker compose stop mlflow), then run ./stack upgrade again",
            )
        time.sleep(0.5)


def upgrade_schema(database_uri: str) -> None:
    """Run MLflow's own migration: all of it is one transaction on PostgreSQL. Raise MigrationError."""
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.utils import _upgrade_db

    options = {"options": f"{os.environ.get('PGOPTIONS', '')} -c lock_timeout={LOCK_TIMEOUT_SECONDS}s"}
    engine = sqlalchemy.create_engine(database_uri, connect_args=options)
    try:
        _upgrade_db(engine)
    except (sqlalchemy.exc.SQLAlchemyError, CommandError, MlflowException, RuntimeError) as error:
        raise MigrationError(f"MLflow's migration failed: {str(error).strip()}") from error
    finally:
        engine.dispose()


def compare_around(connection: Connection, outcome: Outcome, upgrade: Callable[[], None]) -> None:
    """Take a snapshot, migrate, take another, and write into the outcome what differs."""
    existing = existing_columns(connection)
    columns = compared_columns(existing, model_columns())
    moves = applicable(MOVES, existing)

    started = time.monotonic()
    before = table_contents(connection, columns, moves)
    before |= {move.name: content_of(connection, sql.SQL(move.before)) for move in moves}
    cut = {move.name: count(connection, move.cut) for move in moves}
    outcome.seconds["before"] = round(time.monotonic() - started, 2)
    print(
        f"before: {sum(content.rows for content in before.values())} rows in {len(columns)} tables",
        flush=True,
    )

    started = time.monotonic()
    upgrade()
    outcome.seconds["migration"] = round(time.monotonic() - started, 2)
    outcome.revision_after = schema_revision(connection)
    outcome.migrated = True
    print(f"migrated to schema {outcome.revision_after} in {outcome.seconds['migration']} s", flush=True)

    started = time.monotonic()
    now = existing_columns(connection)
    after = table_contents(
        connection, {table: columns.get(table, names) for table, names in now.items()}, moves
    )
    after |= {move.name: content_of(connection, sql.SQL(move.after)) for move in moves}
    outcome.seconds["after"] = round(time.monotonic() - started, 2)

    counts = {name: [before.get(name, Content()).rows, after.get(name, Content()).rows] for name in after}
    outcome.rows = {name: pair for name, pair in counts.items() if any(pair)}
    outcome.known = known_changes(moves, before, cut)
    outcome.differences = differences(before, after)


def known_changes(moves: Iterable[Move], before: Snapshot, cut: Mapping[str, int]) -> list[str]:
    """Return a sentence for each move that had something to move."""
    return [
        f"{move.name}: {before[move.name].rows} moved, {cut[move.name]} cut or unreadable"
        for move in moves
        if before[move.name].rows or cut[move.name]
    ]


def check(database_uri: str) -> None:
    """Say which migration there would be. Raise RefusedError if it was not tested; change nothing."""
    with closing(connect(database_uri)) as connection:
        revision = schema_revision(connection)
    if revision in (None, pinned_revision()):
        print(f"nothing to migrate: the schema is {revision or 'not made yet'}", flush=True)
        return
    check_hop(revision, revision_chain(), TESTED_REVISIONS)
    print(f"schema {revision} of MLflow {TESTED_REVISIONS[revision]}, to {pinned_revision()}", flush=True)


def migrate(database_uri: str) -> Outcome:
    """Bring the database to the pinned schema; return what was found and done.

    Raise RefusedError before anything was changed, MigrationError if MLflow's migration
    fails. A difference is in the outcome: the caller must look.
    """
    pinned = pinned_revision()
    with closing(connect(database_uri, timeout_ms=0)) as connection:
        # Never idle in a transaction: PostgreSQL ends such a session, and its lock, after a while.
        connection.autocommit = True
        with maintenance_lock(connection):
            revision = schema_revision(connection)
            outcome = Outcome(revision, revision)
            if revision in (None, pinned):
                print(f"nothing to migrate: the schema is {revision or 'not made yet'}", flush=True)
                return outcome
            check_hop(revision, revision_chain(), TESTED_REVISIONS)
            print(
                f"the database has the schema {revision} of MLflow {TESTED_REVISIONS[revision]}", flush=True
            )
            check_alone(connection)
            try:
                compare_around(connection, outcome, lambda: upgrade_schema(database_uri))
            except MigrationError as error:
                now = schema_revision(connection)
                state = "as before, nothing was changed" if now == revision else "CHANGED, restore the backup"
                raise MigrationError(f"{error}\nthe database has the schema {now}: {state}") from error
    return outcome


def report(outcome: Outcome) -> int:
    """Print the outcome for people, then one line of JSON; return the exit status."""
    for fact in outcome.known:
        print(f"known: {fact}", flush=True)
    for difference in outcome.differences:
        print(f"DIFFERENT: {difference}", flush=True)
    if outcome.differences:
        print("the migration changed what it must not: restore the backup", flush=True)
    elif outcome.migrated:
        print(f"compared: {len(outcome.rows)} tables and moves with rows, no other difference", flush=True)
    print(outcome.as_json(), flush=True)
    return 1 if outcome.differences else 0
