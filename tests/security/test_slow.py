"""Eight hundred slow connections at once: honest clients notice nothing that they would have to repeat."""

from __future__ import annotations

import resource
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from types import TracebackType

import pytest

from kit.door import basic, send
from kit.stack import Stack, poll
from kit.writer import Writer

CONNECTIONS = 800
FRESH_REQUESTS = 150
POINTS = 60
UPLOAD = "/api/2.0/mlflow-artifacts/artifacts/slow.bin"
SEARCH = "/api/2.0/mlflow/experiments/search"


@pytest.fixture(autouse=True)
def enough_files() -> Iterator[None]:
    """Room for this process's side of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 4096) if hard != resource.RLIM_INFINITY else 4096
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def beginnings(stack: Stack, tokens: dict[str, str]) -> dict[str, bytes]:
    """Return what each kind of slow client sends at first; then it sends a byte now and then."""

    def head(method: str, path: str, *lines: str, end: str = "\r\n\r\n") -> bytes:
        return (
            "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{stack.port}", *lines]).encode()
            + end.encode()
        )

    long, chunked = "Content-Length: 1000000", "Transfer-Encoding: chunked"
    reader = f"Authorization: Bearer {tokens['reader']}"
    writer = f"Authorization: Bearer {tokens['writer']}"
    wrong = f"Authorization: {basic('admin', 'wrong')}"
    return {
        "a head": head("GET", "/version", "X-A: ", end=""),
        "a head with a login": head("GET", "/version", reader, "X-A: ", end=""),
        "a stranger's body": head("PUT", UPLOAD, long),
        "a body with a wrong password": head("PUT", UPLOAD, long, wrong),
        "a body for a JSON route": head("POST", SEARCH, long, reader, "Content-Type: application/json"),
        "chunks for a JSON route": head("POST", SEARCH, chunked, reader) + b"fffff\r\n",
        "an upload": head("PUT", UPLOAD, long, writer),
        "an answer that is not read": head("GET", "/", reader) * 50,
    }


class Crowd:
    """Slow clients, opened anew when the door ends them."""

    def __init__(self, port: int, kinds: dict[str, bytes], number: int) -> None:
        self._port = port
        self._kinds = [list(kinds.items())[index % len(kinds)] for index in range(number)]
        self._connections: list[socket.socket] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drip)
        self.ended: Counter[str] = Counter()

    def __enter__(self) -> Crowd:
        self._connections = [self._open(beginning) for _, beginning in self._kinds]
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for connection in self._connections:
            connection.close()

    def _open(self, beginning: bytes) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", self._port))
        connection.sendall(beginning)
        return connection

    def _drip(self) -> None:
        while not self._stop.is_set():
            for index, (kind, beginning) in enumerate(self._kinds):
                try:
                    if kind != "an answer that is not read":
                        self._connections[index].send(b"x")
                except OSError:
                    self.ended[kind] += 1
                    self._connections[index].close()
                    self._connections[index] = self._open(beginning)
            self._stop.wait(0.5)


def test_honest_requests_all_succeed_among_800_slow_clients(
    stack: Stack, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch, figures: dict[str, str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    seen: Counter[int] = Counter()
    kinds = beginnings(stack, tokens)
    with Writer(stack) as job, Crowd(stack.port, kinds, CONNECTIONS) as crowd:
        for _ in range(FRESH_REQUESTS):  # each on a connection of its own
            seen[send(stack.port, "GET", "/version", Authorization=stack.authorization).status] += 1
        poll(lambda: len(job.acknowledged) >= POINTS, seconds=120, what=f"{POINTS} points are logged")
        # Those who never finish a head are shown out.
        poll(lambda: crowd.ended["a head"] >= CONNECTIONS // len(kinds), seconds=120, what="heads are ended")
    job.assert_nothing_lost()
    assert seen == {200: FRESH_REQUESTS}
    assert send(stack.port, "GET", "/health").status == 200
    figures["slow clients"] = (
        f"{CONNECTIONS} at once; {FRESH_REQUESTS} requests and {len(job.acknowledged)} points, none failed"
    )
