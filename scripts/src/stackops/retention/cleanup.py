"""Cleanup in two steps: batches that are planned, approved, carried out (reversibly) and undone.

Runs are deleted the way MLflow deletes them (lifecycle stage), so that the UI's restore works.
What cannot be deleted reversibly (traces, artifacts) is only named as doomed: purge.py deletes it.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

from psycopg2.extensions import connection as Connection  # noqa: N812

from stackops.errors import OperationError
from stackops.retention import journal, plan
from stackops.retention.journal import DONE, REPLACED, RUNNING, UNDOING, UNDONE, WAITING
from stackops.retention.policy import Policy

MANY = 100
MANY_SHARE = 0.2


def needs_approval(planned: plan.Plan, *, first: bool) -> bool:
    """Return whether a scheduled batch must wait: the first one of a database, or a large one.

    Large is what names many runs, or many traces, and a good share of all of them.
    """
    of = {"trace": planned.traces}
    return any(
        count and (first or _is_large(count, of.get(kind, planned.active_runs)))
        for kind, count in planned.counts.items()
    )


def _is_large(count: int, of: int) -> bool:
    return count > MANY and count > MANY_SHARE * of


def facts_of(planned: plan.Plan) -> dict[str, Any]:
    """Return the counts of a plan, and the bytes of its runs and traces as of the last inventory.

    How much of a run's artifacts a rule names is known only when they are listed.
    """
    return {
        "runs": planned.counts.get("run", 0),
        "killed": planned.counts.get("killed", 0),
        "traces": planned.counts.get("trace", 0),
        "artifact_runs": planned.counts.get("artifacts", 0),
        "bytes": planned.bytes,
        "kept": planned.kept,
        "active_runs": planned.active_runs,
    }


def run(connection: Connection, policy: Policy, *, scheduled: bool, now: datetime) -> dict[str, Any]:
    """Plan a batch and carry it out, or let it wait for approval. Return its facts."""
    planned = plan.make(connection, policy)
    before = journal.batches(connection)
    finished = {}
    for batch in before:
        if batch.state == RUNNING:  # it was interrupted
            finished[batch.batch] = _carry_out(connection, batch.batch)
            planned = plan.make(connection, policy)
    for batch in before:
        if batch.state == WAITING:
            journal.set_state(connection, batch.batch, REPLACED)
    facts = facts_of(planned) | {"scheduled": scheduled, "finished": finished}
    if not planned.counts:
        return {"batch": None, "state": "nothing to do", **facts}
    first = not any(
        batch.facts.get("scheduled") and batch.state not in {WAITING, REPLACED} for batch in before
    )
    waits = scheduled and needs_approval(planned, first=first)
    name = now.strftime("%Y%m%dT%H%M%S")
    while name in {batch.batch for batch in before}:
        name += "b"
    journal.write_batch(connection, name, WAITING if waits else RUNNING, facts)
    if waits:
        return {"batch": name, "state": WAITING, **facts}
    return {"batch": name, "state": DONE, **facts, "done": _carry_out(connection, name)}


def approve(connection: Connection, policy: Policy, name: str) -> dict[str, Any]:
    """Carry a waiting batch out: what it names and what the policy still says. Return its facts."""
    batch = journal.batch(connection, name)
    if batch.state != WAITING:
        raise OperationError(f"the batch {name} does not wait: it is {batch.state}", "./stack cleanup list")
    journal.set_state(connection, name, RUNNING)
    plan.make(connection, policy)
    done = _carry_out(connection, name)
    return {"batch": name, "state": DONE, **batch.facts, "done": done}


def undo(connection: Connection, name: str) -> dict[str, Any]:
    """Bring back what a batch deleted and is still there. Return how many of each kind."""
    batch = journal.batch(connection, name)
    if batch.state not in {RUNNING, DONE, UNDOING}:
        raise OperationError(f"the batch {name} is {batch.state}: nothing to undo", "./stack cleanup list")
    journal.set_state(connection, name, UNDOING)  # or an interruption would leave it to be carried out
    undone: Counter[str] = Counter()
    for chunk in journal.chunks(connection, name, "done"):
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE runs SET lifecycle_stage = 'active', deleted_time = NULL"
                " FROM stackops.batch_items AS item"
                " WHERE item.batch = %s AND item.kind = 'run' AND item.id = ANY(%s) AND run_uuid = item.id"
                " AND lifecycle_stage = 'deleted'"
                # Deleted by this batch, and not again by a person after a restore.
                " AND deleted_time = (extract(epoch FROM item.done) * 1000)::bigint"
                " RETURNING item.kind, item.id",
                (name, [id_ for kind, id_ in chunk if kind == "run"]),
            )
            back = cursor.fetchall()
            cursor.execute(
                "UPDATE runs SET status = 'RUNNING', end_time = NULL FROM stackops.batch_items AS item"
                " WHERE item.batch = %s AND item.kind = 'killed' AND item.id = ANY(%s) AND run_uuid = item.id"
                " AND status = 'KILLED' AND end_time = (extract(epoch FROM item.done) * 1000)::bigint"
                " RETURNING item.kind, item.id",
                (name, [id_ for kind, id_ in chunk if kind == "killed"]),
            )
            back += cursor.fetchall()
            back += [(kind, id_) for kind, id_ in chunk if kind in {"trace", "artifacts"}]
            _mark(cursor, name, back, UNDONE)
            # Or the next batch would delete them again.
            cursor.execute(
                "UPDATE stackops.known_runs SET since = now(), deleted = false,"
                " running_since = NULL WHERE run_id = ANY(%s)",
                ([id_ for kind, id_ in back if kind != "trace"],),
            )
        undone.update(kind for kind, _ in back)
    journal.set_state(connection, name, UNDONE)
    return {"batch": name, "state": UNDONE, "undone": dict(undone)}


def _mark(cursor: Any, name: str, keys: list[tuple[str, str]], state: str) -> None:
    """Give items a state; `done` is the moment of the transaction in whole milliseconds."""
    for kind in {kind for kind, _ in keys}:
        cursor.execute(
            "UPDATE stackops.batch_items SET state = %s,"
            " done = CASE WHEN %s = 'done' THEN date_trunc('milliseconds', now()) ELSE done END"
            " WHERE batch = %s AND kind = %s AND id = ANY(%s)",
            (state, state, name, kind, [name_ for kind_, name_ in keys if kind_ == kind]),
        )


def _carry_out(connection: Connection, name: str) -> dict[str, int]:
    """Carry out what a batch names and the plan of this session still has. Return how many of each kind."""
    done: Counter[str] = Counter()
    for chunk in journal.chunks(connection, name, "planned", still_planned=True):
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE runs SET lifecycle_stage = 'deleted',"
                " deleted_time = (extract(epoch FROM date_trunc('milliseconds', now())) * 1000)::bigint"
                " WHERE run_uuid = ANY(%s) AND lifecycle_stage = 'active' AND status <> 'RUNNING'"
                " RETURNING 'run', run_uuid",
                ([id_ for kind, id_ in chunk if kind == "run"],),
            )
            keys = cursor.fetchall()
            cursor.execute(
                "UPDATE stackops.known_runs SET deleted = true WHERE run_id = ANY(%s)",
                ([name_ for _, name_ in keys],),
            )
            cursor.execute(
                "UPDATE runs SET status = 'KILLED',"
                " end_time = (extract(epoch FROM date_trunc('milliseconds', now())) * 1000)::bigint"
                " WHERE run_uuid = ANY(%s) AND status = 'RUNNING' RETURNING 'killed', run_uuid",
                ([id_ for kind, id_ in chunk if kind == "killed"],),
            )
            keys += cursor.fetchall()
            keys += [(kind, id_) for kind, id_ in chunk if kind in {"trace", "artifacts"}]
            _mark(cursor, name, keys, DONE)
        done.update(kind for kind, _ in keys)
    journal.set_state(connection, name, DONE)
    return dict(done)
