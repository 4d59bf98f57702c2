"""State files, locks and the running of other programs."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kit.backups import program
from stackops import command, state
from stackops.drill import DrillError
from stackops.errors import BusyError, FailedError, OperationError


def test_readers_beside_many_writers_always_see_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "log.json"
    state.write_json(path, {"writer": 0, "ballast": [0] * 500})

    def write(writer: int) -> None:
        for _ in range(15):
            state.write_json(path, {"writer": writer, "ballast": [writer] * 500})

    def read(_: int) -> None:
        for _ in range(150):
            value = state.read_json(path)
            assert value["ballast"] == [value["writer"]] * 500

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(write, number) for number in range(4)]
        waiting += [pool.submit(read, number) for number in range(4)]
        for future in waiting:
            future.result()
    assert [path.name for path in path.parent.iterdir()] == ["log.json"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    state.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        state.write_json(path, {"new": object()})
    assert state.read_json(path) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert state.read_json(tmp_path / "a.json") is None
    assert state.results(tmp_path) == {}


def test_a_job_leaves_its_facts_and_when_it_ended_well(tmp_path: Path) -> None:
    before = time.time()
    assert state.record(tmp_path, "drill", lambda: {"rows": 7}) == {"rows": 7}
    result = state.results(tmp_path)["drill"]
    assert (result.ok, result.message, result.facts) == (True, "", {"rows": 7})
    assert before <= result.started <= result.last_success <= time.time()
    assert 0 <= result.seconds < 5


def failing(error: BaseException) -> object:
    raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OperationError("what", "do this"), "what (fix: do this)"),
        (FailedError("what", "do this"), "what (fix: do this)"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (TypeError(), "TypeError"),
    ],
)
def test_a_failure_is_kept_and_raised_and_the_last_success_survives(
    tmp_path: Path, error: BaseException, message: str
) -> None:
    state.record(tmp_path, "backup", dict)
    well = state.results(tmp_path)["backup"].last_success
    for _ in range(2):
        with pytest.raises(type(error)):
            state.record(tmp_path, "backup", lambda: failing(error))
        result = state.results(tmp_path)["backup"]
        assert (result.ok, result.message, result.last_success) == (False, message, well)


def test_a_first_failure_has_no_last_success(tmp_path: Path) -> None:
    with pytest.raises(FailedError):
        state.record(tmp_path, "backup", lambda: failing(FailedError("a", "b")))
    assert state.results(tmp_path)["backup"].last_success is None


def test_the_facts_of_an_error_are_kept(tmp_path: Path) -> None:
    error = DrillError("20261121T080000", ["a table differs"], {"missing_objects": 3})
    with pytest.raises(DrillError):
        state.record(tmp_path, "drill", lambda: failing(error))
    assert state.results(tmp_path)["drill"].facts == {"missing_objects": 3}


def test_a_drills_error_names_twenty_problems_and_counts_the_others() -> None:
    shown = str(DrillError("s", [f"problem {n}" for n in range(25)], {})).splitlines()
    assert shown[0] == "the restore drill of s found:"
    assert shown[1:21] == [f"problem {n}" for n in range(20)]
    assert shown[21:] == ["and 5 more"]
    assert str(DrillError("s", ["problem"] * 20, {})).splitlines()[20:] == ["problem"]


def _hold(backups: Path, name: str, ready: object, done: object) -> None:
    with state.only_one(backups, name):
        ready.set()
        done.wait(30)


def test_a_second_one_is_busy_and_leaves_the_firsts_result(tmp_path: Path) -> None:
    state.record(tmp_path, "backup", lambda: {"set": "first"})
    before = (tmp_path / "state/jobs/backup.json").read_bytes()
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, "backup", ready, done))
    other.start()
    try:
        assert ready.wait(10)
        with pytest.raises(BusyError, match="another backup"):
            state.record(tmp_path, "backup", lambda: {"set": "second"})
        assert state.record(tmp_path, "drill", dict) == {}
    finally:
        done.set()
        other.join(10)
    assert (tmp_path / "state/jobs/backup.json").read_bytes() == before
    # The lock ends with its holder.
    assert state.record(tmp_path, "backup", lambda: {"set": "third"}) == {"set": "third"}


def test_a_busy_maintenance_lock_is_a_failed_run(tmp_path: Path) -> None:
    with pytest.raises(BusyError):
        state.record(tmp_path, "backup", lambda: failing(BusyError("a cleanup is at work", "wait for it")))
    assert state.results(tmp_path)["backup"].message == "a cleanup is at work (fix: wait for it)"


def test_a_full_volume_does_not_hide_what_the_job_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FailedError, match="barman took no base backup"):
        state.record(tmp_path, "backup", lambda: failing(FailedError("barman took no base backup", "x")))
    assert state.record(tmp_path, "backup", lambda: {"set": "a"}) == {"set": "a"}
    assert capsys.readouterr().err.count("backup: the result cannot be written: [Errno 28]") == 2
    assert list((tmp_path / "state/jobs").iterdir()) == []


def test_a_file_half_written_by_a_killed_process_is_no_result(tmp_path: Path) -> None:
    state.record(tmp_path, "backup", dict)
    (tmp_path / "state/jobs/.backup.json.0123abcd").write_text("{")
    assert list(state.results(tmp_path)) == ["backup"]


# command.run


def test_a_good_program_gives_its_output(tmp_path: Path) -> None:
    words = ["sh", "-c", "echo $NAME; pwd; echo aside >&2"]
    text = command.run(words, fix="", timeout_seconds=5, environment={"NAME": "x"}, directory=tmp_path)
    assert text == f"x\n{tmp_path}\n"


def test_a_failing_program_gives_its_status_its_last_words_and_the_fix(tmp_path: Path) -> None:
    path = program(tmp_path, "talks", "seq -f 'out %g' 40; printf '\n\nwhy' >&2; exit 3")
    with pytest.raises(FailedError) as failure:
        command.run([path, "now", "secret"], fix="do this", timeout_seconds=5)
    head, *said = str(failure.value).splitlines()
    assert head == "talks now failed with status 3: out 27"
    assert said == [*(f"out {n}" for n in range(28, 41)), "why"]
    assert failure.value.fix == "do this"
    assert "secret" not in str(failure.value)


def test_the_last_word_on_one_stream_does_not_run_into_the_other(tmp_path: Path) -> None:
    path = program(tmp_path, "talks", "printf out; printf why >&2; exit 1")
    with pytest.raises(FailedError, match=r"out\nwhy$"):
        command.run([path], fix="", timeout_seconds=5)


def test_a_status_that_is_named_good_is_good(tmp_path: Path) -> None:
    path = program(tmp_path, "warns", "echo half; exit 3")
    assert command.run([path], fix="", timeout_seconds=5, good=frozenset({0, 3})) == "half\n"


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    path = program(tmp_path, "hangs", "echo $$ >pid; exec sleep 60")
    with pytest.raises(FailedError, match="hangs took longer than 0 s"):
        command.run([path], fix="", timeout_seconds=0.5, directory=tmp_path)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_bytes_that_are_no_text_are_shown_somehow(tmp_path: Path) -> None:
    path = program(tmp_path, "talks", r"printf 'a\377b'")
    assert command.run([path], fix="", timeout_seconds=5) == "a\ufffdb"


def test_a_result_of_a_job_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    state.record(tmp_path, "verify", lambda: {"objects": 1})
    value = json.loads((tmp_path / "state/jobs/verify.json").read_text())
    assert value["job"] == "verify"
    assert value["facts"] == {"objects": 1}
