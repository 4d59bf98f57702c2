"""Names of artifacts that no storage can hold."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest

from stackserver.names import NameLayer, names_in, what_is_wrong

RAW = "/api/2.0/mlflow-artifacts/artifacts/"


@pytest.mark.parametrize(
    ("path", "query", "names"),
    [
        (f"{RAW}1/2/a b", "", ["1/2/a b"]),
        ("/ajax-api/2.0/mlflow-artifacts/artifacts/x", "path=y", ["x"]),
        ("/api/2.0/mlflow-artifacts/mpu/create/x/y", "", ["x/y"]),
        ("/api/2.0/mlflow-artifacts/artifacts", "path=a%20b", ["a b"]),
        ("/get-artifact", "run_id=1&path=a&path=b", ["a", "b"]),
        ("/ajax-api/2.0/mlflow/upload-artifact", "path=a", ["a"]),
        ("/api/2.0/mlflow/artifacts/list", "run_id=1", []),
        ("/ajax-api/2.0/mlflow/logged-models/m-1/artifacts/files", "artifact_file_path=a", ["a"]),
        ("/api/2.0/mlflow/runs/search", "path=a", []),
    ],
)
def test_where_a_request_has_names(path: str, query: str, names: list[str]) -> None:
    assert names_in(path, query) == names


@pytest.mark.parametrize(
    "name", ["a", "a/b c.txt", "100%.txt", "k" * 255, "/".join(["k" * 203] * 5), "ü" * 127, "a\0b", "a//b"]
)
def test_names_that_can_be(name: str) -> None:
    assert what_is_wrong(name, is_file=True) is None


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a#b"])
def test_what_mlflow_refuses_itself_is_left_to_it(name: str) -> None:
    assert what_is_wrong(name, is_file=True) is None


@pytest.mark.parametrize(
    "name",
    [
        "k" * 256,
        f"a/{'ü' * 128}/b",
        "k/" * 513 + "k",
        "%" + "25" * 12 + "41",
        "//[a",
        "a/",
        "a/.",
        "a/%2f",
        "%2e",
        "x__XLDIR__",
        "x%5f_XLDIR__/y",
    ],
)
def test_names_that_cannot_be(name: str) -> None:
    assert what_is_wrong(name, is_file=True)


def test_a_folder_may_be_listed_and_read() -> None:
    assert what_is_wrong("a/", is_file=False) is None


@pytest.mark.parametrize(("name", "status"), [("k" * 256, 400), ("k", 204)])
def test_the_layer_reads_the_body_before_it_refuses(name: str, status: int) -> None:
    body = [
        {"type": "http.request", "body": b"x", "more_body": True},
        {"type": "http.request", "body": b"y", "more_body": False},
    ]
    sent: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        body.clear()
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def receive() -> dict[str, Any]:
        return body.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "PUT", "path": RAW + quote(name), "query_string": b""}
    asyncio.run(NameLayer(app)(scope, receive, send))
    assert sent[0]["status"] == status
    assert body == []
    if status == 400:
        assert json.loads(sent[1]["body"])["error_code"] == "INVALID_PARAMETER_VALUE"
