"""`backup run`: one set, in the order that makes it consistent.

Base backup, then a named place in the log with digests of every table, then the objects:
every object that the database names at that place is in the copy, since nothing may purge
meanwhile (one lock for backup, cleanup and upgrade).
"""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import stackops
from stackops import barman, objects, postgres, sets, state
from stackops.errors import FailedError, OperationError
from stackops.files import sha256_of
from stackops.healthy import no_room
from stackops.settings import Settings
from stackops.state import FULL_FIX, read_json, write_json

SECONDS_PER_DAY = 86400


def wants_full(backups: list[barman.BaseBackup], requested: str | None, now: float, every_days: int) -> bool:
    """Return whether the next base backup must be a full one.

    `requested` is the reason why one was asked for (a gap in the log, a restore), or None.
    """
    full = [backup for backup in backups if backup.full and backup.done]
    # Half a day of slack: a weekly full backup must not slip by a day each week.
    return (
        requested is not None
        or not full
        or now - full[-1].end_time > every_days * SECONDS_PER_DAY - SECONDS_PER_DAY / 2
    )


def request_full(settings: Settings, reason: str | None) -> None:
    """Ask for a full base backup (a reason), or take that back (None)."""
    path = settings.backups / "state" / "full-wanted.json"
    if reason is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, {"reason": reason})


def requested_full(settings: Settings) -> str | None:
    """Return why a full base backup was asked for, or None."""
    value = read_json(settings.backups / "state" / "full-wanted.json")
    return value["reason"] if value else None


def check_identity(settings: Settings, found: str) -> None:
    """Remember the database's identifier, or raise OperationError if it is another database."""
    path = settings.backups / "state" / "identity.json"
    known = read_json(path)
    if known is None:
        write_json(path, {"system_identifier": found})
    elif known["system_identifier"] != found:
        raise OperationError(
            f"the database ({found}) is not the one that the backups are from "
            f"({known['system_identifier']}): its volume was lost or replaced",
            "./stack restore brings the data back; ./stack backup begin-anew keeps the new database",
        )


def begin_anew(settings: Settings) -> dict[str, Any]:
    """Put the sets and the log of another database aside: this one begins with none.

    The copy of the bucket goes on; if the bucket is another one too, its copy is put aside.
    """
    aside = settings.backups / "former" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    aside.mkdir(parents=True)
    paths = [
        settings.backups / name
        for name in ("barman", "wal-sha256", "sets", "state/identity.json", "state/jobs")
    ]
    try:
        objects.check_bucket(settings, mark=False)
    except FailedError:  # the storage is away: its copy stays
        pass
    except OperationError:
        paths.append(settings.backups / "objects")
    for path in paths:
        if path.exists():
            path.rename(aside / path.name)
    request_full(settings, "begun anew")
    return {"aside": str(aside)}


def run(settings: Settings, *, full: bool = False, label: str = "") -> dict[str, Any]:
    """Make a set and return its facts. Raise OperationError if it cannot be made."""
    started = time.time()
    full_volume = no_room(settings.backups)
    if full_volume:
        raise FailedError(full_volume, FULL_FIX)
    with postgres.maintenance_lock(settings):
        check_identity(settings, postgres.system_identifier(settings))
        # Before anything is written: what would refuse the copy afterwards.
        objects.check_bucket(settings, mark=False)
        # The log must arrive: a base backup is worth nothing without it.
        barman.wait_archived(settings, postgres.switch_wal(settings, "before-base-backup"))
        backups = barman.catalogue(settings)
        full = full or wants_full(backups, requested_full(settings), started, settings.full_every_days)
        _delete_unfinished(settings, backups)
        base = barman.take(settings, full=full)
        try:
            manifest = _complete(settings, base, label, started)
        except BaseException as error:
            # Without a set nothing restores from it, and retention would count it.
            error.facts = {"deleted_base": base.id}  # protect.py: not again at once
            barman.delete(settings, base.id)
            raise
        request_full(settings, None)
    facts = {
        "set": manifest.id,
        "full": manifest.full,
        "objects": manifest.objects,
        "object_bytes": manifest.object_bytes,
        "database_bytes": manifest.database_bytes,
    }
    facts["forgotten"] = forget(settings)
    return facts


