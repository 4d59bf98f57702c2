"""barman: base backups, the received write-ahead log, and what may be forgotten.

Its catalogue is the folder /backups/barman. A base backup is taken over the network by
pg_basebackup (incremental to the newest full one); the log comes by pg_receivewal.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from stackops import command, postgres
from stackops.errors import FailedError
from stackops.files import sha256_of
from stackops.settings import Settings

SERVER = "mlflow"
BINARIES = Path("/usr/lib/postgresql/17/bin")
BACKUP_TIMEOUT_SECONDS = 6 * 3600
ARCHIVE_TIMEOUT_SECONDS = 120
WAL_NAME_LENGTH = 24
CONFIGURATION = Path("/tmp/barman.conf")
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SEGMENT_BYTES = 16 << 20
SEGMENTS_PER_LOG = (1 << 32) // SEGMENT_BYTES


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
            delete(settings, failed)
        if full:
            raise
        print(f"a full base backup instead of an incremental one: {error}", flush=True)
        return take(settings, full=True)
    new = [backup for backup in catalogue(settings) if backup.id not in before and backup.done]
    if not new:
        raise FailedError("barman took no base backup", "./stack logs backup")
    return new[-1]


def delete(settings: Settings, backup_id: str) -> None:
    """Delete a base backup, those that build on it, and the log that only they need."""
    call(settings, "delete", SERVER, backup_id, timeout_seconds=BACKUP_TIMEOUT_SECONDS)


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
    """Move complete segments and timeline histories from the receiver's folder into the archive."""
    streaming = home(settings) / "streaming"
    if streaming.is_dir() and any(path.suffix != ".partial" for path in streaming.iterdir()):
        call(settings, "archive-wal", SERVER)
    note_digests(settings)


def _digest_file(settings: Settings, wal_file: str) -> Path:
    return settings.backups / "wal-sha256" / wal_file


def note_digests(settings: Settings) -> None:
    """Keep the SHA-256 of each segment that was archived: its compression has no checksum."""
    for path in wal_files(settings):
        digest = _digest_file(settings, path.name)
        if not digest.exists():
            digest.parent.mkdir(exist_ok=True)
            unfinished = digest.with_name(f".{path.name}.{secrets.token_hex(4)}")
            unfinished.write_text(sha256_of(path), encoding="utf-8")
            unfinished.replace(digest)


def damaged_wal(settings: Settings, begin: str, end: str | None = None) -> list[str]:
    """Return the archived segments from `begin` to `end` (or the newest) that have other bytes now."""
    damaged = []
    for path in wal_files(settings):
        if path.name < begin or (end and path.name > end):
            continue
        digest = _digest_file(settings, path.name)
        if not digest.exists() or digest.read_text(encoding="utf-8") != sha256_of(path):
            damaged.append(path.name)
    return damaged


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


def segment_at(settings: Settings, moment: datetime) -> str | None:
    """Return the segment that was being written at a moment, or None if the log ends before.

    Its file has the time at which its last byte came: it is the first that ended afterwards.
    """
    aside = settings.backups / "barman" / "aside"
    received = [*(home(settings) / "streaming").glob("*"), *aside.glob("*")]
    files = wal_files(settings) + [path for path in received if len(path.name) >= WAL_NAME_LENGTH]
    ends = sorted((path.stat().st_mtime, path.name[:WAL_NAME_LENGTH]) for path in files)
    return next((name for end, name in ends if end >= moment.timestamp()), None)


def lsn_number(lsn: str) -> int:
    """Return a place in the log as a number of bytes: "1/A000028" is 0x1_0A000028."""
    high, _, low = lsn.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def segment_number(wal_file: str) -> int:
    """Return the number of a segment: 8 hexadecimal digits each of timeline, log and segment."""
    return int(wal_file[8:16], 16) * SEGMENTS_PER_LOG + int(wal_file[16:], 16)


def segment_name(timeline: int, number: int) -> str:
    """Return the name of a segment of a timeline."""
    return f"{timeline:08X}{number // SEGMENTS_PER_LOG:08X}{number % SEGMENTS_PER_LOG:08X}"


def missing_wal(names: Iterable[str], begin: str, end: str) -> list[str]:
    """Given the names of archived segments, return those missing in [begin, end] of one timeline."""
    have = set(names)
    wanted = range(segment_number(begin), segment_number(end) + 1)
    return [
        name for name in (segment_name(int(begin[:8], 16), number) for number in wanted) if name not in have
    ]


