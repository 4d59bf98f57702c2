"""What the jobs leave behind for `status`, the metrics and each other: small JSON files."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stackops.errors import BusyError, FailedError, OperationError
from stackops.healthy import STALE_SECONDS, no_room

LOOPS = ("log", "objects")
"""The parts of the continuous backup, each with a state file."""
FULL_FIX = "make room on its disk, or set a lower BACKUP_KEEP_DAYS; the backup goes on by itself"


@dataclass
class JobResult:
    """The last run of a job. Times in seconds since 1970."""

    job: str
    started: float
    seconds: float
    ok: bool
    message: str
    facts: dict[str, Any] = field(default_factory=dict)
    last_success: float | None = None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full volume: written again every few seconds
        raise


def read_json(path: Path) -> Any | None:
    """Return what a JSON file holds, or None if it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def continuous(backups: Path) -> dict[str, dict[str, Any]]:
    """Return the state of each part of the continuous backup.

    What a full volume kept from being written down, and a loop that does not turn, count too.
    """
    found = {}
    full = no_room(backups)
    for part in LOOPS:
        value = read_json(backups / "state" / f"{part}.json")
        if value is None:
            value = {"ok": False, "error": "not begun"}
        elif full:
            value = value | {"ok": False, "error": f"{full} (fix: {FULL_FIX})"}
        elif part == "log" and value["ok"] and time.time() - value["at"] > STALE_SECONDS:
            value = value | {
                "ok": False,
                "error": f"nothing for {time.time() - value['at']:.0f} s (fix: ./stack logs backup)",
            }
        found[part] = value
    return found


def results(backups: Path) -> dict[str, JobResult]:
    """Return the last result of each job that has run."""
    found = {}
    folder = backups / "state" / "jobs"
    for path in sorted(folder.glob("[!.]*.json")):
        found[path.stem] = JobResult(**read_json(path))
    for path in folder.glob("*.running"):
        began = read_json(path)
        if began and _is_free(backups, path.stem):  # nobody does it: it was killed
            before = found.get(path.stem)
            found[path.stem] = JobResult(
                path.stem, began, 0, ok=False, message="it was killed (fix: ./stack logs cron; CRON_MEMORY)"
            )
            found[path.stem].last_success = before.last_success if before else None
    return found


def cleanup_path(backups: Path) -> Path:
    """Return the file that says what the batches of cleanup come to (journal.totals)."""
    return backups / "state" / "cleanup.json"


def know_jobs(backups: Path, jobs: list[str]) -> None:
    """Note since when each job has been scheduled, so that one that never runs is noticed."""
    path = backups / "state" / "scheduled.json"
    try:
        write_json(path, dict.fromkeys(jobs, time.time()) | (read_json(path) or {}))
    except (OSError, ValueError) as failure:  # no reason to schedule nothing
        print(f"{path}: {failure}", file=sys.stderr, flush=True)


def scheduled_since(backups: Path, job: str) -> float:
    """Return since when a job has been scheduled; now for one that is not."""
    return (read_json(backups / "state" / "scheduled.json") or {}).get(job, time.time())


def _is_free(backups: Path, name: str) -> bool:
    try:
        with only_one(backups, name):
            return True
    except BusyError:
        return False


@contextmanager
def only_one(backups: Path, name: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock of the backup volume. If another one has it, wait or raise BusyError."""
    path = backups / "state" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BusyError(f"another {name} is at work; this one did nothing", "wait for it") from error
        yield


def record(backups: Path, job: str, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a job's action under its lock, keep its result, and return the facts it reported.

    What the action raises is kept as the message and raised again. A job that found another
    one of its name at work leaves that one's result alone.
    """
    with only_one(backups, job):
        before = results(backups).get(job)
        started = time.time()
        result = JobResult(job, started, 0, ok=False, message="was killed")
        result.last_success = before.last_success if before else None
        path = backups / "state" / "jobs" / f"{job}.json"
        running = path.with_suffix(".running")
        try:
            with suppress(OSError):  # a full volume: the job says so itself
                write_json(running, started)
            result.facts = action()
            result.ok, result.message, result.last_success = True, "", time.time()
        except (OperationError, OSError) as error:
            # What a full volume breaks has many messages; this one says what to do.
            full = no_room(backups)
            shown = FailedError(full, FULL_FIX) if full else error
            result.message = str(shown)
            result.facts = getattr(error, "facts", {})
            if isinstance(shown, OperationError):
                result.message += f" (fix: {shown.fix})"
            if shown is error:
                raise
            raise shown from error
        except BaseException as error:
            result.message = str(error) or type(error).__name__
            raise
        finally:
            result.seconds = time.time() - started
            try:
                write_json(path, asdict(result))
                running.unlink(missing_ok=True)
            except OSError as failure:  # the volume is full: what the action said matters more
                print(f"{job}: the result cannot be written: {failure}", file=sys.stderr, flush=True)
        return result.facts
