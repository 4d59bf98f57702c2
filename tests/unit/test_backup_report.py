"""What list and status say, and how the command line ends."""

from __future__ import annotations

import ast
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.backups import put_set, set_id, settings_in
from stackops import cli, report, state
from stackops.errors import BusyError, FailedError, OperationError
from stackops.files import size_text
from stackops.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setattr(report, "_database", lambda *_: {})
    return settings_in(tmp_path)


def well(settings: Settings, part: str, age: float = 1) -> None:
    at = time.time() - age
    value = {"ok": True, "error": "", "at": at, "last_success": at}
    state.write_json(settings.backups / "state" / f"{part}.json", value)


def lines_of_status(settings: Settings) -> str:
    found = json.loads(json.dumps(report.status(settings)))
    return "\n".join(report.lines("status", found))


def test_before_anything_has_run_the_continuous_backup_is_the_problem(settings: Settings) -> None:
    found = report.status(settings)
    assert found["problems"] == [
        "continuous backup, log: not begun",
        "continuous backup, objects: not begun",
    ]
    text = lines_of_status(settings)
    assert "database log NOT COPIED: not begun" in text
    assert re.search(r"backup +not yet run; next 20..-..-..T01:00", text)
    assert "offsite" not in text


def test_a_stack_that_is_well_has_no_problem(settings: Settings) -> None:
    well(settings, "log")
    well(settings, "objects")
    state.record(settings.backups, "backup", lambda: {"set": "x"})
    found = report.status(settings)
    assert found["problems"] == []
    assert found["jobs"]["backup"]["facts"] == {"set": "x"}
    text = lines_of_status(settings)
    assert re.search(r"database log copied as it is written, 1 s ago", text)
    assert re.search(r"backup +20\S+ well in 0\.\d s; next ", text)


def test_a_job_that_was_killed_or_does_not_run_is_a_problem(settings: Settings) -> None:
    well(settings, "log")
    well(settings, "objects")
    state.record(settings.backups, "backup", dict)
    state.record(settings.backups, "drill", dict)
    assert report.status(settings)["problems"] == []
    folder = settings.backups / "state" / "jobs"
    state.write_json(folder / "drill.running", time.time() - 60)
    found = state.read_json(folder / "backup.json")
    state.write_json(folder / "backup.json", found | {"last_success": time.time() - 2.1 * 86400})
    late, killed = report.status(settings)["problems"]
    assert late.startswith("job backup: it has not run since 20")
    assert killed.startswith("job drill: it was killed")
    with state.only_one(settings.backups, "drill"):  # it is at work
        assert len(report.status(settings)["problems"]) == 1


def test_a_job_that_never_ran_is_a_problem_after_two_intervals(settings: Settings) -> None:
    well(settings, "log")
    well(settings, "objects")
    path = settings.backups / "state" / "scheduled.json"
    state.write_json(path, {"drill": time.time() - 1.9 * 86400})
    state.know_jobs(settings.backups, ["drill", "backup"])
    assert report.status(settings)["problems"] == []
    state.write_json(path, {"drill": time.time() - 2.1 * 86400})
    (late,) = report.status(settings)["problems"]
    assert late.startswith("job drill: it has not run since 20")


def test_a_failed_job_is_a_problem_with_its_words(settings: Settings) -> None:
    well(settings, "log")
    well(settings, "objects")
    with pytest.raises(FailedError):
        state.record(settings.backups, "drill", lambda: raising(FailedError("one\ntwo\n3\n4\n5\n6", "look")))
    (problem,) = report.status(settings)["problems"]
    assert problem.startswith("job drill: one\ntwo")
    text = lines_of_status(settings)
    assert "FAILED in" in text
    assert "    5" in text
    assert "    6" not in text


def test_a_service_that_has_stopped_is_a_problem(settings: Settings) -> None:
    well(settings, "log", age=3600)
    well(settings, "objects", age=3600)  # a first copy may take hours
    (problem,) = report.status(settings)["problems"]
    assert problem.startswith("continuous backup, log: nothing for 3600 s")


def test_an_offsite_copy_that_is_off_is_shown_as_it_is(settings: Settings, tmp_path: Path) -> None:
    found = settings_in(tmp_path, offsite_repository="/elsewhere")
    found.schedules["offsite"] = ""
    assert "offsite      not yet run; next off" in lines_of_status(found)


def test_the_database_and_its_dead_rows_are_shown() -> None:
    bloat = [{"table": "metrics", "rows": 10, "dead_rows": 5000, "bytes": 5 << 20}]
    found = {
        "cleanup_waits": "",
        "continuous": {},
        "jobs": {},
        "problems": [],
        "database": {"bytes": 1 << 30, "checksum_failures": 0, "bloat": bloat},
    }
    assert report.lines("status", found) == [
        "  database     1.1 GB, checksum failures 0",
        "    metrics: 5000 dead rows beside 10, 5 MB",
    ]


def test_sets_are_listed_a_line_each(settings: Settings) -> None:
    assert report.lines("list", report.sets(settings)) == ["no backup set yet"]
    put_set(settings, 0, label="before the upgrade", database_bytes=3_000_000)
    put_set(settings, 24, full=False)
    first, second = report.lines("list", report.sets(settings))
    assert first.startswith(
        f"{set_id(0)}  full         2025-11-21T08:00:00+00:00  database 3 MB, 0 objects 0 B"
    )
    assert first.endswith("  before the upgrade")
    assert second.startswith(f"{set_id(24)}  incremental  ")
    assert second == second.rstrip()