def _delete_unfinished(settings: Settings, backups: list[barman.BaseBackup]) -> None:
    """Delete base backups without a set: those of runs that were killed. Call it under the lock."""
    # Of a manifest that is there and cannot be read a person must decide.
    needed = {base.id for base in backups if (sets.folder(settings, base.id) / sets.MANIFEST).exists()}
    for base in reversed(backups):  # the youngest first: what others build on comes before them
        if base.id in needed and base.parent:
            needed.add(base.parent)
    for base in backups:
        if base.id not in needed:
            print(f"deleting the base backup {base.id}: it was never completed to a set", flush=True)
            barman.delete(settings, base.id)


def _complete(settings: Settings, base: barman.BaseBackup, label: str, started: float) -> sets.Manifest:
    reference = postgres.reference_point(settings, f"set-{base.id}")
    barman.wait_archived(settings, postgres.switch_wal(settings, f"end-{base.id}"))
    known = _known_objects(settings)
    # Nothing may be replaced between the copy and its inventory.
    with state.only_one(settings.backups, "objects", wait=True):
        copied = objects.copy(settings, deletions=True)
        inventory = objects.inventory(settings, known)
    folder = sets.folder(settings, base.id)
    folder.mkdir(parents=True, exist_ok=True)
    objects.write_inventory(folder / sets.INVENTORY, inventory)
    shutil.copyfile(settings.secrets / sets.SEALED, folder / sets.SEALED)

    with closing(postgres.connect(settings)) as connection:
        revision = postgres.schema_revision(connection)
        server_version, bytes_ = postgres.fetch_one(
            connection, "SELECT current_setting('server_version'), pg_database_size('mlflow')"
        )
    chain = barman.chain(barman.catalogue(settings), base.id)
    manifest = sets.Manifest(
        format=sets.FORMAT,
        id=base.id,
        full=base.full,
        builds_on=[backup.id for backup in chain[:-1]],
        begin_wal=base.begin_wal,
        label=label,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        product_version=stackops.__version__,
        mlflow_version=version("mlflow"),
        schema_revision=revision,
        postgres_version=server_version,
        system_identifier=postgres.system_identifier(settings),
        reference=asdict(reference),
        objects=len(inventory),
        object_bytes=sum(stored.bytes for stored in inventory),
        objects_time=copied.isoformat(),
        database_bytes=bytes_,
        files={name: sha256_of(folder / name) for name in (sets.INVENTORY, sets.SEALED)},
        seconds=time.time() - started,
    )
    sets.write(settings, manifest)
    return manifest


def _known_objects(settings: Settings) -> dict[str, objects.StoredObject]:
    """Return the newest inventory that can be read: digests that need not be computed again."""
    for manifest in reversed(sets.complete(settings)):
        try:
            return objects.read_inventory(sets.folder(settings, manifest.id) / sets.INVENTORY)
        except FailedError as error:
            print(f"every object is read: {error}", flush=True)
    return {}


def forget(settings: Settings) -> list[str]:
    """Delete what no restore inside the window needs and return the ids of the sets that went."""
    barman.forget_obsolete(settings)
    backups = [backup for backup in barman.catalogue(settings) if backup.done]
    if not backups:
        return []  # a catalogue that lists nothing is no reason to delete everything else
    gone = sets.forget(settings, {backup.id for backup in backups})
    # An object that was replaced before the oldest base backup ended belongs to no moment
    # that can be restored.
    oldest = datetime.fromtimestamp(backups[0].end_time, UTC)
    objects.forget_history(settings, oldest - timedelta(hours=1))
    return gone


def verify(settings: Settings, set_id: str | None) -> dict[str, Any]:
    """Check every byte of a set (the newest one, unless named) and return its facts.

    Raise FailedError with a line per problem. Damaged copies of objects that are whole
    elsewhere are put aside on that occasion.
    """
    manifest = sets.choose(settings, set_id, None)
    problems = sets.verify(settings, manifest)
    if problems:
        if problems[0].startswith("object "):  # all the rest is well: the inventory can be believed
            with state.only_one(settings.backups, "objects", wait=True):
                mended = sets.mend_objects(settings, manifest)
            problems += [f"object {key}: the damaged copy was put aside, verify again" for key in mended]
        raise FailedError(
            f"the backup set {manifest.id} is damaged:\n" + "\n".join(problems),
            "./stack backup run --full makes a sound one; ./stack backup list shows older ones",
        )
    return {"set": manifest.id, "objects": manifest.objects}
