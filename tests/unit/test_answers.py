"""Head and body of an answer leave together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stackserver.answers import HeldHeadLayer

HEAD = {"type": "http.response.start", "status": 200, "headers": []}
PARTS = [
    {"type": "http.response.body", "body": text, "more_body": text != b"c"} for text in (b"a", b"b", b"c")
]


def answer(*messages: dict[str, Any], kind: str = "http") -> list[list[dict[str, Any]]]:
    """Return what had been sent after each message of the application."""
    sent: list[dict[str, Any]] = []
    seen: list[list[dict[str, Any]]] = []

    async def app(_: Any, __: Any, send: Any) -> None:
        for message in messages:
            await send(message)
            seen.append(list(sent))

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(HeldHeadLayer(app)({"type": kind}, None, send))
    return seen


def test_the_head_waits_for_the_first_part_and_parts_are_not_held() -> None:
    assert answer(HEAD, *PARTS) == [[], [HEAD, PARTS[0]], [HEAD, *PARTS[:2]], [HEAD, *PARTS]]


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_other_protocols_are_left_alone(kind: str) -> None:
    assert answer(HEAD, kind=kind) == [[HEAD]]
