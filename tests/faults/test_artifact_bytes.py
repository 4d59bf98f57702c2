"""The storage goes away while nginx moves the bytes: 503 at once, and work goes on when it is back."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest
import requests

from kit.door import docker
from kit.stack import Stack, poll

ROUTE = "/api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture
def folder(stack: Stack) -> str:
    """The path of a run's artifacts."""
    experiment_id = mlflow.create_experiment(f"bytes-{uuid.uuid4().hex[:8]}")
    run = mlflow.MlflowClient().create_run(experiment_id)
    return f"{ROUTE}/{run.info.artifact_uri.removeprefix('mlflow-artifacts:/')}"


def ask(stack: Stack, method: str, path: str, body: bytes | None = None) -> requests.Response:
    return stack.session().request(method, stack.url + path, data=body, timeout=120)


def test_without_mlflow_plain_artifacts_are_there_and_the_rest_is_503(stack: Stack, folder: str) -> None:
    assert ask(stack, "PUT", f"{folder}/a.bin", b"here").status_code == 200
    stack.compose("stop", "mlflow")
    try:
        assert ask(stack, "GET", f"{folder}/a.bin").text == "here"
        assert ask(stack, "PUT", f"{folder}/b.bin", b"new").status_code == 200
        # What is missing in the storage, and odd names, are MLflow's to answer.
        for path in (f"{folder}/none.bin", f"{folder}/%C3%A9.bin"):
            answer = ask(stack, "GET", path)
            assert (answer.status_code, answer.headers.get("Retry-After") is not None) == (503, True), path
            assert answer.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
    finally:
        stack.compose("start", "mlflow")
        stack.wait_ready()


@pytest.mark.parametrize("frozen", [False, True], ids=["stopped", "frozen"])
def test_a_storage_that_is_away_is_503_and_heals(stack: Stack, folder: str, frozen: bool) -> None:
    assert ask(stack, "PUT", f"{folder}/a.bin", b"before").status_code == 200
    restarted = stack.inspect(stack.container("nginx"))["State"]["StartedAt"]
    container = stack.container("minio")
    if frozen:
        docker("pause", container)
    else:
        stack.compose("stop", "minio")
    try:
        asked = (
            *(("PUT", "new.bin", b"x" * 3_000_000), ("PUT", "small.bin", b"x")),
            *(("GET", "a.bin", None), ("HEAD", "a.bin", None)),
        )
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(lambda one: ask(stack, one[0], f"{folder}/{one[1]}", one[2]), asked))
        for (method, name, _), answer in zip(asked, answers, strict=True):
            assert answer.status_code == 503, (method, name, answer.text[:200])
            if method != "HEAD":
                assert answer.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
                assert answer.headers["Retry-After"]
        assert stack.get("/version").status_code == 200
    finally:
        if frozen:
            docker("unpause", container)
        else:
            stack.compose("start", "minio")

    def heals() -> bool:
        return ask(stack, "GET", f"{folder}/a.bin").text == "before"

    poll(heals, seconds=60, what="what was stored is read again")
    assert ask(stack, "GET", f"{folder}/new.bin").status_code == 404
    assert ask(stack, "PUT", f"{folder}/new.bin", b"after").status_code == 200
    assert ask(stack, "GET", f"{folder}/new.bin").text == "after"
    assert stack.inspect(stack.container("nginx"))["State"]["StartedAt"] == restarted
    stack.wait_ready()
