"""Restore in steps that the host-side verb drives: plan, database, objects, verify, roll back.

`plan` reads every byte that will be needed and changes nothing. The database is recovered
beside the present one and takes its place by a rename; the present one is kept.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg2

from stackops import backup, barman, cluster, command, objects, offsite, postgres, sets, state
from stackops.errors import FailedError, OperationError
from stackops.settings import Settings

KEPT_NOTE = "note.json"
FAILED = "failed"
UNDO = "roll back of "
"""Reasons why a cluster was put aside, beside "restore of SET" and "upgrade"."""
KEPT_STAMP = "%Y%m%dT%H%M%S.%f"


@dataclass(frozen=True)
class Plan:
    """What a restore will do."""

    set: str
    target: str
    made: str
    replaces: bool
    objects: int
    bytes: int


def parse_moment(text: str) -> datetime:
    """Return the moment that a person wrote; without a zone it is in the container's (TZ).

    Raise OperationError if it is none. For example 2026-11-21 14:03:07, or with a zone:
    2026-11-21T14:03:07+01:00.
    """
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return moment if moment.tzinfo else moment.astimezone()
    except (ValueError, OverflowError) as error:
        raise OperationError(
            f"'{text}' is no moment: {error}", "write it as '2026-11-21 14:03:07' (time zone: TZ in .env)"
        ) from error


def target_of(
    settings: Settings, manifest: sets.Manifest, set_id: str | None, moment: datetime | None
) -> cluster.Target:
    """Return where recovery ends: --to; the set's own place for --set; else the end of the log."""
    if not set_id:
        return cluster.Target(moment=moment)
    if not moment:
        return cluster.Target(name=manifest.reference["name"], timeline=manifest.reference["timeline"])
    # The set may be one of a branch that a restore left: by its name it can still be reached.
    segment = barman.segment_at(settings, moment)
    return cluster.Target(moment=moment, timeline=int(segment[:8], 16) if segment else None)


def plan(settings: Settings, set_id: str | None, moment: datetime | None, *, replace: bool) -> Plan:
    """Check everything that a restore needs and return what it will do. Changes nothing.

    Raise OperationError if there is no such set, it is damaged, it is of a newer version, the
    target lies in the future or before the set, the volume has data and `replace` is not
    given, or there is no room.
    """
    if (settings.backups / offsite.FETCHING).exists():
        raise OperationError(
            "the copy from elsewhere was not fetched whole; nothing was changed",
            "./stack restore --from-offsite goes on with it",
        )
    if moment and moment > datetime.now(UTC):
        raise OperationError(f"{moment} lies in the future", "./stack backup list")
    manifest = sets.choose(settings, set_id, moment)
    if moment and set_id and manifest.moment > moment:
        raise OperationError(f"the set {set_id} is younger than {moment}", "./stack backup list")
    from stackserver.database import known_revisions

    check_version(manifest, version("mlflow"), known_revisions())
    there = settings.database_folder.exists()
    if there and not replace:
        raise OperationError(
            "there is a database already; nothing was changed",
            "./stack restore --replace puts it aside first (./stack rollback brings it back)",
        )
    problems = sets.verify(settings, manifest)
    if not set_id:
        if moment:
            _refuse_a_left_branch(settings, moment)
        gaps = barman.missing_after(settings, manifest.begin_wal, moment)
        problems += [f"log segment {name}: missing" for name in gaps]
        last = barman.segment_at(settings, moment) if moment else None
        damaged = barman.damaged_wal(settings, manifest.reference["wal_file"], last)
        more = (f"log segment {name}: other bytes than were archived" for name in damaged)
        problems += [line for line in more if line not in problems]
    if problems:
        raise FailedError(
            f"the backup set {manifest.id} is damaged; nothing was changed:\n" + "\n".join(problems),
            "./stack backup list; then ./stack restore --set an older one",
        )
    shutil.rmtree(settings.data / "restoring", ignore_errors=True)  # of a restore that was killed
    needed = 2 * manifest.database_bytes
    free = shutil.disk_usage(settings.data).free
    if free < needed:
        raise OperationError(
            f"the volume of the database has {free >> 20} MB free, the restore needs {needed >> 20} MB",
            "make room on the disk; nothing was changed",
        )
    where = (
        str(moment)
        if moment
        else f"the set's own moment, {manifest.moment}"
        if set_id
        else "the newest state"
    )
    return Plan(
        set=manifest.id,
        target=where,
        made=manifest.made,
        replaces=there,
        objects=manifest.objects,
        bytes=manifest.database_bytes + manifest.object_bytes,
    )


