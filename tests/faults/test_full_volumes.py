"""A data volume runs full: who says what, what goes on, and what happens when there is room again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
import requests

from kit.door import docker
from kit.stack import Stack, poll
from kit.writer import Writer

MEGABYTE = 1 << 20

OVERLAY = """
services:
  keeper:  # the volumes are memory: they must stay mounted while a service restarts
    image: mlflow-stack/scripts:${IMAGE_TAG}
    entrypoint: [sleep, infinity]
    init: true
    user: "0:0"
    network_mode: none
    volumes: ["postgres-data:/postgres", "minio-data:/minio", "backups:/backups"]
volumes:
  postgres-data: {driver_opts: {type: tmpfs, device: tmpfs, o: "size=320m,uid=10001,gid=10001,mode=0700"}}
  minio-data: {driver_opts: {type: tmpfs, device: tmpfs, o: "size=64m,uid=10002,gid=10002,mode=0700"}}
  backups: {driver_opts: {type: tmpfs, device: tmpfs, o: "size=320m,uid=10001,gid=10001,mode=0700"}}
"""


@pytest.fixture(scope="module")
def small(
    stack: Stack, make_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack with small volumes and a short patience for the backup, logged in."""
    overlay: Path = tmp_path_factory.mktemp("overlay") / "small.yml"
    overlay.write_text(OVERLAY)
    small = make_stack("volumes", COMPOSE_FILE=f"docker-compose.yml:{overlay}", POSTGRES_WAL_KEEP="48m")
    small.image_tag = stack.image_tag
    with small.protected("--no-build"):
        yield small


def in_keeper(stack: Stack, script: str) -> str:
    return stack.compose("exec", "-T", "keeper", "sh", "-ec", script).stdout.strip()


@contextmanager
def filled(stack: Stack, volume: str, room_bytes: int) -> Iterator[None]:
    """Fill a volume up to a rest; make room again at the end."""
    free = int(in_keeper(stack, f"df --block-size=1 --output=avail /{volume} | tail -n 1"))
    in_keeper(stack, f"fallocate --length {free - room_bytes} /{volume}/filler")
    try:
        yield
    finally:
        in_keeper(stack, f"rm /{volume}/filler")


def write_log(stack: Stack, megabytes: int) -> bool:
    """Make PostgreSQL write that much log and nothing else; return whether it could."""
    message = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 32768) WHERE i > 0)"
    rows = f"generate_series(1, {megabytes}) i"
    statement = f"SELECT max(pg_logical_emit_message(false, 'test', {message})) FROM {rows}"
    psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "mlflow", "-Atqc", statement)
    return stack.compose("exec", "-T", "postgres", *psql, check=False).returncode == 0


def log_params(stack: Stack, run_id: str, batch: int) -> requests.Response:
    """Log 100 long params in one request, as a client does, but without its retries."""
    params = [{"key": f"{batch}-{number}", "value": os.urandom(2900).hex()} for number in range(100)]
    return stack.post("/api/2.0/mlflow/runs/log-batch", json={"run_id": run_id, "params": params}, timeout=60)


def test_a_full_database_volume_is_named_retried_and_loses_nothing(small: Stack) -> None:
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    restarts = small.inspect(small.container("postgres"))["RestartCount"]
    with Writer(small) as writer:
        writer.goes_on()
        with filled(small, "postgres", 6 * MEGABYTE):
            answers = []

            def refused() -> bool:
                answers.append(log_params(small, run_id, len(answers)))
                return answers[-1].status_code != 200

            poll(refused, seconds=60, what="the volume runs full", interval=0)
            answer = answers[-1]
            assert answer.status_code == 503  # a client tries again for four minutes
            assert "No space left on device" in answer.text
            assert "the disk is nearly full: postgres" in small.verb("status", check=False).stderr
        writer.goes_on()
    writer.assert_nothing_lost()
    stored = set(mlflow.MlflowClient().get_run(run_id).data.params)
    for batch, answer in enumerate(answers):
        keys = {f"{batch}-{number}" for number in range(100)}
        assert keys <= stored if answer.status_code == 200 else keys.isdisjoint(stored)
    assert small.inspect(small.container("postgres"))["RestartCount"] == restarts


@pytest.mark.long
def test_a_database_without_room_for_its_log_starts_again_when_there_is_room(small: Stack) -> None:
    container = small.container("postgres")
    restarts = small.inspect(container)["RestartCount"]
    with Writer(small) as writer:
        writer.goes_on()
        with filled(small, "postgres", MEGABYTE):
            assert not write_log(small, 300)  # PostgreSQL gives up: it must not go on without a log
            poll(
                lambda: small.inspect(container)["RestartCount"] > restarts + 1,
                seconds=60,
                what="Docker tries to start it again and again",
            )
            poll(lambda: not small.is_ready(), seconds=30, what="/health says so")
            answer = small.post("/api/2.0/mlflow/runs/create", json={"experiment_id": "0"}, timeout=60)
            assert answer.status_code == 503
        writer.goes_on()
    writer.assert_nothing_lost()
    small.wait_ready()


