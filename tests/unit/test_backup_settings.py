"""Settings of the operations, the table of jobs, and the metrics made from state files."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kit.backups import settings_in
from stackops import metrics, schedule, state
from stackops.errors import FailedError, OperationError
from stackops.settings import JOBS, Settings, read_settings

ALL_OFF = {name: "off" for name, _ in JOBS.values()}


def test_empty_values_mean_the_defaults() -> None:
    empty = dict.fromkeys(
        [
            *(name for name, _ in JOBS.values()),
            *("BACKUP_FULL_EVERY_DAYS", "BACKUP_KEEP_DAYS", "BACKUP_KEEP_COUNT", "OFFSITE_REPOSITORY"),
        ],
        "",
    )
    assert read_settings(empty) == read_settings({})
    assert read_settings({}).schedules == {job: default for job, (_, default) in JOBS.items()}
    assert read_settings({}) == Settings(schedules=read_settings({}).schedules)


def test_every_setting_is_read() -> None:
    settings = read_settings(
        {
            "BACKUP_SCHEDULE": "*/5 * * * *",
            "DRILL_SCHEDULE": "off",
            "BACKUP_FULL_EVERY_DAYS": "1",
            "BACKUP_KEEP_DAYS": "30",
            "BACKUP_KEEP_COUNT": "5",
            "OFFSITE_REPOSITORY": "s3:https://storage.example.com/backups",
        }
    )
    assert settings.schedules["backup"] == "*/5 * * * *"
    assert settings.schedules["drill"] == ""
    assert (settings.full_every_days, settings.keep_days, settings.keep_count) == (1, 30, 5)
    assert settings.offsite_repository == "s3:https://storage.example.com/backups"


@pytest.mark.parametrize("name", ["BACKUP_FULL_EVERY_DAYS", "BACKUP_KEEP_DAYS", "BACKUP_KEEP_COUNT"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "a week", "7 ", "²", "1e3", "+1"])
def test_a_bad_number_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(OperationError) as refusal:
        read_settings({name: value})
    assert f"{name} is '{value}'" in str(refusal.value)
    assert name in refusal.value.fix


@pytest.mark.parametrize(
    "value",
    [
        "daily",
        "@daily",
        "1 2 3",
        "61 * * * *",
        "* 24 * * *",
        "0 0 31 2 *",
        "0 0 * * 8",
        "0 0 1 * * *",  # six fields: two programs read them in two ways
        "*/0 * * * *",
        "5-1 * * * *",
        "OFF",
        "none",
    ],
)
def test_a_bad_schedule_is_refused_by_name_with_an_example(value: str) -> None:
    with pytest.raises(OperationError) as refusal:
        read_settings({"VERIFY_SCHEDULE": value})
    assert f"VERIFY_SCHEDULE is '{value}'" in str(refusal.value)
    assert "0 3 * * 0" in refusal.value.fix


@given(st.lists(st.text("0123456789*/,-LW# \tmonMON", max_size=6), max_size=6).map(" ".join))
def test_an_accepted_schedule_is_one_line_of_five_fields_and_fires_again(text: str) -> None:
    try:
        settings = read_settings(ALL_OFF | {"BACKUP_SCHEDULE": text})
    except OperationError:
        return
    (line,) = schedule.crontab(settings).splitlines()
    assert line.split()[5:] == ["stackops", "job", "backup"]
    now = datetime(2026, 11, 21, 12, 0, tzinfo=ZoneInfo("UTC"))
    assert metrics.next_run(settings.schedules["backup"], now) > now


def test_a_line_end_in_a_schedule_makes_no_second_line() -> None:
    settings = read_settings(ALL_OFF | {"BACKUP_SCHEDULE": " 0 1\n* *\t* "})
    assert schedule.crontab(settings) == "0 1 * * * stackops job backup\n"


def test_the_table_has_a_line_per_job_that_is_on() -> None:
    assert schedule.crontab(read_settings({"DRILL_SCHEDULE": "off"})) == (
        "0 1 * * * stackops job backup\n0 3 * * 0 stackops job verify\n"
        "30 0 * * * stackops job usage\n0 2 * * 0 stackops job cleanup\n"
        "10 0 * * * stackops job audit\n"
    )
    assert schedule.crontab(read_settings(ALL_OFF)) == ""


def test_the_offsite_copy_is_scheduled_only_with_a_repository() -> None:
    assert "offsite" not in schedule.crontab(read_settings({}))
    lines = schedule.crontab(read_settings({"OFFSITE_REPOSITORY": "/elsewhere"}))
    assert "20 * * * * stackops job offsite\n" in lines
    off = read_settings({"OFFSITE_REPOSITORY": "/elsewhere", "OFFSITE_SCHEDULE": "off"})
    assert "offsite" not in schedule.crontab(off)


@pytest.mark.parametrize(
    ("now", "zone", "following"),
    [
        ("2026-11-21T12:00", "UTC", "2026-11-22T01:00+00:00"),
        ("2026-11-21T00:59", "Asia/Kolkata", "2026-11-21T01:00+05:30"),
        # Summer time begins on 2026-03-29 in Berlin and ends on 2026-10-25.
        ("2026-03-28T12:00", "Europe/Berlin", "2026-03-29T01:00+01:00"),
        ("2026-03-29T12:00", "Europe/Berlin", "2026-03-30T01:00+02:00"),
        ("2026-10-24T12:00", "Europe/Berlin", "2026-10-25T01:00+02:00"),
        ("2026-10-25T01:30", "Europe/Berlin", "2026-10-26T01:00+01:00"),
    ],
)
def test_the_next_run_is_in_the_zones_own_time(now: str, zone: str, following: str) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=ZoneInfo(zone))
    assert metrics.next_run("0 1 * * *", moment) == datetime.fromisoformat(following)


def test_a_schedule_that_is_off_has_no_next_run() -> None:
    assert metrics.next_run("", datetime.now(ZoneInfo("UTC"))) is None


def test_the_local_time_knows_when_summer_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    now = metrics.local_now()
    # A fixed offset would be the same on both days.
    offsets = {now.replace(year=2026, month=month, day=1).utcoffset() for month in (1, 7)}
    assert len(offsets) == 2
    assert abs(now.timestamp() - datetime.now().timestamp()) < 5
    for zone in ("", "Nowhere/Nothing", "../etc/passwd"):
        monkeypatch.setenv("TZ", zone)
        assert abs(metrics.local_now().timestamp() - datetime.now().timestamp()) < 5


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("TZ", "UTC")
    return settings_in(tmp_path)


def samples(settings: Settings) -> dict[str, float]:
    text = generate_latest(metrics.registry(settings)).decode()
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_before_the_first_job_only_the_schedules_are_known(settings: Settings) -> None:
    assert set(samples(settings)) == {
        f"stack_job_next_run_timestamp_seconds/{job}"
        for job in ("backup", "verify", "drill", "usage", "cleanup", "audit")
    }


def test_the_next_offsite_copy_is_known_only_with_a_repository(tmp_path: Path) -> None:
    name = "stack_job_next_run_timestamp_seconds/offsite"
    assert name not in samples(settings_in(tmp_path))
    assert name in samples(settings_in(tmp_path, offsite_repository="/elsewhere"))


def test_jobs_and_the_continuous_backup_are_gauges(settings: Settings) -> None:
    state.record(settings.backups, "drill", lambda: {"missing_objects": 0})
    state.record(settings.backups, "backup", dict)
    with pytest.raises(FailedError):
        state.record(settings.backups, "backup", lambda: (_ for _ in ()).throw(FailedError("a", "b")))
    folder = settings.backups / "state"
    well = {"ok": True, "error": "", "at": time.time(), "last_success": 10.0}
    state.write_json(folder / "log.json", {**well, "lag_bytes": 5, "kept_bytes": 6, "receiving": True})
    state.write_json(folder / "objects.json", {"ok": False, "error": "x", "at": 20.0, "last_success": None})
    found = samples(settings)
    assert found["stack_job_ok/drill"] == 1
    assert found["stack_job_ok/backup"] == 0
    assert found["stack_job_last_success_timestamp_seconds/backup"] > 0
    assert found["stack_job_duration_seconds/drill"] >= 0
    assert found["stack_drill_missing_objects"] == 0
    assert found["stack_backup_ok/log"] == 1
    assert found["stack_backup_ok/objects"] == 0
    assert found["stack_backup_last_success_timestamp_seconds/log"] == 10
    assert "stack_backup_last_success_timestamp_seconds/objects" not in found
    assert (found["stack_backup_lag_bytes"], found["stack_backup_kept_log_bytes"]) == (5, 6)