def check_version(manifest: sets.Manifest, mlflow: str, known: frozenset[str]) -> None:
    """Raise OperationError if a set has a schema that only a newer MLflow knows.

    Not by the version alone: the set before an upgrade was made by the newer one, of the
    older one's data. `known` are the schema revisions of the MLflow of here.
    """

    def numbers(text: str) -> list[int]:
        found = [re.match(r"[0-9]*", part)[0] for part in f"{text}...".split(".")[:3]]
        return [int(part or 0) for part in found]

    if manifest.schema_revision in known:
        return
    if numbers(manifest.mlflow_version) > numbers(mlflow):
        raise OperationError(
            f"the set {manifest.id} was made by MLflow {manifest.mlflow_version}, this is {mlflow};"
            " nothing was changed",
            "use the version that made it, or a newer one",
        )


def _refuse_a_left_branch(settings: Settings, moment: datetime) -> None:
    """Raise OperationError for a moment whose state is no part of the present database's past.

    Recovery along the present branch would end where the restore left the other one, unnoticed.
    """
    segment = barman.segment_at(settings, moment)
    if segment and not any(
        branch.timeline == int(segment[:8], 16)
        and barman.segment_number(segment) * barman.SEGMENT_BYTES <= branch.left_at
        for branch in barman.ancestry(settings)
    ):
        raise OperationError(
            f"what was there at {moment} was left by a later restore or roll back; nothing was changed",
            "./stack backup list; ./stack restore --set one of that time, with the same --to",
        )


def database(settings: Settings, set_id: str, target: cluster.Target) -> dict[str, Any]:
    """Recover the set's database to `target` and put it into its place; the present one is kept.

    The volume must not be in use. Return what is there now. When recovery itself fails, or a
    set's own place does not have the digests of its manifest, nothing has been replaced.
    """
    manifest = sets.read(settings, set_id)
    fresh = settings.data / "restoring" / "17"
    cluster.lay_out(settings, manifest, fresh, target)
    cluster.reach(settings, fresh, target)
    with cluster.running(settings, fresh) as socket, closing(cluster.connect(socket)) as connection:
        found = postgres.digests(connection)
        connection.rollback()
        if target.name:
            differences = postgres.compare_digests(manifest.reference["tables"], found)
            if differences:
                raise FailedError(
                    "the restored database differs from what was backed up; nothing was replaced:\n"
                    + "\n".join(differences),
                    "./stack restore --set an older one",
                )
        # The receiver goes on from here without a gap.
        connection.autocommit = True
        postgres.fetch_one(
            connection, "SELECT pg_create_physical_replication_slot(%s, true)", (postgres.SLOT,)
        )
    cluster.finish(fresh)
    backup.request_full(settings, "after a restore")
    kept = swap(settings, fresh, f"restore of {set_id}")
    # Only now: until the swap the archive must go on telling of the former timeline.
    _after_swap(lambda: barman.keep_histories(settings, settings.database_folder))
    _after_swap(lambda: barman.put_partial_aside(settings))
    rows = {name: found[name]["rows"] for name in found}
    return {"kept": kept, "rows": rows}


def _after_swap(step: Callable[[], object]) -> None:
    """Do what makes a swap tidy. It has happened: what fails is said, and is no failure of it."""
    try:
        step()
    except (OperationError, OSError) as error:
        print(f"the database is in its place, but: {error}", file=sys.stderr, flush=True)


