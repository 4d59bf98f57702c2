"""What unit tests of the backups need: a backup volume in a folder, programs that stand in for real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from stackops import barman, objects, sets
from stackops.files import sha256_of
from stackops.settings import JOBS, Settings

EPOCH = datetime(2025, 11, 21, 8, 0, tzinfo=UTC)


def settings_in(folder: Path, **more: Any) -> Settings:
    """Return settings whose volumes are folders below `folder`, made if need be."""
    made = Settings(
        schedules={job: default for job, (_, default) in JOBS.items()},
        backups=folder / "backups",
        data=folder / "data",
        secrets=folder / "secrets",
    )
    for path in (made.backups, made.data, made.secrets):
        path.mkdir(exist_ok=True)
    return replace(made, **more)


def program(folder: Path, name: str, script: str) -> Path:
    """Write an executable shell script and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def set_id(hours: float) -> str:
    """Return the id of the set that is made `hours` after EPOCH."""
    return (EPOCH + timedelta(hours=hours)).strftime("%Y%m%dT%H%M%S")


def manifest(hours: float = 0, **more: Any) -> sets.Manifest:
    """Return the manifest of a full set that is made `hours` after EPOCH."""
    moment = EPOCH + timedelta(hours=hours)
    made = sets.Manifest(
        format=sets.FORMAT,
        id=set_id(hours),
        full=True,
        builds_on=[],
        begin_wal=wal_name(2),
        label="",
        made=moment.isoformat(timespec="seconds"),
        product_version="0.1.0",
        mlflow_version="3.17.2",
        schema_revision="abc",
        postgres_version="17.6",
        system_identifier="7",
        reference={
            "name": f"set-{set_id(hours)}",
            "lsn": "0/4000000",
            "wal_file": wal_name(4),
            "time": moment.isoformat(sep=" "),
            "timeline": 1,
            "tables": {},
        },
        objects=0,
        object_bytes=0,
        objects_time=(moment + timedelta(seconds=10)).isoformat(),
        database_bytes=1000,
        files={},
        seconds=1.0,
    )
    return replace(made, **more)


def wal_name(number: int, timeline: int = 1) -> str:
    """Return the name of a segment of the log."""
    return f"{timeline:08X}{number // 256:08X}{number % 256:08X}"


def put_wal(settings: Settings, *names: str, contents: bytes = b"log") -> None:
    """Put segments into the archive."""
    for name in names:
        path = barman.home(settings) / "wals" / name[:16] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    barman.note_digests(settings)


def put_object(settings: Settings, key: str, contents: bytes, folder: Path | None = None) -> Path:
    """Put an object into the copy of the bucket (or into a folder of the history)."""
    path = (folder or objects.current(settings)) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)
    return path


def put_set(settings: Settings, hours: float = 0, **more: Any) -> sets.Manifest:
    """Fabricate a complete set of the copy as it is now: base backup, log, inventory, manifest."""
    folder = sets.folder(settings, set_id(hours))
    folder.mkdir(parents=True)
    inventory = objects.inventory(settings, {})
    objects.write_inventory(folder / sets.INVENTORY, inventory)
    (folder / sets.SEALED).write_bytes(b"sealed")
    files = {name: sha256_of(folder / name) for name in (sets.INVENTORY, sets.SEALED)}
    made = manifest(hours, files=files, objects=len(inventory), **more)
    barman.data_folder(settings, made.id).mkdir(parents=True)
    put_wal(settings, *(wal_name(number) for number in range(2, 5)))
    sets.write(settings, made)
    return made


def put_base(settings: Settings, backup_id: str, parent: str | None = None, begin_wal: str = "") -> None:
    """Put what barman keeps beside a base backup."""
    path = barman.home(settings) / "meta" / f"{backup_id}-backup.info"
    path.parent.mkdir(parents=True, exist_ok=True)
    (barman.home(settings) / "base" / backup_id / "data").mkdir(parents=True, exist_ok=True)
    path.write_text(f"backup_name=None\nbegin_wal={begin_wal}\nparent_backup_id={parent}\nstatus=DONE\n")


def barman_entry(backup_id: str, **more: Any) -> dict[str, Any]:
    """Return what `barman list-backups --format json` says of a base backup."""
    return {
        "backup_id": backup_id,
        "status": "DONE",
        "end_time_timestamp": str(int(EPOCH.timestamp())),
        "size_bytes": 4096,
        "retention_status": "VALID",
        **more,
    }


def barman_lists(folder: Path, *entries: dict[str, Any]) -> Path:
    """Write a `barman` that lists these base backups and keeps its command lines in a file; return that."""
    calls = folder / "calls"
    program(
        folder,
        "barman",
        f"echo \"$@\" >>{calls}\ncase $* in *list-backups*) cat <<'END'\n"
        + json.dumps({barman.SERVER: list(entries)})
        + "\nEND\n;; esac",
    )
    return calls


def tree_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
