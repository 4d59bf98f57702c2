"""Backup sets: what belongs together, described by a manifest that is written last.

A set is a base backup in barman's catalogue, a named place in the log, the objects that were
there then, and the sealed secrets: `/backups/sets/ID/{manifest.json, objects.jsonl.gz, sealed.age}`.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from stackops import barman, command, objects
from stackops.errors import FailedError, OperationError
from stackops.files import sha256_of
from stackops.settings import Settings
from stackops.state import read_json, write_json

FORMAT = 1
MANIFEST = "manifest.json"
INVENTORY = "objects.jsonl.gz"
SEALED = "sealed.age"
VERIFY_TIMEOUT_SECONDS = 6 * 3600


@dataclass(frozen=True)
class Manifest:
    """What a set holds. `reference` is a postgres.ReferencePoint as a dictionary; sizes in bytes."""

    format: int
    id: str
    full: bool
    builds_on: list[str]
    begin_wal: str
    label: str
    made: str
    product_version: str
    mlflow_version: str
    schema_revision: str | None
    postgres_version: str
    system_identifier: str
    reference: dict[str, Any]
    objects: int
    object_bytes: int
    objects_time: str
    database_bytes: int
    files: dict[str, str]
    seconds: float

    @property
    def moment(self) -> datetime:
        """The moment of the reference point."""
        return datetime.fromisoformat(self.reference["time"])

    @property
    def objects_moment(self) -> datetime:
        """The moment for objects.locate that gives exactly the objects of the inventory.

        It is a little later than the reference point: what was replaced just before that had
        not been copied yet.
        """
        return datetime.fromisoformat(self.objects_time)


def folder(settings: Settings, set_id: str) -> Path:
    """Return the folder of a set."""
    return settings.backups / "sets" / set_id


def write(settings: Settings, manifest: Manifest) -> None:
    """Complete a set."""
    write_json(folder(settings, manifest.id) / MANIFEST, asdict(manifest))


def read(settings: Settings, set_id: str) -> Manifest:
    """Return a set's manifest. Raise OperationError if there is none that this version can read."""
    path = folder(settings, set_id) / MANIFEST
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise FailedError(f"{path} cannot be read: {error}", "./stack backup list") from error
    if value is None:
        raise OperationError(f"there is no backup set {set_id}", "./stack backup list")
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise OperationError(
            f"the backup set {set_id} has the format {found}, this version reads {FORMAT}",
            "use the version of the stack that made it",
        )
    try:
        return Manifest(**value)
    except TypeError as error:
        raise FailedError(f"{path} cannot be read: {error}", "./stack backup list") from error


def complete(settings: Settings) -> list[Manifest]:
    """Return the complete sets, the oldest first.

    One that cannot be read is named on stderr: it must keep nobody from the others.
    """
    found = []
    for path in sorted((settings.backups / "sets").glob(f"*/{MANIFEST}")):
        try:
            found.append(read(settings, path.parent.name))
        except OperationError as error:
            print(f"left out: {error}", file=sys.stderr, flush=True)
    return found


def choose(settings: Settings, set_id: str | None, moment: datetime | None) -> Manifest:
    """Return the set to restore from: the named one, or the newest one not younger than `moment`.

    Sets of a branch that was left by a restore are only taken by name. Raise OperationError
    if there is none.
    """
    if set_id:
        return read(settings, set_id)
    branches = barman.ancestry(settings)
    found = [
        manifest
        for manifest in complete(settings)
        if leads_here(manifest, branches) and (moment is None or manifest.moment <= moment)
    ]
    if not found:
        what = f"no backup set is older than {moment}" if moment else "there is no backup set"
        raise OperationError(what, "./stack backup list")
    return found[-1]


def leads_here(manifest: Manifest, branches: list[barman.Branch]) -> bool:
    """Return whether the present state of the database comes from this set."""
    place = barman.lsn_number(manifest.reference["lsn"])
    return any(
        branch.timeline == manifest.reference["timeline"] and place <= branch.left_at for branch in branches
    )


def verify(settings: Settings, manifest: Manifest) -> list[str]:
    """Check every byte of a set and return a line per problem; none when it can be restored.

    Base backups against PostgreSQL's own manifests, the log for gaps and readability up to
    the reference point, objects and sealed secrets against their SHA-256.
    """
    problems = []
    own = folder(settings, manifest.id)
    for name, digest in manifest.files.items():
        path = own / name
        if not path.exists():
            problems.append(f"{path}: missing")
        elif sha256_of(path) != digest:
            problems.append(f"{path}: other bytes than were written")
    for backup_id in [*manifest.builds_on, manifest.id]:
        problems += _verify_base(settings, backup_id)
    problems += _verify_log(settings, manifest)
    if not problems:
        expected = objects.read_inventory(own / INVENTORY)
        problems += objects.check(settings, manifest.objects_moment, expected)
    return problems


def mend_objects(settings: Settings, manifest: Manifest) -> list[str]:
    """Put damaged copies of a set's objects aside and return their keys, as objects.mend does."""
    expected = objects.read_inventory(folder(settings, manifest.id) / INVENTORY)
    return objects.mend(settings, manifest.objects_moment, expected)


def _verify_base(settings: Settings, backup_id: str) -> list[str]:
    data = barman.data_folder(settings, backup_id)
    if not data.is_dir():
        return [f"base backup {backup_id}: missing"]
    try:
        # The log is barman's: it is checked apart.
        command.run(
            [barman.BINARIES / "pg_verifybackup", "--quiet", "--no-parse-wal", data],
            fix="./stack backup list",
            timeout_seconds=VERIFY_TIMEOUT_SECONDS,
        )
    except FailedError as error:
        return [f"base backup {backup_id}: {error}"]
    return []


def _verify_log(settings: Settings, manifest: Manifest) -> list[str]:
    """Return a problem for each segment that is missing or damaged up to the reference point."""
    end = manifest.reference["wal_file"]
    names = [path.name for path in barman.wal_files(settings)]
    problems = [f"log segment {name}: missing" for name in barman.missing_wal(names, manifest.begin_wal, end)]
    damaged = barman.damaged_wal(settings, manifest.begin_wal, end)
    return problems + [f"log segment {name}: other bytes than were archived" for name in damaged]


def forget(settings: Settings, known: set[str]) -> list[str]:
    """Delete the sets whose base backup is gone and return their ids."""
    root = settings.backups / "sets"
    gone = [path.name for path in sorted(root.iterdir()) if path.name not in known] if root.is_dir() else []
    for set_id in gone:
        shutil.rmtree(root / set_id)
    return gone
