"""Objects of the journal: prefixes whose records are gone, and artifacts that a rule has doomed.

It can be killed anywhere and begun again: a prefix leaves the journal when nothing is below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from psycopg2.extensions import connection as Connection  # noqa: N812

from stackops.errors import FailedError
from stackops.retention import keep
from stackops.retention.places import of_location
from stackops.retention.policy import Rule, matches
from stackops.storage import DELETED_AT_ONCE, Bucket

THREADS = 8
GROUP = 2000
"""Prefixes between two entries in the journal."""


@dataclass
class Swept:
    """How many objects and bytes were freed, and what could not be."""

    objects: int = 0
    bytes: int = 0
    problems: set[str] = field(default_factory=set)


def doomed_prefixes(connection: Connection, bucket: Bucket) -> Swept:
    """Delete every object below the prefixes of the journal. What is referred to again stays."""
    swept = Swept()
    keep.find_references(connection)
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE stackops.doomed_objects SET error = NULL WHERE error IS NOT NULL")
        cursor.execute(
            "UPDATE stackops.doomed_objects AS doomed SET error = reference.reason || ' refers to it'"
            " FROM model_references AS reference WHERE doomed.id = reference.id"
        )
        cursor.execute(
            "UPDATE stackops.doomed_objects AS doomed SET error = 'its record is there again'"
            " WHERE kind = 'run' AND EXISTS (SELECT FROM runs WHERE run_uuid = doomed.id)"
            " OR kind = 'model' AND EXISTS (SELECT FROM logged_models WHERE model_id = doomed.id)"
            " OR kind = 'trace' AND EXISTS (SELECT FROM trace_info WHERE request_id = doomed.id)"
        )
        cursor.execute("SELECT prefix, error FROM stackops.doomed_objects WHERE error IS NOT NULL ORDER BY 1")
        swept.problems = {f"{prefix}: kept, {error}" for prefix, error in cursor}
        cursor.execute("SELECT prefix FROM stackops.doomed_objects WHERE error IS NULL ORDER BY 1")
        prefixes = [prefix for (prefix,) in cursor]

    def emptied(done: list[str]) -> None:
        with connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM stackops.doomed_objects WHERE prefix = ANY(%s)", (done,))

    _empty(bucket, prefixes, lambda *_: True, swept, emptied)
    return swept


def doomed_artifacts(connection: Connection, bucket: Bucket, rule: Rule, before_ms: int) -> Swept:
    """Delete the artifacts that a rule names, of the runs that a batch has doomed long enough ago.

    Only of those that the rule still dooms (call plan.make before), and only objects that were
    there then: a run may have been taken up again.
    """
    swept = Swept()
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT item.id, runs.artifact_uri FROM stackops.batch_items AS item"
            " JOIN runs ON runs.run_uuid = item.id AND runs.status <> 'RUNNING'"
            " JOIN decided ON decided.kind = 'run' AND decided.id = item.id"
            "  AND decided.rule = item.rule AND decided.doomed"
            " WHERE item.kind = 'artifacts' AND item.rule = %s AND item.state = 'done'"
            " AND item.done < to_timestamp(%s / 1000.0)"
            " AND NOT EXISTS (SELECT FROM kept_runs WHERE kept_runs.id = item.id)",
            (rule.name, before_ms),
        )
        places = {}
        for run_id, uri in cursor:
            place = of_location("run", run_id, uri, bucket.name)
            if place:
                places[place.prefix] = run_id
            else:
                swept.problems.add(f"run {run_id}: its artifacts are at {uri}")

    before = datetime.fromtimestamp(before_ms / 1000, UTC)

    def named(key: str, size: int, modified: datetime, prefix: str) -> bool:
        path = key.removeprefix(prefix)
        return (
            modified < before
            and (not rule.artifacts or any(matches(pattern, path) for pattern in rule.artifacts))
            and (rule.larger_than is None or size > rule.larger_than)
        )

    def emptied(done: list[str]) -> None:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE stackops.batch_items SET state = 'purged'"
                " WHERE kind = 'artifacts' AND rule = %s AND state = 'done' AND id = ANY(%s)",
                (rule.name, [places[prefix] for prefix in done]),
            )

    _empty(bucket, list(places), named, swept, emptied)
    return swept


def _empty(
    bucket: Bucket,
    prefixes: list[str],
    named: Callable[[str, int, datetime, str], bool],
    swept: Swept,
    emptied: Callable[[list[str]], None],
) -> None:
    """Delete the named objects below prefixes; tell `emptied` the prefixes that are through.

    Sorted prefixes are listed together; several threads delete what was found meanwhile.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        for group in _chunks(sorted(prefixes), GROUP):
            sizes: dict[str, int] = {}
            deleting = []
            waiting: list[str] = []
            try:
                for prefix, key, size, modified in bucket.below(group):
                    if named(key, size, modified, prefix):
                        sizes[key] = size
                        waiting.append(key)
                    if len(waiting) >= DELETED_AT_ONCE:
                        deleting.append(pool.submit(_delete, bucket, waiting))
                        waiting = []
            except FailedError as error:
                swept.problems.add(str(error))
                group = []  # noqa: PLW2901  not all of them are known to be through
            deleting.append(pool.submit(_delete, bucket, waiting))
            failed: dict[str, str] = {}
            for future in deleting:
                failed |= future.result()
            swept.problems |= {f"{key}: {reason}" for key, reason in failed.items()}
            freed = [size for key, size in sizes.items() if key not in failed]
            swept.objects += len(freed)
            swept.bytes += sum(freed)
            left = {prefix for prefix in group for key in failed if key.startswith(prefix)}
            emptied([prefix for prefix in group if prefix not in left])


def _delete(bucket: Bucket, keys: list[str]) -> dict[str, str]:
    if not keys:
        return {}
    try:
        return bucket.delete(keys)
    except FailedError as error:
        return dict.fromkeys(keys, str(error))


def _chunks(values: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
