"""What cleanup remembers, in the schema `stackops`: batches, their items, and what is known since when.

No foreign keys into MLflow's tables. Times are PostgreSQL's own; ids are MLflow's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2.extensions import connection as Connection  # noqa: N812

from stackops import postgres
from stackops.errors import OperationError
from stackops.settings import Settings

ROLE = "stackops"
CHUNK = 500
"""Items that are carried out or undone in one transaction."""
REVISIONS = frozenset({"dc11669786a5"})
"""Revisions of MLflow's schema whose tables and links this package knows (tests compare them)."""

WAITING, RUNNING, DONE, REPLACED = "waiting", "running", "done", "replaced"
UNDOING, UNDONE = "undoing", "undone"
"""States of a batch: it waits for approval, is being carried out, was carried out; it waited until a
newer one took its place; it is being undone, was undone."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS stackops.batches (
    batch text PRIMARY KEY,
    made timestamptz NOT NULL DEFAULT now(),
    state text NOT NULL,
    done timestamptz,
    facts jsonb NOT NULL
);
CREATE TABLE IF NOT EXISTS stackops.batch_items (
    batch text NOT NULL REFERENCES stackops.batches ON DELETE CASCADE,
    kind text NOT NULL,
    id text NOT NULL,
    experiment_id integer NOT NULL,
    rule text NOT NULL,
    says text NOT NULL,
    bytes bigint,
    state text NOT NULL DEFAULT 'planned',
    done timestamptz,
    PRIMARY KEY (batch, kind, id)
);
CREATE INDEX IF NOT EXISTS batch_items_id ON stackops.batch_items (kind, id);
CREATE TABLE IF NOT EXISTS stackops.known_runs (
    run_id text PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT now(),
    deleted boolean NOT NULL DEFAULT false,
    running_since timestamptz
);
CREATE TABLE IF NOT EXISTS stackops.doomed_objects (
    prefix text PRIMARY KEY,
    kind text NOT NULL,
    id text NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS stackops.usage (
    kind text NOT NULL,
    id text NOT NULL,
    experiment_id integer,
    objects bigint NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE TABLE IF NOT EXISTS stackops.usage_history (
    day date NOT NULL,
    experiment_id integer NOT NULL,
    objects bigint NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (day, experiment_id)
);
CREATE TABLE IF NOT EXISTS stackops.inventories (
    made timestamptz PRIMARY KEY,
    seconds real NOT NULL,
    facts jsonb NOT NULL
);
CREATE TABLE IF NOT EXISTS stackops.orphans (
    prefix text PRIMARY KEY,
    kind text NOT NULL,
    objects bigint NOT NULL,
    bytes bigint NOT NULL,
    first_seen timestamptz NOT NULL,
    last_seen timestamptz NOT NULL
);
"""


@dataclass(frozen=True)
class Batch:
    """A batch of cleanup: what was planned together and is carried out and undone together."""

    batch: str
    made: datetime
    state: str
    done: datetime | None
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """Something that a batch deletes: its kind (run, trace, artifacts, killed), MLflow's id, its size.

    `says` is the rule at that moment in words: what changed its meaning decides anew.
    """

    kind: str
    id: str
    experiment_id: int
    rule: str
    says: str
    bytes: int | None = None


@contextmanager
def opened(settings: Settings) -> Iterator[Connection]:
    """Yield a connection that may delete, with the journal's tables there and the runs known.

    Raise OperationError for a schema of MLflow that this version was not tested with.
    """
    with closing(postgres.connect(settings, role=ROLE)) as connection:
        revision = postgres.schema_revision(connection)
        if revision not in REVISIONS:
            raise OperationError(
                f"the schema of the database is {revision}; cleanup knows {', '.join(sorted(REVISIONS))}",
                "./stack upgrade",
            )
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('stackops'))")
            cursor.execute(SCHEMA)
        check_clock(connection)
        learn_runs(connection)
        yield connection


def check_clock(connection: Connection) -> None:
    """Raise OperationError if the database's clock is behind what was noted here: ages would be wrong."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT now(), newest FROM (SELECT max(made) AS newest FROM (SELECT made FROM stackops.batches"
            " UNION ALL SELECT made FROM stackops.inventories) AS times) AS found"
            " WHERE newest > now() + interval '1 hour'"
        )
        wrong = cursor.fetchone()
    if wrong:
        raise OperationError(
            f"the clock says {wrong[0]:%Y-%m-%d %H:%M}, but the last batch or inventory was made at"
            f" {wrong[1]:%Y-%m-%d %H:%M}; nothing was changed",
            "set the clock of this machine",
        )


def learn_runs(connection: Connection) -> None:
    """Note since when this stack knows each run: an adopted history is new on its first day.

    A run that somebody restored is new again too, or the next batch would delete it once more.
    How long a run has been seen RUNNING is noted as well: MLflow keeps the end of one that is resumed.
    """
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO stackops.known_runs (run_id) SELECT run_uuid FROM runs"
            " WHERE NOT EXISTS (SELECT FROM stackops.known_runs WHERE run_id = run_uuid)"
            " ON CONFLICT DO NOTHING"
        )
        cursor.execute(
            "UPDATE stackops.known_runs AS known SET deleted = lifecycle_stage = 'deleted',"
            "  running_since = CASE status WHEN 'RUNNING' THEN coalesce(running_since, now()) END,"
            "  since = CASE WHEN deleted AND lifecycle_stage = 'active' THEN now() ELSE since END"
            " FROM runs WHERE run_uuid = run_id AND (deleted <> (lifecycle_stage = 'deleted')"
            "  OR (running_since IS NULL) = (status = 'RUNNING'))"
        )
        cursor.execute(
            "UPDATE stackops.batch_items AS item SET state = 'restored' FROM runs"
            " WHERE item.kind = 'run' AND item.state = 'done' AND run_uuid = item.id"
            " AND lifecycle_stage = 'active'"
        )


def write_batch(connection: Connection, name: str, state: str, facts: dict[str, Any]) -> None:
    """Write a batch: what plan.make has planned in this session."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO stackops.batches (batch, state, facts) VALUES (%s, %s, %s)",
            (name, state, json.dumps(facts)),
        )
        cursor.execute(
            "INSERT INTO stackops.batch_items (batch, kind, id, experiment_id, rule, says, bytes)"
            " SELECT %s, kind, id, experiment_id, rule, says, bytes FROM planned",
            (name,),
        )


