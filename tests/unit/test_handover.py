"""What nginx moves itself: MLflow answers with the object's path instead of its bytes, or only looks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from mlflow.exceptions import MlflowException

from stackserver import artifacts
from stackserver.artifacts import DESTINATION_VARIABLE, StackS3ArtifactRepository
from stackserver.audit import overwritten
from stackserver.handover import HandoverLayer, handover, is_simple

DESTINATION = "s3://mlflow/artifacts"
KEY = "artifacts/1/run/artifacts/ü a.txt"


class FakeS3:
    """The calls of boto3's client that look at an object, and one that moves bytes."""

    def __init__(self) -> None:
        self.code = "404"
        self.moved: list[str] = []

    def head_object(self, Bucket: str, Key: str) -> None:
        if Key != KEY:
            raise ClientError({"Error": {"Code": self.code}}, "HeadObject")

    def download_file(self, bucket: str, key: str, filename: str) -> None:
        self.moved.append(key)
        self.head_object(Bucket=bucket, Key=key)
        Path(filename).write_bytes(b"bytes")

    def upload_file(self, Filename: str, Bucket: str, Key: str, ExtraArgs: dict) -> None:
        self.moved.append(Key)

    def get_paginator(self, _name: str) -> FakeS3:
        return self

    def paginate(self, **_: str) -> list[dict]:
        return [{}]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> FakeS3:
    fake = FakeS3()
    monkeypatch.setattr(artifacts, "new_s3_client", lambda _endpoint, **_: fake)
    monkeypatch.setenv(DESTINATION_VARIABLE, DESTINATION)
    return fake


def ask(tmp_path: Path, method: str, asked: str | None, path: str, status: int = 200) -> dict[str, Any]:
    """Send a request through the layer to an app that does what MLflow does with the repository."""
    said: dict[str, Any] = {"body": b""}

    async def app(scope: dict, receive: object, send: Any) -> None:
        repository = StackS3ArtifactRepository(DESTINATION)
        if method == "PUT":
            (tmp_path / "up").mkdir()
            (tmp_path / "up" / path.rpartition("/")[2]).write_bytes(b"")
            local = str(tmp_path / "up" / path.rpartition("/")[2])
            await asyncio.to_thread(repository.log_artifact, local, path.rpartition("/")[0])
            body = b""
        else:
            local = await asyncio.to_thread(repository.download_artifacts, path, str(tmp_path))
            body = Path(local).read_bytes()
        headers = [(b"content-type", b"text/plain"), (b"Content-Disposition", b"attachment; filename=x")]
        headers += [(b"content-length", str(len(body)).encode()), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            said.update(status=message["status"], headers=dict(message["headers"]))
        else:
            said["body"] += message.get("body", b"")

    lines = [] if asked is None else [(b"x-artifact-bytes", asked.encode())]
    scope = {"type": "http", "method": method, "path": "/x", "headers": lines}
    asyncio.run(HandoverLayer(app)(scope, None, send))  # type: ignore[arg-type]
    return said


def test_a_download_is_handed_over_with_the_headers_that_mlflow_made(s3: FakeS3, tmp_path: Path) -> None:
    answer = ask(tmp_path, "GET", "nginx", "1/run/artifacts/ü a.txt")
    assert answer == {
        "status": 200,
        "body": b"",
        "headers": {
            b"x-accel-redirect": b"@artifact_handed_over",
            b"x-artifact-path": b"1/run/artifacts/%C3%BC%20a.txt",
            b"x-artifact-type": b"text/plain",
            b"x-artifact-disposition": b"attachment; filename=x",
            b"content-length": b"0",
            b"x-artifact-caching": b"no-cache",
        },
    }
    assert s3.moved == []
    assert handover.get() is None


@pytest.mark.parametrize(("method", "asked"), [("GET", None), ("GET", ""), ("GET", "look"), ("GET", "on")])
def test_who_does_not_ask_for_it_gets_the_bytes(
    s3: FakeS3, tmp_path: Path, method: str, asked: str | None
) -> None:
    answer = ask(tmp_path, method, asked, "1/run/artifacts/ü a.txt")
    assert answer["body"] == b"bytes"
    assert b"x-accel-redirect" not in answer["headers"]
    assert s3.moved == [KEY]


def test_what_is_not_there_is_mlflows_to_say(s3: FakeS3, tmp_path: Path) -> None:
    with pytest.raises(MlflowException, match="does not exist"):
        ask(tmp_path, "GET", "nginx", "1/run/artifacts/none.txt")


def test_a_storage_that_does_not_answer_is_no_absence(s3: FakeS3, tmp_path: Path) -> None:
    for code in ("403", "500", "SlowDown"):
        s3.code = code
        for method, asked in (("GET", "nginx"), ("PUT", "look")):
            folder = tmp_path / code / method
            folder.mkdir(parents=True)
            with pytest.raises(ClientError):
                ask(folder, method, asked, "1/run/artifacts/none.txt")


def test_an_object_of_an_odd_name_is_not_handed_over(
    s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "head_object", lambda **_: None)
    answer = ask(tmp_path, "GET", "nginx", "1/run/artifacts/.odd")
    assert answer["body"] == b"bytes"
    assert b"x-accel-redirect" not in answer["headers"]


def test_an_error_is_not_handed_over(s3: FakeS3, tmp_path: Path) -> None:
    answer = ask(tmp_path, "GET", "nginx", "1/run/artifacts/ü a.txt", status=500)
    assert b"x-accel-redirect" not in answer["headers"]


def test_a_look_stores_nothing_and_says_whether_the_object_would_be_new(s3: FakeS3, tmp_path: Path) -> None:
    token = overwritten.set([])
    try:
        for name, absent in (("ü a.txt", None), ("new.txt", b"yes")):
            folder = tmp_path / name
            folder.mkdir()
            answer = ask(folder, "PUT", "look", f"1/run/artifacts/{name}")
            assert answer["headers"].get(b"x-artifact-absent") == absent
        assert overwritten.get() == []
    finally:
        overwritten.reset(token)
    assert s3.moved == []


def test_an_upload_that_only_a_client_calls_a_look_is_stored(s3: FakeS3, tmp_path: Path) -> None:
    """The door sends no such header with a body (proxy.inc); "nginx" asks nothing of an upload."""
    ask(tmp_path, "PUT", "nginx", "1/run/artifacts/new.txt")
    assert s3.moved == ["artifacts/1/run/artifacts/new.txt"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "a//b",
            "/a",
            "a/",
            "a/../b",
            "./a",
            "a/.b",
            "a%41",
            "a?b",
            "a#b",
            "a;b",
            "a\\b",
            "a\nb",
            "a\0b",
            " a",
            "a ",
        ),
        *(
            "a.",
            "a\x7f",
            "a\ud800",
            "x__XLDIR__",
            "x__XLDIR__/y",
            "k" * 256,
            "é" * 128,
            "/".join("k" * 600),
            "",
        ),
    ],
)
def test_an_odd_path_is_not_simple(path: str) -> None:
    assert not is_simple(path)
