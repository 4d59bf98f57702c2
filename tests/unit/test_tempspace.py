"""The temporary volume's layer: what is let through, what is refused, and when."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from stackserver.tempspace import StorageFullError, TempSpaceLayer, disk_full, room_bytes, used_bytes

UPLOAD = "/api/2.0/mlflow-artifacts/artifacts/1/abc/artifacts/model.bin"


class Exchange:
    """One request against the layer, with a body in chunks."""

    def __init__(self, folder: Path, app: Any, limit_bytes: int = 1000) -> None:
        self.layer = TempSpaceLayer(app, folder, limit_bytes, reserve_bytes=0)
        self.sent: list[dict[str, Any]] = []
        self.received = 0

    def run(
        self,
        *,
        method: str = "PUT",
        path: str = UPLOAD,
        chunks: tuple[bytes, ...] = (b"x",),
        asked: bytes | None = None,
    ) -> int:
        length = str(sum(map(len, chunks))).encode()
        headers = [(b"content-length", length)] + (
            [(b"x-artifact-bytes", asked)] if asked is not None else []
        )
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        messages = [
            {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
            for number, chunk in enumerate(chunks, start=1)
        ]

        async def receive() -> dict[str, Any]:
            self.received += 1
            return messages.pop(0)

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        asyncio.run(self.layer(scope, receive, send))
        return self.sent[0]["status"]


async def accepting(_scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def filling_the_disk(_scope: Any, receive: Any, send: Any) -> None:
    """Behave as Starlette does: answer a bare 500, then raise."""
    await receive()
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"Internal Server Error"})
    raise OSError(errno.ENOSPC, "No space left on device")


async def failing_otherwise(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"Internal Server Error"})
    raise ValueError("a bug")


def test_an_upload_that_fits_passes(tmp_path: Path) -> None:
    assert Exchange(tmp_path, accepting).run(chunks=(b"x" * 500, b"y" * 500)) == 200


def test_an_upload_that_does_not_fit_is_read_to_its_end_and_answered_507(tmp_path: Path) -> None:
    exchange = Exchange(tmp_path, accepting)
    assert exchange.run(chunks=(b"x" * 500, b"y" * 501)) == 507
    assert exchange.received == 2  # a client that is still sending would miss the answer
    assert json.loads(exchange.sent[1]["body"])["error_code"] == "INSUFFICIENT_STORAGE"


def test_files_of_other_transfers_count(tmp_path: Path) -> None:
    (tmp_path / "other-replica").mkdir()
    (tmp_path / "other-replica" / "file").write_bytes(b"z" * 600)
    assert used_bytes(tmp_path) == 600
    assert room_bytes(tmp_path, 1000, 0) == 400
    assert Exchange(tmp_path, accepting).run(chunks=(b"x" * 401,)) == 507


def test_a_download_is_refused_when_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"z" * 1000)
    assert Exchange(tmp_path, accepting).run(method="GET") == 507


def test_other_routes_pass_whatever_the_volume_says(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"z" * 1000)
    assert Exchange(tmp_path, accepting).run(method="POST", path="/api/2.0/mlflow/runs/create") == 200


def test_a_disk_that_runs_full_on_the_way_is_507_instead_of_500(tmp_path: Path) -> None:
    exchange = Exchange(tmp_path, filling_the_disk)
    assert exchange.run(chunks=(b"x", b"y")) == 507
    assert [message["type"] for message in exchange.sent] == ["http.response.start", "http.response.body"]


def test_a_full_object_storage_is_507_and_named(tmp_path: Path) -> None:
    async def filling_the_bucket(_scope: Any, receive: Any, send: Any) -> None:
        await receive()  # to the end: another receive() would wait for ever
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise RuntimeError("upload failed") from StorageFullError(errno.ENOSPC, "full")

    exchange = Exchange(tmp_path, filling_the_bucket)
    assert exchange.run() == 507
    assert "object storage" in json.loads(exchange.sent[1]["body"])["message"]


def test_another_error_stays_what_it_was(tmp_path: Path) -> None:
    exchange = Exchange(tmp_path, failing_otherwise)
    with pytest.raises(ValueError, match="a bug"):
        exchange.run()
    assert exchange.sent[0]["status"] == 500


def test_a_full_disk_is_recognised_behind_other_errors() -> None:
    outer = RuntimeError("download failed")
    outer.__cause__ = OSError(errno.ENOSPC, "full")
    assert disk_full(outer) is outer.__cause__
    assert disk_full(OSError(errno.EACCES, "denied")) is None


def test_no_room_is_never_negative(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"z" * 10)
    assert room_bytes(tmp_path, 5, 0) == 0
    assert room_bytes(tmp_path, 1000, 1 << 62) == 0


@pytest.mark.parametrize(("method", "asked"), [("GET", b"nginx"), ("PUT", b"look")])
def test_what_nginx_moves_itself_needs_no_room(tmp_path: Path, method: str, asked: bytes) -> None:
    assert Exchange(tmp_path, accepting, limit_bytes=0).run(method=method, asked=asked) == 200
    assert Exchange(tmp_path, accepting, limit_bytes=0).run(method=method, asked=b"") == 507
