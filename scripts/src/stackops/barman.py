"""barman: base backups, the received write-ahead log, and what may be forgotten.

Its catalogue is the folder /backups/barman. A base backup is taken over the network by
pg_basebackup (incremental to the newest full one); the log comes by pg_receivewal.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from stackops import command, postgres
from stackops.errors import FailedError
from stackops.settings import Settings

SERVER = "mlflow"
BINARIES = Path("/usr/lib/postgresql/17/bin")
BACKUP_TIMEOUT_SECONDS = 6 * 3600
ARCHIVE_TIMEOUT_SECONDS = 120
WAL_NAME_LENGTH = 24
CONFIGURATION = Path("/tmp/barman.conf")


@dataclass(frozen=True)
class BaseBackup:
    """One base backup. `parent` is the full one that an incremental one builds on."""

    id: str
    done: bool
    obsolete: bool
    full: bool
    parent: str | None
    begin_wal: str
    end_time: float
    bytes: int


def home(settings: Settings) -> Path:
    """Return the folder of the server's catalogue."""
    return settings.backups / "barman" / SERVER


def data_folder(settings: Settings, backup_id: str) -> Path:
    """Return the folder with a base backup's files."""
    return home(settings) / "base" / backup_id / "data"


def configure(settings: Settings) -> Path:
    """Write barman's configuration and return its path."""
    locks = settings.backups / "barman" / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    path = CONFIGURATION
    connection = f"host={settings.database_host} user={postgres.ROLE} connect_timeout=5"
    text = f"""[barman]
barman_user = postgres
barman_home = {settings.backups / "barman"}
barman_lock_directory = {locks}
log_level = WARNING
[{SERVER}]
description = the database of the stack
conninfo = {connection} dbname=postgres
streaming_conninfo = {connection} dbname=postgres
backup_method = postgres
immediate_checkpoint = true
streaming_archiver = on
archiver = off
slot_name = {postgres.SLOT}
create_slot = manual
compression = zstd
retention_policy = RECOVERY WINDOW OF {settings.keep_days} DAYS
minimum_redundancy = {settings.keep_count}
path_prefix = {BINARIES}
"""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        # In one step: another thread's barman may be reading it.
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    return path


def words(settings: Settings, *arguments: str) -> list[str]:
    """Return the command line of a barman call."""
    return ["barman", "--config", str(configure(settings)), "--quiet", *arguments]


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment of barman and of the PostgreSQL programs that it starts.

    Without the server's Python path: barman has the Python of the system.
    """
    return {
        "PATH": f"{BINARIES}:/usr/bin:/bin",
        "PGPASSFILE": str(settings.secrets / "pgpass"),
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
    }


def call(
    settings: Settings, *arguments: str, timeout_seconds: float = ARCHIVE_TIMEOUT_SECONDS, fix: str = ""
) -> str:
    """Run barman and return what it printed. Raise FailedError with its words if it failed."""
    return command.run(
        words(settings, *arguments),
        fix=fix or "./stack logs backup",
        timeout_seconds=timeout_seconds,
        environment=environment(settings),
    )


def catalogue(settings: Settings) -> list[BaseBackup]:
    """Return the base backups, the oldest first."""
    if not (home(settings) / "base").is_dir():
        return []
    text = command.run(
        ["barman", "--config", configure(settings), "--format", "json", "list-backups", SERVER],
        fix="./stack logs backup",
        timeout_seconds=ARCHIVE_TIMEOUT_SECONDS,
        environment=environment(settings),
    )
    found = []
    for entry in json.loads(text).get(SERVER, []):
        found.append(_base_backup(settings, entry))
    return sorted(found, key=lambda backup: backup.id)


def _base_backup(settings: Settings, entry: dict) -> BaseBackup:
    info = {}
    path = home(settings) / "meta" / f"{entry['backup_id']}-backup.info"
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        info = dict(line.split("=", 1) for line in lines if "=" in line)
    parent = info.get("parent_backup_id", "None")
    return BaseBackup(
        id=entry["backup_id"],
        done=entry["status"] in {"DONE", "WAITING_FOR_WALS"},
        # "OBSOLETE*" is kept for minimum_redundancy: barman refuses to delete it.
        obsolete=entry.get("retention_status") == "OBSOLETE",
        full=parent in {"None", ""},
        parent=None if parent in {"None", ""} else parent,
        begin_wal=info.get("begin_wal", ""),
        end_time=float(entry.get("end_time_timestamp") or 0),
        bytes=int(entry.get("size_bytes") or 0),
    )


def take(settings: Settings, *, full: bool) -> BaseBackup:
    """Take a base backup, incremental to the newest full one unless `full`, and return it.

    Where an incremental one cannot be taken (PostgreSQL lacks a summary of the log since the
    full one) a full one is. Raise FailedError if that fails too.
    """
    before = {backup.id for backup in catalogue(settings)}
    kind = [] if full else ["--incremental", "latest-full"]
    try:
        call(settings, "backup", *kind, SERVER, timeout_seconds=BACKUP_TIMEOUT_SECONDS)
    except FailedError as error:
        for failed in {backup.id for backup in catalogue(settings)} - before:
            call(settings, "delete", SERVER, failed)
        if full:
            raise
        print(f"a full base backup instead of an incremental one: {error}", flush=True)
        return take(settings, full=True)
    new = [backup for backup in catalogue(settings) if backup.id not in before and backup.done]
    if not new:
        raise FailedError("barman took no base backup", "./stack logs backup")
    return new[-1]


def chain(backups: list[BaseBackup], backup_id: str) -> list[BaseBackup]:
    """Return a base backup with those that it builds on, the full one first.

    Raise FailedError if one of them is missing.
    """
    by_id = {backup.id: backup for backup in backups}
    found: list[BaseBackup] = []
    wanted: str | None = backup_id
    while wanted:
        if wanted not in by_id:
            raise FailedError(f"the base backup {wanted} is missing", "./stack backup list")
        found.insert(0, by_id[wanted])
        wanted = by_id[wanted].parent
    return found


def archive(settings: Settings) -> None:
    """Move complete segments from the receiver's folder into the archive (compressed)."""
    streaming = home(settings) / "streaming"
    if streaming.is_dir() and any(len(path.name) == WAL_NAME_LENGTH for path in streaming.iterdir()):
        call(settings, "archive-wal", SERVER)


