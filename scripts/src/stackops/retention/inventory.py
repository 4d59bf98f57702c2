"""The inventory: what is in the bucket, whose it is, and what has no owner or no objects.

One listing of the bucket, in the order of the keys: an owner's objects follow each other, so
memory does not grow with the bucket.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg2.extensions import connection as Connection  # noqa: N812

from stackops.errors import FailedError
from stackops.objects import PREFIX
from stackops.retention import keep
from stackops.retention.places import Place, of_key
from stackops.storage import Bucket, Upload

SHOWN = 100
STALE_UPLOAD_DAYS = 7
GROUPS_AT_ONCE = 10_000

_OWNERLESS = f"""
    (found.kind = 'run' AND NOT EXISTS (SELECT FROM runs WHERE run_uuid = found.id)
    OR found.kind = 'model' AND NOT EXISTS (SELECT FROM logged_models WHERE model_id = found.id)
    OR found.kind = 'trace' AND NOT EXISTS (SELECT FROM trace_info WHERE request_id = found.id))
    AND NOT EXISTS (SELECT FROM stackops.doomed_objects AS doomed WHERE doomed.prefix = found.prefix)
    AND NOT {keep.HOLDS_UNUSUAL.format(prefix="found.prefix")}
"""

_STORE = f"""
DELETE FROM stackops.usage;
INSERT INTO stackops.usage
    SELECT kind, id, min(experiment_id), sum(objects), sum(bytes) FROM found GROUP BY 1, 2;
DELETE FROM stackops.usage_history WHERE day = current_date OR day < current_date - 730;
INSERT INTO stackops.usage_history SELECT current_date, experiment_id, sum(objects), sum(bytes)
    FROM stackops.usage GROUP BY experiment_id;
INSERT INTO stackops.orphans AS known
    SELECT prefix, kind, objects, bytes, now(), now() FROM found WHERE {_OWNERLESS}
    ON CONFLICT (prefix) DO UPDATE
    SET objects = excluded.objects, bytes = excluded.bytes, last_seen = excluded.last_seen;
DELETE FROM stackops.orphans WHERE last_seen < now();
"""

_DAMAGE = """
SELECT 'model ' || model_id || ' (' || name || ')' FROM logged_models
    WHERE lifecycle_stage = 'active' AND status = 2
    AND NOT EXISTS (SELECT FROM stackops.usage WHERE kind = 'model' AND id = model_id)
UNION
SELECT reason FROM model_references AS reference
    WHERE kind IN ('model', 'path') AND NOT EXISTS (SELECT FROM stackops.usage WHERE usage.id = reference.id)
    AND (kind = 'model' OR EXISTS (SELECT FROM runs WHERE run_uuid = reference.id))
