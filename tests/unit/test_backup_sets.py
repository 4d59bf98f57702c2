"""Backup sets: found, chosen, verified byte by byte, forgotten; when a full one is due."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.backups import (
    EPOCH,
    barman_entry,
    barman_lists,
    manifest,
    program,
    put_base,
    put_object,
    put_set,
    put_wal,
    set_id,
    settings_in,
    wal_name,
)
from stackops import backup, barman, objects, sets
from stackops.errors import FailedError, OperationError
from stackops.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose pg_verifybackup finds damage where there is a file of that name."""
    monkeypatch.setattr(barman, "BINARIES", tmp_path / "bin")
    monkeypatch.setattr(barman, "CONFIGURATION", tmp_path / "barman.conf")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    script = 'for data; do :; done; [ ! -e "$data/damage" ] || { echo base/1/2 has size 1 >&2; exit 1; }'
    program(tmp_path / "bin", "pg_verifybackup", script)
    return settings_in(tmp_path)


# Reading and choosing.


def test_a_set_is_read_as_it_was_written(settings: Settings) -> None:
    made = put_set(settings, label="before the upgrade")
    assert sets.read(settings, made.id) == made
    assert sets.complete(settings) == [made]


def test_a_set_that_is_not_there_is_refused(settings: Settings) -> None:
    with pytest.raises(OperationError, match="there is no backup set yesterday") as refusal:
        sets.read(settings, "yesterday")
    assert refusal.value.fix == "./stack backup list"


def test_a_set_of_another_format_is_refused(settings: Settings) -> None:
    made = put_set(settings)
    sets.write(settings, manifest(format=2, id=made.id))
    with pytest.raises(OperationError, match="has the format 2, this version reads 1"):
        sets.read(settings, made.id)


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', '{"format": 1, "more": 1}'])
def test_a_damaged_manifest_is_an_error_that_names_it(settings: Settings, text: str) -> None:
    made = put_set(settings)
    (sets.folder(settings, made.id) / "manifest.json").write_text(text)
    with pytest.raises(FailedError, match=r"manifest\.json cannot be read"):
        sets.read(settings, made.id)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 9}'])
def test_an_unreadable_set_keeps_nobody_from_the_others(
    settings: Settings, capsys: pytest.CaptureFixture, text: str
) -> None:
    well, bad = put_set(settings, 0), put_set(settings, 1)
    (sets.folder(settings, bad.id) / "manifest.json").write_text(text)
    assert sets.choose(settings, None, None) == well
    assert "left out: " in (said := capsys.readouterr().err)
    assert bad.id in said


def test_a_set_without_a_manifest_is_not_complete(settings: Settings) -> None:
    well, begun = put_set(settings, 0), put_set(settings, 1)
    (sets.folder(settings, begun.id) / "manifest.json").unlink()
    assert sets.complete(settings) == [well]


def test_the_named_the_newest_or_the_newest_before_a_moment_is_chosen(settings: Settings) -> None:
    made = [put_set(settings, hours) for hours in (0, 24, 48)]

    def chosen(set_id: str | None, moment: datetime | None) -> sets.Manifest:
        return sets.choose(settings, set_id, moment)

    assert chosen(None, None) == made[2]
    assert chosen(made[0].id, None) == made[0]
    assert chosen(None, made[1].moment) == made[1]
    assert chosen(None, made[1].moment - timedelta(microseconds=1)) == made[0]
    # The same moment, written in another zone.
    there = made[1].moment.astimezone(timezone(timedelta(hours=-7)))
    assert chosen(None, there) == made[1]
    with pytest.raises(OperationError, match="no backup set is older than"):
        chosen(None, made[0].moment - timedelta(seconds=1))


def test_a_set_of_a_branch_that_a_restore_left_is_chosen_by_name_only(settings: Settings) -> None:
    first = put_set(settings, 0)
    left = put_set(settings, 1, reference=first.reference | {"lsn": "0/5000000"})
    # A restore to a place after the first one's began timeline 2.
    (barman.home(settings) / "wals" / "00000002.history").write_text("1\t0/4800000\tbefore x\n")
    assert sets.choose(settings, None, None) == first
    assert sets.choose(settings, left.id, None) == left
    reference = first.reference | {"lsn": "0/4900000", "timeline": 2, "time": "2025-11-21 10:00:00+00"}
    newest = put_set(settings, 2, reference=reference)
    assert sets.choose(settings, None, None) == newest
    assert sets.choose(settings, None, EPOCH + timedelta(hours=1.5)) == first


