"""A length for bodies that come in chunks.

A request without Content-Length reaches MLflow's Flask routes with an empty body: Werkzeug
reads nothing without a length (measured on 3.17.2: experiments/create in chunks was a 400).
MLflow's bridge to Flask holds the whole body in memory anyway, so it is read here and given
its length. Artifact uploads are left alone: those routes stream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from stackserver.tempspace import ARTIFACT_ROUTE


class KnownLengthLayer:
    """ASGI layer that turns a chunked request into one with a Content-Length."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass the request on, with its length if it had none."""
        if not _is_chunked(scope):
            await self._app(scope, receive, send)
            return
        chunks = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = b"".join(chunks)
        headers = [(name, value) for name, value in scope["headers"] if name != b"transfer-encoding"]
        headers.append((b"content-length", str(len(body)).encode()))
        given = False

        async def receive_whole() -> dict[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app({**scope, "headers": headers}, receive_whole, send)


def _is_chunked(scope: dict[str, Any]) -> bool:
    return (
        scope["type"] == "http"
        and ARTIFACT_ROUTE not in scope["path"]
        and any(name == b"transfer-encoding" for name, _ in scope["headers"])
    )
