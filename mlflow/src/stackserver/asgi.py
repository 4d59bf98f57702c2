"""What the ASGI layers share: their types, and an answer that ends a request."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

DRAIN_LIMIT_BYTES = 64 << 30

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


async def drain(receive: Receive) -> None:
    """Read the rest of the body: a client that is still sending would not see the answer."""
    left = DRAIN_LIMIT_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return


async def refuse(send: Send, status: int, error_code: str, message: str) -> None:
    """Answer with an error as MLflow's clients print it."""
    body = json.dumps({"error_code": error_code, "message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