@dataclass(frozen=True)
class Branch:
    """A timeline that the present one comes from, and the place where it was left."""

    timeline: int
    left_at: int


def parse_history(text: str) -> list[Branch]:
    """Return the ancestors in a timeline history file, the oldest first.

    A line is: timeline, place, reason (PostgreSQL's src/backend/access/transam/timeline.c).
    """
    found = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if words:
            found.append(Branch(int(words[0]), lsn_number(words[1])))
    return found


def _read_archived(path: Path) -> str:
    """Return the text of a file of the archive; barman compresses what it archives."""
    if path.read_bytes()[:4] != ZSTD_MAGIC:
        return path.read_text(encoding="utf-8")
    words = ["zstd", "--decompress", "--stdout", "--quiet", path]
    return command.run(words, fix="./stack backup verify", timeout_seconds=60)


def ancestry(settings: Settings) -> list[Branch]:
    """Return the timelines that lead to the present one, the oldest first, the present one last.

    Each restore and each roll back begins a new timeline; the present one is the newest.
    """
    names = [path.name for path in wal_files(settings)]
    histories = sorted((home(settings) / "wals").glob("*.history"))
    newest = max(
        [int(name[:8], 16) for name in names] + [int(path.stem, 16) for path in histories], default=1
    )
    path = home(settings) / "wals" / f"{newest:08X}.history"
    ancestors = parse_history(_read_archived(path)) if path.exists() else []
    return [*ancestors, Branch(newest, sys.maxsize)]


def missing_after(settings: Settings, begin: str, moment: datetime | None = None) -> list[str]:
    """Return the segments missing from `begin` to the newest archived one, along the ancestry.

    None are, if the log up to `moment` is there: a gap came later.
    """
    names = [path.name for path in wal_files(settings)]
    missing = []
    first = segment_number(begin)
    for branch in ancestry(settings):
        if branch.timeline < int(begin[:8], 16):
            continue
        own = [segment_number(name) for name in names if int(name[:8], 16) == branch.timeline]
        # The segment in which a timeline was left is whole on the next one.
        last = max(own, default=-1) if branch.left_at == sys.maxsize else branch.left_at // SEGMENT_BYTES - 1
        if last >= first:
            missing += missing_wal(
                names, segment_name(branch.timeline, first), segment_name(branch.timeline, last)
            )
            first = last + 1
    if moment and missing:
        number = segment_number(missing[0]) - 1
        ends = [path.stat().st_mtime for path in wal_files(settings) if segment_number(path.name) == number]
        if ends and max(ends) >= moment.timestamp():
            return []
    return missing


def forget_obsolete(settings: Settings) -> list[str]:
    """Delete the base backups (and the log before them) that no restore in the window needs.

    Return their ids. Those that others build on go with them.
    """
    gone = []
    for backup in catalogue(settings):
        if backup.obsolete and backup.full:
            delete(settings, backup.id)
            gone.append(backup.id)
    there = {path.name for path in wal_files(settings)}
    for digest in (settings.backups / "wal-sha256").glob("[0-9A-F]*"):
        if digest.name not in there:
            digest.unlink()
    return gone


def keep_histories(settings: Settings, cluster: Path) -> None:
    """Archive the timeline histories of a stopped cluster: their numbers are taken from now on."""
    streaming = home(settings) / "streaming"
    streaming.mkdir(parents=True, exist_ok=True)
    for path in (cluster / "pg_wal").glob("*.history"):
        if not (home(settings) / "wals" / path.name).exists():
            shutil.copyfile(path, streaming / path.name)


def put_partial_aside(settings: Settings) -> None:
    """Empty the receiver's folder after a restore: the log goes on elsewhere, on a new timeline."""
    archive(settings)
    streaming = home(settings) / "streaming"
    if not streaming.is_dir():
        return
    aside = settings.backups / "barman" / "aside"
    aside.mkdir(parents=True, exist_ok=True)
    for path in aside.iterdir():
        if path.stat().st_mtime < time.time() - settings.keep_days * 86400:
            path.unlink()
    for path in list(streaming.iterdir()):
        path.rename(aside / path.name)
