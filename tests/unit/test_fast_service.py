"""The life of the fast path's process, without a database."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kit.stack import free_port, poll

REQUEST = b"GET /api/2.0/mlflow/experiments/get?experiment_id=0 HTTP/1.1\r\nHost: x\r\n\r\n"
DESCRIPTORS, CLIENTS = 256, 700
"""What the process may have open, unless it asks for more; who comes at once."""


def connect(path: Path) -> socket.socket:
    """Return a connection to the service, on which nobody waits for ever."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(60)
    client.connect(str(path))
    return client


@pytest.fixture
def path() -> Path:
    """The service's socket."""
    return Path("fast.sock")  # relative: the name of a socket has 107 bytes at most


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[subprocess.Popen]:
    """The process, switched off: it listens, and says of everything that it is MLflow's."""
    monkeypatch.chdir(tmp_path)
    root = Path(__file__).resolve().parents[2]
    settings = {
        "PYTHONPATH": f"{root / 'fastpath/src'}:{root / 'mlflow/src'}",
        "FASTPATH": "off",
        "FASTPATH_SOCKET": str(path),
        "FASTPATH_PORT": str(free_port()),
        "AUDIT_FOLDER": str(tmp_path),
    }
    command = f'ulimit -S -n {DESCRIPTORS} && exec "$0" -m stackfast'
    with subprocess.Popen(["sh", "-c", command, sys.executable], env=os.environ | settings) as process:
        poll(path.exists, seconds=60, what="the service listens")
        yield process
        process.kill()


def test_who_waits_when_it_is_told_to_stop_is_answered_all_of_them(
    service: subprocess.Popen, path: Path
) -> None:
    service.send_signal(signal.SIGSTOP)
    os.waitpid(service.pid, os.WUNTRACED)
    with ExitStack() as opened:
        clients = [opened.enter_context(connect(path)) for _ in range(CLIENTS)]
        for client in clients:
            client.sendall(REQUEST)
        service.send_signal(signal.SIGTERM)
        service.send_signal(signal.SIGCONT)
        answers = [client.recv(1000).split(b"\r\n")[0] for client in clients]
    assert answers == [b"HTTP/1.1 418 Not Mine"] * CLIENTS
    assert service.wait(60) == 0
