"""The loops of the continuous backup: what they survive, what they say, what ends them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest

from kit.backups import barman_entry, barman_lists, program, put_base, put_object, put_set, settings_in
from stackops import backup, barman, healthy, objects, protect, sets, state
from stackops.errors import BusyError, FailedError, OperationError
from stackops.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(barman, "BINARIES", tmp_path / "bin")
    monkeypatch.setattr(barman, "CONFIGURATION", tmp_path / "barman.conf")
    return settings_in(tmp_path)


def loop_over(settings: Settings, *turns: Any) -> None:
    """Run a loop named `log` whose turns give these facts or raise these errors; end after the last."""
    stop = threading.Event()
    left = list(turns)

    def action() -> dict[str, Any]:
        turn = left.pop(0)
        if not left:
            stop.set()
        if isinstance(turn, BaseException):
            raise turn
        return turn

    protect._loop(settings, "log", 0, action, stop)
    assert left == []


def kept(settings: Settings) -> dict[str, Any]:
    return state.read_json(settings.backups / "state" / "log.json")


def test_a_good_turn_is_kept_with_its_facts_and_nothing_is_said(
    settings: Settings, capsys: pytest.CaptureFixture
) -> None:
    loop_over(settings, {"lag_bytes": 5})
    value = kept(settings)
    assert (value["ok"], value["error"], value["lag_bytes"]) == (True, "", 5)
    assert value["last_success"] == value["at"] > 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FailedError("the receiver is away", "look"), "the receiver is away (fix: look)"),
        (OperationError("another database", "restore"), "another database (fix: restore)"),
        (BusyError("a cleanup is at work", "wait"), "a cleanup is at work (fix: wait)"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (psycopg2.OperationalError("terminating connection\n"), "terminating connection"),
        (psycopg2.InterfaceError("connection already closed"), "connection already closed"),
        (psycopg2.OperationalError(), "OperationalError"),
    ],
)
def test_an_error_is_kept_said_once_and_ends_with_well_again(
    settings: Settings, capsys: pytest.CaptureFixture, error: Exception, message: str
) -> None:
    loop_over(settings, {})
    well = kept(settings)["last_success"]
    loop_over(settings, error, error, error)
    value = kept(settings)
    assert (value["ok"], value["error"], value["last_success"]) == (False, message, well)
    assert capsys.readouterr().out == f"log: {message}\n"
    loop_over(settings, error, {}, {}, error)
    assert capsys.readouterr().out == f"log: {message}\nlog: well again\nlog: {message}\n"
    assert kept(settings)["last_success"] > well


def test_before_the_first_success_there_is_none(settings: Settings) -> None:
    loop_over(settings, FailedError("a", "b"))
    assert kept(settings)["last_success"] is None


def test_a_bug_ends_the_loop(settings: Settings) -> None:
    with pytest.raises(TypeError):
        loop_over(settings, TypeError("a bug"), {})
    # Docker starts the service again; the SQL of a bug is one too.
    with pytest.raises(psycopg2.ProgrammingError):
        loop_over(settings, psycopg2.ProgrammingError("no such column"), {})


def test_a_full_volume_stops_no_loop_and_leaves_no_files(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    loop_over(settings, {})
    before = kept(settings)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        loop_over(settings, {}, {}, OSError(28, "No space left on device"))
    assert kept(settings) == before
    assert [path.name for path in (settings.backups / "state").iterdir()] == ["log.json"]
    assert "the state cannot be written" in capsys.readouterr().out
    loop_over(settings, {})
    assert kept(settings)["at"] > before["at"]


def test_a_state_file_that_cannot_be_read_is_written_anew(settings: Settings) -> None:
    path = settings.backups / "state" / "log.json"
    path.parent.mkdir()
    path.write_text("{")
    loop_over(settings, FailedError("a", "b"), {})
    assert kept(settings)["ok"]


def test_the_objects_loop_waits_for_a_copy_that_is_at_work(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    monkeypatch.setattr(objects, "copy", lambda _: order.append("loop"))
    with state.only_one(settings.backups, "objects"):
        thread = threading.Thread(target=protect.copy_objects, args=(settings,))
        thread.start()
        thread.join(0.2)
        order.append("set")
    thread.join(10)
    assert order == ["set", "loop"]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the sets that would have been made."""
    labels: list[str] = []

    def run(settings: Settings, *, full: bool = False, label: str = "") -> dict[str, Any]:
        labels.append(label)
        return {"set": "x"}

    monkeypatch.setattr(backup, "run", run)
    return labels


