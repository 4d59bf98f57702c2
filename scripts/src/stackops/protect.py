"""The service `backup`: receives the log as it is written and copies new objects, all the time.

Two loops in threads of one process: one keeps `barman receive-wal` running and archives
its complete segments, one copies the bucket. Each leaves its state in /backups/state for
`status`, the health check and the metrics, which this process serves too.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from types import FrameType
from typing import Any

import psycopg2
from prometheus_client import start_http_server

from stackops import backup, barman, metrics, objects, postgres, sets, state
from stackops.errors import FailedError, OperationError
from stackops.healthy import no_room
from stackops.settings import Settings

WAL_INTERVAL_SECONDS = 2
OBJECTS_INTERVAL_SECONDS = 20
BASE_INTERVAL_SECONDS = 5
RETRY_SECONDS = 600
METRICS_PORT = 9100
GAP = "the log has a gap: the receiver was away for too long"


class Receiver:
    """The running `barman receive-wal`, started again when it has ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen | None = None

    def ensure(self) -> None:
        """Start it if it does not run. Raise FailedError if it had ended: no log came since."""
        ended = self._process.poll() if self._process else None
        if self._process is None or ended is not None:
            self._process = subprocess.Popen(
                barman.words(self._settings, "receive-wal", barman.SERVER),
                env=barman.environment(self._settings),
            )
        if ended is not None:
            raise FailedError(
                f"the receiver of the log ended with status {ended} and was started again",
                "./stack logs backup",
            )

    def stop(self) -> None:
        """End it and wait."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()


def ensure_slot(settings: Settings) -> dict[str, Any]:
    """Make the replication slot where there is none, and return its state.

    A slot that PostgreSQL has given up (the backup volume was away for longer than
    POSTGRES_WAL_KEEP lasts) is made anew: the log has a gap then, so a full base backup is
    asked for.
    """
    with closing(postgres.connect(settings, "postgres")) as connection:
        connection.autocommit = True
        backup.check_identity(settings, postgres.system_identifier(settings))
        query = (
            "SELECT active, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint,"
            " coalesce((SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), write_lsn)::bigint"
            " FROM pg_stat_replication WHERE pid = active_pid), -1)"
            " FROM pg_replication_slots WHERE slot_name = %s"
        )
        row = postgres.fetch_one(connection, query, (postgres.SLOT,))
        if row and row[1] == "lost":
            # The slot goes last: where one of these fails (no room), all are done at the next turn.
            print(f"log: {GAP}; a full set is made at once", flush=True)
            backup.request_full(settings, GAP)
            barman.put_partial_aside(settings)
            postgres.fetch_one(connection, "SELECT pg_drop_replication_slot(%s)", (postgres.SLOT,))
            row = None
        if row is None:
            statement = "SELECT pg_create_physical_replication_slot(%s, true)"
            postgres.fetch_one(connection, statement, (postgres.SLOT,))
            row = postgres.fetch_one(connection, query, (postgres.SLOT,))
        return {"receiving": row[0], "kept_bytes": row[2], "lag_bytes": row[3]}


def follow_log(settings: Settings, receiver: Receiver) -> dict[str, Any]:
    """One turn of the log's loop: receiver, slot, archive. Return what the slot says."""
    facts = ensure_slot(settings)
    try:
        receiver.ensure()
    finally:
        barman.archive(settings)
    return facts


def first_base_backup(settings: Settings) -> dict[str, Any]:
    """Make a set at once where the log alone cannot restore anything.

    There is no full base backup yet, or one was asked for (after a restore, after a gap).
    """
    log = state.read_json(settings.backups / "state" / "log.json")
    if not log or not log["ok"]:
        return {}
    wanted = backup.requested_full(settings)
    if wanted is None and sets.complete(settings):
        return {}
    last = state.results(settings.backups).get("backup")
    recent = last and time.time() < last.started + last.seconds + RETRY_SECONDS
    if recent and not last.ok and "deleted_base" in last.facts:  # it failed late: that takes its time
        return {}
    return state.record(settings.backups, "backup", lambda: backup.run(settings, label=wanted or "first"))


def copy_objects(settings: Settings) -> dict[str, Any]:
    """One turn of the objects' loop."""
    with state.only_one(settings.backups, "objects", wait=True):
        objects.copy(settings)
    return {}


def _turn(settings: Settings, name: str, action: Callable[[], dict[str, Any]], known: str) -> str:
    """Do one turn, keep its state, and return its error ("" if it was well); say only what is new."""
    path = settings.backups / "state" / f"{name}.json"
    facts: dict[str, Any] = {}
    error = ""
    try:
        facts = action()
    # The database may end in the middle of a statement, too.
    except (OperationError, OSError, psycopg2.OperationalError, psycopg2.InterfaceError) as failure:
        error = str(failure).strip() or type(failure).__name__
        if isinstance(failure, OperationError):
            error += f" (fix: {failure.fix})"
    if no_room(settings.backups):  # without the number: said once
        error = f"the backup volume is full (fix: {state.FULL_FIX})"
    if error != known:
        print(f"{name}: {error or 'well again'}", flush=True)
    now = time.time()
    value = {"ok": not error, "error": error, "at": now, "last_success": now, **facts}
    try:
        if error:
            value["last_success"] = (state.read_json(path) or {}).get("last_success")
        state.write_json(path, value)
    except (OSError, ValueError) as failure:  # nothing else may stop because of that
        if not no_room(settings.backups):  # `status` sees a full volume
            print(f"{name}: the state cannot be written: {failure}", flush=True)
    return error


def _loop(
    settings: Settings, name: str, seconds: float, action: Callable[[], Any], stop: threading.Event
) -> None:
    known = ""
    while not stop.is_set():
        known = _turn(settings, name, action, known)
        stop.wait(seconds)


def run(settings: Settings) -> None:
    """Protect until SIGTERM or SIGINT. A loop that dies of a bug ends the process: Docker restarts it."""
    stop = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    start_http_server(METRICS_PORT, registry=metrics.registry(settings))
    receiver = Receiver(settings)
    loops = {
        "log": (WAL_INTERVAL_SECONDS, lambda: follow_log(settings, receiver)),
        "objects": (OBJECTS_INTERVAL_SECONDS, lambda: copy_objects(settings)),
        "base": (BASE_INTERVAL_SECONDS, lambda: first_base_backup(settings)),
    }
    threads = [
        threading.Thread(target=_loop, args=(settings, name, seconds, action, stop), name=name, daemon=True)
        for name, (seconds, action) in loops.items()
    ]
    for thread in threads:
        thread.start()
    try:
        while not stop.wait(1):
            dead = [thread.name for thread in threads if not thread.is_alive()]
            if dead:
                raise FailedError(f"the loop {dead[0]} died", "./stack logs backup")
    finally:
        receiver.stop()