ORDER BY 1
"""


@dataclass
class Group:
    """The objects of one owner."""

    place: Place
    objects: int = 0
    bytes: int = 0


@dataclass
class Unknown:
    """Keys of no known shape: listed, never touched."""

    objects: int = 0
    bytes: int = 0
    keys: list[str] = field(default_factory=list)


def groups(found: Iterable[tuple[str, int]], unknown: Unknown) -> Iterator[Group]:
    """Yield the objects by owner, given (key, bytes) in the order of the keys; the others go to `unknown`."""
    group: Group | None = None
    for key, size in found:
        if group is None or not key.startswith(group.place.prefix):
            if group:
                yield group
            place = of_key(key)
            group = Group(place) if place else None
        if group:
            group.objects += 1
            group.bytes += size
        else:
            unknown.objects += 1
            unknown.bytes += size
            if len(unknown.keys) < SHOWN:
                unknown.keys.append(key)
    if group:
        yield group


def take(connection: Connection, bucket: Bucket) -> dict[str, Any]:
    """List the bucket, keep whose what is, and return the facts (also kept)."""
    started = time.monotonic()
    unknown = Unknown()
    keep.find_unusual(connection, bucket.name)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "DROP TABLE IF EXISTS found;"
            "CREATE TEMP TABLE found (kind text, id text, experiment_id int, prefix text,"
            " objects bigint, bytes bigint)"
        )
    # The listing may take hours: no transaction waits for it.
    lines: list[str] = []
    for group in groups(bucket.objects(f"{PREFIX}/"), unknown):
        place = group.place
        fields = (place.kind, place.id, place.experiment_id, place.prefix, group.objects, group.bytes)
        lines.append("\t".join(map(str, fields)))
        if len(lines) >= GROUPS_AT_ONCE:
            _copy(connection, lines)
    _copy(connection, lines)
    with connection, connection.cursor() as cursor:
        cursor.execute("ANALYZE found")
        cursor.execute(_STORE)
    stale = stale_uploads(bucket)
    keep.find_references(connection)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(sum(objects), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM found")
        objects, size = cursor.fetchone()
        cursor.execute(_DAMAGE)
        damage = [row[0] for row in cursor]
        facts = {
            "objects": objects + unknown.objects,
            "bytes": size + unknown.bytes,
            "unknown_objects": unknown.objects,
            "unknown_bytes": unknown.bytes,
            "unknown_keys": unknown.keys,
            "without_objects": len(damage),
            "without_objects_names": damage[:SHOWN],
            "stale_uploads": len(stale),
            "stale_upload_keys": [upload.key for upload in stale[:SHOWN]],
        }
        cursor.execute(
            "INSERT INTO stackops.inventories VALUES (now(), %s, %s)",
            (time.monotonic() - started, json.dumps(facts)),
        )
        cursor.execute("DELETE FROM stackops.inventories WHERE made < now() - interval '1 year'")
    return facts


def _copy(connection: Connection, lines: list[str]) -> None:
    with connection, connection.cursor() as cursor:
        cursor.copy_expert("COPY found FROM STDIN", io.StringIO("".join(f"{line}\n" for line in lines)))
    lines.clear()


def newest(connection: Connection) -> tuple[datetime, dict[str, Any]] | None:
    """Return when the last inventory was made and its facts, or None before the first."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT made, facts FROM stackops.inventories ORDER BY made DESC LIMIT 1")
        return cursor.fetchone()


def stale_uploads(bucket: Bucket, days: int = STALE_UPLOAD_DAYS) -> list[Upload]:
    """Return the uploads that were begun so long ago and never finished."""
    before = datetime.now(UTC) - timedelta(days=days)
    return [upload for upload in bucket.uploads(f"{PREFIX}/") if upload.begun < before]


def abort_stale_uploads(bucket: Bucket, days: int) -> tuple[int, set[str]]:
    """Give up the unfinished uploads of known keys; return how many, and what could not be."""
    aborted, problems = 0, set()
    try:
        for upload in stale_uploads(bucket, days):
            if of_key(upload.key) is None:
                continue
            try:
                bucket.abort(upload)
                aborted += 1
            except FailedError as error:
                problems.add(f"{upload.key}: {error}")
    except FailedError as error:
        problems.add(str(error))
    return aborted, problems


def orphans(connection: Connection) -> list[dict[str, Any]]:
    """Return the prefixes without an owner, the largest first."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT prefix, kind, objects, bytes, first_seen, last_seen FROM stackops.orphans"
            " ORDER BY bytes DESC, prefix"
        )
        names = ("prefix", "kind", "objects", "bytes", "first_seen", "last_seen")
        return [dict(zip(names, row, strict=True)) for row in cursor]


def doom_orphans(connection: Connection, bucket: str, days: int, backup: datetime) -> int:
    """Write orphans into the journal of doomed objects; return how many.

    Only those that two inventories so many days apart have seen, that have no owner now, and that
    were seen before the moment of the backup that has been verified.
    """
    keep.find_references(connection)
    keep.find_unusual(connection, bucket)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO stackops.doomed_objects (prefix, kind, id)"
            " SELECT prefix, kind, id FROM (SELECT prefix, kind,"
            "  split_part(prefix, '/', CASE kind WHEN 'run' THEN 3 ELSE 4 END) AS id"
            "  FROM stackops.orphans WHERE last_seen - first_seen >= %s * interval '1 day'"
            "  AND first_seen < %s) AS found"
            f" WHERE {_OWNERLESS}"
            " AND NOT EXISTS (SELECT FROM model_references AS reference WHERE reference.id = found.id)"
            " ON CONFLICT DO NOTHING",
            (days, backup),
        )
        return cursor.rowcount
