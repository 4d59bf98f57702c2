"""barman: its catalogue, the chain of base backups, gaps in the log, what is forgotten."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.backups import EPOCH, barman_entry, barman_lists, program, put_base, put_wal, settings_in, wal_name
from stackops import barman
from stackops.errors import FailedError
from stackops.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(barman, "BINARIES", tmp_path / "bin")
    monkeypatch.setattr(barman, "CONFIGURATION", tmp_path / "barman.conf")
    made = settings_in(tmp_path)
    (barman.home(made) / "base").mkdir(parents=True)
    return made


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    return tmp_path / "bin"


def calls(path: Path) -> list[str]:
    """Return what barman was called for, without its configuration."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition("barman.conf ")[2] for line in lines if "list-backups" not in line]


# The log.


@given(
    first=st.one_of(st.integers(0, 2**20), st.integers(0, 40).map(lambda n: 256 * n + 250)),
    length=st.integers(1, 300),
    timeline=st.integers(1, 300),
    data=st.data(),
)
def test_each_missing_segment_is_named_and_no_other(
    first: int, length: int, timeline: int, data: st.DataObject
) -> None:
    names = [wal_name(number, timeline) for number in range(first, first + length)]
    removed = data.draw(st.sets(st.sampled_from(names), max_size=5))
    have = data.draw(st.permutations([name for name in names if name not in removed]))
    others = [
        wal_name(first - 1, timeline),
        wal_name(first + length, timeline),
        wal_name(first, timeline + 1),
    ]
    assert barman.missing_wal([*have, *others], names[0], names[-1]) == sorted(removed)


def test_the_segment_after_ff_is_in_the_next_log() -> None:
    begin, end = "0000000100000000000000FE", "000000010000000100000001"
    assert barman.missing_wal([begin, end], begin, end) == [
        "0000000100000000000000FF",
        "000000010000000100000000",
    ]


def test_an_end_before_the_begin_misses_nothing() -> None:
    assert barman.missing_wal([], wal_name(5), wal_name(4)) == []


def test_only_whole_segments_are_the_log(settings: Settings) -> None:
    put_wal(settings, wal_name(257), wal_name(3), f"{wal_name(4)}.partial", f"{wal_name(3)}.00000028.backup")
    (barman.home(settings) / "wals" / "00000002.history").write_bytes(b"")
    (barman.home(settings) / "wals" / "xlog.db").write_bytes(b"")
    assert [path.name for path in barman.wal_files(settings)] == [wal_name(3), wal_name(257)]
    assert barman.archived(settings, wal_name(257))
    assert not barman.archived(settings, wal_name(4))


def test_a_volume_without_a_log_has_no_segments(settings: Settings) -> None:
    assert barman.wal_files(settings) == []


def test_barman_archives_only_when_a_whole_segment_has_come(settings: Settings, programs: Path) -> None:
    called = barman_lists(programs)
    barman.archive(settings)
    streaming = barman.home(settings) / "streaming"
    streaming.mkdir()
    (streaming / f"{wal_name(4)}.partial").touch()
    barman.archive(settings)
    assert calls(called) == []
    (streaming / wal_name(3)).touch()
    barman.archive(settings)
    assert calls(called) == ["--quiet archive-wal mlflow"]


def test_waiting_for_a_segment_archives_and_at_last_gives_up(settings: Settings, programs: Path) -> None:
    streaming = barman.home(settings) / "streaming"
    streaming.mkdir()
    (streaming / wal_name(3)).touch()
    folder = barman.home(settings) / "wals" / wal_name(3)[:16]
    program(programs, "barman", f"mkdir -p {folder}; mv {streaming}/{wal_name(3)} {folder}")
    barman.wait_archived(settings, wal_name(3), 10)
    with pytest.raises(FailedError, match=f"{wal_name(4)} did not arrive"):
        barman.wait_archived(settings, wal_name(4), 0)


def test_the_receivers_folder_is_emptied_into_one_aside_and_kept_for_the_window(
    settings: Settings, programs: Path
) -> None:
    barman_lists(programs)
    barman.put_partial_aside(settings)
    streaming = barman.home(settings) / "streaming"
    streaming.mkdir()
    aside = settings.backups / "barman" / "aside"
    for number in (3, 4):
        (streaming / f"{wal_name(number)}.partial").write_text(str(number))
        barman.put_partial_aside(settings)
        assert list(streaming.iterdir()) == []
        assert (aside / f"{wal_name(number)}.partial").read_text() == str(number)
    assert len(list(aside.iterdir())) == 2
    os.utime(aside / f"{wal_name(3)}.partial", (1, 1))
    barman.put_partial_aside(settings)
    assert [path.name for path in aside.iterdir()] == [f"{wal_name(4)}.partial"]


