"""The audit log: its folders, what is kept how long, and reading it.

Each writer has a folder of its own below the volume: nginx (access-DAY.jsonl: every request),
mlflow and fastpath (audit-DAY.jsonl: every change), stack (what ./stack user did). Days are UTC.
"""

from __future__ import annotations

import gzip
import heapq
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from stackops.errors import OperationError

WRITERS = {"nginx": 10004, "mlflow": 10003, "fastpath": 10009, "stack": 0}
"""The folder of each writer and its uid."""
READER_GID = 10001
"""The group of the jobs, which compress and delete."""
FILE = re.compile(r"(?P<kind>access|audit)-(?P<day>\d{4}-\d{2}-\d{2})\.jsonl(\.gz)?")
UNITS = {"d": 86_400, "h": 3600, "m": 60}


def make_folders(volume: Path) -> None:
    """Make the folder of each writer in the volume, which its uid may write and the jobs may clean.

    The files in it may be read by whoever comes in: nobody else does.
    """
    if not volume.is_dir():
        return
    for name, uid in WRITERS.items():
        folder = volume / name
        folder.mkdir(exist_ok=True)
        os.chown(folder, uid, READER_GID)
        folder.chmod(0o770)
    volume.chmod(0o755)


def note(volume: Path, **fields: Any) -> None:
    """Write a line of the stack itself."""
    folder = volume / "stack"
    if not folder.is_dir():
        return
    now = datetime.now(UTC)
    path = folder / f"audit-{now:%Y-%m-%d}.jsonl"
    line = json.dumps({"time": now.isoformat(timespec="milliseconds"), **fields}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def clean(volume: Path, keep_days: int) -> dict[str, Any]:
    """Compress the days that are over and delete those that were kept long enough."""
    today = datetime.now(UTC).date()
    compressed = deleted = 0
    for path, _, day in _files(volume):
        if (today - day).days > keep_days:
            path.unlink()
            deleted += 1
    for path, _, day in _files(volume):
        if day < today and path.suffix != ".gz":
            _compress(path)
            compressed += 1
    size = sum(path.stat().st_size for path, _, _ in _files(volume))
    return {"compressed": compressed, "deleted": deleted, "bytes": size}


def _compress(path: Path) -> None:
    packed = path.with_name(f"{path.name}.gz")
    temporary = packed.with_suffix(".part")
    try:
        with path.open("rb") as source, gzip.open(temporary, "wb") as target:
            shutil.copyfileobj(source, target)
        temporary.replace(packed)
    finally:
        temporary.unlink(missing_ok=True)
    path.unlink()


def read(
    volume: Path, since: datetime, *, user: str = "", words: str = "", requests: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the lines since a moment, the oldest first: changes, with `requests` every request instead.

    Only those of a user, and those whose event or objects contain some words. A writer's lines are
    in order as they were written; nothing but the present line of each file is held in memory.
    """
    kind = "access" if requests else "audit"
    days = defaultdict(list)
    for path, its_kind, day in _files(volume):
        if its_kind == kind and day >= since.date():
            days[day].append(_lines(path, since, user, words))
    for _, writers in sorted(days.items()):
        yield from heapq.merge(*writers, key=lambda line: line["time"])


def _lines(path: Path, since: datetime, user: str, words: str) -> Iterator[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
                moment = datetime.fromisoformat(line["time"])
            except (ValueError, KeyError, TypeError):
                continue  # cut off: the machine went down
            if moment < since or (user and line.get("user") != user):
                continue
            if words in f"{line.get('event', '')} {json.dumps(line.get('objects', ''))}":
                yield line


def _files(volume: Path) -> Iterator[tuple[Path, str, Any]]:
    for path in sorted(volume.glob("*/*")):
        found = FILE.fullmatch(path.name)
        if found:
            yield path, found["kind"], datetime.strptime(found["day"], "%Y-%m-%d").replace(tzinfo=UTC).date()


def parse_since(text: str) -> datetime:
    """Return the moment that "2d", "3h", "30m" (ago) or an ISO time says. Raise OperationError."""
    ago = re.fullmatch(r"([1-9][0-9]{0,4})([dhm])", text)
    if ago:
        return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * UNITS[ago[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise OperationError(f"--since is '{text}'", "2d, 3h, 30m, or 2026-11-21T08:00") from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def text_of(line: dict[str, Any]) -> str:
    """Return a line for people."""
    rest = line.get("objects") or {
        name: value for name, value in line.items() if name not in {"time", "user", "event", "status"}
    }
    named = " ".join(f"{name}={value}" for name, value in rest.items())
    what = (line.get("user") or "-", line.get("event", ""), str(line.get("status", "")), named)
    text = "  ".join((line["time"][:19], *(part for part in what if part)))
    return "".join(character if character.isprintable() else "?" for character in text)
