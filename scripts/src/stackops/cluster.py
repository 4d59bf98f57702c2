"""A database cluster made from a base backup and the log, run by this process: restore, drill.

PostgreSQL's own programs do the work: pg_combinebackup lays the files out (a full base
backup alone, or with an incremental one), recovery replays the log that barman hands out.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812

from stackops import barman, command, sets
from stackops.errors import FailedError
from stackops.settings import Settings

LAY_OUT_TIMEOUT_SECONDS = 6 * 3600
STALL_SECONDS = 300
STOP_TIMEOUT_SECONDS = 600
START_TIMEOUT_SECONDS = 60
MAX_CONNECTIONS = 1000
"""At least what the database had when it wrote the log, or recovery refuses; the stack's own
PostgreSQL takes 999 at most."""


@dataclass(frozen=True)
class Target:
    """Where recovery ends: at a named place, at a moment, or (both None) at the end of the log.

    `timeline` is the branch of the log to follow; without, the one of the present database.
    """

    name: str | None = None
    moment: datetime | None = None
    timeline: int | None = None

    def settings(self) -> list[str]:
        """Return the lines of postgresql.auto.conf."""
        lines = [f"recovery_target_timeline = '{self.timeline or 'latest'}'"]
        if self.name:
            lines.append(f"recovery_target_name = '{self.name}'")
        elif self.moment:
            lines.append(f"recovery_target_time = '{self.moment.isoformat()}'")
        else:
            return lines
        return [*lines, "recovery_target_action = 'promote'"]


def lay_out(settings: Settings, manifest: sets.Manifest, folder: Path, target: Target) -> None:
    """Lay a set's database out in `folder` (made anew), ready to recover to `target`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts = [barman.data_folder(settings, id_) for id_ in [*manifest.builds_on, manifest.id]]
    command.run(
        [barman.BINARIES / "pg_combinebackup", "--no-sync", *parts, "--output", folder],
        fix="is there room on the volume? ./stack backup verify",
        timeout_seconds=LAY_OUT_TIMEOUT_SECONDS,
    )
    folder.chmod(0o700)
    _recover(folder, _fetch(settings), target.settings())


class TargetNotReachedError(FailedError):
    """The log ended before the moment that recovery was to stop at."""


def reach(settings: Settings, folder: Path, target: Target) -> None:
    """Recover a laid out cluster to its target and stop it.

    PostgreSQL stops at the first commit after a moment, and takes it for a failure if there is
    none: then all of the log (which has no gap: restore.plan) is what there was at that moment.
    """
    try:
        with running(settings, folder):
            return
    except TargetNotReachedError:
        if target.moment is None:
            raise
    _recover(folder, _fetch(settings), Target(timeline=target.timeline).settings())
    with running(settings, folder):
        return


def branch(settings: Settings, folder: Path) -> None:
    """Let a cluster that was stopped and kept go on, on a new timeline.

    The archive has newer timelines by now: on its own one, the next recovery would leave it.
    It sees the archive's histories, to choose a number, and none of its segments: what
    another cluster wrote after it was kept must not be replayed.
    """
    fetch = _fetch(settings)
    command_line = f"case %f in *.history) {fetch} ;; *) exit 1 ;; esac"
    _recover(folder, command_line, ["recovery_target_timeline = 'current'"])
    with running(settings, folder):
        pass
    finish(folder)
    barman.keep_histories(settings, folder)


def _fetch(settings: Settings) -> str:
    """Return the command that brings a file of the archive, by PostgreSQL's rules for restore_command."""
    return f'barman --config {barman.configure(settings)} --quiet get-wal --partial {barman.SERVER} %f > "%p"'


def _recover(folder: Path, restore_command: str, lines: list[str]) -> None:
    """Prepare a cluster for recovery. What it had in postgresql.auto.conf belongs to another server."""
    text = "\n".join([f"restore_command = '{restore_command}'", *lines])
    (folder / "postgresql.auto.conf").write_text(text + "\n", encoding="utf-8")
    (folder / "recovery.signal").touch()