def archived(settings: Settings, wal_file: str) -> bool:
    """Return whether a segment of the log is in the archive."""
    return (home(settings) / "wals" / wal_file[:16] / wal_file).exists()


def wait_archived(settings: Settings, wal_file: str, seconds: float = ARCHIVE_TIMEOUT_SECONDS) -> None:
    """Wait until a segment of the log is in the archive. Raise FailedError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not archived(settings, wal_file):
        if time.monotonic() > deadline:
            raise FailedError(
                f"the log's segment {wal_file} did not arrive within {seconds:.0f} s: "
                "the receiver is not at work",
                "./stack logs backup",
            )
        archive(settings)
        time.sleep(0.2)


def wal_files(settings: Settings) -> list[Path]:
    """Return the archived segments, in the order of their names."""
    return sorted(
        path
        for path in (home(settings) / "wals").glob("*/*")
        if len(path.name) == WAL_NAME_LENGTH and "." not in path.name
    )


def timeline_at(settings: Settings, moment: datetime | None) -> int | None:
    """Return the timeline that was written at a moment (None: at last), or None without any log.

    A segment has the time at which its last byte came: the first one that ended after the
    moment was being written then. Each restore begins a timeline, each roll back goes on with
    an earlier one, so the highest number says nothing.
    """
    streaming = home(settings) / "streaming"
    aside = settings.backups / "barman" / "aside"
    received = [*streaming.glob("*"), *aside.glob("*")]
    files = wal_files(settings) + [path for path in received if len(path.name) >= WAL_NAME_LENGTH]
    ends = sorted((path.stat().st_mtime, path.name) for path in files)
    if not ends:
        return None
    later = [name for end, name in ends if moment and end >= moment.timestamp()]
    return int((later[0] if later else ends[-1][1])[:8], 16)


def missing_wal(names: list[str], begin: str, end: str) -> list[str]:
    """Given the names of archived segments of one timeline, return those missing in [begin, end].

    A name is 8 hexadecimal digits each of timeline, log and segment; a log has 256 segments
    of 16 MB.
    """
    have = set(names)

    def number(name: str) -> int:
        return int(name[8:16], 16) * 256 + int(name[16:], 16)

    wanted = (
        f"{begin[:8]}{value // 256:08X}{value % 256:08X}" for value in range(number(begin), number(end) + 1)
    )
    return [name for name in wanted if name not in have]


def forget_obsolete(settings: Settings) -> list[str]:
    """Delete the base backups (and the log before them) that no restore in the window needs.

    Return their ids. Those that others build on go with them.
    """
    gone = []
    for backup in catalogue(settings):
        if backup.obsolete and backup.full:
            call(settings, "delete", SERVER, backup.id, timeout_seconds=BACKUP_TIMEOUT_SECONDS)
            gone.append(backup.id)
    return gone


def put_partial_aside(settings: Settings) -> None:
    """Empty the receiver's folder after a restore: the log goes on elsewhere, on a new timeline."""
    archive(settings)
    streaming = home(settings) / "streaming"
    if not streaming.is_dir():
        return
    aside = settings.backups / "barman" / "aside"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for path in list(streaming.iterdir()):
        path.rename(aside / path.name)
