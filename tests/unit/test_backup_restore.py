"""Restore: what is refused before anything changes, and the swap that loses no database."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import namedtuple
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.backups import (
    EPOCH,
    manifest,
    program,
    put_object,
    put_set,
    put_wal,
    set_id,
    settings_in,
    tree_of,
    wal_name,
)
from stackops import backup, barman, cluster, objects, postgres, restore, sets
from stackops.errors import FailedError, OperationError
from stackops.settings import Settings

START = Path(__file__).parents[2] / "postgres" / "start.sh"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(barman, "BINARIES", tmp_path / "bin")
    monkeypatch.setattr(barman, "CONFIGURATION", tmp_path / "barman.conf")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    # The new timeline of a kept database is PostgreSQL's work.
    monkeypatch.setattr(cluster, "branch", lambda *_: None)
    for name in ("pg_verifybackup", "zstd", "barman"):
        program(tmp_path / "bin", name, "true")
    return settings_in(tmp_path)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# Moments and targets.


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-21T14:03:07+01:00", "2026-11-21T13:03:07+00:00"),
        ("2026-11-21T13:03:07Z", "2026-11-21T13:03:07+00:00"),
        ("2026-11-21 13:03:07.25-0530", "2026-11-21T18:33:07.25+00:00"),
        # Without a zone: the container's, summer and winter.
        ("2026-11-21 14:03:07", "2026-11-21T13:03:07+00:00"),
        ("2026-07-01 14:03:07", "2026-07-01T12:03:07+00:00"),
        ("2026-11-21 14:03", "2026-11-21T13:03:00+00:00"),
        ("2026-11-21", "2026-11-20T23:00:00+00:00"),
        # Twice that night: the first.
        ("2026-10-25 02:30", "2026-10-25T00:30:00+00:00"),
    ],
)
@pytest.mark.usefixtures("berlin")
def test_a_moment_is_read_in_its_zone_or_in_the_containers(text: str, moment: str) -> None:
    assert restore.parse_moment(text) == datetime.fromisoformat(moment)


@pytest.mark.parametrize(
    "text",
    [
        *("yesterday", "", "14:03", "21.11.2026", "2026-13-01", "2026-11-21 25:00", "1763733787"),
        *("2026-11-21 14:03:07 CET", "0001-01-01", "9999-12-31 23:59:59Z+", "2026-11-21 14:03:07; DROP"),
    ],
)
@pytest.mark.usefixtures("berlin")
def test_what_is_no_moment_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(OperationError) as refusal:
        restore.parse_moment(text)
    assert f"'{text}' is no moment" in str(refusal.value)
    assert "2026-11-21 14:03:07" in refusal.value.fix


@given(st.text(max_size=30) | st.datetimes().map(str) | st.datetimes(timezones=st.timezones()).map(str))
def test_any_text_is_a_moment_with_a_zone_or_refused(text: str) -> None:
    try:
        moment = restore.parse_moment(text)
    except OperationError:
        return
    assert moment.utcoffset() is not None


def test_the_target_is_the_sets_place_or_the_moment_or_the_end_of_the_log(settings: Settings) -> None:
    made = manifest()
    assert restore.target_of(settings, made, None, None) == cluster.Target()
    assert restore.target_of(settings, made, None, EPOCH) == cluster.Target(moment=EPOCH)
    # A set's own place is on its own timeline, whatever was restored since.
    own = cluster.Target(name=made.reference["name"], timeline=1)
    assert restore.target_of(settings, made, made.id, None) == own
    # With a named set the moment's timeline, for it may be one that a restore left.
    assert restore.target_of(settings, made, made.id, EPOCH) == cluster.Target(moment=EPOCH)
    put_wal(settings, wal_name(2, timeline=3))
    assert restore.target_of(settings, made, made.id, EPOCH) == cluster.Target(moment=EPOCH, timeline=3)


def test_recovery_is_told_where_to_end() -> None:
    assert cluster.Target().settings() == ["recovery_target_timeline = 'latest'"]
    assert cluster.Target(moment=EPOCH, timeline=3).settings() == [
        "recovery_target_timeline = '3'",
        "recovery_target_time = '2025-11-21T08:00:00+00:00'",
        "recovery_target_action = 'promote'",
    ]
    assert cluster.Target(name="set-1", timeline=1).settings() == [
        "recovery_target_timeline = '1'",
        "recovery_target_name = 'set-1'",
        "recovery_target_action = 'promote'",
    ]


@pytest.mark.parametrize(
    ("made", "ours", "accepted"),
    [
        ("3.17.2", "3.17.2", True),
        ("3.17.2", "3.18.0", True),
        ("3.9.9", "3.17.2", True),
        ("2.99.99", "3.0.0", True),
        ("3.17", "3.17.0", True),
        ("3.17.0", "3.17", True),
        ("3.17.2rc1", "3.17.2", True),
        ("unknown", "3.17.2", True),
        ("3.17.3", "3.17.2", False),
        ("3.18.0", "3.17.2", False),
        ("3.18rc1", "3.17.2", False),
        ("3.18.0.dev0", "3.17.2", False),
        ("10.0.0", "9.9.9", False),
        ("4", "3.17.2", False),
    ],
)
def test_a_set_of_a_newer_version_is_refused(made: str, ours: str, accepted: bool) -> None:
    found = replace(manifest(), mlflow_version=made, schema_revision="newer")
    # The set before an upgrade: by the newer version, of the older one's data.
    restore.check_version(found, ours, frozenset({"newer"}))
    if accepted:
        restore.check_version(found, ours, frozenset())
        return
    with pytest.raises(OperationError, match=f"{made}, this is {ours}"):
        restore.check_version(found, ours, frozenset())


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("mlflow-artifacts:/1/abc/artifacts", "artifacts/1/abc/artifacts"),
        ("mlflow-artifacts:/1/models/m-1/artifacts/", "artifacts/1/models/m-1/artifacts"),
        ("mlflow-artifacts:///1/abc", "artifacts/1/abc"),
        ("mlflow-artifacts:/", "artifacts"),
        ("s3://mlflow/artifacts/1", None),
        ("models:/m-1", None),
        ("runs:/abc/model", None),
        ("/mlartifacts/1", None),
        ("", None),
        (None, None),
    ],
)
def test_an_artifact_uri_is_a_key_of_the_bucket_or_lies_elsewhere(uri: str | None, key: str | None) -> None:
    assert restore.key_of(uri, "artifacts") == key


def test_tables_that_differ_are_named_one_by_one() -> None:
    expected = {name: {"rows": 2, "digest": "5"} for name in ("same", "gone", "longer", "changed")}
    found = {
        "same": {"rows": 2, "digest": "5"},
        "longer": {"rows": 3, "digest": "6"},
        "changed": {"rows": 2, "digest": "6"},
        "new": {"rows": 0, "digest": "0"},
    }
    assert postgres.compare_digests(expected, found) == [
        "changed: 2 rows, but with other contents",
        "gone: missing",
        "longer: 2 rows expected, 3 found",
        "new: not expected",
    ]
    assert postgres.compare_digests(expected, expected) == []
    assert postgres.compare_digests({}, {}) == []


# The plan.


def plan(settings: Settings, *, set_id: str | None = None, to: datetime | None = None, replace: bool = False):
    return restore.plan(settings, set_id, to, replace=replace)


def test_a_plan_says_what_will_be_done_and_changes_nothing(settings: Settings) -> None:
    put_object(settings, "artifacts/1/m", b"model")
    made = [put_set(settings, hours) for hours in (0, 24)]
    before = tree_of(settings.backups), tree_of(settings.data)
    newest = plan(settings)
    assert (newest.set, newest.target, newest.replaces) == (made[1].id, "the newest state", False)
    assert (newest.objects, newest.bytes) == (1, made[1].database_bytes + made[1].object_bytes)
    named = plan(settings, set_id=made[0].id)
    assert named.target == f"the set's own moment, {made[0].moment}"
    moment = made[1].moment - timedelta(seconds=1)
    assert (plan(settings, to=moment).set, plan(settings, to=moment).target) == (made[0].id, str(moment))
    # The base backup may be chosen, too.
    assert plan(settings, set_id=made[0].id, to=made[1].moment).set == made[0].id
    assert (tree_of(settings.backups), tree_of(settings.data)) == before


def refused(settings: Settings, match: str, **words: object) -> OperationError:
    before = tree_of(settings.backups), tree_of(settings.data)
    with pytest.raises(OperationError, match=match) as refusal:
        plan(settings, **words)
    assert (tree_of(settings.backups), tree_of(settings.data)) == before
    return refusal.value


def test_a_moment_in_the_future_is_refused(settings: Settings) -> None:
    put_set(settings)
    refused(settings, "lies in the future", to=datetime.now(UTC) + timedelta(minutes=1))


def test_a_moment_before_the_first_set_or_before_the_named_one_is_refused(settings: Settings) -> None:
    put_set(settings, 0)
    second = put_set(settings, 24)
    refused(settings, "no backup set is older than", to=EPOCH - timedelta(hours=1))
    refused(settings, "is younger than", set_id=second.id, to=EPOCH + timedelta(hours=1))


def test_without_sets_and_for_an_unknown_one_there_is_no_plan(settings: Settings) -> None:
    refused(settings, "there is no backup set")
    refused(settings, "there is no backup set nothing", set_id="nothing")


def test_a_database_that_is_there_is_replaced_only_when_asked(settings: Settings) -> None:
    put_set(settings)
    settings.database_folder.mkdir()
    assert "--replace" in refused(settings, "there is a database already").fix
    assert plan(settings, replace=True).replaces


def test_a_set_of_a_newer_mlflow_is_no_plan(settings: Settings) -> None:
    put_set(settings, mlflow_version="99.0.0", schema_revision="newer")
    refused(settings, r"made by MLflow 99\.0\.0")


def test_a_damaged_set_is_no_plan(settings: Settings) -> None:
    path = put_object(settings, "artifacts/1/m", b"model")
    put_set(settings)
    path.write_bytes(b"modem")
    error = refused(settings, "is damaged; nothing was changed:\nobject artifacts/1/m: other bytes")
    assert isinstance(error, FailedError)


def test_a_gap_in_the_log_after_the_set_matters_unless_its_own_moment_is_wanted(settings: Settings) -> None:
    made = put_set(settings)
    put_wal(settings, wal_name(5), wal_name(7))
    refused(settings, f"log segment {wal_name(6)}: missing$")
    assert plan(settings, set_id=made.id).set == made.id
    put_wal(settings, wal_name(6))
    assert plan(settings).set == made.id


def test_a_moment_that_a_later_restore_left_behind_is_refused_and_reached_by_a_sets_name(
    settings: Settings,
) -> None:
    made = put_set(settings)
    # The segments ended an hour apart; in the middle of the fifth one a restore left the timeline.
    for number in range(2, 8):
        put_wal(settings, wal_name(number))
        ended = (EPOCH + timedelta(hours=number)).timestamp()
        os.utime(barman.home(settings) / "wals" / wal_name(2)[:16] / wal_name(number), (ended, ended))
    put_wal(settings, wal_name(5, timeline=2))
    history = barman.home(settings) / "wals" / "00000002.history"
    history.write_text("1\t0/5800000\tbefore 2025-11-21 12:30:00+00\n")
    for hours, left in ((3.5, False), (4.5, False), (5.5, True), (6.5, True), (7.5, False)):
        moment = EPOCH + timedelta(hours=hours)
        if left:
            error = refused(settings, "was left by a later restore", to=moment)
            assert "--set" in error.fix
            assert plan(settings, set_id=made.id, to=moment).set == made.id
            assert restore.target_of(settings, made, made.id, moment).timeline == 1
        else:
            assert plan(settings, to=moment).set == made.id


def test_a_moment_before_a_gap_in_the_log_can_be_restored_and_one_after_it_not(settings: Settings) -> None:
    put_set(settings)
    put_wal(settings, wal_name(7))
    written = EPOCH + timedelta(hours=1)
    os.utime(barman.home(settings) / "wals" / wal_name(4)[:16] / wal_name(4), (0, written.timestamp()))
    assert plan(settings, to=written - timedelta(minutes=1)).set == set_id(0)
    refused(settings, f"log segment {wal_name(5)}: missing", to=written + timedelta(minutes=1))
    refused(settings, f"log segment {wal_name(5)}: missing")


def test_without_room_there_is_no_plan(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    put_set(settings, database_bytes=1 << 30)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, (2 << 30) - 1))
    refused(settings, "has 2047 MB free, the restore needs 2048 MB")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, 2 << 30))
    assert plan(settings).set == set_id(0)


# The swap.


def put_cluster(path: Path, name: str) -> Path:
    path.mkdir(parents=True)
    (path / "PG_VERSION").write_text("17\n")
    (path / "name").write_text(name)
    return path


def in_place(settings: Settings) -> str:
    return (settings.database_folder / "name").read_text()


def everywhere(settings: Settings) -> list[str]:
    return sorted(path.read_text() for path in settings.data.rglob("name"))


def fresh(settings: Settings, name: str) -> Path:
    return put_cluster(settings.data / "restoring" / "17", name)


def start(settings: Settings, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Begin to start the database; 77 is where it would make a new cluster, 76 where it would use one."""
    script = tmp_path / "start.sh"
    script.write_text(START.read_text().replace("/data", str(settings.data)))
    program(tmp_path / "start", "initdb", "exit 77")
    program(tmp_path / "start", "postgres", "cat >/dev/null; exit 76")
    return subprocess.run(
        ["bash", script],
        env={"PATH": f"{tmp_path / 'start'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_first_database_takes_its_place_and_nothing_is_kept(settings: Settings, tmp_path: Path) -> None:
    assert start(settings, tmp_path).returncode == 77
    assert restore.swap(settings, fresh(settings, "restored"), "restore") is None
    assert everywhere(settings) == [in_place(settings)] == ["restored"]
    assert [path.parent.name for path in restore.kept_clusters(settings)] == []
    assert start(settings, tmp_path).returncode == 76


def test_the_present_database_is_kept_with_the_reason(settings: Settings, tmp_path: Path) -> None:
    put_cluster(settings.database_folder, "present")
    kept = restore.swap(settings, fresh(settings, "restored"), "restore of x")
    assert in_place(settings) == "restored"
    assert [path.parent.name for path in restore.kept_clusters(settings)] == [kept]
    assert (settings.kept / kept / "17" / "name").read_text() == "present"
    assert "restore of x" in (settings.kept / kept / restore.KEPT_NOTE).read_text()
    assert not (settings.data / "restoring").exists()
    assert start(settings, tmp_path).returncode == 76


def test_rolling_back_exchanges_the_two_again_and_again(settings: Settings) -> None:
    put_cluster(settings.database_folder, "present")
    restore.swap(settings, fresh(settings, "restored"), "restore")
    for expected in ("present", "restored", "present"):  # within the same second, too
        facts = restore.roll_back(settings)
        assert in_place(settings) == expected
        assert [path.parent.name for path in restore.kept_clusters(settings)] == [facts["kept"]]
        assert everywhere(settings) == ["present", "restored"]
    assert backup.requested_full(settings) == "after a roll back"


def test_the_newest_of_several_kept_databases_comes_back(settings: Settings) -> None:
    put_cluster(settings.database_folder, "first")
    for name in ("second", "third"):
        restore.swap(settings, fresh(settings, name), "restore")
    restore.roll_back(settings)
    assert in_place(settings) == "second"
    assert everywhere(settings) == ["first", "second", "third"]


def test_without_a_kept_database_there_is_no_way_back(settings: Settings) -> None:
    put_cluster(settings.database_folder, "present")
    for make in (lambda: None, settings.kept.mkdir, (settings.kept / "lost+found").mkdir):
        make()
        with pytest.raises(OperationError, match="no earlier database is kept"):
            restore.roll_back(settings)
    assert in_place(settings) == "present"


def test_a_kept_copy_leaves_the_present_database_and_brings_it_back_later(settings: Settings) -> None:
    with pytest.raises(OperationError, match="no database to keep"):
        restore.keep(settings, "upgrade")
    put_cluster(settings.database_folder, "present")
    killed = put_cluster(settings.kept / ".20251121T080000.000000" / "17", "half")
    assert [path.parent.name for path in restore.kept_clusters(settings)] == []
    kept = restore.keep(settings, "upgrade")["kept"]
    assert not killed.exists()
    assert [path.parent.name for path in restore.kept_clusters(settings)] == [kept]
    (settings.database_folder / "name").write_text("upgraded")
    assert restore.roll_back(settings)["undone"] == "upgrade"
    assert restore.roll_back(settings)["undone"] == "roll back of upgrade"
    assert restore.roll_back(settings, failed=True)["undone"] == "upgrade"
    with pytest.raises(OperationError, match="no earlier database is kept"):
        restore.roll_back(settings)  # what failed is nothing to go back to
    assert in_place(settings) == "present"
    assert everywhere(settings) == ["present", "upgraded"]


def test_without_room_no_copy_is_kept(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    put_cluster(settings.database_folder, "present")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, 3))
    with pytest.raises(OperationError, match="0 MB free") as refusal:
        restore.keep(settings, "upgrade")
    assert "nothing was changed" in refusal.value.fix
    assert everywhere(settings) == ["present"]


class PowerCutError(Exception):
    """The machine stops here."""


def cut_before_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the `number`th rename of a cluster not happen."""
    rename = Path.rename
    left = [number]

    def cut(path: Path, target: Path) -> Path:
        left[0] -= path.name == "17"
        if left[0] < 0:
            raise PowerCutError
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", cut)


@pytest.mark.parametrize("renames", [0, 1])
def test_an_interrupted_restore_can_be_rolled_back_or_begun_again(
    settings: Settings, tmp_path: Path, renames: int
) -> None:
    put_cluster(settings.database_folder, "present")
    with pytest.MonkeyPatch.context() as patch:
        cut_before_rename(patch, renames)
        with pytest.raises(PowerCutError):
            restore.swap(settings, fresh(settings, "restored"), "restore")
    assert everywhere(settings) == ["present", "restored"]
    started = start(settings, tmp_path)
    if renames == 0:  # nothing had happened: the present one runs, and there is nothing to roll back
        assert started.returncode == 76
        with pytest.raises(OperationError, match="no earlier database is kept"):
            restore.roll_back(settings)
    else:  # put aside, and its place is empty: no new, empty database may be made there
        assert started.returncode == 78
        assert "REFUSED: a restore was interrupted" in started.stderr
        assert "./stack rollback" in started.stderr
        restore.roll_back(settings)
    assert in_place(settings) == "present"
    assert start(settings, tmp_path).returncode == 76


@pytest.mark.parametrize("renames", [0, 1])
def test_an_interrupted_roll_back_loses_no_database(settings: Settings, tmp_path: Path, renames: int) -> None:
    put_cluster(settings.database_folder, "former")
    restore.swap(settings, fresh(settings, "present"), "restore")
    with pytest.MonkeyPatch.context() as patch:
        cut_before_rename(patch, renames)
        with pytest.raises(PowerCutError):
            restore.roll_back(settings)
    assert everywhere(settings) == ["former", "present"]
    assert start(settings, tmp_path).returncode == (78 if renames else 76)
    seen = set()
    for _ in range(2):
        restore.roll_back(settings)
        assert everywhere(settings) == ["former", "present"]
        assert start(settings, tmp_path).returncode == 76
        seen.add(in_place(settings))
    assert seen == {"former", "present"}


def test_a_failing_object_copy_leaves_no_tree_behind(settings: Settings, tmp_path: Path) -> None:
    put_object(settings, "artifacts/1/m", b"model")
    program(tmp_path / "bin", "rclone", "exit 1")
    with pytest.raises(FailedError):
        restore.bring_objects_back(settings, None)
    assert not (settings.backups / "tree").exists()
    assert (objects.current(settings) / "artifacts/1/m").read_bytes() == b"model"


def test_objects_of_a_set_are_those_of_its_inventory(settings: Settings, tmp_path: Path) -> None:
    made = manifest(0)
    aside = objects.history(settings) / objects.stamp(made.objects_moment)
    put_object(settings, "artifacts/1/log", b"not yet copied at the reference point", aside)
    put_object(settings, "artifacts/1/log", b"what the set has")
    put_set(settings, 0)
    program(tmp_path / "bin", "rclone", f"cp -r $2 {tmp_path}/bucket")
    facts = restore.bring_objects_back(settings, sets.read(settings, made.id).objects_moment)
    assert facts == {"objects": 1}
    assert tree_of(tmp_path / "bucket") == {"artifacts/1/log": b"what the set has"}
