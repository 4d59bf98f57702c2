"""Lost and rotated secrets, on a stack of their own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import requests

from kit.stack import Stack, poll


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second stack's own config folder."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "secrets").mkdir()
    return folder


@pytest.fixture(scope="module")
def own(stack: Stack, config: Path, make_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """A second stack beside the session's, from the same images."""
    own = make_stack("secrets", CONFIG_FOLDER=str(config))
    own.verb("up", "--no-build")
    yield own
    own.compose("down", "--volumes")


def log_a_run(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in stack.client_environment.items():
        monkeypatch.setenv(name, value)
    client = mlflow.MlflowClient(tracking_uri=stack.url)
    run_id = client.create_run("0").info.run_id
    client.log_text(run_id, "kept", "note.txt")
    return run_id


def read_the_note(stack: Stack, run_id: str) -> str:
    path = f"/get-artifact?run_uuid={run_id}&path=note.txt"
    return stack.get(path).text


def test_two_stacks_live_side_by_side_with_secrets_of_their_own(stack: Stack, own: Stack) -> None:
    assert stack.password != own.password
    assert requests.get(f"{own.url}/version", auth=("admin", stack.password), timeout=30).status_code == 401
    assert own.get("/version").status_code == stack.get("/version").status_code == 200


def test_a_rotated_admin_password_counts_at_once_without_a_restart(own: Stack) -> None:
    old = own.password
    started = own.inspect(own.container("nginx"))["State"]["StartedAt"]
    own.verb("rotate", "admin")
    own.forget_password()
    assert own.password != old
    assert own.get("/version").status_code == 200

    def old_is_out() -> bool:
        return requests.get(f"{own.url}/version", auth=("admin", old), timeout=30).status_code == 401

    poll(old_is_out, seconds=10, what="the old password is refused")
    assert own.inspect(own.container("nginx"))["State"]["StartedAt"] == started


def test_rotated_database_and_storage_passwords_keep_everything_working(
    own: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = log_a_run(own, monkeypatch)
    old_key = own.compose("exec", "-T", "mlflow", "cat", "/secrets/mlflow/aws_credentials").stdout
    old_door_key = json.loads(own.compose("exec", "-T", "nginx", "cat", "/secrets/nginx/storage.json").stdout)
    old_pgpass = own.compose("exec", "-T", "mlflow", "cat", "/secrets/mlflow/pgpass").stdout
    own.verb("rotate", "database")
    own.verb("rotate", "storage")
    assert own.compose("exec", "-T", "mlflow", "cat", "/secrets/mlflow/pgpass").stdout != old_pgpass
    assert own.compose("exec", "-T", "mlflow", "cat", "/secrets/mlflow/aws_credentials").stdout != old_key
    own.wait_ready()
    assert read_the_note(own, run_id) == "kept"
    log_a_run(own, monkeypatch)

    old_access_key, old_secret = (line.split(" = ")[1] for line in old_key.splitlines()[1:])
    script = (
        "import boto3, sys\n"
        "s3 = boto3.client('s3', endpoint_url='http://minio:9000', aws_access_key_id=sys.argv[1],"
        " aws_secret_access_key=sys.argv[2])\n"
        "try:\n    s3.list_objects_v2(Bucket='mlflow'); print('ALLOWED')\n"
        "except Exception as error: print(error.response['Error']['Code'])\n"
    )
    old_keys = ((old_access_key, old_secret), (old_door_key["access_key"], old_door_key["secret_key"]))
    for old in old_keys:
        said = own.compose("exec", "-T", "mlflow", "python", "-c", script, *old).stdout
        assert said.strip() == "InvalidAccessKeyId"

    def nginx_has_the_new_one() -> bool:
        path = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_id}/artifacts/note.txt"
        assert own.get(path).text == "kept"  # before it has, MLflow answers
        last = own.compose("logs", "--no-log-prefix", "--tail", "5", "nginx").stdout
        lines = [line for line in last.splitlines() if path in line]
        assert lines  # they come from a buffer
        return lines[-1].split("mlflow=")[1].split()[0].endswith(":9000") and ":5000" not in lines[-1]

    poll(nginx_has_the_new_one, seconds=30, what="nginx has taken up its new key")


def test_an_operators_own_password_is_taken_at_the_next_up_and_not_rotated_away(
    own: Stack, config: Path
) -> None:
    override = config / "secrets" / "admin_password"
    override.write_text("grün & 'quoted' $HOME\n")
    own.verb("up", "--no-build")
    own.forget_password()
    assert own.password == "grün & 'quoted' $HOME"
    poll(lambda: own.get("/version").status_code == 200, seconds=10, what="the new password is accepted")
    refused = own.verb("rotate", "admin", check=False)
    assert refused.returncode != 0
    assert "config/secrets/admin_password" in refused.stderr
    override.unlink()


def test_a_lost_secrets_volume_sets_passwords_anew_and_refuses_a_lost_key(
    own: Stack, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = log_a_run(own, monkeypatch)
    old_password = own.password
    keys = {
        name: own.compose("run", "--rm", "--no-deps", "-T", "secrets", "secrets", "show", name).stdout.strip()
        for name in ("kek_passphrase", "webhook_key")
    }
    own.verb("down")
    subprocess.run(["docker", "volume", "rm", f"{own.project}_secrets"], check=True, capture_output=True)

    refused = own.verb("up", "--no-build", check=False)
    assert refused.returncode == 1
    assert "prepare refused to start: the key kek_passphrase is not the one" in refused.stderr
    assert "fix: put the old key into config/secrets/kek_passphrase" in refused.stderr
    assert own.compose("ps", "--quiet", "nginx").stdout == ""

    for name, value in keys.items():  # from the operator's backup
        (config / "secrets" / name).write_text(value + "\n")
    own.verb("up", "--no-build")
    own.forget_password()
    assert own.password != old_password
    assert read_the_note(own, run_id) == "kept"


@pytest.mark.long
def test_keys_lost_for_good_can_be_given_up_by_a_stated_choice(
    own: Stack, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = log_a_run(own, monkeypatch)
    for path in (config / "secrets").iterdir():
        path.unlink()
    own.verb("down")
    subprocess.run(["docker", "volume", "rm", f"{own.project}_secrets"], check=True, capture_output=True)
    assert own.verb("up", "--no-build", check=False).returncode == 1
    own.verb("accept-keys", "--yes")
    own.forget_password()
    assert own.verb("up", "--no-build").returncode == 0
    assert read_the_note(own, run_id) == "kept"