def batches(connection: Connection) -> list[Batch]:
    """Return every batch, the oldest first."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT batch, made, state, done, facts FROM stackops.batches ORDER BY made, batch")
        return [Batch(*row) for row in cursor]


def batch(connection: Connection, name: str) -> Batch:
    """Return a batch. Raise OperationError if there is none of that name."""
    for found in batches(connection):
        if found.batch == name:
            return found
    raise OperationError(f"there is no batch {name}", "./stack cleanup list")


def chunks(
    connection: Connection, name: str, state: str, *, still_planned: bool = False
) -> Iterator[list[tuple[str, str]]]:
    """Yield (kind, id) of the items of a batch that are in a state, some hundreds at a time.

    States are planned, done, undone, restored, purged. With `still_planned` only those that
    plan.make has planned in this session too.
    """
    last = ("", "")
    while True:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT kind, id FROM stackops.batch_items AS item WHERE batch = %s AND state = %s"
                " AND (kind, id) > (%s, %s)"
                + (
                    " AND EXISTS (SELECT FROM planned WHERE (kind, id) = (item.kind, item.id))"
                    * still_planned
                )
                + " ORDER BY kind, id LIMIT %s",
                (name, state, *last, CHUNK),
            )
            found = cursor.fetchall()
        if not found:
            return
        yield found
        last = found[-1]


def totals(connection: Connection) -> dict[str, Any]:
    """Return what the batches come to.

    The batch that waits for approval with its facts (or None), how many runs are deleted and how
    many were purged, and how many prefixes have objects that are still to go.
    """
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT batch, facts FROM stackops.batches WHERE state = 'waiting' ORDER BY made DESC LIMIT 1"
        )
        waiting = cursor.fetchone()
        cursor.execute("SELECT state, count(*) FROM stackops.batch_items WHERE kind = 'run' GROUP BY state")
        runs = dict(cursor.fetchall())
        cursor.execute("SELECT count(*) FROM stackops.doomed_objects")
        return {
            "waiting": {"batch": waiting[0], **waiting[1]} if waiting else None,
            "deleted_runs": runs.get("done", 0),
            "purged_runs": runs.get("purged", 0),
            "doomed_prefixes": cursor.fetchone()[0],
        }


def deleted(connection: Connection) -> list[dict[str, Any]]:
    """Return the runs, models and experiments that are deleted and still there: by whom, since when (UTC)."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT 'run' AS kind, run_uuid AS id, experiments.name,"
            "  coalesce('batch ' || item.batch, 'a person'),"
            "  to_timestamp(deleted_time / 1000.0) AS since, usage.bytes"
            " FROM runs JOIN experiments USING (experiment_id)"
            " LEFT JOIN stackops.batch_items AS item ON item.kind = 'run' AND item.id = run_uuid"
            "  AND item.state = 'done'"
            " LEFT JOIN stackops.usage ON usage.kind = 'run' AND usage.id = run_uuid"
            " WHERE runs.lifecycle_stage = 'deleted'"
            " UNION ALL SELECT 'model', model_id, experiments.name, 'a person',"
            "  to_timestamp(last_updated_timestamp_ms / 1000.0), usage.bytes"
            " FROM logged_models JOIN experiments USING (experiment_id)"
            " LEFT JOIN stackops.usage ON usage.kind = 'model' AND usage.id = model_id"
            " WHERE logged_models.lifecycle_stage = 'deleted'"
            " UNION ALL SELECT 'experiment', experiment_id::text, name, 'a person',"
            "  to_timestamp(last_update_time / 1000.0), NULL"
            " FROM experiments WHERE lifecycle_stage = 'deleted'"
            " ORDER BY since, kind, id"
        )
        names = ("kind", "id", "experiment", "by", "since", "bytes")
        return [dict(zip(names, row, strict=True)) for row in cursor]


def set_state(connection: Connection, name: str, state: str) -> None:
    """Change the state of a batch; a batch that is done gets the moment."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE stackops.batches SET state = %s, done = CASE WHEN %s = 'done' THEN now() ELSE done END"
            " WHERE batch = %s",
            (state, state, name),
        )
        if state == REPLACED:  # nobody asks for its items again
            cursor.execute("DELETE FROM stackops.batch_items WHERE batch = %s", (name,))