def test_without_any_set_nothing_can_be_chosen(settings: Settings) -> None:
    with pytest.raises(OperationError, match=r"there is no backup set$"):
        sets.choose(settings, None, None)


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2090, 1, 1)), st.integers(-12 * 60, 14 * 60), st.booleans()
)
def test_every_moment_that_postgresql_writes_is_read(moment: datetime, minutes: int, whole: bool) -> None:
    zone = timezone(timedelta(minutes=minutes))
    aware = moment.replace(microsecond=0 if whole else moment.microsecond, tzinfo=zone)
    # clock_timestamp()::text: no zeros at the end of the fraction, no :00 at the end of the zone.
    text = aware.replace(tzinfo=None).isoformat(sep=" ")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    sign, rest = ("-", -minutes) if minutes < 0 else ("+", minutes)
    text += f"{sign}{rest // 60:02}" + (f":{rest % 60:02}" if rest % 60 else "")
    assert manifest(reference={"time": text}).moment == aware


# Verifying.


def test_a_sound_set_has_no_problem(settings: Settings) -> None:
    put_object(settings, "artifacts/1/m", b"model")
    made = put_set(settings)
    assert sets.verify(settings, made) == []
    assert backup.verify(settings, None) == {"set": made.id, "objects": 1}


def _lose_a_segment(settings: Settings, made: sets.Manifest) -> str:
    (barman.home(settings) / "wals" / wal_name(3)[:16] / wal_name(3)).unlink()
    return f"log segment {wal_name(3)}: missing"


def _damage_a_segment(settings: Settings, made: sets.Manifest) -> str:
    put_wal(settings, wal_name(4), contents=b"damage")
    return f"log segment {wal_name(4)}: other bytes"


def _damage_the_base(settings: Settings, made: sets.Manifest) -> str:
    (barman.data_folder(settings, made.id) / "damage").touch()
    return f"base backup {made.id}: "


def _lose_the_base(settings: Settings, made: sets.Manifest) -> str:
    shutil.rmtree(barman.data_folder(settings, made.id))
    return f"base backup {made.id}: missing"


def _lose_the_secrets(settings: Settings, made: sets.Manifest) -> str:
    path = sets.folder(settings, made.id) / sets.SEALED
    path.unlink()
    return f"{path}: missing"


def _damage_the_inventory(settings: Settings, made: sets.Manifest) -> str:
    path = sets.folder(settings, made.id) / sets.INVENTORY
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    return f"{path}: other bytes than were written"


def _lose_an_object(settings: Settings, made: sets.Manifest) -> str:
    (objects.current(settings) / "artifacts/1/m").unlink()
    return "object artifacts/1/m: missing in the backup"


def _damage_an_object(settings: Settings, made: sets.Manifest) -> str:
    put_object(settings, "artifacts/1/m", b"modeL")
    return "object artifacts/1/m: other bytes"


@pytest.mark.parametrize(
    "harm",
    [
        *(_lose_a_segment, _damage_a_segment, _damage_the_base, _lose_the_base, _lose_the_secrets),
        *(_damage_the_inventory, _lose_an_object, _damage_an_object),
    ],
)
def test_each_damage_is_named(settings: Settings, harm: Callable[[Settings, sets.Manifest], str]) -> None:
    put_object(settings, "artifacts/1/m", b"model")
    made = put_set(settings)
    said = harm(settings, made)
    (problem,) = sets.verify(settings, made)
    assert problem.startswith(said)
    with pytest.raises(FailedError) as failure:
        backup.verify(settings, made.id)
    assert problem in str(failure.value)


def test_a_set_needs_what_it_builds_on(settings: Settings) -> None:
    full = put_set(settings, 0)
    made = put_set(settings, 24, full=False, builds_on=[full.id])
    assert sets.verify(settings, made) == []
    shutil.rmtree(barman.data_folder(settings, full.id))
    assert sets.verify(settings, made) == [f"base backup {full.id}: missing"]


def test_damage_outside_of_a_sets_part_of_the_log_is_not_its_problem(settings: Settings) -> None:
    made = put_set(settings)
    put_wal(settings, wal_name(1), wal_name(5), wal_name(3, timeline=2), contents=b"damage")
    assert sets.verify(settings, made) == []


def test_an_object_replaced_between_reference_point_and_copy_is_no_damage(settings: Settings) -> None:
    # The loop copied version 1; version 2 came before the reference point, and only the
    # set's own copy brought it: version 1 is in that copy's folder of the history.
    made = manifest(0)
    aside = objects.history(settings) / objects.stamp(made.objects_moment)
    put_object(settings, "artifacts/1/log.txt", b"version 1", aside)
    put_object(settings, "artifacts/1/log.txt", b"version 2")
    put_set(settings, 0)
    made = sets.read(settings, made.id)
    assert sets.verify(settings, made) == []
    # Neither is what a later copy replaces.
    later = objects.history(settings) / objects.stamp(made.objects_moment + timedelta(seconds=20))
    later.mkdir()
    (objects.current(settings) / "artifacts/1/log.txt").rename(
        put_object(settings, "artifacts/1/log.txt", b"", later)
    )
    put_object(settings, "artifacts/1/log.txt", b"version 3")
    assert sets.verify(settings, made) == []


