"""The temporary volume, through which MLflow moves each artifact, must not run full.

MLflow 3.17.2 writes an upload whole to TMPDIR before it goes to S3, and a download whole
before its first byte (server/artifact_router.py). A transfer that would not fit is refused
with 507 Insufficient Storage, which clients do not retry, before anything is written.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from stackserver.asgi import App, Receive, Send, drain, refuse
from stackserver.handover import ASKED

ARTIFACT_ROUTE = "/mlflow-artifacts/artifacts/"
FULL = "INSUFFICIENT_STORAGE"
STORAGE_FULL = (
    "The object storage has no room for this artifact; nothing was stored. Runs and metrics are not "
    "concerned. An operator can free disk space, or delete artifacts."
)


class StorageFullError(OSError):
    """The object storage has no room for an upload (artifacts.py raises it)."""


def used_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; files that vanish meanwhile count 0."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name), follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
    return total


def room_bytes(folder: Path, limit_bytes: int, reserve_bytes: int) -> int:
    """Return how many more bytes may be written.

    What is left of the limit for all replicas together, or the disk's free space less a
    reserve, whichever is smaller.
    """
    free = shutil.disk_usage(folder).free - reserve_bytes
    return max(0, min(limit_bytes - used_bytes(folder), free))


class TempSpaceLayer:
    """ASGI layer that refuses artifact uploads for which the temporary volume has no room."""

    def __init__(self, app: App, folder: Path, limit_bytes: int, reserve_bytes: int) -> None:
        self._app = app
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 507."""
        if scope["type"] != "http" or ARTIFACT_ROUTE not in scope["path"]:
            await self._app(scope, receive, send)
            return
        room = room_bytes(self._folder, self._limit_bytes, self._reserve_bytes)
        wanted = _content_length(scope) if scope["method"] == "PUT" else 1
        moved_by_nginx = any(name == ASKED and value for name, value in scope["headers"])
        if wanted > room and not moved_by_nginx:
            await drain(receive)
            await refuse(send, 507, FULL, _no_room(wanted, room))
            return

        await self._watch(scope, receive, send, wanted)

    async def _watch(self, scope: dict[str, Any], receive: Receive, send: Send, wanted: int) -> None:
        """Pass a transfer on, and answer 507 where a disk runs full meanwhile."""
        # MLflow answers a full disk with a bare 500 and then raises: the 500 is held back
        # until it is known why.
        held: list[dict[str, Any]] = []
        read_whole = False

        async def watched_receive() -> dict[str, Any]:
            nonlocal read_whole
            message = await receive()
            read_whole = read_whole or not message.get("more_body")
            return message

        async def watched_send(message: dict[str, Any]) -> None:
            if held or (message["type"] == "http.response.start" and message["status"] == 500):
                held.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        except Exception as error:
            full = disk_full(error)
            if held and full:
                if not read_whole:  # after the last part, receive() waits for the client to hang up
                    await drain(receive)
                said = STORAGE_FULL if isinstance(full, StorageFullError) else _no_room(wanted, 0)
                await refuse(send, 507, FULL, said)
                return
            for message in held:
                await send(message)
            raise
        for message in held:
            await send(message)


def disk_full(error: BaseException | None) -> OSError | None:
    """Return the error, or the one among those that it came from, that says that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return error
        error = error.__cause__ or error.__context__
    return None


def _content_length(scope: dict[str, Any]) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 1  # chunked: unknown, any room will do to begin


def _no_room(wanted: int, room: int) -> str:
    return (
        f"The server's temporary volume has no room for this transfer of {wanted} bytes "
        f"({room} bytes left). Try again when other transfers are done; an operator can raise "
        "MLFLOW_TMP_LIMIT or free disk space."
    )
