"""Experiments keep their artifacts in the stack's bucket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact import artifact_repository_registry as registry

from stackserver.artifacts import StackS3ArtifactRepository
from stackserver.locations import LocationLayer, close_other_places, is_ours, location_in

DESTINATION = "s3://mlflow/artifacts"


@pytest.mark.parametrize(
    "location",
    [
        "mlflow-artifacts:/",
        "mlflow-artifacts:/team/a",
        "s3://mlflow/artifacts/7",
        "s3://mlflow/artifacts/a b",
    ],
)
def test_places_of_our_own(location: str) -> None:
    assert is_ours(location, DESTINATION)


@pytest.mark.parametrize(
    "location",
    [
        *("", "/tmp/x", "file:///tmp/x", "s3://other/x", "s3://mlflow/artifacts", "s3://mlflow/artifacts2/x"),
        *("s3://mlflow/.stack/x", "mlflow-artifacts://host/x", "http://evil/x", "gs://x/y", "dbfs:/x"),
        *("mlflow-artifacts:/../x", "s3://mlflow/artifacts/../.stack", "mlflow-artifacts:/a/./b"),
        *("mlflow-artifacts:/a%2f..", "mlflow-artifacts:/a?x=1", "mlflow-artifacts:/a#b", "relative", "./x"),
        *("S3://mlflow/artifacts/x", " mlflow-artifacts:/x", "mlflow-artifacts:/a\\b"),
        *("mlflow-artifacts:/x__XLDIR__", "s3://mlflow/artifacts/x__XLDIR__/y"),
    ],
)
def test_places_of_others(location: str) -> None:
    assert not is_ours(location, DESTINATION)


@pytest.mark.parametrize(
    ("body", "location"),
    [
        (b"", None),
        (b"{}", None),
        (b"[]", None),
        (b"null", None),
        (b"no json", None),
        (b'{"name": "x", "artifact_location": ""}', None),
        (b'{"artifact_location": "a"}', "a"),
        (b'{"artifactLocation": "a"}', "a"),
        (json.dumps(json.dumps({"artifact_location": "a"})).encode(), "a"),
        (b'{"artifact_location": "a", "artifact_location": "b"}', "b"),
        (b'{"artifact_location": 5}', "5"),
        (b"[" * 100_000, None),
    ],
)
def test_the_location_that_a_body_asks_for(body: bytes, location: str | None) -> None:
    assert location_in(body) == location


def create(
    *parts: bytes, path: str = "/api/2.0/mlflow/experiments/create", may_choose: bool = True
) -> tuple[int, bytes, bytes]:
    """Send a body in parts; return the status, the answer and what MLflow got."""
    got = bytearray()
    answered: list[dict[str, Any]] = []
    waiting = list(parts)

    async def app(_: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            got.extend(message["body"])
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(LocationLayer(app, DESTINATION, may_choose=may_choose)(scope, receive, send))
    return answered[0]["status"], answered[1]["body"], bytes(got)


def test_an_experiment_elsewhere_is_refused_and_mlflow_never_sees_it() -> None:
    status, answer, got = create(b'{"name": "x", "artifact_loc', b'ation": "file:///etc"}')
    assert (status, got) == (400, b"")
    assert json.loads(answer)["error_code"] == "INVALID_PARAMETER_VALUE"
    assert "outside of this stack's storage" in json.loads(answer)["message"]
    assert create(b"x" * (1 << 20), b"x" * 10)[0] == 400
    assert (
        create(b'{"artifact_location": "file:///x"}', path="/ajax-api/2.0/mlflow/experiments/create")[0]
        == 400
    )


@pytest.mark.parametrize(
    "location", ["mlflow-artifacts:/", "mlflow-artifacts:/7", "s3://mlflow/artifacts/7", "x"]
)
def test_where_permissions_go_by_the_folder_none_may_be_chosen(location: str) -> None:
    body = json.dumps({"name": "x", "artifact_location": location}).encode()
    status, answer, got = create(body, may_choose=False)
    assert (status, got) == (400, b"")
    assert "AUTHORIZATION=rbac" in json.loads(answer)["message"]
    assert create(b'{"name": "x", "artifact_location": ""}', may_choose=False)[0] == 200


def test_an_ordinary_experiment_reaches_mlflow_as_it_was_sent() -> None:
    assert create(b'{"name":', b' "x"}') == (200, b"{}", b'{"name": "x"}')
    body = b'{"artifact_location": "file:///x"}'
    assert create(body, path="/api/2.0/mlflow/runs/create") == (200, b"{}", body)


@pytest.mark.parametrize(
    "location",
    [
        *(
            "/secrets/mlflow",
            "file:///secrets/mlflow",
            "relative",
            "s3://other/x",
            "s3://mlflow/artifacts2/x",
        ),
        *("gs://x/y", "mlflow-artifacts:/1/x", "dbfs:/x", "wasbs://x@y.blob.core.windows.net/z"),
    ],
)
def test_the_server_opens_no_place_of_others(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    own = registry.ArtifactRepositoryRegistry()
    for scheme, repository in registry._artifact_repository_registry._registry.items():
        own.register(scheme, repository)
    own.register("s3", StackS3ArtifactRepository)
    monkeypatch.setattr(registry, "_artifact_repository_registry", own)
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", DESTINATION)
    close_other_places()
    with pytest.raises(MlflowException, match="opens artifacts in its own storage only") as refused:
        own.get_artifact_repository(location)
    assert refused.value.get_http_status_code() == 400
    for ours in (DESTINATION, f"{DESTINATION}/1/run/artifacts/100% #1"):
        assert own.get_artifact_repository(ours).artifact_uri == ours


def test_without_our_repository_nothing_is_served() -> None:
    """As in a process where the entry point could not be loaded: this one has none."""
    with pytest.raises(RuntimeError, match="artifacts would be served by"):
        close_other_places()