def ended(settings: Settings, name: str, hours: float, folder: str = "") -> None:
    """Put a segment whose last byte came `hours` after EPOCH."""
    path = settings.backups / "barman" / (folder or f"mlflow/wals/{name[:16]}") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    moment = (EPOCH + timedelta(hours=hours)).timestamp()
    os.utime(path, (moment, moment))


def put_history(settings: Settings, timeline: int, *ancestors: tuple[int, int]) -> None:
    """Put the history of a timeline; an ancestor was left in the middle of a segment."""
    lines = [f"{number}\t0/{(segment << 24) + 0x800:X}\tbefore x\n" for number, segment in ancestors]
    (barman.home(settings) / "wals").mkdir(exist_ok=True)
    (barman.home(settings) / "wals" / f"{timeline:08X}.history").write_text("# words\n\n" + "".join(lines))


def test_a_moment_is_in_the_segment_that_was_written_then(settings: Settings) -> None:
    def at(hours: float) -> str | None:
        return barman.segment_at(settings, EPOCH + timedelta(hours=hours))

    assert at(1) is None
    for number in range(4):
        ended(settings, wal_name(number), number)
    assert [at(hours) for hours in (-1, 1.5, 2, 9)] == [wal_name(0), wal_name(2), wal_name(2), None]
    # A restore at 4:30; what the receiver had not yet whole was put aside.
    ended(settings, f"{wal_name(4)}.partial", 4.4, "aside")
    ended(settings, f"{wal_name(1, timeline=2)}.partial", 5.5, "mlflow/streaming")
    assert [at(hours) for hours in (4.2, 4.5, 6)] == [wal_name(4), wal_name(1, timeline=2), None]


def test_the_present_timeline_is_the_newest_and_its_history_names_the_others(settings: Settings) -> None:
    assert [branch.timeline for branch in barman.ancestry(settings)] == [1]
    put_wal(settings, wal_name(9))
    put_history(settings, 2, (1, 5))
    put_history(settings, 3, (1, 7))
    first, present = barman.ancestry(settings)
    assert (first.timeline, first.left_at) == (1, 7 * barman.SEGMENT_BYTES + 0x800)
    assert (present.timeline, present.left_at >= 1 << 62) == (3, True)


def test_gaps_are_looked_for_along_the_timelines_that_lead_here(settings: Settings) -> None:
    put_wal(settings, *(wal_name(number) for number in range(2, 9)))
    assert barman.missing_after(settings, wal_name(2)) == []
    # Left in segment 5, which is whole on the next timeline only; 6 to 8 are another story.
    put_history(settings, 2, (1, 5))
    put_wal(settings, wal_name(5, timeline=2), wal_name(8, timeline=2))
    assert barman.missing_after(settings, wal_name(2)) == [wal_name(n, timeline=2) for n in (6, 7)]
    assert barman.missing_after(settings, wal_name(8, timeline=2)) == []


# The configuration.


def test_threads_never_see_half_a_configuration(settings: Settings, tmp_path: Path) -> None:
    path = barman.configure(settings)
    whole = path.read_text()
    other = settings_in(tmp_path, keep_days=400)

    def work(number: int) -> None:
        for _ in range(50):
            barman.configure(settings if number % 2 else other)
            assert path.read_text() in {whole, whole.replace("OF 14 DAYS", "OF 400 DAYS")}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert [entry.name for entry in tmp_path.glob("barman.conf*")] == ["barman.conf"]


def test_the_configuration_has_the_window_and_no_password(settings: Settings) -> None:
    (settings.secrets / "pgpass").write_text("*:*:*:*:hunter2")
    text = barman.configure(settings).read_text()
    assert "retention_policy = RECOVERY WINDOW OF 14 DAYS" in text
    assert "minimum_redundancy = 2" in text
    assert "hunter2" not in text
    assert barman.environment(settings)["PGPASSFILE"] == str(settings.secrets / "pgpass")
    assert "hunter2" not in " ".join(barman.words(settings, "backup"))


# The catalogue.


def test_the_catalogue_is_read_from_what_barman_lists(settings: Settings, programs: Path) -> None:
    barman_lists(
        programs,
        barman_entry("20261121T090000", retention_status="OBSOLETE"),
        barman_entry("20261121T080000", retention_status="OBSOLETE*"),
        barman_entry("20261121T100000", status="WAITING_FOR_WALS"),
        barman_entry("20261121T110000", status="FAILED", end_time_timestamp=None, size_bytes=None),
    )
    put_base(settings, "20261121T080000", begin_wal=wal_name(2))
    put_base(settings, "20261121T090000", parent="20261121T080000", begin_wal=wal_name(4))
    first, second, third, failed = barman.catalogue(settings)
    assert first == barman.BaseBackup(
        id="20261121T080000",
        done=True,
        obsolete=False,  # barman keeps it for the number of base backups
        full=True,
        parent=None,
        begin_wal=wal_name(2),
        end_time=EPOCH.timestamp(),
        bytes=4096,
    )
    assert (second.full, second.parent, second.begin_wal) == (False, "20261121T080000", wal_name(4))
    assert second.obsolete
    assert (third.done, third.obsolete, third.begin_wal) == (True, False, "")
    assert (failed.done, failed.end_time, failed.bytes) == (False, 0, 0)


