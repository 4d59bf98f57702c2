"""The copy of the bucket: the newest version of every object, and what was replaced or deleted.

`/backups/objects/current` mirrors the bucket, a file per object. Before an object is
replaced or deleted there it moves to `/backups/objects/history/STAMP/KEY`, so the bucket as
it was at a moment is: `current`, with each key of the oldest history folder younger than
that moment put in its place. rclone does the copying (rclone.org/docs, --backup-dir).
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from stackops import command
from stackops.errors import FailedError, OperationError
from stackops.files import sha256_of
from stackops.settings import Settings

PREFIX = "artifacts"
"""Where MLflow's artifacts are in the bucket (stackserver.settings.artifact_prefix)."""
MARKER = ".stack/bucket"
"""An object with a random name for the bucket: an emptied or foreign bucket is noticed."""
DAMAGED = "damaged"
"""The folder beside `current` and `history` for files whose bytes went wrong in the backup."""
STAMP = "%Y%m%dT%H%M%S.%fZ"
PARTIAL = ".stack-part"
"""How rclone names what it has not yet copied whole: a killed copy leaves such files."""
COPY_TIMEOUT_SECONDS = 24 * 3600
QUICK_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class StoredObject:
    """An object of a set: its key, size and the SHA-256 of its bytes."""

    key: str
    bytes: int
    sha256: str
    modified_ns: int = 0


def current(settings: Settings) -> Path:
    """Return the folder with the newest version of every object."""
    return settings.backups / "objects" / "current"


def history(settings: Settings) -> Path:
    """Return the folder with what was replaced or deleted, a folder per copy."""
    return settings.backups / "objects" / "history"


def stamp(moment: datetime) -> str:
    """Return the name of a history folder."""
    return moment.astimezone(UTC).strftime(STAMP)


def _rclone(settings: Settings, *words: str, timeout_seconds: float = COPY_TIMEOUT_SECONDS) -> str:
    return command.run(
        ["rclone", *words],
        fix="./stack status; is the storage up, and has the backup volume room?",
        timeout_seconds=timeout_seconds,
        environment={
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": "/tmp",
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "Minio",
            "RCLONE_CONFIG_STORE_ENV_AUTH": "true",
            "RCLONE_CONFIG_STORE_ENDPOINT": settings.storage_endpoint,
            "AWS_SHARED_CREDENTIALS_FILE": str(settings.secrets / "aws_credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "RCLONE_CONTIMEOUT": "5s",
            "RCLONE_TIMEOUT": "60s",
            "RCLONE_RETRIES": "2",
            "RCLONE_LOW_LEVEL_RETRIES": "3",
            "RCLONE_S3_NO_CHECK_BUCKET": "true",
            "RCLONE_TRANSFERS": "8",
            "RCLONE_CHECKERS": "16",
            # Keys that look the same (é as one letter, or two) are two objects: else one is left out.
            "RCLONE_NO_UNICODE_NORMALIZATION": "true",
        },
    )


def _bucket(settings: Settings) -> str:
    return f"store:{settings.bucket}"


def check_bucket(settings: Settings, *, mark: bool = True) -> None:
    """Mark a new bucket, or raise OperationError if it is not the one that was copied so far.

    A bucket that was lost and made anew is empty: copying it must not count as deletions.
    Only who has the lock `objects` may mark: of two marks one would be a foreign bucket's.
    """
    known = current(settings) / MARKER
    listed = _rclone(
        settings,
        "lsf",
        "--files-only",
        f"{_bucket(settings)}/{MARKER.rpartition('/')[0]}",
        timeout_seconds=QUICK_TIMEOUT_SECONDS,
        # A folder that is not there is an empty listing of S3.
    ).split()
    there = MARKER.rpartition("/")[2] in listed
    if not known.exists():
        if mark and not there:
            made = Path("/tmp/bucket-marker")
            made.write_text(uuid.uuid4().hex, encoding="utf-8")
            _rclone(settings, "copyto", str(made), f"{_bucket(settings)}/{MARKER}")
        return
    text = _rclone(settings, "cat", f"{_bucket(settings)}/{MARKER}") if there else ""
    if text != known.read_text(encoding="utf-8"):
        raise OperationError(
            "the bucket is not the one that the backups are from: its contents were lost or replaced",
            "./stack restore brings the objects back",
        )


def copy(settings: Settings, *, deletions: bool = False) -> datetime:
    """Bring the copy up to the bucket; with `deletions` also forget what the bucket deleted.

    What is replaced or forgotten moves to the history. Return the moment for `locate` that
    gives what the copy holds now, whatever comes later. Call it under the lock `objects`.
    """
    check_bucket(settings)
    moment = datetime.now(UTC)
    _rclone(
        settings,
        # Deleted first: a file that has become a folder could not be copied otherwise.
        *(["sync", "--delete-before"] if deletions else ["copy"]),
        _bucket(settings),
        str(current(settings)),
        "--backup-dir",
        str(history(settings) / stamp(moment)),
        "--partial-suffix",
        PARTIAL,
        "--use-server-modtime",
        "--fast-list",
        "--exclude",
        "/.stack/ready/**",
    )
    return moment


def put_back(settings: Settings, tree: Path) -> None:
    """Copy a tree into the bucket: what is missing or different there. Nothing is deleted.

    Different is what has another size or time: an object above 8 MiB was uploaded in parts and
    has no checksum that a file has too. The marker goes last, so that nobody takes a bucket
    that was filled halfway for the one that was copied.
    """
    _rclone(
        settings,
        *("copy", str(tree), _bucket(settings)),
        *("--use-server-modtime", "--fast-list", "--exclude", "/.stack/**"),
    )
    if (tree / MARKER).exists():
        _rclone(settings, "copyto", str(tree / MARKER), f"{_bucket(settings)}/{MARKER}")


def sizes(settings: Settings) -> dict[str, int]:
    """Return the bytes of every object in the bucket by its key."""
    words = ("lsjson", "--recursive", "--files-only", "--no-mimetype", "--no-modtime", "--fast-list")
    listed = json.loads(_rclone(settings, *words, _bucket(settings)))
    return {found["Path"]: found["Size"] for found in listed}


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path below the folder, its status) of every whole file, the paths in order."""
    for directory, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(name for name in names if not name.endswith(PARTIAL)):
            path = os.path.join(directory, name)
            yield os.path.relpath(path, folder), os.stat(path)


def inventory(settings: Settings, known: dict[str, StoredObject]) -> list[StoredObject]:
    """Return every object of the copy with its SHA-256.

    A file that has the size and time that it had in `known` keeps its digest from there.
    """
    folder = current(settings)
    found = []
    for key, status in _files(folder):
        before = known.get(key)
        if before and (before.bytes, before.modified_ns) == (status.st_size, status.st_mtime_ns):
            found.append(before)
        else:
            found.append(StoredObject(key, status.st_size, sha256_of(folder / key), status.st_mtime_ns))
    return found


def write_inventory(path: Path, objects: list[StoredObject]) -> None:
    """Write an inventory: gzip, a JSON object per line."""
    with path.open("wb") as file:
        with gzip.open(file, "wt", encoding="utf-8") as text:
            for stored in objects:
                text.write(json.dumps(asdict(stored)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_inventory(path: Path) -> dict[str, StoredObject]:
    """Return the objects of an inventory by key. Raise FailedError if it cannot be read."""
    if path.exists() and not path.stat().st_size:  # gzip would take that for an inventory of nothing
        raise FailedError(f"{path.name} cannot be read: it is empty", "./stack backup list")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            objects = [StoredObject(**json.loads(line)) for line in file]
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise FailedError(f"{path.name} cannot be read: {error}", "./stack backup list") from error
    return {stored.key: stored for stored in objects}


def locate(settings: Settings, moment: datetime) -> dict[str, Path]:
    """Return where the bytes of every object are, by key, as the last copy before a moment found them.

    With them come objects that are younger, or that the bucket had deleted while no copy with
    `deletions` was made: nothing that was there is missing or newer.
    """
    found: dict[str, Path] = {}
    for folder in _folders_since(settings, moment):
        for key, _ in _files(folder):
            found.setdefault(key, folder / key)
    return found


def _history_folders(settings: Settings) -> list[Path]:
    folder = history(settings)
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _folders_since(settings: Settings, moment: datetime) -> list[Path]:
    """Return the folders that an object of a moment may be in now, the one that decides first."""
    younger = [folder for folder in _history_folders(settings) if folder.name > stamp(moment)]
    return [*younger, current(settings)]


def lay_out(settings: Settings, moment: datetime, tree: Path) -> int:
    """Lay the bucket as it was at a moment out as a tree of hard links; return the number of objects."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    count = 0
    for key, path in locate(settings, moment).items():
        target = tree / key
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
        except (FileExistsError, NotADirectoryError):
            continue  # a folder that was a file at that moment, or the reverse: it is younger
        count += 1
    return count


