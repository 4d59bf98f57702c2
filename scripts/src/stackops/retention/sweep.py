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
from stackops.retention import keep, plan
from stackops.retention.places import of_location
from stackops.retention.policy import Policy, Rule, describe, matches
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
            done = _empty(bucket, [prefix for prefix in group if prefix not in kept], swept)
        except FailedError as error:
            swept.problems.add(str(error))
            break
        # What is needed again is no longer doomed; if its record is not there, it is an orphan.
        with connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM stackops.doomed_objects WHERE prefix = ANY(%s)", ([*done, *kept],))
    return swept


def _needed_again(connection: Connection, prefixes: list[str]) -> dict[str, str]:
    """Return the reason for each prefix that must stay after all."""
    keep.find_references(connection)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT prefix, CASE"
            " WHEN kind = 'run' AND EXISTS (SELECT FROM runs WHERE run_uuid = doomed.id)"
            "  OR kind = 'model' AND EXISTS (SELECT FROM logged_models WHERE model_id = doomed.id)"
            "  OR kind = 'trace' AND EXISTS (SELECT FROM trace_info WHERE request_id = doomed.id)"
            "  THEN 'its record is there again'"
            f" WHEN {keep.HOLDS_UNUSUAL.format(prefix='doomed.prefix')}"
            "  THEN 'another record has its artifacts there'"
            " ELSE (SELECT min(reason) || ' refers to it' FROM model_references AS reference"
            "  WHERE reference.id = doomed.id) END"
            " FROM stackops.doomed_objects AS doomed WHERE prefix = ANY(%s)",
            (prefixes,),
        )
        return {prefix: reason for prefix, reason in cursor if reason}


def doomed_artifacts(
    connection: Connection, bucket: Bucket, policy: Policy, rule: Rule, before_ms: int
) -> Swept:
    """Delete the artifacts that a rule names, of the runs that a batch has doomed long enough ago.

    Only of those that the same rule still dooms, and only objects that were there then: a run
    may have been taken up again. Whether one has to stay is looked at before each call.
    """
    swept = Swept()
    with connection, connection.cursor() as cursor:
        seen = keep.moment(cursor)
    plan.make(connection, policy)
    keep.find_unusual(connection, bucket.name)
    places = _doomed_places(connection, bucket, rule, before_ms, swept)
    before = datetime.fromtimestamp(before_ms / 1000, UTC)

    def named(key: str, size: int, modified: datetime, prefix: str) -> bool:
        path = key.removeprefix(prefix)
        return (
            modified < before
            and (not rule.artifacts or any(matches(pattern, path) for pattern in rule.artifacts))
            and (rule.larger_than is None or size > rule.larger_than)
        )

    def spared(prefixes: set[str]) -> set[str]:
        return {prefix for prefix in prefixes if _is_kept(connection, policy, seen, places[prefix])}

    for group in _chunks(sorted(places)):
        try:
            done = _empty(bucket, group, swept, named, spared)
        except FailedError as error:
            swept.problems.add(str(error))
            break
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "UPDATE stackops.batch_items SET state = 'purged'"
                " WHERE kind = 'artifacts' AND rule = %s AND says = %s AND state = 'done' AND id = ANY(%s)"
                " AND done < to_timestamp(%s / 1000.0)",
                (rule.name, describe(rule), [places[prefix] for prefix in done], before_ms),
            )
    return swept


def _doomed_places(
    connection: Connection, bucket: Bucket, rule: Rule, before_ms: int, swept: Swept
) -> dict[str, str]:
    """Return the runs whose artifacts a rule dooms, by the prefix of these."""
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
        cursor.execute(
            "SELECT prefix FROM unnest(%s::text[]) AS doomed (prefix)"
            f" WHERE {keep.HOLDS_UNUSUAL.format(prefix='doomed.prefix')}",
            (list(places),),
        )
        for (prefix,) in cursor:
            del places[prefix]
            swept.problems.add(f"{prefix}: kept, another record has its artifacts there")
    return places


def _is_kept(connection: Connection, policy: Policy, seen: str, run_id: str) -> bool:
    """Return whether a run goes on or has been tagged, linked or registered since `seen`."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT status FROM runs WHERE run_uuid = %s", (run_id,))
        found = cursor.fetchone()
        return (
            found is None
            or found[0] == "RUNNING"
            or keep.reasons_since(cursor, seen, policy.keep_tags, "runs", [run_id])
            or keep.registered_since(cursor, seen, [run_id], [])
        )


def _empty(
    bucket: Bucket,
    prefixes: list[str],
    swept: Swept,
    named: Callable[[str, int, datetime, str], bool] = lambda *_: True,
    spared: Callable[[set[str]], set[str]] = lambda _: set(),
) -> list[str]:
    """Delete the named objects below some prefixes; return those prefixes that are through.

    Sorted prefixes are listed together; several threads delete what was found meanwhile. Of some
    prefixes, `spared` returns those that have to stay after all. Raise FailedError if they
    cannot be listed.
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
                kept = spared({prefix for prefix, _, _ in found})
                left |= dict.fromkeys(kept, "")
                found = [each for each in found if each[0] not in kept]
                under_way.append((found, pool.submit(_delete, bucket, [key for _, key, _ in found])))
                if len(under_way) == AT_ONCE:
                    settle()
        finally:
            while under_way:
                settle()
            swept.problems.update(reason for reason in left.values() if reason)
    return [prefix for prefix in prefixes if prefix not in left]


def _delete(bucket: Bucket, keys: list[str]) -> dict[str, str]:
    """Delete objects; return the reason for each that stayed."""
    if not keys:
        return {}
    try:
        return bucket.delete(keys)
    except FailedError as error:
        return dict.fromkeys(keys, str(error))


def _chunks(values: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), GROUP):
        yield values[start : start + GROUP]
