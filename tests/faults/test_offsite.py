"""The machine is gone: an empty project, the off-site copy and the recovery key bring all back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from kit.door import docker
from kit.stack import ROOT, Stack, poll

ACCESS_KEY, SECRET_KEY = "offsite", "offsite-secret"


SERVE = f"""
cd /store
ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f client
rclone serve sftp /store/sftp --addr :2022 --key host --authorized-keys client.pub &
exec rclone serve s3 /store/s3 --addr :9000 --auth-key {ACCESS_KEY},{SECRET_KEY}
"""


@dataclass
class Elsewhere:
    """A server of S3 and one of SFTP, rclone's, in a container of its own."""

    image_tag: str
    name: str

    def start(self) -> None:
        docker(
            *("run", "--detach", "--name", self.name, "--tmpfs", "/store:uid=10001"),
            *("--entrypoint", "sh", f"mlflow-stack/scripts:{self.image_tag}", "-euc"),
            f"mkdir /store/s3 /store/sftp; {SERVE}",
        )

    def join(self, network: str) -> None:
        """Become reachable as `elsewhere` in a stack's outer network."""
        docker("network", "connect", "--alias", "elsewhere", network, self.name)

    def stop(self) -> None:
        docker("rm", "--force", self.name)

    def credentials(self, kind: str) -> dict[str, str]:
        """Return the files of config/secrets that the server of a kind asks for."""
        if kind == "s3":
            text = f"AWS_ACCESS_KEY_ID={ACCESS_KEY}\nAWS_SECRET_ACCESS_KEY={SECRET_KEY}\n"
            return {"offsite_credentials": text}
        if kind == "sftp":
            host_key = docker("exec", self.name, "cat", "/store/host.pub")
            client_key = docker("exec", self.name, "cat", "/store/client")
            return {"offsite_key": client_key, "offsite_known_hosts": f"[elsewhere]:2022 {host_key}"}
        return {}


@pytest.fixture(scope="module")
def elsewhere(stack: Stack) -> Iterator[Elsewhere]:
    server = Elsewhere(stack.image_tag, f"{stack.project}-elsewhere")
    server.start()
    yield server
    server.stop()


def give(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def configured(stack: Stack, folder: Path, repository: str, **more: str) -> Stack:
    (folder / "secrets").mkdir(parents=True)
    stack.extra.update(
        CONFIG_FOLDER=str(folder),
        COMPOSE_FILE="docker-compose.yml:compose/offsite.yml",
        OFFSITE_REPOSITORY=repository,
        **more,
    )
    return stack


def seed() -> tuple[str, str]:
    """Log a run with an artifact and make a webhook-free registered model; return the run's id."""
    client = mlflow.MlflowClient()
    run = client.create_run("0", run_name="before the fire")
    client.log_metric(run.info.run_id, "point", 4.5)
    client.log_text(run.info.run_id, "kept elsewhere", "note.txt")
    client.create_registered_model("elsewhere")
    return run.info.run_id, "kept elsewhere"


@pytest.mark.parametrize(
    "kind",
    ["s3", pytest.param("folder", marks=pytest.mark.long), pytest.param("sftp", marks=pytest.mark.long)],
)
def test_everything_comes_back_on_a_new_machine(
    stack: Stack, make_stack: Callable[..., Stack], elsewhere: Elsewhere, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "share"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    repository = {
        "s3": "s3:http://elsewhere:9000/backup",
        "sftp": "sftp://backup@elsewhere:2022//kept",
        "folder": "/offsite",
    }[kind]
    more = {"OFFSITE_FOLDER": str(folder)} if kind == "folder" else {}
    credentials = elsewhere.credentials(kind)
    first = configured(make_stack(f"first-{kind}"), tmp_path / "config", repository, **more)
    give(tmp_path / "config/secrets", credentials)
    first.verb("up", "--no-build")
    if credentials:
        elsewhere.join(f"{first.project}_outside")
    with first.logged_in():
        run_id, text = seed()
    password = first.password
    key = first.verb("backup", "recovery-key").stdout.splitlines()[0]
    poll(
        lambda: json.loads(first.verb("backup", "list", "--json").stdout),
        seconds=90,
        what="the first set",
    )
    first.verb("backup", "run")
    pushed = json.loads(first.verb("backup", "offsite", "--json").stdout)
    assert pushed["files_new"] > 500
    again = json.loads(first.verb("backup", "offsite", "--json").stdout)
    assert again["files_new"] < 50
    first.compose("down", "--volumes")  # the machine is gone, with all its volumes

    second = configured(make_stack(f"second-{kind}"), tmp_path / "new", repository, **more)
    secrets = tmp_path / "new/secrets"
    no_key = second.verb("restore", "--from-offsite", check=False)
    assert no_key.returncode == 5
    assert "there is no recovery key" in no_key.stderr
    if credentials:
        give(secrets, credentials)
        second.compose("up", "--no-start", "nginx")  # makes the network that the server must join
        elsewhere.join(f"{second.project}_outside")
    wrong = second.compose(
        *("run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "secrets"),
        *("-c", "import pyrage; print(pyrage.x25519.Identity.generate())"),
    ).stdout
    (secrets / "recovery_key").write_text(wrong)
    refused = second.verb("restore", "--from-offsite", check=False)
    assert refused.returncode != 0
    assert "wrong password" in refused.stderr or "recovery key" in refused.stderr
    (secrets / "recovery_key").write_text(key + "\n")
    second.verb("restore", "--from-offsite", "--yes")

    assert second.password == password
    assert second.verb("backup", "recovery-key").stdout.splitlines()[0] == key
    with second.logged_in():
        client = mlflow.MlflowClient()
        run = client.get_run(run_id)
        assert run.info.run_name == "before the fire"
        assert run.data.metrics == {"point": 4.5}
        assert mlflow.artifacts.load_text(f"runs:/{run_id}/note.txt") == text
        assert client.get_registered_model("elsewhere").name == "elsewhere"
        client.log_metric(run_id, "after", 1.0)
    poll(
        lambda: second.verb("backup", "status", check=False).returncode == 0,
        seconds=120,
        what="the new machine is protected",
    )
    second.compose("down", "--volumes")


def test_a_repository_without_the_overlay_is_refused(stack: Stack) -> None:
    refused = stack.verb("up", "--no-build", check=False, OFFSITE_REPOSITORY="s3:https://s3.invalid/backup")
    assert refused.returncode == 5
    assert "compose/offsite.yml" in refused.stderr
    assert ROOT.joinpath("compose/offsite.yml").exists()
