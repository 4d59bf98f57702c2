"""Bodies in chunks get a length, large ones wait for each other, artifact uploads stay streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stackserver.bodies import LARGEST_BYTES, SMALL_BYTES, Budget, HeldBodyLayer

CHUNKS = (b'{"na', b'me": ', b'"x"}')


def exchange(path: str, headers: list[tuple[bytes, bytes]]) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """Return the headers and the body's messages that the application sees."""
    messages = [
        {"type": "http.request", "body": chunk, "more_body": number < len(CHUNKS)}
        for number, chunk in enumerate(CHUNKS, start=1)
    ]
    seen: list[Any] = []

    async def app(scope: dict[str, Any], receive: Any, _send: Any) -> None:
        seen.append(scope["headers"])
        more = True
        while more:
            message = await receive()
            seen.append(message["body"])
            more = message["more_body"]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(HeldBodyLayer(app)(scope, receive, None))
    return seen[0], seen[1:]


def test_a_chunked_request_gets_its_length_and_keeps_its_other_headers() -> None:
    headers, bodies = exchange(
        "/api/2.0/mlflow/experiments/create",
        [(b"transfer-encoding", b"chunked"), (b"content-type", b"application/json")],
    )
    assert headers == [(b"content-type", b"application/json"), (b"content-length", b"13")]
    assert bodies == [b"".join(CHUNKS)]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/2.0/mlflow-artifacts/artifacts/1/a/artifacts/x", [(b"transfer-encoding", b"chunked")]),
        ("/api/2.0/mlflow/experiments/create", [(b"content-length", b"13")]),
    ],
)
def test_uploads_and_requests_with_a_length_pass_as_they_are(
    path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    seen, bodies = exchange(path, headers)
    assert seen == headers
    assert bodies == list(CHUNKS)


def test_a_client_who_leaves_in_the_middle_is_not_answered() -> None:
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        raise AssertionError("half a body reached MLflow")

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": [(b"transfer-encoding", b"chunked")]}
    asyncio.run(HeldBodyLayer(app)(scope, receive, None))
    assert messages == []


def test_who_asks_for_more_than_is_left_waits_and_nobody_passes_by() -> None:
    async def exchange() -> list[str]:
        budget, order = Budget(10), []

        async def hold(name: str, amount: int) -> None:
            await budget.take(amount, 60)
            order.append(name)

        await hold("first", 6)
        waiting = [asyncio.create_task(hold(name, amount)) for name, amount in (("large", 8), ("small", 2))]
        await asyncio.sleep(0)
        order.append("given back")
        budget.give_back(6)
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(exchange()) == ["first", "given back", "large", "small"]


def test_who_waits_too_long_leaves_the_budget_as_it_was() -> None:
    async def exchange() -> None:
        budget = Budget(10)
        await budget.take(6, 60)
        with pytest.raises(TimeoutError):
            await budget.take(8, 0.01)
        budget.give_back(6)
        await budget.take(10, 60)

    asyncio.run(exchange())


def answers(lengths: list[int | None], sent_bytes: int, wait_seconds: float = 60) -> list[int]:
    """Send requests at once, each of a length (None: in chunks); return their statuses."""
    held: list[int] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        held.append(1)
        assert len(held) == 1, "two large bodies are held at once"
        while (await receive())["more_body"]:
            await asyncio.sleep(0)
        held.pop()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def one(layer: HeldBodyLayer, length: int | None) -> int:
        left = sent_bytes
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            nonlocal left
            part = min(left, SMALL_BYTES)
            left -= part
            return {"type": "http.request", "body": bytes(part), "more_body": left > 0}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        header = (b"transfer-encoding", b"chunked")
        if length is not None:
            header = (b"content-length", str(length).encode())
        await layer({"type": "http", "method": "POST", "path": "/x", "headers": [header]}, receive, send)
        (status,) = statuses
        return status

    async def together() -> list[int]:
        layer = HeldBodyLayer(app, wait_seconds)
        return await asyncio.gather(*(one(layer, length) for length in lengths))

    return asyncio.run(together())


def test_large_bodies_are_held_one_after_the_other() -> None:
    most = LARGEST_BYTES * 2 // 3
    assert answers([most, most, None, None], most) == [200] * 4


def test_a_body_over_the_limit_is_a_413() -> None:
    assert answers([LARGEST_BYTES + 1, None], LARGEST_BYTES + 1) == [413, 413]


def test_who_waits_too_long_hears_503() -> None:
    assert answers([LARGEST_BYTES, LARGEST_BYTES], LARGEST_BYTES, wait_seconds=0) == [200, 503]