def test_an_empty_volume_has_an_empty_catalogue_without_barman(tmp_path: Path) -> None:
    assert barman.catalogue(settings_in(tmp_path)) == []


def test_barmans_words_are_in_the_error(settings: Settings, programs: Path) -> None:
    program(programs, "barman", "echo 'ERROR: cannot reach PostgreSQL' >&2; exit 1")
    with pytest.raises(FailedError, match="cannot reach PostgreSQL") as failure:
        barman.call(settings, "check", fix="look")
    assert failure.value.fix == "look"


def base(backup_id: str, parent: str | None = None) -> barman.BaseBackup:
    return barman.BaseBackup(backup_id, True, False, parent is None, parent, "", 0, 0)


def test_a_chain_begins_with_the_full_backup() -> None:
    backups = [base("1"), base("2", "1"), base("3", "1"), base("4")]
    assert [backup.id for backup in barman.chain(backups, "3")] == ["1", "3"]
    assert [backup.id for backup in barman.chain(backups, "4")] == ["4"]
    backups = [base("1"), base("2", "1"), base("3", "2")]
    assert barman.chain(backups, "3") == backups


def test_a_missing_link_of_a_chain_is_named() -> None:
    with pytest.raises(FailedError, match="the base backup 1 is missing"):
        barman.chain([base("2", "1")], "2")
    with pytest.raises(FailedError, match="the base backup 9 is missing"):
        barman.chain([base("1")], "9")


def test_obsolete_full_backups_are_deleted_the_oldest_first_and_theirs_go_with_them(
    settings: Settings, programs: Path
) -> None:
    ids = [f"20261121T0{hour}0000" for hour in range(5)]
    called = barman_lists(
        programs,
        *(barman_entry(id_, retention_status="OBSOLETE") for id_ in reversed(ids[:3])),
        *(barman_entry(id_) for id_ in ids[3:]),
    )
    put_base(settings, ids[1], parent=ids[0])
    assert barman.forget_obsolete(settings) == [ids[0], ids[2]]
    assert calls(called) == [f"--quiet delete mlflow {ids[0]}", f"--quiet delete mlflow {ids[2]}"]


# Taking one. `catalogue.json` is what the stand-in lists; `backup` replaces it.


def taking(settings: Settings, programs: Path, script: str) -> Path:
    program(
        programs,
        "barman",
        f"""
        cd {programs}
        echo "$@" >>calls
        add() {{ echo "{{\\"backup_id\\": \\"$1\\", \\"status\\": \\"$2\\"}}" >>entries; }}
        case $* in
            *" list-backups "*) printf '{{"mlflow": ['; paste -sd, entries; echo ']}}' ;;
            *" delete "*) for last; do :; done; sed -i "/$last/d" entries ;;
            *" backup "*) {script} ;;
        esac""",
    )
    (programs / "entries").touch()
    return programs / "calls"


def test_an_incremental_backup_builds_on_the_newest_full_one(settings: Settings, programs: Path) -> None:
    called = taking(settings, programs, "add 20261121T080000 DONE")
    assert barman.take(settings, full=False).id == "20261121T080000"
    assert calls(called) == ["--quiet backup --incremental latest-full mlflow"]


def test_where_no_incremental_backup_can_be_taken_a_full_one_is(
    settings: Settings, programs: Path, capsys: pytest.CaptureFixture
) -> None:
    script = """case $* in
        *" --incremental "*) add 20261121T080000 FAILED; echo no summaries >&2; exit 1 ;;
        *) add 20261121T080001 DONE ;; esac"""
    called = taking(settings, programs, script)
    assert barman.take(settings, full=False).id == "20261121T080001"
    assert calls(called) == [
        "--quiet backup --incremental latest-full mlflow",
        "--quiet delete mlflow 20261121T080000",
        "--quiet backup mlflow",
    ]
    assert "no summaries" in capsys.readouterr().out


def test_a_full_backup_that_fails_leaves_nothing_and_is_an_error(settings: Settings, programs: Path) -> None:
    taking(settings, programs, "add 20261121T080000 FAILED; echo disk full >&2; exit 1")
    with pytest.raises(FailedError, match="disk full"):
        barman.take(settings, full=True)
    assert barman.catalogue(settings) == []


def test_a_barman_that_says_well_and_takes_nothing_is_an_error(settings: Settings, programs: Path) -> None:
    taking(settings, programs, ":")
    with pytest.raises(FailedError, match="took no base backup"):
        barman.take(settings, full=True)