@given(st.integers(0, 2**60))
def test_a_size_is_short_and_near(count: int) -> None:
    number, unit = size_text(count).split()
    factor = 1000 ** ["B", "kB", "MB", "GB", "TB"].index(unit)
    assert abs(float(number) * factor - count) <= factor / 2


# The command line.


def raising(error: BaseException) -> Any:
    raise error


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line; return its exit status, what it printed, and what it said on stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stackops", *words])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("error", "status", "head"),
    [
        (OperationError("what is wrong", "do this"), 5, "REFUSED: what is wrong"),
        (BusyError("what is wrong", "do this"), 4, "error: what is wrong"),
        (FailedError("what is wrong", "do this"), 1, "error: what is wrong"),
    ],
)
def test_an_error_is_what_is_wrong_and_what_mends_it(
    call: Callable, monkeypatch: pytest.MonkeyPatch, error: OperationError, status: int, head: str
) -> None:
    monkeypatch.setattr(cli, "read_settings", lambda _: raising(error))
    assert call("backup", "list") == (status, "", f"{head}\nfix: do this\n")
    with pytest.raises(OperationError):
        call("--debug", "backup", "list")


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "/backups/x"),
        psycopg2.OperationalError("terminating connection\n"),
    ],
)
def test_a_full_volume_or_a_lost_connection_is_no_traceback(
    call: Callable, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(cli, "read_settings", lambda _: raising(error))
    status, out, said = call("backup", "list")
    assert (status, out) == (1, "")
    assert said.startswith(f"error: {str(error).strip()}\nfix: ")


def test_a_bug_is_a_traceback(call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "read_settings", lambda _: raising(KeyError("a bug")))
    with pytest.raises(KeyError):
        call("backup", "list")


@pytest.fixture
def stand(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(cli, "read_settings", lambda _: settings)
    return settings


def test_a_bad_setting_is_refused(call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_KEEP_DAYS", "many")
    status, _, said = call("backup", "list")
    assert status == 5
    assert "BACKUP_KEEP_DAYS is 'many'" in said
    assert "fix: correct BACKUP_KEEP_DAYS in .env" in said


@pytest.mark.usefixtures("stand")
def test_unknown_words_are_a_usage_error(call: Callable) -> None:
    for words in ((), ("nothing",), ("backup",), ("backup", "nothing"), ("job", "nothing"), ("restore",)):
        assert call(*words)[0] == 2


def test_list_and_status_are_lines_or_json(call: Callable, stand: Settings) -> None:
    assert call("backup", "list") == (0, "no backup set yet\n", "")
    put_set(stand)
    status, out, _ = call("backup", "list", "--json")
    assert (status, [entry["set"] for entry in json.loads(out)]) == (0, [set_id(0)])
    status, out, _ = call("backup", "status", "--json")
    assert (status, len(json.loads(out)["problems"])) == (1, 2)
    well(stand, "log")
    well(stand, "objects")
    assert call("backup", "status")[0] == 0


def test_a_job_is_kept_with_its_result_whoever_starts_it(
    call: Callable, stand: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.drill, "run", lambda _, set_id: {"set": set_id or "newest", "tables": 40})
    status, out, _ = call("job", "drill")
    assert (status, json.loads(out)) == (0, {"set": "newest", "tables": 40})
    assert call("backup", "drill", "x") == (0, "set: x\ntables: 40\n", "")
    assert state.results(stand.backups)["drill"].facts["set"] == "x"
    monkeypatch.setattr(cli.drill, "run", lambda *_: raising(FailedError("damage", "look")))
    assert call("job", "drill") == (1, "", "error: damage\nfix: look\n")
    assert not state.results(stand.backups)["drill"].ok


def test_a_job_beside_another_of_its_name_is_busy(call: Callable, stand: Settings) -> None:
    with state.only_one(stand.backups, "verify"):
        status, _, said = call("backup", "verify")
    assert status == 4
    assert said.startswith("error: another verify is at work")


def test_what_cannot_be_restored_is_refused(call: Callable, stand: Settings) -> None:
    for words, what in (
        (("plan",), "there is no backup set"),
        (("plan", "--set", "nothing"), "there is no backup set nothing"),
        (("plan", "--to", "yesterday"), "'yesterday' is no moment"),
        (("database",), "no set is named"),
        (("roll-back",), "no earlier database is kept"),
    ):
        status, _, said = call("restore", *words)
        assert status == 5, words
        assert said.startswith(f"REFUSED: {what}")
        assert "\nfix: " in said


def test_a_fix_names_only_verbs_that_there_are() -> None:
    known = {path.stem for path in (ROOT / "scripts/host/verbs").glob("*.sh")}
    backup_verb = (ROOT / "scripts/host/verbs/backup.sh").read_text()
    found = set()
    for path in (ROOT / "scripts/src/stackops").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        for node in (inner for call in calls for inner in ast.walk(call) if isinstance(inner, ast.Constant)):
            found |= set(re.findall(r"\./stack ([a-z][a-z-]*)(?: ([a-z][a-z-]+))?", str(node.value)))
    assert len(found) > 8
    for verb, action in found:
        assert verb in known, verb
        if verb == "backup" and action:
            assert re.search(rf"\b{action}\b", backup_verb), action