def present_cluster(settings: Settings) -> Path | None:
    """Return the folder of the cluster that is in its place: of this major version, or a former one."""
    return next((path.parent for path in sorted(settings.data.glob("[0-9]*/PG_VERSION"))), None)


def swap(settings: Settings, fresh: Path, reason: str) -> str | None:
    """Put a cluster into the place of the present one and return the folder that keeps that one.

    postgres/start.sh refuses to start while the place is empty and something is kept.
    """
    stamp = datetime.now(UTC).strftime(KEPT_STAMP)
    kept = settings.kept / stamp
    present = present_cluster(settings)
    if present:
        kept.mkdir(parents=True)
        state.write_json(kept / KEPT_NOTE, {"reason": reason, "time": stamp})
        present.rename(kept / present.name)
    fresh.rename(settings.data / fresh.name)
    shutil.rmtree(fresh.parent, ignore_errors=True)
    return kept.name if present else None


def keep(settings: Settings, reason: str) -> dict[str, Any]:
    """Copy the present (stopped) cluster aside, so that `roll_back` can bring it back.

    Raise OperationError if there is none, or no room for a copy.
    """
    present = settings.database_folder
    if not present.exists():
        raise OperationError("there is no database to keep", "./stack up")
    for unfinished in settings.kept.glob(".*"):  # of one that was killed
        shutil.rmtree(unfinished)
    needed = sum(path.stat().st_size for path in present.rglob("*") if path.is_file())
    free = shutil.disk_usage(settings.data).free
    if free < needed * 1.1:
        raise OperationError(
            f"the volume of the database has {free >> 20} MB free, a copy needs {needed >> 20} MB",
            "make room on the disk; nothing was changed",
        )
    stamp = datetime.now(UTC).strftime(KEPT_STAMP)
    unfinished = settings.kept / f".{stamp}"
    unfinished.mkdir(parents=True)
    command.run(
        ["cp", "--archive", "--reflink=auto", present, unfinished],
        fix="./stack up starts what was stopped",
        timeout_seconds=cluster.LAY_OUT_TIMEOUT_SECONDS,
    )
    state.write_json(unfinished / KEPT_NOTE, {"reason": reason, "time": stamp})
    unfinished.rename(settings.kept / stamp)
    return {"kept": stamp, "bytes": needed}


def kept_clusters(settings: Settings) -> list[Path]:
    """Return the folders of the clusters that are kept, the one that was kept first first."""
    # With the cluster in it: a restore may have been interrupted after it made the folder.
    return sorted(path.parent for path in settings.kept.glob("[0-9]*/[0-9]*/PG_VERSION"))


def roll_back(settings: Settings, *, failed: bool = False) -> dict[str, Any]:
    """Bring the cluster back that was put aside last; the present one is kept in its turn.

    With `failed` the present one is what a failed restore or upgrade left: nobody will want
    it back, and no later roll back takes it. Return what was undone, and the moment at which
    the cluster had been put aside. Raise OperationError if none is kept.
    """
    found = [path for path in kept_clusters(settings) if _reason(path) != FAILED]
    if not found:
        raise OperationError(
            "no earlier database is kept", "./stack backup list; ./stack restore --to a moment"
        )
    earlier = found[-1]
    reason = _reason(earlier)
    moment = datetime.strptime(earlier.parent.name, KEPT_STAMP).replace(tzinfo=UTC)
    undo = reason.removeprefix(UNDO) if reason.startswith(UNDO) else UNDO + reason
    other_major = earlier.name != settings.database_folder.name
    if not other_major:
        cluster.branch(settings, earlier)
        backup.request_full(settings, "after a roll back")
    # Straight from where it is kept: wherever this is interrupted, both are kept or in place.
    kept = swap(settings, earlier, FAILED if failed else undo)
    if other_major:
        _after_swap(lambda: backup.begin_anew(settings))
    else:
        _after_swap(lambda: barman.put_partial_aside(settings))
    return {"back": earlier.parent.name, "kept": kept, "undone": reason, "moment": moment.isoformat()}