def check(settings: Settings, moment: datetime, expected: dict[str, StoredObject]) -> list[str]:
    """Return a line for each object of a set that the copy has lost or that has other bytes now."""
    located = locate(settings, moment)
    problems = []
    for key, stored in expected.items():
        path = located.get(key)
        if path is None:
            problems.append(f"object {key}: missing in the backup")
        elif sha256_of(path) != stored.sha256:
            problems.append(f"object {key}: other bytes than were backed up ({path})")
    return problems


def mend(settings: Settings, moment: datetime, expected: dict[str, StoredObject]) -> list[str]:
    """Put damaged files aside where that brings the right bytes back, and return their keys.

    Either a younger file has them (a copy has replaced the damaged one, and kept it in the
    history), or the next copy fetches them: from a file that still has its size and time
    rclone could not tell. Call it under the lock `objects`.
    """
    folders = _folders_since(settings, moment)
    put_aside = settings.backups / "objects" / DAMAGED / stamp(datetime.now(UTC))
    mended = []
    for key, stored in expected.items():
        wrong = []
        for path in [folder / key for folder in folders if (folder / key).is_file()]:
            if sha256_of(path) == stored.sha256:
                break
            wrong.append(path)
        else:
            if wrong != [current(settings) / key]:
                continue  # nobody has the bytes: what is there belongs to other moments
            status = wrong[0].stat()
            if (status.st_size, status.st_mtime_ns) != (stored.bytes, stored.modified_ns):
                continue
        for number, path in enumerate(wrong):
            target = put_aside / str(number) / key
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        if wrong:
            mended.append(key)
    return mended


def forget_history(settings: Settings, before: datetime) -> int:
    """Delete the folders of history and damage older than a moment and return how many there were."""
    damaged = (settings.backups / "objects" / DAMAGED).glob("*")
    folders = [*_history_folders(settings), *damaged]
    old = [folder for folder in folders if folder.name < stamp(before)]
    for folder in old:
        shutil.rmtree(folder)
    return len(old)
