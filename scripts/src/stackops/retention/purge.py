"""Purge: what was deleted long enough ago goes for good, rows first, then objects.

Rows go in small transactions that hold the run's rows and, for their last moment, the model
registry still, and look again whether something has come to keep them. In the same transaction
the prefixes of the objects are written into the journal; the objects go after the commit,
so a purge that was killed anywhere is finished by the next one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from psycopg2.extras import execute_values

from stackops.retention import keep, plan, tables
from stackops.retention.places import Place, of_location
from stackops.retention.policy import Policy

TARGET_SECONDS = 0.1
"""How long a transaction should take; the number of rows follows from it."""
FIRST_CHUNK, LARGEST_CHUNK = 20, 500
KEPT_SECONDS = 120
"""How old the knowledge of what must stay may be; what transactions look at again is less."""
ATTEMPTS = 20
PAUSE_SECONDS = 0.2


class KeptChangedError(Exception):
    """Something was registered, tagged or linked since it was found out what must stay."""


@dataclass(frozen=True)
class Kind:
    """A kind of record that is purged: its table, key, and what says that one is due."""

    name: str
    table: str
    column: str
    location: str
    due: str


RUNS = Kind(
    "run",
    "runs",
    "run_uuid",
    "artifact_uri",
    "lifecycle_stage = 'deleted' AND deleted_time < %(before)s"
    # Known and complete then: a backup of that moment has it.
    " AND EXISTS (SELECT FROM stackops.known_runs AS known WHERE known.run_id = run_uuid"
    "  AND known.since < to_timestamp(%(before)s / 1000.0))"
    " AND NOT EXISTS (SELECT FROM logged_models AS model WHERE model.source_run_id = run_uuid"
    "  AND model.last_updated_timestamp_ms >= %(before)s)"
    " AND NOT EXISTS (SELECT FROM kept_runs WHERE kept_runs.id = run_uuid)",
)
MODELS = Kind(
    "model",
    "logged_models",
    "model_id",
    "artifact_location",
    "(lifecycle_stage = 'deleted' OR EXISTS (SELECT FROM experiments WHERE"
    "  experiments.experiment_id = logged_models.experiment_id AND experiments.lifecycle_stage = 'deleted'"
    "  AND experiments.last_update_time < %(before)s))"
    " AND last_updated_timestamp_ms < %(before)s"
    " AND NOT EXISTS (SELECT FROM kept_models WHERE kept_models.id = model_id)",
)
TRACES = Kind(
    "trace",
    "trace_info",
    "request_id",
    "(SELECT value FROM trace_tags WHERE trace_tags.request_id = trace_info.request_id"
    " AND key = 'mlflow.artifactLocation')",
    "(EXISTS (SELECT FROM stackops.batch_items AS item WHERE item.kind = 'trace' AND item.id = request_id"
    "   AND item.state = 'done' AND item.done < to_timestamp(%(before)s / 1000.0))"
    "   AND EXISTS (SELECT FROM decided WHERE decided.kind = 'trace' AND decided.id = request_id"
    "    AND decided.spared IS NULL)"
    "  OR EXISTS (SELECT FROM experiments WHERE experiments.experiment_id = trace_info.experiment_id"
    "   AND experiments.lifecycle_stage = 'deleted' AND experiments.last_update_time < %(before)s))"
    " AND NOT EXISTS (SELECT FROM kept_traces WHERE kept_traces.id = request_id)",
)
EXPERIMENTS = Kind(
    "experiment",
    "experiments",
    "experiment_id",
    "artifact_location",
    "lifecycle_stage = 'deleted' AND last_update_time < %(before)s AND experiment_id <> 0"
    " AND NOT EXISTS (SELECT FROM kept_experiments AS kept"
    "  WHERE kept.experiment_id = experiments.experiment_id)"
    " AND NOT EXISTS (SELECT FROM runs WHERE runs.experiment_id = experiments.experiment_id)"
    " AND NOT EXISTS (SELECT FROM logged_models AS model"
    "  WHERE model.experiment_id = experiments.experiment_id)"
    " AND NOT EXISTS (SELECT FROM trace_info WHERE trace_info.experiment_id = experiments.experiment_id)",
)


def due(connection: Connection, kind: Kind, before_ms: int) -> list[Any]:
    """Return the ids of a kind that are due, by the tables of plan.make."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {kind.column} FROM {kind.table} WHERE {kind.due} ORDER BY 1", {"before": before_ms}
        )
        return [row[0] for row in cursor]


