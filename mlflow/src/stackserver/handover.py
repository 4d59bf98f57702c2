"""nginx moves the bytes of an artifact after MLflow has said which object it is, and that it may be had.

With `X-Artifact-Bytes: nginx` (set by the door alone, ARTIFACT_BYTES=nginx) a download that came through all
of MLflow's checks to the repository (artifacts.py) is answered without its bytes: X-Accel-Redirect and the
path of the object. With `X-Artifact-Bytes: look` an upload without its body is only looked at: it stores
nothing, and the answer says whether there is no such object yet. What is not plainly simple goes as ever.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from stackserver.asgi import App, Receive, Send
from stackserver.limits import FOLDER_MARK, KEY_LIMIT, PART_LIMIT

ASKED = b"x-artifact-bytes"
LOCATION = b"@artifact_handed_over"
"""The location of nginx/artifacts/routes.conf that sends an object."""
_NEVER = r"\x00-\x1f\x7f\ud800-\udfff/\\%?#;"
PART = re.compile(rf"(?!.*{FOLDER_MARK})[^{_NEVER} .][^{_NEVER}]*(?<![ .])")
ROOM_FOR_PREFIX = 24


@dataclass
class Handover:
    """What nginx asks of a request, and what was found.

    `path` is that of an object that nginx may send, below the root of all artifacts; `absent` says that
    an upload would write over nothing.
    """

    only_look: bool
    path: str | None = None
    absent: bool = False


handover: ContextVar[Handover | None] = ContextVar("handover", default=None)
"""What nginx asks of the present request; it follows the request into MLflow's threads."""


def is_simple(path: str) -> bool:
    """Return whether an object's path means the same to nginx, the storage and this server."""
    parts = path.split("/")
    if not all(PART.fullmatch(part) and len(part.encode()) <= PART_LIMIT for part in parts):
        return False
    return len(path.encode()) <= KEY_LIMIT - ROOM_FOR_PREFIX


class HandoverLayer:
    """ASGI layer that turns the answer to a download into one that nginx carries out."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on, and hand its answer over if an object was found."""
        asked = dict(scope["headers"]).get(ASKED) if scope["type"] == "http" else None
        wanted = {(b"nginx", "GET"): False, (b"look", "PUT"): True}.get((asked, scope.get("method")))
        if wanted is None:
            await self._app(scope, receive, send)
            return
        found = Handover(only_look=wanted)
        replaced = False

        async def handing_over(message: dict[str, Any]) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] == 200:
                if found.path is not None:
                    replaced = True
                    message = {**message, "headers": _instead_of(message["headers"], found.path)}
                elif found.absent:
                    message = {**message, "headers": [*message["headers"], (b"x-artifact-absent", b"yes")]}
            elif replaced:  # the body is that of an empty file
                message = {**message, "body": b""}
            await send(message)

        token = handover.set(found)
        try:
            await self._app(scope, receive, handing_over)
        finally:
            handover.reset(token)


def _instead_of(headers: list[tuple[bytes, bytes]], path: str) -> list[tuple[bytes, bytes]]:
    """Return the headers that send nginx to an object, with those that MLflow has made for it.

    Not under their own names: nginx would keep some of them also where it must ask MLflow again.
    """
    made = {name.lower(): value for name, value in headers}
    return [
        (b"x-accel-redirect", LOCATION),
        (b"x-artifact-path", quote(path).encode()),
        (b"x-artifact-type", made.get(b"content-type", b"application/octet-stream")),
        (b"x-artifact-disposition", made.get(b"content-disposition", b"attachment")),
        (b"content-length", b"0"),
        *[(b"x-artifact-caching", value) for name, value in made.items() if name == b"cache-control"],
    ]
