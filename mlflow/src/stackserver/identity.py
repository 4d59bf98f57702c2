"""Who a request is from, with AUTHORIZATION=rbac: whom nginx has let in, and nobody else.

nginx sends the user's name, role and account beside a key that only it and this server have.
A request without the right key is 401, whatever else it says. MLflow asks `authenticate` for
the user, several times a request, and decides about objects itself (permissions.py). No
password comes this far, so none is hashed or compared.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio.to_thread
from mlflow.exceptions import MlflowException

from stackserver.asgi import App, Receive, Send, refuse

if TYPE_CHECKING:
    from flask import Response
    from werkzeug.datastructures import Authorization

MLFLOW_DENIED = b"Permission denied"
"""MLflow's whole answer to who lacks a permission."""
FORMER_KEY_SECONDS = 60.0
"""nginx takes up a changed key within seconds; until then it sends the former one."""
ADMIN = "admin"


@dataclass(frozen=True)
class Person:
    """Whom nginx let in: the name, the role at the door, and the id of the account.

    An account that was removed and made anew has another id.
    """

    name: str
    role: str
    account: str

    @property
    def is_admin(self) -> bool:
        """Whether MLflow asks for no permission."""
        return self.role == ADMIN


present: ContextVar[Person | None] = ContextVar("present", default=None)
"""Whose request this is; it follows the request into MLflow's threads."""


class People(Protocol):
    """Who remembers persons as users of MLflow (permissions.py)."""

    def knows(self, person: Person) -> bool:
        """Return whether MLflow has the person as it is now."""

    def remember(self, person: Person) -> None:
        """Make the person a user of MLflow; it may take a query or more."""


class DoorKey:
    """The key that nginx sends, in a file that is read anew when it changes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._key = b""
        self._former = b""
        self._former_until = 0.0
        self._generation: tuple[int, int] | None = None

    def fits(self, given: bytes) -> bool:
        """Return whether this is the key, or was it a moment ago. No key fits where there is no file."""
        self._follow()
        fits = hmac.compare_digest(given, self._key)
        fits_former = hmac.compare_digest(given, self._former) and self._clock() < self._former_until
        return bool(given) and (fits or fits_former)

    def _follow(self) -> None:
        try:
            stat = self._path.stat()
            generation = (stat.st_ino, stat.st_mtime_ns)
            if generation == self._generation:
                return
            key = self._path.read_bytes()
        except OSError:
            return  # between two files: the one that is known stays
        if self._generation is not None and key != self._key:
            self._former, self._former_until = self._key, self._clock() + FORMER_KEY_SECONDS
        self._key, self._generation = key, generation


def person_of(headers: Mapping[bytes, bytes], key: DoorKey) -> Person | None:
    """Return whom nginx says a request is from, or None if nginx does not say it."""
    if not key.fits(headers.get(b"x-stack-door", b"")):
        return None
    name, role, account = (
        headers.get(f"x-forwarded-{field}".encode(), b"").decode("latin-1")
        for field in ("user", "role", "account")
    )
    return Person(name, role, account) if name and role else None


class IdentityLayer:
    """ASGI layer that lets in whom nginx has let in, and makes them known to MLflow at first sight."""

    def __init__(self, app: App, key: DoorKey, people: People) -> None:
        self._app = app
        self._key = key
        self._people = people

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on as the person's, or answer 401."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # MLflow has no WebSockets
            await send({"type": "websocket.close", "code": 1008})
            return
        person = person_of(dict(scope["headers"]), self._key)
        if person is None:
            await refuse(send, 401, "CUSTOMER_UNAUTHORIZED", "Only the stack's own door may ask here.")
            return
        if not self._people.knows(person):
            try:
                await anyio.to_thread.run_sync(self._people.remember, person)
            except MlflowException as error:  # of any kind: all it does is to ask the database
                print(f"identity: {error}", flush=True)
                message = "The users' database does not answer. Try again in a few seconds."
                await refuse(send, 503, "TEMPORARILY_UNAVAILABLE", message)
                return
        # The key goes no further.
        kept = [(name, value) for name, value in scope["headers"] if name != b"x-stack-door"]
        token = present.set(person)
        try:
            await self._app({**scope, "headers": kept}, receive, _saying_who_can_help(person, send))
        finally:
            present.reset(token)


def authenticate() -> Authorization | Response:
    """MLflow's `authorization_function`: return the request's user, or a 401.

    Called in a context of Flask, also for the routes of FastAPI (mlflow/server/auth/__init__.py
    of 3.17.2, _authenticate_custom_for_fastapi).
    """
    from flask import make_response
    from werkzeug.datastructures import Authorization

    person = present.get()
    if person is None:
        return make_response("Only the stack's own door may ask here.\n", 401)
    return Authorization("door", {"username": person.name})


def _saying_who_can_help(person: Person, send: Send) -> Send:
    """Return a `send` that puts a message that clients print into the place of MLflow's bare 403."""
    held: dict[str, Any] | None = None
    answered = False

    async def send_on(message: dict[str, Any]) -> None:
        nonlocal held, answered
        if message["type"] == "http.response.start" and message["status"] == 403:
            held = message
            return
        if held is not None:
            start, held = held, None
            if message.get("body") == MLFLOW_DENIED:
                answered = True
                text = (
                    f"{person.name} has no permission for this. Whoever has MANAGE on the object, or an "
                    "admin, can grant it (AUTHORIZATION=rbac, docs/access.md)."
                )
                await refuse(send, 403, "PERMISSION_DENIED", text)
            else:
                await send(start)
        if not answered:
            await send(message)

    return send_on
