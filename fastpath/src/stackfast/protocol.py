"""HTTP/1.1 on a socket, for nginx alone: whole requests in, whole answers out.

The parser is httptools; the rest of a web framework would cost more than the routes do.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable

import httptools

from stackfast.requests import Request

BODY_LIMIT = 256 << 10
HELD_LIMIT = 16 << 20
"""Bytes of bodies held at once, of all connections; above that requests are refused unread."""
LARGE_ANSWER, UNSENT_LIMIT = 64 << 10, 32 << 20
"""When so many bytes of answers this large wait for slow clients, reads are MLflow's."""
QUIET_SECONDS = 0.05
KEPT_HEADERS = frozenset(
    {
        *(b"content-type", b"content-encoding", b"transfer-encoding", b"expect", b"x-mlflow-workspace"),
        *(b"x-t", b"x-forwarded-user", b"x-real-ip", b"x-request-id"),
    }
)

Handler = Callable[[Request], Awaitable[bytes]]
"""Returns the whole answer, head and body; never raises."""


class Connections:
    """What all connections of a listener share."""

    def __init__(self, handler: Handler, too_large: bytes) -> None:
        self.handler = handler
        self.too_large = too_large
        self.open: set[Connection] = set()
        self.made = 0
        """Connections so far."""
        self.held = 0
        self.unsent = 0

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self)

    async def all_made(self) -> None:
        """Wait until nobody is left in the listener's queue, once nobody new comes into it."""
        before = -1
        while before != self.made:
            before = self.made
            await asyncio.sleep(QUIET_SECONDS)

    async def drain(self, seconds: float) -> None:
        """Read nothing new, answer what was read, and wait until nginx has closed the connections.

        After the read half is shut nginx's next request fails before a byte of it is sent, and
        so goes to MLflow; what is in the socket already is still answered.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while self.open and asyncio.get_running_loop().time() < deadline:
            for connection in list(self.open):
                connection.stop_reading()
            await asyncio.sleep(0.05)


class Connection(asyncio.Protocol):
    """One connection; its requests are answered one after the other."""

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._body: list[bytes] = []
        self._size = 0
        self._whole: deque[tuple[Request, int]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._begun = False
        self._ended = False
        self._writable: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport  # type: ignore[assignment]
        self._shared.open.add(self)
        self._shared.made += 1

    def connection_lost(self, _: Exception | None) -> None:
        """End; a statement under way goes on, as nobody knows whether it is done."""
        self._shared.open.discard(self)
        self._shared.held -= self._size + sum(size for _, size in self._whole)
        self._size = 0
        self._whole.clear()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Note that nginx, and so its client, reads slowly."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Note that most of the answer is out, or the connection gone."""
        if self._writable and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def eof_received(self) -> bool:
        """Keep the connection until the answers are out."""
        self._ended = True
        return self._task is not None

    def data_received(self, data: bytes) -> None:
        """Take bytes; what is no HTTP ends the connection."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._transport:
                self._transport.close()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._begun = True
        self._request = Request()
        self._body, self._size = [], 0

    def on_url(self, url: bytes) -> None:
        """Take the path and the query, undecoded."""
        self._request.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header that somebody asks for; twice the same is joined, and so never plain."""
        name = name.lower()
        if name in KEPT_HEADERS:
            headers = self._request.headers
            headers[name] = headers[name] + b"," + value if name in headers else value

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, unless there is too much of it here."""
        self._size += len(body)
        self._shared.held += len(body)
        if self._size <= BODY_LIMIT and self._shared.held <= HELD_LIMIT:
            self._body.append(body)
        else:
            self._body = []

    def on_message_complete(self) -> None:
        """Answer this request, after those before it."""
        self._begun = False
        request = self._request
        request.method = self._parser.get_method()
        request.path, _, request.query = request.path.partition(b"?")
        request.body = b"".join(self._body)
        self._whole.append((request, self._size))
        self._body, self._size = [], 0
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self) -> None:
        try:
            while self._whole:
                request, size = self._whole.popleft()
                try:
                    whole = len(request.body) == size
                    answer = await self._shared.handler(request) if whole else self._shared.too_large
                finally:
                    self._shared.held -= size
                await self._send(answer, replaceable=not request.done)
        finally:
            self._task = None
            if self._ended and self._transport:
                self._transport.close()

    async def _send(self, answer: bytes, *, replaceable: bool) -> None:
        too_much = len(answer) > LARGE_ANSWER and self._shared.unsent + len(answer) > UNSENT_LIMIT
        if too_much and replaceable:
            answer = self._shared.too_large
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(answer)
        if self._writable:
            self._shared.unsent += len(answer)
            try:
                await self._writable
            finally:
                self._shared.unsent -= len(answer)

    def stop_reading(self) -> None:
        """Shut the read half, unless a request is half in. uvloop's own socket cannot: a copy of it can."""
        if self._begun or self._ended or self._transport is None or self._transport.is_closing():
            return
        try:
            descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
            with socket.socket(fileno=descriptor) as copy:
                copy.shutdown(socket.SHUT_RD)
        except OSError:
            self._transport.abort()