@pytest.mark.parametrize(
    "case",
    [
        (None, False, None, []),
        ({"ok": False}, False, "after a restore", []),
        ({"ok": True}, False, None, ["first"]),
        ({"ok": True}, True, None, []),
        ({"ok": True}, True, "after a restore", ["after a restore"]),
    ],
)
def test_a_set_is_made_at_once_where_the_log_alone_restores_nothing(
    settings: Settings, tmp_path: Path, runs: list[str], case: tuple
) -> None:
    log, listed, wanted, labels = case
    if log:
        state.write_json(settings.backups / "state" / "log.json", log)
    if listed:
        put_set(settings)
    backup.request_full(settings, wanted)
    protect.first_base_backup(settings)
    assert runs == labels
    assert [result.ok for result in state.results(settings.backups).values()] == [True] * len(labels)


@pytest.mark.parametrize(
    ("facts", "minutes", "again"),
    [({}, 1, True), ({"deleted_base": "x"}, 1, False), ({"deleted_base": "x"}, 11, True)],
    ids=["no base backup was taken", "just now", "a while ago"],
)
def test_a_set_that_failed_after_its_base_backup_is_not_tried_again_at_once(
    settings: Settings, runs: list[str], facts: dict, minutes: int, again: bool
) -> None:
    result = state.JobResult("backup", time.time() - minutes * 60, 5, ok=False, message="no", facts=facts)
    state.write_json(settings.backups / "state/jobs/backup.json", asdict(result))
    state.write_json(settings.backups / "state/log.json", {"ok": True})
    backup.request_full(settings, "after a restore")
    protect.first_base_backup(settings)
    assert runs == ["after a restore"] * again


