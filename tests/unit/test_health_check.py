"""base/healthy and base/answers: what Docker runs to hear whether a container is well."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from kit.stack import poll

BASE = Path(__file__).resolve().parents[2] / "base"
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


class Service(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()
        self.wfile.write(b'{"database": "away"}\n')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def run(*words: object, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *map(str, words)],
        env={**ENVIRONMENT, "TMPDIR": str(folder), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_status_that_is_wanted_is_silent_success(port: int, tmp_path: Path) -> None:
    done = run(BASE / "answers", port, "/ready", 200, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


def test_another_status_fails_and_its_body_is_shown(port: int, tmp_path: Path) -> None:
    done = run(BASE / "answers", port, "/other", 200, folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, '{"database": "away"}\n')


def test_nobody_there_fails(tmp_path: Path) -> None:
    done = run(BASE / "answers", 1, "/", 200, folder=tmp_path)
    assert done.returncode == 1
    assert "refused" in done.stderr


def probe(folder: Path, fails_at: int) -> tuple[str, str, str]:
    """Return a probe that notes each of its calls in a file and fails at one of them."""
    count = f'echo >>"{folder}/calls"; count=$(wc -l <"{folder}/calls")'
    return ("sh", "-c", f'{count}; echo "look $count"; [ "$count" != {fails_at} ]')


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_the_first_success_is_told_at_once(tmp_path: Path) -> None:
    assert run(BASE / "healthy", 5, *probe(tmp_path, fails_at=9), folder=tmp_path).returncode == 0
    assert calls(tmp_path) == 1


def test_the_second_stays_and_ends_with_the_first_failure(tmp_path: Path) -> None:
    for expected in (0, 1):
        done = run(BASE / "healthy", 5, *probe(tmp_path, fails_at=4), folder=tmp_path)
        assert done.returncode == expected
    assert calls(tmp_path) == 4


def test_after_a_failure_the_first_success_is_told_at_once_again(tmp_path: Path) -> None:
    for expected, count in ((0, 1), (1, 2), (0, 3)):
        assert run(BASE / "healthy", 5, *probe(tmp_path, fails_at=2), folder=tmp_path).returncode == expected
        assert calls(tmp_path) == count


def staying(folder: Path) -> subprocess.Popen[bytes]:
    """Return a health check that has found the service well for the second time, and stays."""
    assert run(BASE / "healthy", 5, *probe(folder, fails_at=99), folder=folder).returncode == 0
    begun = subprocess.Popen(
        ["bash", BASE / "healthy", "5", *probe(folder, fails_at=99)],
        env={**ENVIRONMENT, "TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
    )
    poll(lambda: calls(folder) == 2, seconds=10, what="the second look")
    return begun


def test_after_one_that_docker_ended_the_first_success_is_told_at_once_again(tmp_path: Path) -> None:
    """It ends one when it pauses the container, and takes that for unhealthy until it hears more."""
    begun = staying(tmp_path)
    begun.kill()
    begun.wait()
    started = time.monotonic()
    assert run(BASE / "healthy", 5, *probe(tmp_path, fails_at=99), folder=tmp_path).returncode == 0
    assert (calls(tmp_path), time.monotonic() - started < 10) == (3, True)


def test_after_a_long_silence_the_first_success_is_told_at_once_again(tmp_path: Path) -> None:
    for count in (1, 2):
        assert run(BASE / "healthy", 5, *probe(tmp_path, fails_at=9), folder=tmp_path).returncode == 0
        assert calls(tmp_path) == count
        long_ago = time.time() - 60
        os.utime(tmp_path / "told-well", (long_ago, long_ago))


def test_who_stays_ends_well_after_a_while_and_says_what_the_last_look_said(tmp_path: Path) -> None:
    for count, seconds in ((1, "20"), (3, "2")):
        done = run(BASE / "healthy", 5, *probe(tmp_path, fails_at=9), folder=tmp_path, STAY_SECONDS=seconds)
        assert (done.returncode, done.stdout) == (0, f"look {count}\n")
        assert calls(tmp_path) == count


def test_a_probe_that_hangs_fails_after_its_time(tmp_path: Path) -> None:
    assert run(BASE / "healthy", "0.2", "sleep", 30, folder=tmp_path).returncode == 1
    assert run(BASE / "healthy", "0.2", "sh", "-c", "trap '' TERM; sleep 3", folder=tmp_path).returncode == 1
