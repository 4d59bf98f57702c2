"""The temporary volume runs full: a clear answer, and the server goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from kit.stack import Stack

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def small(stack: Stack, make_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """A stack that may have 8 MB of artifacts under way, all of them through MLflow."""
    small = make_stack("small", MLFLOW_TMP_LIMIT="8m", ARTIFACT_BYTES="mlflow")
    small.verb("up", "--no-build")
    yield small
    small.compose("down", "--volumes")


def put(stack: Stack, name: str, size: int) -> tuple[int, str]:
    url = f"{stack.url}/api/2.0/mlflow-artifacts/artifacts/0/full/artifacts/{name}"
    answer = stack.session().put(url, data=b"x" * size, timeout=60)
    return answer.status_code, answer.text


def test_an_upload_beyond_the_limit_is_507_and_the_next_one_works(small: Stack) -> None:
    status, text = put(small, "large.bin", 9 * MEGABYTE)
    assert status == 507
    assert "MLFLOW_TMP_LIMIT" in text
    assert put(small, "fits.bin", 4 * MEGABYTE)[0] == 200
    answer = small.get("/api/2.0/mlflow-artifacts/artifacts/0/full/artifacts/fits.bin")
    assert len(answer.content) == 4 * MEGABYTE


def test_a_real_client_gets_the_message_at_once(
    small: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in small.client_environment.items():
        monkeypatch.setenv(name, value)
    client = mlflow.MlflowClient(tracking_uri=small.url)
    run_id = client.create_run("0").info.run_id
    path = tmp_path / "large.bin"
    path.write_bytes(b"x" * 9 * MEGABYTE)
    with pytest.raises(Exception, match=r"507|temporary volume"):
        client.log_artifact(run_id, str(path))


def test_a_replica_clears_its_own_tmp_when_it_starts(small: Stack) -> None:
    leave = "head -c 9437184 /dev/zero > /var/tmp/mlflow/$(hostname)/left"
    small.compose("exec", "-T", "mlflow", "sh", "-c", leave)
    assert put(small, "blocked.bin", MEGABYTE)[0] == 507
    small.compose("restart", "mlflow")
    small.wait_ready()
    assert put(small, "free-again.bin", MEGABYTE)[0] == 200


def test_what_nginx_moves_needs_no_room_there(
    small: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small.verb("up", "--no-build", ARTIFACT_BYTES="nginx")
    for name, value in small.client_environment.items():
        monkeypatch.setenv(name, value)
    client = mlflow.MlflowClient(tracking_uri=small.url)
    run_id = client.create_run("0").info.run_id
    path = tmp_path / "large.bin"
    path.write_bytes(b"x" * 20 * MEGABYTE)
    client.log_artifact(run_id, str(path))
    (tmp_path / "copy").mkdir()
    copy = Path(client.download_artifacts(run_id, "large.bin", str(tmp_path / "copy")))
    assert copy.stat().st_size == 20 * MEGABYTE
