"""Who a request is from, behind the door: no key, no name; the key goes no further."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from stackserver.identity import (
    FORMER_KEY_SECONDS,
    DoorKey,
    IdentityLayer,
    Person,
    authenticate,
    person_of,
    present,
)

KEY = b"k" * 64
ADA = Person("ada", "writer", "1f")
SAID = {b"x-forwarded-user": b"ada", b"x-forwarded-role": b"writer", b"x-forwarded-account": b"1f"}


def put(path: Path, key: bytes) -> None:
    """Write a file in one step, as the stack does."""
    (path.parent / "new").write_bytes(key)
    (path.parent / "new").replace(path)


@pytest.fixture
def key(tmp_path: Path) -> DoorKey:
    put(tmp_path / "door_key", KEY)
    return DoorKey(tmp_path / "door_key")


class Everybody:
    """People who remember, or cannot."""

    def __init__(self, error: MlflowException | None = None) -> None:
        self.known: list[Person] = []
        self.error = error

    def knows(self, person: Person) -> bool:
        return person in self.known

    def remember(self, person: Person) -> None:
        if self.error:
            raise self.error
        self.known.append(person)


class App:
    """An application that notes what it was asked, and answers."""

    def __init__(self, status: int = 200, *parts: bytes) -> None:
        self.status = status
        self.parts = parts or (b"fine",)
        self.asked: list[tuple[dict[bytes, bytes], Person | None]] = []

    async def __call__(self, scope: dict[str, Any], _: Any, send: Any) -> None:
        self.asked.append((dict(scope["headers"]), present.get()))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def ask(layer: IdentityLayer, headers: dict[bytes, bytes], kind: str = "http") -> tuple[int, bytes]:
    """Send a request; return its status and body."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    asyncio.run(layer({"type": kind, "headers": list(headers.items())}, receive, send))
    assert [message["type"] for message in sent].count("http.response.start") <= 1
    return sent[0].get("status", 0), b"".join(message.get("body", b"") for message in sent[1:])


def test_whom_nginx_names_is_let_in_and_the_key_stays_outside(key: DoorKey) -> None:
    app, people = App(), Everybody()
    layer = IdentityLayer(app, key, people)
    headers = {**SAID, b"x-stack-door": KEY, b"host": b"mlflow"}
    assert ask(layer, headers) == (200, b"fine")
    assert ask(layer, headers) == (200, b"fine")
    assert app.asked == [({**SAID, b"host": b"mlflow"}, ADA)] * 2
    assert people.known == [ADA]
    assert present.get() is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        SAID,
        {**SAID, b"x-stack-door": b""},
        {**SAID, b"x-stack-door": b"wrong"},
        {**SAID, b"x-stack-door": KEY + b"k"},
        {**SAID, b"x-stack-door": KEY[:-1]},
        {b"x-stack-door": KEY},
        {b"x-stack-door": KEY, b"x-forwarded-user": b"ada"},
        {b"x-stack-door": KEY, b"x-forwarded-role": b"admin"},
        {b"authorization": b"Basic YWRtaW46YWRtaW4="},
    ],
    ids=lambda headers: " ".join(name.decode() for name in headers) or "nothing",
)
def test_anybody_else_is_nobody(key: DoorKey, headers: dict[bytes, bytes]) -> None:
    app = App()
    status, body = ask(IdentityLayer(app, key, Everybody()), headers)
    assert (status, json.loads(body)["error_code"]) == (401, "CUSTOMER_UNAUTHORIZED")
    assert app.asked == []


def test_no_key_fits_where_there_is_no_file(tmp_path: Path) -> None:
    key = DoorKey(tmp_path / "missing")
    assert not key.fits(b"")
    assert not key.fits(KEY)


def test_a_changed_key_counts_at_once_and_the_former_for_a_while(tmp_path: Path) -> None:
    path, now = tmp_path / "door_key", [1000.0]
    put(path, b"one")
    key = DoorKey(path, clock=lambda: now[0])
    assert key.fits(b"one")
    put(path, b"two")
    assert key.fits(b"two")
    now[0] += FORMER_KEY_SECONDS - 1
    assert key.fits(b"one")
    assert not key.fits(b"")
    now[0] += 2
    assert not key.fits(b"one")
    path.unlink()
    assert key.fits(b"two")  # between two files


def test_the_same_key_written_again_has_no_former_one(tmp_path: Path) -> None:
    path = tmp_path / "door_key"
    put(path, b"one")
    key = DoorKey(path)
    assert key.fits(b"one")
    put(path, b"one")
    os.utime(path, (1, 1))
    assert key.fits(b"one")
    assert not key.fits(b"")


def test_names_are_taken_as_they_come(key: DoorKey) -> None:
    said = {b"x-stack-door": KEY, b"x-forwarded-user": b"a@b.example+1 %C3%BC", b"x-forwarded-role": b"admin"}
    assert person_of(said, key) == Person("a@b.example+1 %C3%BC", "admin", "")
    assert Person("x", "admin", "").is_admin
    assert not Person("x", "approver", "").is_admin


def test_nobody_comes_in_while_the_users_database_is_away(key: DoorKey) -> None:
    app = App()
    layer = IdentityLayer(app, key, Everybody(MlflowException("connection refused")))
    status, body = ask(layer, {**SAID, b"x-stack-door": KEY})
    assert (status, json.loads(body)["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert app.asked == []


@pytest.mark.parametrize("parts", [(b"Permission denied",), (b"Permission denied", b"")])
def test_mlflows_bare_refusal_becomes_a_message_that_clients_print(
    key: DoorKey, parts: tuple[bytes, ...]
) -> None:
    status, body = ask(IdentityLayer(App(403, *parts), key, Everybody()), {**SAID, b"x-stack-door": KEY})
    answer = json.loads(body)
    assert (status, answer["error_code"]) == (403, "PERMISSION_DENIED")
    assert answer["message"].startswith("ada has no permission for this.")


@pytest.mark.parametrize(
    ("status", "parts"), [(403, (b"Permission denied, and more",)), (403, (b"a", b"b")), (200, (b"x",))]
)
def test_every_other_answer_passes_as_it_is(key: DoorKey, status: int, parts: tuple[bytes, ...]) -> None:
    layer = IdentityLayer(App(status, *parts), key, Everybody())
    assert ask(layer, {**SAID, b"x-stack-door": KEY}) == (status, b"".join(parts))


def test_what_is_no_request_of_http_is_closed(key: DoorKey) -> None:
    app = App()
    assert ask(IdentityLayer(app, key, Everybody()), {**SAID, b"x-stack-door": KEY}, "websocket") == (0, b"")
    assert app.asked == []


def test_mlflow_gets_the_person_of_the_request_or_a_401() -> None:
    from flask import Flask

    with Flask("test").test_request_context(headers={"X-Forwarded-User": "admin"}):
        assert authenticate().status_code == 401
        token = present.set(ADA)
        try:
            found = authenticate()
        finally:
            present.reset(token)
    assert (found.username, found.type) == ("ada", "door")
