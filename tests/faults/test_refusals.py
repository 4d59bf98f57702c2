"""States of the data that must not be touched: each is refused with a line that says the fix."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from kit.stack import Stack


@pytest.fixture(scope="module")
def own(stack: Stack, make_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """A stack with data, stopped: each test changes it, sees the refusal, and changes it back."""
    own = make_stack("refusals")
    own.verb("up", "--no-build")
    yield own
    own.compose("down", "--volumes")


def refusal(stack: Stack, **settings: str) -> str:
    done = stack.verb("up", "--no-build", check=False, **settings)
    assert done.returncode != 0
    assert "fix: " in done.stderr
    return done.stderr


def set_revision(stack: Stack, revision: str) -> str:
    old = stack.psql("SELECT version_num FROM alembic_version")
    stack.psql(f"UPDATE alembic_version SET version_num = '{revision}'")
    return old


@pytest.mark.parametrize(
    ("revision", "words"), [("cbc13b556ace", "the older schema"), ("ffffffffffff", "a newer MLflow wrote it")]
)
def test_an_older_or_newer_schema_is_refused_and_left_alone(own: Stack, revision: str, words: str) -> None:
    old = set_revision(own, revision)
    try:
        text = refusal(own)
        assert "prepare refused to start" in text
        assert words in text
        assert own.psql("SELECT version_num FROM alembic_version") == revision
    finally:
        set_revision(own, old)
    own.verb("up", "--no-build")


def postgres_once(stack: Stack, script: str) -> subprocess.CompletedProcess:
    """Run PostgreSQL's start script in a container beside the service, after `script` of the shell."""
    words = ["run", "--rm", "--no-deps", "-T", "--entrypoint", "bash", "postgres", "-c"]
    return stack.compose(*words, f"{script}exec /opt/postgres/start.sh", check=False, timeout=60)


def test_a_second_postgresql_on_the_data_volume_is_refused(own: Stack) -> None:
    done = postgres_once(own, "")
    assert done.returncode == 78
    assert "REFUSED: another container runs PostgreSQL on this data volume" in done.stderr + done.stdout
    own.psql("SELECT 1")


def test_postgresql_starts_when_the_number_of_its_killed_process_is_taken(own: Stack) -> None:
    """A new container counts from 1 again: the number in the file of the killed one is this script's."""
    own.compose("stop", "postgres")
    stop_when_ready = (
        "(until psql --host=/run/postgresql --username=postgres --command='SELECT 1'; do sleep 0.2; done;"
        " kill -INT $$) & echo $$ >/data/17/postmaster.pid; "
    )
    done = postgres_once(own, stop_when_ready)
    assert done.returncode == 0, done.stderr
    own.verb("up", "--no-build")


def test_a_data_volume_of_another_postgresql_is_refused_and_left_alone(own: Stack) -> None:
    own.verb("down")
    volume = f"{own.project}_postgres-data:/data"
    image = f"mlflow-stack/postgres:{own.image_tag}"

    def in_volume(script: str) -> str:
        command = ["docker", "run", "--rm", "--volume", volume, image, "sh", "-c", script]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    in_volume("mkdir /data/16 && echo 16 > /data/16/PG_VERSION")
    listing = in_volume("ls /data")
    try:
        text = refusal(own)
        assert "belongs to PostgreSQL 16, this image is PostgreSQL 17" in text
        assert in_volume("ls /data") == listing
    finally:
        own.compose("stop", "postgres")
        in_volume("rm -r /data/16")
    own.verb("up", "--no-build")


def test_more_connections_than_postgresql_has_are_refused_before_the_server_starts(own: Stack) -> None:
    text = refusal(own, MLFLOW_WORKERS="8", MLFLOW_THREADS="64")
    assert "POSTGRES_MAX_CONNECTIONS is 500" in text
    own.verb("up", "--no-build")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("postgresql://me:hunter2@db.example.com/runs", "password"),
        ("sqlite:///mlflow.db", "postgresql+psycopg2://"),
    ],
)
def test_a_database_address_that_cannot_work_is_refused_without_the_host_script_too(
    own: Stack, uri: str, words: str
) -> None:
    text = refusal(own, DATABASE_URI=uri)
    assert words in text
    done = own.compose("run", "--rm", "--no-deps", "-T", "prepare", check=False, DATABASE_URI=uri)
    assert done.returncode == 78
    assert "REFUSED" in done.stderr + done.stdout
    assert "hunter2" not in done.stderr + done.stdout


def test_a_plain_postgresql_address_works_because_the_driver_is_named_for_it(own: Stack) -> None:
    done = own.compose(
        *("run", "--rm", "--no-deps", "-T", "prepare"), DATABASE_URI="postgresql://mlflow@postgres/mlflow"
    )
    assert "ready: schema" in done.stdout


def test_a_key_in_config_secrets_that_names_nothing_is_refused(own: Stack) -> None:
    script = (
        "mkdir -p /tmp/o && echo x > /tmp/o/admin_pasword && exec stackops secrets --overrides /tmp/o ensure"
    )
    done = own.compose(
        *(
            "run",
            "--rm",
            "--no-deps",
            "-T",
            "--entrypoint",
            "sh",
            "--volume",
            "/tmp",
            "secrets",
            "-c",
            script,
        ),
        check=False,
    )
    assert done.returncode == 5
    assert "names no secret" in done.stderr