# Forgetting.


def test_sets_without_their_base_backup_are_forgotten(settings: Settings) -> None:
    made = [put_set(settings, hours) for hours in (0, 1, 2)]
    assert sets.forget(settings, {made[1].id, "another"}) == [made[0].id, made[2].id]
    assert sets.complete(settings) == [made[1]]


def test_an_empty_volume_forgets_nothing(settings: Settings) -> None:
    assert sets.forget(settings, set()) == []


def test_history_is_kept_as_long_as_the_oldest_base_backup_can_need_it(
    settings: Settings, tmp_path: Path
) -> None:
    made = [put_set(settings, hours) for hours in (0, 24)]
    end = EPOCH + timedelta(hours=24)
    ended = str(int(end.timestamp()))
    barman_lists(tmp_path / "bin", barman_entry(made[1].id, end_time_timestamp=ended))
    put_base(settings, made[1].id)
    for hours in (-2, 22, 23.5, 25):
        put_object(
            settings, "a", b"", objects.history(settings) / objects.stamp(EPOCH + timedelta(hours=hours))
        )
    assert backup.forget(settings) == [made[0].id]
    assert sets.complete(settings) == [made[1]]
    assert [path.name[:13] for path in sorted(objects.history(settings).iterdir())] == [
        "20251122T0730",
        "20251122T0900",
    ]


def test_a_catalogue_without_base_backups_forgets_no_set(settings: Settings, tmp_path: Path) -> None:
    made = put_set(settings)
    barman_lists(tmp_path / "bin")
    assert backup.forget(settings) == []
    assert sets.complete(settings) == [made]


# Making one.


def base(hours: float, *, full: bool = True, done: bool = True) -> barman.BaseBackup:
    end = (EPOCH + timedelta(hours=hours)).timestamp()
    return barman.BaseBackup(set_id(hours), done, False, full, None if full else "x", "", end, 0)


@pytest.mark.parametrize(
    ("backups", "requested", "wanted"),
    [
        ([], None, True),
        ([base(-1)], None, False),
        ([base(-1)], "after a restore", True),
        ([base(-1, done=False)], None, True),
        ([base(-1, full=False)], None, True),
        ([base(-24 * 6)], None, False),
        # A weekly one that took an hour, at the same time of the day a week later.
        ([base(-24 * 7 + 1)], None, True),
        ([base(-24 * 20), base(-24 * 6), base(-1, full=False)], None, False),
        ([base(-24 * 8), base(-1, full=False), base(-1, done=False)], None, True),
    ],
)
def test_a_full_base_backup_is_made_when_it_is_due(
    backups: list[barman.BaseBackup], requested: str | None, wanted: bool
) -> None:
    assert backup.wants_full(backups, requested, EPOCH.timestamp(), 7) is wanted


def test_a_full_base_backup_that_was_asked_for_is_remembered_until_it_is_there(settings: Settings) -> None:
    assert backup.requested_full(settings) is None
    backup.request_full(settings, "after a restore")
    assert backup.requested_full(settings) == "after a restore"
    backup.request_full(settings, None)
    backup.request_full(settings, None)
    assert backup.requested_full(settings) is None


def test_the_first_database_is_remembered_and_another_refused(settings: Settings) -> None:
    backup.check_identity(settings, "7400000000000000001")
    backup.check_identity(settings, "7400000000000000001")
    with pytest.raises(OperationError, match=r"2\) is not the one .*1\): its volume") as refusal:
        backup.check_identity(settings, "7400000000000000002")
    assert "./stack restore" in refusal.value.fix
    backup.check_identity(settings, "7400000000000000001")


def test_a_damaged_inventory_makes_the_next_set_read_every_object(
    settings: Settings, capsys: pytest.CaptureFixture
) -> None:
    put_object(settings, "artifacts/1/m", b"model")
    older, newest = put_set(settings, 0), put_set(settings, 24)
    (sets.folder(settings, newest.id) / sets.INVENTORY).write_bytes(b"damage")
    assert set(backup._known_objects(settings)) == {"artifacts/1/m"}
    (sets.folder(settings, older.id) / sets.INVENTORY).unlink()
    assert backup._known_objects(settings) == {}
    assert "cannot be read" in capsys.readouterr().out


def test_a_manifest_is_plain_data() -> None:
    assert asdict(manifest())["files"] == {}
    assert manifest().moment == EPOCH
    assert manifest().objects_moment > manifest().moment
    assert manifest().objects_moment.tzinfo in {UTC, UTC}
