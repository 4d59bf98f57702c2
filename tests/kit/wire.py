"""Requests that are sent byte for byte as they are given, many of them over one connection."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from io import BytesIO
from types import TracebackType

from kit.door import Answer, read_answer

TIMEOUT_SECONDS = 60


class Wire:
    """A connection to the door of 127.0.0.1 that is opened anew when the other side ends it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: socket.socket | None = None
        self.asked = 0

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Send one request and return its answer. Host is added unless it is given."""
        lines = {"Host": f"127.0.0.1:{self._port}", **headers}
        if "Transfer-Encoding" not in lines and (body or method not in {"GET", "HEAD", "OPTIONS"}):
            lines.setdefault("Content-Length", str(len(body)))
        head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_SECONDS)
        self._connection.sendall(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
        self.asked += 1
        answer = read_answer(self._connection, method)
        if (answer.headers.get("Connection") or "").lower() == "close":
            self._close()
        return answer

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def conversation(port: int, *parts: bytes, wait: bool = False) -> bytes:
    """Send bytes over a connection of their own and return all that comes back until its end.

    With `wait` the second part is sent when something came back for the first, usually 100 Continue.
    """
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        try:
            for number, part in enumerate(parts):
                if number and wait:
                    received += connection.recv(65536)
                connection.sendall(part)
            while part := connection.recv(65536):
                received += part
        except ConnectionError:  # ended in the middle of what we sent: what came before it counts
            pass
    return bytes(received)


class _Stream(BytesIO):
    """What came over a connection, as HTTPResponse reads it: it closes what it has read."""

    def makefile(self, *_: object) -> _Stream:
        return self

    def close(self) -> None:
        """Stay open for the next answer."""


def answers_in(received: bytes) -> list[Answer]:
    """Return the answers that came one after the other over a connection."""
    stream = _Stream(received)
    found = []
    while stream.tell() < len(received):
        found.append(read_answer(stream))
    return found