def preview(connection: Connection, policy: Policy, before_ms: int) -> dict[str, int]:
    """Return how many of each kind a purge would delete now, and the bytes as of the last inventory."""
    plan.make(connection, policy)
    found: dict[str, int] = {"bytes": 0}
    of_runs = due(connection, RUNS, before_ms)
    for kind in (RUNS, MODELS, TRACES):
        ids = of_runs if kind is RUNS else due(connection, kind, before_ms)
        with connection, connection.cursor() as cursor:
            if kind is MODELS:
                cursor.execute("SELECT model_id FROM logged_models WHERE source_run_id = ANY(%s)", (of_runs,))
                ids = sorted({*ids, *(row[0] for row in cursor)})
            found[f"{kind.name}s"] = len(ids)
            cursor.execute(
                "SELECT coalesce(sum(bytes), 0)::bigint FROM stackops.usage WHERE kind = %s AND id = ANY(%s)",
                (kind.name, ids),
            )
            found["bytes"] += cursor.fetchone()[0]
    return found


class Purge:
    """One purge of a database: what it deleted of each kind, and what it had to leave."""

    def __init__(self, connection: Connection, policy: Policy, bucket: str, before_ms: int) -> None:
        self._connection = connection
        self._policy = policy
        self._bucket = bucket
        self._before_ms = before_ms
        self._seen = ""
        self._found_at = 0.0
        self._keys = tables.foreign_keys(connection)
        self.counts: Counter[str] = Counter()
        self.problems: set[str] = set()

    def run(self) -> None:
        """Delete the rows of all that is due and write where its objects are into the journal."""
        tables.make_indexes(self._connection)
        self._find_kept()
        for kind in (RUNS, MODELS, TRACES, EXPERIMENTS):
            self._delete_all(kind, due(self._connection, kind, self._before_ms))

    def _find_kept(self) -> None:
        """Find out what must stay; what is registered after `_seen` is looked at by each transaction."""
        with self._connection, self._connection.cursor() as cursor:
            self._seen = keep.moment(cursor)
        self._found_at = time.monotonic()
        plan.make(self._connection, self._policy)

    def _delete_all(self, kind: Kind, waiting: list[Any]) -> None:
        """Delete records a chunk at a time. One that cannot be deleted is a problem, not the end."""
        size, failures = FIRST_CHUNK, 0
        while waiting:
            started = time.monotonic()
            if started - self._found_at > KEPT_SECONDS:
                waiting = self._still_due(kind, waiting)
                continue
            chunk = waiting[:size]
            try:
                self._delete(kind, chunk)
            except KeptChangedError:
                failures += 1
                waiting = self._still_due(kind, waiting)
            except (psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected):
                failures += 1
                time.sleep(PAUSE_SECONDS)
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                raise  # the database is away: that is no single record's fault
            except psycopg2.Error as error:
                if len(chunk) == 1:
                    self.problems.add(f"{kind.name} {chunk[0]}: {str(error).strip()}")
                    waiting = waiting[1:]
                size = max(1, len(chunk) // 2)
            else:
                failures = 0
                waiting = waiting[len(chunk) :]
                fast = time.monotonic() - started < TARGET_SECONDS
                size = min(LARGEST_CHUNK, size * 2) if fast else max(1, size // 2)
            if failures > ATTEMPTS:
                self.problems.add(f"{len(waiting)} {kind.name}s: others hold the registry all the time")
                return

    def _still_due(self, kind: Kind, waiting: list[Any]) -> list[Any]:
        """Find out again what must stay and return those of some records that need not."""
        self._find_kept()
        still = set(due(self._connection, kind, self._before_ms))
        return [name for name in waiting if name in still]

    def _delete(self, kind: Kind, ids: Sequence[Any]) -> None:
        """Delete some records in one transaction, with the models that only they have."""
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '1s'")
            cursor.execute(
                f"SELECT {kind.column}, {kind.location} FROM {kind.table}"
                f" WHERE {kind.column} = ANY(%(ids)s) AND {kind.due} ORDER BY 1 FOR UPDATE",
                {"ids": list(ids), "before": self._before_ms},
            )
            places, good = self._places(kind, cursor.fetchall())
            work = [(tables.deletions(self._keys, kind.table, kind.column), good)]
            models = good if kind is MODELS else []
            if kind is RUNS:
                places, good, models = self._with_models(cursor, places, good)
                work = [
                    (tables.deletions(self._keys, MODELS.table, MODELS.column), models),
                    (work[0][0], good),
                ]
            if keep.reasons_since(cursor, self._seen, self._policy.keep_tags, kind.table, good):
                raise KeptChangedError
            # What may take long comes before the lock that others wait for.
            for statements, names in work:
                for statement in statements[:-1]:
                    cursor.execute(statement, {"ids": names})
            if kind in {RUNS, MODELS}:  # of the others no version can speak
                cursor.execute("LOCK TABLE model_versions IN SHARE MODE")
                runs = good if kind is RUNS else []
                if keep.registered_since(cursor, self._seen, runs, models):
                    raise KeptChangedError
            for statements, names in work:
                cursor.execute(statements[-1], {"ids": names})
            execute_values(
                cursor,
                "INSERT INTO stackops.doomed_objects (prefix, kind, id) VALUES %s ON CONFLICT DO NOTHING",
                [(place.prefix, place.kind, place.id) for place in places],
            )
            texts = [str(name) for name in good]
            cursor.execute(
                "UPDATE stackops.batch_items SET state = 'purged'"
                " WHERE kind = %s AND id = ANY(%s) AND state = 'done'",
                (kind.name, texts),
            )
            cursor.execute("DELETE FROM stackops.known_runs WHERE run_id = ANY(%s)", (texts,))
        self.counts[kind.name] += len(good)
        if kind is RUNS:
            self.counts[MODELS.name] += len(models)

    def _with_models(
        self, cursor: Cursor, places: list[Place], run_ids: list[str]
    ) -> tuple[list[Place], list[str], list[str]]:
        """Return places, runs and models of the runs that go with their models, all or none of a run."""
        cursor.execute(
            "SELECT model_id, artifact_location, source_run_id FROM logged_models"
            " WHERE source_run_id = ANY(%s) ORDER BY 1 FOR UPDATE",
            (run_ids,),
        )
        found = cursor.fetchall()
        of_models, models = self._places(MODELS, [row[:2] for row in found])
        staying = {run_id for model_id, _, run_id in found if model_id not in set(models)}
        models = [model_id for model_id, _, run_id in found if run_id not in staying]
        kept = {*models, *run_ids} - staying
        return (
            [place for place in [*places, *of_models] if place.id in kept],
            [run_id for run_id in run_ids if run_id not in staying],
            models,
        )

    def _places(self, kind: Kind, found: list[tuple]) -> tuple[list[Place], list[Any]]:
        """Given (id, location), return where artifacts are, and the ids of the records that may go.

        A record whose artifacts are somewhere else stays: nobody could find them any more.
        """
        places, good = [], []
        for name, uri in found:
            place = of_location(kind.name, str(name), uri, self._bucket)
            if place:
                places.append(place)
            elif uri and kind in {RUNS, MODELS, TRACES}:
                self.problems.add(f"{kind.name} {name}: its artifacts are at {uri}")
                continue
            good.append(name)
        return places, good