@contextmanager
def running(settings: Settings, folder: Path) -> Iterator[Path]:
    """Run the cluster in `folder` on a socket of its own; yield the socket's folder.

    Nobody else reaches it: no network, trust on a socket that only this user can open.
    """
    with tempfile.TemporaryDirectory(prefix="cluster-") as work:
        socket = Path(work)
        (socket / "hba").write_text("local all all trust\nlocal replication all trust\n", encoding="utf-8")
        options = {
            "listen_addresses": "",
            "unix_socket_directories": work,
            "hba_file": f"{work}/hba",
            "config_file": f"{folder}/postgresql.conf",
            "max_connections": str(MAX_CONNECTIONS),
            "shared_buffers": "128MB",
            "synchronous_standby_names": "",
            "max_slot_wal_keep_size": "-1",
            "summarize_wal": "on",
            "jit": "off",
            "timezone": "UTC",
        }
        words = [str(barman.BINARIES / "postgres"), "-D", str(folder)]
        for name, value in options.items():
            words += ["-c", f"{name}={value}"]
        log = socket / "log"
        with log.open("w") as file:
            process = subprocess.Popen(
                words, stdout=file, stderr=file, env=barman.environment(settings) | {"TZ": "UTC"}
            )
        try:
            _wait_until_recovered(process, socket, log)
            yield socket
        finally:
            process.send_signal(2)  # fast shutdown
            try:
                process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def connect(socket: Path, user: str = "postgres", database: str = "mlflow") -> Connection:
    """Return a connection to the cluster that runs on a socket."""
    return psycopg2.connect(host=str(socket), user=user, dbname=database)


def _wait_until_recovered(process: subprocess.Popen, socket: Path, log: Path) -> None:
    """Wait until the cluster takes writes. Raise FailedError when it ends, or makes no progress."""
    last, changed = "", time.monotonic()
    while True:
        if process.poll() is not None:
            ended_early = "recovery ended before configured recovery target" in log.read_text(
                errors="replace"
            )
            raise (TargetNotReachedError if ended_early else FailedError)(
                f"recovery failed: {_reason(log)}", "./stack backup verify; choose another --set or --to"
            )
        try:
            with closing(connect(socket, database="postgres")) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()::text")
                recovering, place = cursor.fetchone()
            if not recovering:
                return
        except psycopg2.OperationalError:
            place = str(log.stat().st_size)
        if place != last:
            last, changed = place, time.monotonic()
        if time.monotonic() - changed > STALL_SECONDS:
            raise FailedError(f"recovery stands still: {_reason(log)}", "./stack backup verify")
        time.sleep(0.1)


def _reason(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    fatal = [line for line in lines if "FATAL" in line or "PANIC" in line]
    return "; ".join((fatal or lines)[-3:])


def finish(folder: Path) -> None:
    """Take the marks of recovery out of a stopped cluster and check that it was stopped well."""
    (folder / "postgresql.auto.conf").write_text("", encoding="utf-8")
    (folder / "backup_manifest").unlink(missing_ok=True)
    text = command.run(
        [barman.BINARIES / "pg_controldata", folder], fix="./stack restore again", timeout_seconds=60
    )
    if "shut down" not in text.partition("Database cluster state:")[2].splitlines()[0]:
        raise FailedError("the restored database was not stopped well", "./stack restore again")
    command.run(["sync", "-f", folder], fix="is the disk well?", timeout_seconds=STOP_TIMEOUT_SECONDS)


def check_pages(folder: Path) -> None:
    """Verify the checksum of every page of a stopped cluster. Raise FailedError if one is wrong."""
    command.run(
        [barman.BINARIES / "pg_checksums", "--check", "--pgdata", folder],
        fix="./stack backup list: restore an older set beside the damaged data and compare",
        timeout_seconds=LAY_OUT_TIMEOUT_SECONDS,
    )