def _reason(kept: Path) -> str:
    """Return why a cluster was put aside."""
    return (state.read_json(kept.parent / KEPT_NOTE) or {}).get("reason", "unknown")


def bring_objects_back(settings: Settings, moment: datetime | None) -> dict[str, Any]:
    """Copy into the bucket what it lacks of its state at a moment (None: newest). Nothing is deleted."""
    tree = settings.backups / "tree"
    try:
        count = objects.lay_out(settings, moment or datetime.now(UTC), tree)
        objects.put_back(settings, tree)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return {"objects": count}


def verify(settings: Settings, moment: datetime | None) -> dict[str, Any]:
    """Check the running, restored stack and return what was found.

    Objects that the database names and that the backup never had are counted: they were
    missing before. Raise FailedError if the database does not answer, or if the bucket lacks
    an object that the backup has.
    """
    there = objects.sizes(settings)
    wanted = objects.locate(settings, moment or datetime.now(UTC))
    lost = sorted(key for key, path in wanted.items() if there.get(key) != path.stat().st_size)
    if lost:
        raise FailedError(
            f"{len(lost)} objects of the backup are not in the bucket as they were: " + ", ".join(lost[:20]),
            "./stack logs minio; ./stack restore --replace again",
        )
    with closing(postgres.connect(settings)) as connection:
        missing = damage(connection, set(there), objects.PREFIX)
        rows = postgres.fetch_one(connection, "SELECT count(*) FROM runs")[0]
    for line in missing:
        print(f"missing already when it was backed up: {line}", flush=True)
    return {"runs": rows, "objects": len(there), "missing_objects": len(missing)}


def damage(connection: psycopg2.extensions.connection, keys: set[str], prefix: str) -> list[str]:
    """Return a line for each object that the database names and that is not among `keys`.

    Named are: the MLmodel file of every ready logged model and of every model version with a
    storage location or a run's path, and what log-model tags of active runs name.
    """
    missing = []
    for what, name, uri in named_folders(connection):
        key = key_of(uri, prefix)
        if key is not None and f"{key}/MLmodel" not in keys:
            missing.append(f"{what} {name}: no object {key}/MLmodel")
    return missing


def key_of(uri: str | None, prefix: str) -> str | None:
    """Return the bucket's key of an artifact URI, or None for one that lies elsewhere.

    `mlflow-artifacts:/1/abc` is `PREFIX/1/abc`.
    """
    scheme = "mlflow-artifacts:/"
    if not uri or not uri.startswith(scheme):
        return None
    return f"{prefix}/{uri.removeprefix(scheme).lstrip('/')}".rstrip("/")


def named_folders(connection: psycopg2.extensions.connection) -> list[tuple[str, str, str]]:
    """Return (kind, name, artifact URI) of every model folder that the database names."""
    found: list[tuple[str, str, str]] = []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT model_id, artifact_location FROM logged_models"
            " WHERE lifecycle_stage = 'active' AND status = 2"  # READY, mlflow.entities.LoggedModelStatus
        )
        found += [("logged model", model_id, location) for model_id, location in cursor]
        cursor.execute(
            "SELECT name || ' version ' || version, coalesce(storage_location, source) FROM model_versions"
            " WHERE current_stage <> 'Deleted_Internal'"
            " AND NOT EXISTS (SELECT 1 FROM registered_model_tags AS tag"
            "  WHERE tag.name = model_versions.name AND tag.key = 'mlflow.prompt.is_prompt')"
        )
        found += [("model version", name, location) for name, location in cursor]
        cursor.execute(
            "SELECT runs.run_uuid, runs.artifact_uri, tags.value FROM tags JOIN runs USING (run_uuid)"
            " WHERE tags.key = 'mlflow.log-model.history' AND runs.lifecycle_stage = 'active'"
        )
        for run_id, artifact_uri, history in cursor:
            for model in json.loads(history):
                # From MLflow 3 on the files belong to the logged model instead.
                if not model.get("model_uuid", "").startswith("m-") and "model_id" not in model:
                    found.append(("run", run_id, f"{artifact_uri}/{model['artifact_path']}"))
    return found
