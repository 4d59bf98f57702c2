"""Objects of the journal: prefixes whose records are gone, and artifacts that a rule has doomed.

It can be killed anywhere and begun again: a prefix leaves the journal when nothing is below it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

from psycopg2.extensions import connection as Connection  # noqa: N812

from stackops.errors import FailedError
from stackops.retention import keep
from stackops.retention.places import of_location
from stackops.retention.policy import Rule, describe, matches
from stackops.storage import DELETED_AT_ONCE, Bucket

THREADS = 8
GROUP = 2000
"""Prefixes between two entries in the journal."""
AT_ONCE = 4 * THREADS
"""Calls to delete that may be under way or wait: what bounds the memory."""

Found = tuple[str, str, int]
"""An object to delete: the prefix that it was found by, its key, its bytes."""


@dataclass
class Swept:
    """How many objects and bytes were freed, and what could not be."""

    objects: int = 0
    bytes: int = 0
    problems: set[str] = field(default_factory=set)


def doomed_prefixes(connection: Connection, bucket: Bucket) -> Swept:
    """Delete every object below the prefixes of the journal. What is referred to again stays."""
    swept = Swept()
    keep.find_unusual(connection, bucket.name)
    with connection, connection.cursor() as cursor:
        cursor.execute('SELECT prefix FROM stackops.doomed_objects ORDER BY prefix COLLATE "C"')
        prefixes = [prefix for (prefix,) in cursor]
    for group in _chunks(prefixes):
        kept = _needed_again(connection, group)
        swept.problems |= {f"{prefix}: kept, {reason}" for prefix, reason in kept.items()}
        try:
            done = _empty(bucket, [prefix for prefix in group if prefix not in kept], _everything, swept)
        except FailedError as error:
            swept.problems.add(str(error))
            break
        with connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM stackops.doomed_objects WHERE prefix = ANY(%s)", (done,))
    return swept


def _needed_again(connection: Connection, prefixes: list[str]) -> dict[str, str]:
    """Return the reason for each prefix that must stay after all, and note it in the journal."""
    keep.find_references(connection)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE stackops.doomed_objects AS doomed SET error = CASE"
            " WHEN kind = 'run' AND EXISTS (SELECT FROM runs WHERE run_uuid = doomed.id)"
            "  OR kind = 'model' AND EXISTS (SELECT FROM logged_models WHERE model_id = doomed.id)"
            "  OR kind = 'trace' AND EXISTS (SELECT FROM trace_info WHERE request_id = doomed.id)"
            "  THEN 'its record is there again'"
            f" WHEN {keep.HOLDS_UNUSUAL.format(prefix='doomed.prefix')}"
            "  THEN 'another record has its artifacts there'"
            " ELSE (SELECT min(reason) || ' refers to it' FROM model_references AS reference"
            "  WHERE reference.id = doomed.id) END"
            " WHERE prefix = ANY(%s) RETURNING prefix, error",
            (prefixes,),
        )
        return {prefix: error for prefix, error in cursor if error}


def _everything(*_: object) -> bool:
    return True


def doomed_artifacts(connection: Connection, bucket: Bucket, rule: Rule, before_ms: int) -> Swept:
    """Delete the artifacts that a rule names, of the runs that a batch has doomed long enough ago.

    Only of those that the same rule still dooms, and only objects that were there then: a run
    may have been taken up again. Call plan.make before.
    """
    swept = Swept()
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT item.id, runs.artifact_uri FROM stackops.batch_items AS item"
            " JOIN runs ON runs.run_uuid = item.id AND runs.status <> 'RUNNING'"
            " JOIN decided ON decided.kind = 'run' AND decided.id = item.id"
            "  AND decided.rule = item.rule AND decided.spared IS NULL"
            " WHERE item.kind = 'artifacts' AND item.rule = %s AND item.says = %s AND item.state = 'done'"
            " AND item.done < to_timestamp(%s / 1000.0)"
            " AND NOT EXISTS (SELECT FROM kept_runs WHERE kept_runs.id = item.id)",
            (rule.name, describe(rule), before_ms),
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

    for group in _chunks(sorted(places)):
        try:
            done = _empty(bucket, group, named, swept)
        except FailedError as error:
            swept.problems.add(str(error))
            break
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE stackops.batch_items SET state = 'purged'"
                " WHERE kind = 'artifacts' AND rule = %s AND state = 'done' AND id = ANY(%s)",
                (rule.name, [places[prefix] for prefix in done]),
            )
    return swept


def _empty(
    bucket: Bucket, prefixes: list[str], named: Callable[[str, int, datetime, str], bool], swept: Swept
) -> list[str]:
    """Delete the named objects below some prefixes; return those prefixes that are through.

    Sorted prefixes are listed together; several threads delete what was found meanwhile. Raise
    FailedError if they cannot be listed.
    """
    left: dict[str, str] = {}
    under_way: deque[tuple[list[Found], Future[dict[str, str]]]] = deque()

    def settle() -> None:
        found, future = under_way.popleft()
        failed = future.result()
        for prefix, key, size in found:
            if key in failed:
                left.setdefault(prefix, f"{key}: {failed[key]}")
            else:
                swept.objects += 1
                swept.bytes += size

    listed = (
        (prefix, key, size)
        for prefix, key, size, modified in bucket.below(prefixes)
        if named(key, size, modified, prefix)
    )
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            while found := list(islice(listed, DELETED_AT_ONCE)):
                under_way.append((found, pool.submit(_delete, bucket, [key for _, key, _ in found])))
                if len(under_way) == AT_ONCE:
                    settle()
        finally:
            while under_way:
                settle()
            swept.problems.update(left.values())
    return [prefix for prefix in prefixes if prefix not in left]


def _delete(bucket: Bucket, keys: list[str]) -> dict[str, str]:
    """Delete objects; return the reason for each that stayed."""
    try:
        return bucket.delete(keys)
    except FailedError as error:
        return dict.fromkeys(keys, str(error))


def _chunks(values: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), GROUP):
        yield values[start : start + GROUP]
