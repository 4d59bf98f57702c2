"""One ./stack at a time works on a project; a lock that was left behind holds nobody up."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.fake_host import STATUS_BUSY, STATUS_FAILED, STATUS_REFUSED, FakeHost, assert_error
from kit.stack import poll

SLOW = "echo $$ >{0}/building; while [ ! -e {0}/go-on ]; do sleep 0.05; done"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.answer("sleep", "1", "")  # nothing to wait for in these tests
    host.answer("sleep", "0.05", "exec /bin/sleep 0.05")
    return host


@pytest.fixture
def building(host: FakeHost) -> subprocess.Popen[str]:
    """A ./stack up in the middle of its build."""
    host.docker("compose*build", SLOW.format(host.record))
    process = host.start("up")
    poll((host.record / "building").exists, seconds=60, what="the build runs")
    return process


def dead_process() -> int:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def go_on(host: FakeHost) -> None:
    (host.record / "go-on").touch()


def test_beside_another_up_a_verb_does_nothing_and_says_so_in_one_line(
    host: FakeHost, building: subprocess.Popen[str]
) -> None:
    before = host.changes
    for verb in (["up"], ["down"], ["rotate", "admin"], ["accept-keys", "--yes"]):
        done = host.run(*verb)
        assert_error(
            done,
            STATUS_BUSY,
            f"another ./stack (process {building.pid}) is working on project mlflow-stack",
            "this one did nothing",
            fix="wait for it",
        )
        assert len(done.stderr.splitlines()) == 2
        assert host.lock.exists()
    assert host.changes == before
    assert host.run("url").returncode == host.run("logs").returncode == 0  # what only reads is not held up

    go_on(host)
    assert building.wait(timeout=60) == 0
    assert not host.lock.exists()
    assert host.run("up").returncode == 0


def test_another_project_is_not_held_up(host: FakeHost, building: subprocess.Popen[str]) -> None:
    go_on(host)
    assert host.run("down", COMPOSE_PROJECT_NAME="other").returncode == 0
    building.wait(timeout=60)


@pytest.mark.parametrize("owner", ["dead", "none", "empty"])
def test_a_lock_whose_owner_is_gone_is_taken_over(host: FakeHost, owner: str) -> None:
    host.lock.mkdir()
    if owner != "none":
        (host.lock / "pid").write_text(f"{dead_process()}\n" if owner == "dead" else "")
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    assert not host.lock.exists()


def test_a_lock_of_another_users_process_holds(host: FakeHost) -> None:
    """`kill -0` is not allowed there; process 1 lives all the same."""
    host.lock.mkdir()
    (host.lock / "pid").write_text("1\n")
    assert_error(host.run("up"), STATUS_BUSY, "process 1", fix=f"rm -r {host.lock}")
    assert host.changes == []
    assert (host.lock / "pid").read_text() == "1\n"


def test_of_two_that_find_the_same_dead_owner_one_goes_on(host: FakeHost) -> None:
    """The other one comes between our taking over and our second look."""
    host.lock.mkdir()
    (host.lock / "pid").write_text(f"{dead_process()}\n")
    host.answer(
        "sleep", "1", f"[ ! -e {host.record}/once ] || echo 1 >{host.lock}/pid; : >{host.record}/once"
    )
    assert_error(host.run("up"), STATUS_BUSY, "process 1")
    assert (host.lock / "pid").read_text() == "1\n"
    assert host.changes == []


def test_a_lock_that_cannot_be_made_is_no_other_stack(host: FakeHost) -> None:
    (host.root / "tmp").rmdir()
    done = host.run("up")
    assert_error(
        done, STATUS_REFUSED, f"the lock {host.lock} cannot be made", "nothing was changed", fix="df "
    )
    assert host.changes == []


def test_the_lock_is_not_in_tmpdir_so_that_two_users_meet(host: FakeHost, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    host.lock.mkdir()
    (host.lock / "pid").write_text("1\n")
    assert host.run("up", TMPDIR=str(tmp_path / "mine")).returncode == STATUS_BUSY


def test_the_lock_can_be_read_by_other_users(host: FakeHost) -> None:
    host.docker("compose*build", f"ls -ld {host.lock} {host.lock}/pid >{host.record}/modes")
    subprocess.run(
        ["/bin/sh", "-c", "umask 077; ./stack up"],
        cwd=host.checkout,
        env=host.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    modes = [line.split()[0] for line in (host.record / "modes").read_text().splitlines()]
    assert [mode[:10] for mode in modes] == ["drwxr-xr-x", "-rw-r--r--"]


@pytest.mark.parametrize(
    ("command", "status"), [("compose*build", STATUS_FAILED), ("compose up *", STATUS_FAILED)]
)
def test_the_lock_and_all_temporary_files_go_after_a_failure(
    host: FakeHost, command: str, status: int
) -> None:
    host.docker(command, "exit 17")
    assert host.run("up").returncode == status
    assert not host.lock.exists()
    assert list(host.temporary.iterdir()) == []


def test_the_lock_goes_after_a_refusal(host: FakeHost) -> None:
    host.docker("version --format {{.Server.Version}}", "echo 19.03.5")
    assert host.run("up").returncode == STATUS_REFUSED
    assert not host.lock.exists()


def to_the_group(process: subprocess.Popen[str], number: int) -> None:
    os.killpg(process.pid, number)


def to_the_shell_only(process: subprocess.Popen[str], number: int) -> None:
    os.kill(process.pid, number)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("send", [to_the_group, to_the_shell_only])
def test_a_signal_ends_it_without_a_lock_and_a_second_up_works(
    host: FakeHost,
    building: subprocess.Popen[str],
    number: int,
    status: int,
    send: Callable[[subprocess.Popen[str], int], None],
) -> None:
    assert host.lock.exists()
    send(building, number)
    if send is to_the_shell_only:  # the shell waits for the step under way: its lock holds so long
        assert host.lock.exists()
        go_on(host)
    assert building.wait(timeout=60) == status
    assert not host.lock.exists()
    assert list(host.temporary.iterdir()) == []
    assert not host.calls_of("docker compose up")

    host.docker("compose*build", "")
    done = host.run("up")
    assert done.returncode == 0, done.stderr


def test_after_kill_minus_nine_a_second_up_works(host: FakeHost, building: subprocess.Popen[str]) -> None:
    to_the_group(building, signal.SIGKILL)
    building.wait(timeout=60)
    assert host.lock.exists()
    host.docker("compose*build", "")
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    assert not host.lock.exists()
