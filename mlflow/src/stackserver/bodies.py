"""Bodies that MLflow holds whole in memory: each has a length, and all together have a limit.

A request without Content-Length reaches MLflow's Flask routes with an empty body: Werkzeug
reads nothing without a length (measured on 3.17.2: experiments/create in chunks was a 400).
MLflow's bridge to Flask holds the whole body in memory anyway, so one in chunks is read here and
given its length.

A body of 100 MB of JSON takes MLflow 500 MB while it is parsed (measured), so a few of them at once
would end the server. Those over SMALL_BYTES wait for each other, per worker process. Artifact uploads are
left alone: those routes stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from stackserver.asgi import App, Receive, Send, drain, refuse
from stackserver.tempspace import ARTIFACT_ROUTE

LARGEST_BYTES = 100 << 20
"""The door refuses more (nginx/http.d/connections.conf)."""
SMALL_BYTES = 1 << 20
"""Bodies up to this are not counted: MLflow's client splits batches below it."""
WAIT_SECONDS = 60.0
TOO_LARGE = f"A request's body may have {LARGEST_BYTES >> 20} MB; artifacts may have any size."
TOO_MANY = "Too many large requests at once. Try again in a minute, or send smaller ones."


class Budget:
    """Bytes that may be held at once; who asks for more than is left waits its turn."""

    def __init__(self, total_bytes: int) -> None:
        self._free = total_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, amount: int, timeout_seconds: float) -> None:
        """Wait until `amount` bytes are free, and take them. Raise TimeoutError."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        self._serve()
        try:
            await asyncio.wait_for(asyncio.shield(turn), timeout_seconds)
        except BaseException:
            if turn.done():
                self._free += amount
            else:
                self._waiting.remove((amount, turn))
            self._serve()
            raise

    def give_back(self, amount: int) -> None:
        """Make bytes free again."""
        self._free += amount
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            amount, turn = self._waiting.popleft()
            self._free -= amount
            turn.set_result(None)


class HeldBodyLayer:
    """ASGI layer that gives bodies in chunks a Content-Length and lets large ones wait for each other."""

    def __init__(self, app: App, wait_seconds: float = WAIT_SECONDS) -> None:
        self._app = app
        self._wait_seconds = wait_seconds
        self._budget = Budget(LARGEST_BYTES)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, with its length if it had none; answer 413 or 503 to what is too much."""
        if scope["type"] != "http" or ARTIFACT_ROUTE in scope["path"]:
            await self._app(scope, receive, send)
            return
        length = _length(scope)
        begun = [] if length is not None else await _read(receive, SMALL_BYTES)
        if _is_whole(begun):
            await self._pass_on(scope, begun, receive, send)
            return
        wanted = LARGEST_BYTES if length is None else length
        if wanted <= SMALL_BYTES:
            await self._app(scope, receive, send)
            return
        if wanted > LARGEST_BYTES:
            await self._refuse(receive, send, 413, TOO_LARGE)
            return
        try:
            await self._budget.take(wanted, self._wait_seconds)
        except TimeoutError:
            await self._refuse(receive, send, 503, TOO_MANY)
            return
        try:
            if length is None:
                begun += await _read(receive, LARGEST_BYTES - SMALL_BYTES)
                if not _is_whole(begun) or _bytes_of(begun) > LARGEST_BYTES:
                    await self._refuse(receive, send, 413, TOO_LARGE)
                    return
                await self._pass_on(scope, begun, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            self._budget.give_back(wanted)

    async def _pass_on(
        self, scope: dict[str, Any], messages: list[dict[str, Any]], receive: Receive, send: Send
    ) -> None:
        """Pass on a request whose body was read, with its length; not that of a client who has left."""
        if messages[-1]["type"] == "http.disconnect":
            return
        body = [b"".join(message.get("body", b"") for message in messages)]
        messages.clear()  # it is large, and held once is enough
        headers = [(name, value) for name, value in scope["headers"] if name != b"transfer-encoding"]
        headers.append((b"content-length", str(len(body[0])).encode()))

        async def receive_whole() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            return await receive()

        await self._app({**scope, "headers": headers}, receive_whole, send)

    async def _refuse(self, receive: Receive, send: Send, status: int, message: str) -> None:
        await drain(receive)
        code = "INVALID_PARAMETER_VALUE" if status < 500 else "TEMPORARILY_UNAVAILABLE"
        await refuse(send, status, code, message)


def _length(scope: dict[str, Any]) -> int | None:
    """Return the length of a request's body, or None if it comes in chunks."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0


async def _read(receive: Receive, limit_bytes: int) -> list[dict[str, Any]]:
    """Return messages of a body until its end, or until they hold more than the limit."""
    messages = []
    size = 0
    while size <= limit_bytes:
        messages.append(await receive())
        size += len(messages[-1].get("body", b""))
        if messages[-1]["type"] == "http.disconnect" or not messages[-1].get("more_body"):
            break
    return messages


def _bytes_of(messages: list[dict[str, Any]]) -> int:
    return sum(len(message.get("body", b"")) for message in messages)


def _is_whole(messages: list[dict[str, Any]]) -> bool:
    return bool(messages) and not messages[-1].get("more_body")
