"""Bodies in chunks get a length, artifact uploads stay streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stackserver.bodies import KnownLengthLayer

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
    asyncio.run(KnownLengthLayer(app)(scope, receive, None))
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