def test_a_full_artifact_volume_is_507_at_once_and_all_else_goes_on(small: Stack, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    digests: dict[str, str] = {}

    def upload(name: str) -> requests.Response:
        body = os.urandom(2 * MEGABYTE)
        url = f"{small.url}/api/2.0/mlflow-artifacts/artifacts/0/{run_id}/artifacts/{name}"
        answer = small.session().put(url, data=body, timeout=60)
        if answer.status_code == 200:
            digests[name] = hashlib.sha256(body).hexdigest()
        return answer

    def all_there() -> bool:
        for name, digest in digests.items():
            path = client.download_artifacts(run_id, name, str(tmp_path))
            assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest
        return True

    assert upload("before").status_code == 200
    with Writer(small) as writer:
        writer.goes_on()
        with filled(small, "minio", 7 * MEGABYTE):
            answers = []

            def refused() -> bool:
                answers.append(upload(f"{len(answers)}.bin"))
                return answers[-1].status_code != 200

            poll(refused, seconds=60, what="the volume runs full", interval=0)
            answer = answers[-1]
            said = small.compose(
                "logs", "--no-color", "--no-log-prefix", "--tail", "20", "nginx", "minio"
            ).stdout
            assert answer.status_code == 507, said
            assert "The object storage has no room" in answer.text
            large = tmp_path / "large.bin"
            large.write_bytes(os.urandom(8 * MEGABYTE))
            with pytest.raises(Exception, match="object storage has no room"):
                client.log_artifact(run_id, str(large))
            assert all_there()  # reading goes on
            writer.goes_on()
        poll(lambda: upload("after").status_code == 200, seconds=60, what="uploads work again")
    assert writer.failed == []
    assert all_there()


def test_a_full_backup_volume_disturbs_no_client_and_is_said(small: Stack) -> None:
    with Writer(small) as writer:
        writer.goes_on()
        with filled(small, "backups", 0):

            def said() -> str:
                done = small.verb("backup", "status", check=False)
                return done.stdout if done.returncode == 1 else ""

            text = poll(said, seconds=60, what="./stack backup status exits 1")
            assert "the backup volume is full: 0 MB left" in text
            refused = small.verb("backup", "run", check=False)
            assert refused.returncode == 1
            assert "the backup volume is full" in refused.stderr
            assert 'stack_backup_ok{part="log"} 0.0' in small.verb("metrics").stdout
            small.psql("SELECT pg_switch_wal()")  # the receiver has no room for the next segment
            poll(
                lambda: small.inspect(small.container("backup"))["State"]["Health"]["Status"] == "unhealthy",
                seconds=90,
                what="the service backup is unhealthy",
            )
            writer.goes_on(points=100)
        poll(
            lambda: small.verb("backup", "status", check=False).returncode == 0,
            seconds=90,
            what="the backup is well again",
        )
    writer.assert_nothing_lost()
    made = json.loads(small.verb("backup", "run", "--json").stdout)
    small.verb("backup", "verify", made["set"])
    left_over = in_keeper(small, "find /backups/state -name '.*.json.*'")
    assert left_over == ""


@pytest.mark.long
def test_a_backup_that_was_away_for_too_long_makes_a_full_set_by_itself(small: Stack) -> None:
    before = small.sets()
    container = small.container("backup")

    def slot() -> str:
        return small.psql("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'barman'")

    assert slot() != "lost"
    with Writer(small) as writer:
        writer.goes_on()
        docker("pause", container)
        try:
            assert write_log(small, 100)

            def given_up() -> bool:
                small.psql("CHECKPOINT")  # the second one: the log's summary comes after the first
                return slot() == "lost"

            poll(given_up, seconds=150, what="the slot is given up: the log must not fill the volume")
            writer.goes_on()
        finally:
            docker("unpause", container)
        added = poll(lambda: small.sets()[len(before) :], seconds=120, what="a new set is made by itself")
    assert writer.failed == []
    assert added[0]["kind"] == "full"
    assert added[0]["label"] == "the log has a gap: the receiver was away for too long"
    assert "the log has a gap" in small.compose("logs", "--no-color", "backup").stdout
    poll(lambda: slot() != "lost", seconds=60, what="there is a slot again")
    poll(
        lambda: small.verb("backup", "status", check=False).returncode == 0,
        seconds=90,
        what="the backup is well again",
    )
    small.verb("backup", "verify", added[0]["set"])