def test_a_base_backup_without_a_set_is_deleted(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, child, killed = "20251121T080000", "20251121T090000", "20251121T100000"
    calls = barman_lists(tmp_path / "bin", *(barman_entry(one) for one in (full, child, killed)))
    for one in (full, child, killed):
        put_base(settings, one)
    backups = [
        replace(base, parent=full if base.id == child else None) for base in barman.catalogue(settings)
    ]
    path = sets.folder(settings, child) / sets.MANIFEST
    path.parent.mkdir(parents=True)
    path.write_text("damaged")  # of that a person must decide
    backup._delete_unfinished(settings, backups)
    deleted = [line.split()[-1] for line in calls.read_text().splitlines() if " delete " in line]
    assert deleted == [killed]


def test_a_set_that_cannot_be_completed_leaves_no_base_backup(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup.postgres, "maintenance_lock", lambda _: threading.Lock())
    monkeypatch.setattr(backup.postgres, "system_identifier", lambda _: "7")
    monkeypatch.setattr(backup.postgres, "switch_wal", lambda *_: "wal")
    monkeypatch.setattr(backup.objects, "check_bucket", lambda *_, **__: None)
    monkeypatch.setattr(backup.barman, "wait_archived", lambda *_: None)
    put_base(settings, "20251121T100000")
    calls = barman_lists(tmp_path / "bin", barman_entry("20251121T100000"))
    (base,) = barman.catalogue(settings)
    monkeypatch.setattr(backup.barman, "take", lambda *_, **__: base)

    def fail(*_: object) -> None:
        raise FailedError("the objects cannot be copied", "look")

    monkeypatch.setattr(backup, "_complete", fail)
    with pytest.raises(FailedError, match="objects cannot be copied") as failure:
        backup.run(settings)
    assert failure.value.facts == {"deleted_base": base.id}
    assert f"delete mlflow {base.id}" in calls.read_text()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("not within 5 s")


def test_a_receiver_that_ended_is_started_again_and_that_is_said(settings: Settings, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    script = f'echo "$@" >>{calls}; [ -e {tmp_path}/well ] || exit 3; exec sleep 60'
    program(tmp_path / "bin", "barman", script)
    receiver = protect.Receiver(settings)
    receiver.ensure()
    process = receiver._process
    until(lambda: process.poll() is not None)
    (tmp_path / "well").touch()
    with pytest.raises(FailedError, match="ended with status 3 and was started again"):
        receiver.ensure()
    receiver.ensure()
    running = receiver._process
    assert running is not process
    until(lambda: calls.read_text().count("receive-wal mlflow") == 2)
    receiver.stop()
    assert running.returncode == -15
    receiver.stop()


def test_no_base_backup_is_taken_while_the_bucket_would_be_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or the service `backup` would take a full one every 30 s until the volume is full.
    monkeypatch.setattr(backup.postgres, "maintenance_lock", lambda _: threading.Lock())
    monkeypatch.setattr(backup.postgres, "system_identifier", lambda _: "7")
    monkeypatch.setattr(backup.postgres, "switch_wal", lambda *_: pytest.fail("it went on"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    program(tmp_path / "bin", "rclone", "true")
    put_object(settings, objects.MARKER, b"mine")
    with pytest.raises(OperationError, match="the bucket is not the one"):
        backup.run(settings)


# The health check of the service.


@pytest.mark.parametrize(
    ("log", "stored", "problems"),
    [
        ({"ok": True, "age": 1}, {"ok": True, "age": 1}, []),
        ({"ok": True, "age": 1}, {"ok": True, "age": 9999}, []),  # a first copy may take hours
        ({"ok": True, "age": 9999}, {"ok": True, "age": 1}, ["log: nothing for 9999 s"]),
        ({"ok": False, "age": 1}, {"ok": False, "age": 1}, ["log: why", "objects: why"]),
        (None, {"ok": True, "age": 1}, ["log: [Errno 2]"]),
    ],
)
def test_the_health_check_names_the_part_that_does_not_work(
    settings: Settings, log: dict | None, stored: dict, problems: list[str]
) -> None:
    for part, value in (("log", log), ("objects", stored)):
        if value:
            kept = {"ok": value["ok"], "error": "why", "at": time.time() - value["age"]}
            state.write_json(settings.backups / "state" / f"{part}.json", kept)
    found = healthy.problems_of_backup(settings.backups)
    assert [said[: len(problem)] for said, problem in zip(found, problems, strict=True)] == problems


def test_the_health_check_and_status_name_a_full_volume(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in state.LOOPS:
        kept = {"ok": True, "error": "", "at": time.time()}
        state.write_json(settings.backups / "state" / f"{part}.json", kept)
    assert [value["ok"] for value in state.continuous(settings.backups).values()] == [True, True]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=(16 << 20) - 1))
    assert healthy.problems_of_backup(settings.backups) == ["the backup volume is full: 15 MB left"]
    for value in state.continuous(settings.backups).values():
        assert value["ok"] is False
        assert "the backup volume is full: 15 MB left (fix: make room" in value["error"]


def test_a_loop_of_the_log_that_does_not_turn_is_an_error(settings: Settings) -> None:
    kept = {"ok": True, "error": "", "at": time.time() - healthy.STALE_SECONDS - 10}
    for part in state.LOOPS:
        state.write_json(settings.backups / "state" / f"{part}.json", kept)
    found = state.continuous(settings.backups)
    assert found["log"]["error"].startswith("nothing for 19")
    assert found["objects"]["ok"]  # a first copy may take hours


def test_the_health_check_needs_no_package(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", healthy.__file__, "backup"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "log: " in done.stdout
