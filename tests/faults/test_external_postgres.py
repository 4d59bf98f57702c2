"""The overlay for a PostgreSQL of the operator's own: records go there, and nowhere else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit.door import disconnected
from kit.stack import ROOT, Stack, poll
from kit.writer import Writer

PASSWORD = "p:w\\d"


def docker(*words: str, check: bool = True) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=check).stdout.strip()


@pytest.fixture(scope="module")
def external(
    stack: Stack, make_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stack, str]]:
    """A stack with the overlay, and the container that plays the operator's database."""
    config: Path = tmp_path_factory.mktemp("config")
    (config / "secrets").mkdir()
    (config / "secrets" / "database_password").write_text(PASSWORD)
    roles: Path = tmp_path_factory.mktemp("roles")
    for role in ("mlflow", "stackops"):
        (roles / f"{role}_password").write_text(PASSWORD)
    roles.chmod(0o755)

    external = make_stack(
        "external",
        CONFIG_FOLDER=str(config),
        COMPOSE_FILE=f"{ROOT}/docker-compose.yml:{ROOT}/compose/external-postgres.yml",
        DATABASE_URI="postgresql://mlflow@db.example.com/mlflow",
    )
    external.compose("up", "--no-start", "--no-build")
    database = docker(
        *("run", "--detach", "--network", f"{external.project}_outside", "--network-alias", "db.example.com"),
        *("--tmpfs", "/data:uid=10001,gid=10001,mode=0700", "--tmpfs", "/run/postgresql:uid=10001,gid=10001"),
        *("--volume", f"{roles}:/secrets/postgres:ro", f"mlflow-stack/postgres:{external.image_tag}"),
    )
    yield external, database
    docker("rm", "--force", "--volumes", database, check=False)
    external.compose("down", "--volumes")


def test_records_go_to_the_operators_database(external: tuple[Stack, str]) -> None:
    stack, database = external

    def ask(statement: str) -> str:
        command = ("exec", database, "psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "mlflow")
        return docker(*command, "-Atqc", statement, check=False)

    poll(lambda: ask("SELECT 1") == "1", seconds=60, what="the operator's database answers")
    stack.verb("up", "--no-build")
    assert stack.containers("postgres") == []
    created = stack.post("/api/2.0/mlflow/experiments/create", json={"name": "elsewhere"})
    assert (created.status_code, created.headers.get("X-Answered-By")) == (200, "fastpath")
    assert ask("SELECT count(*) FROM experiments WHERE name = 'elsewhere'") == "1"
    assert ask("SELECT count(*) FROM stackops.key_fingerprints") == "2"
    assert stack.verb("status").returncode == 0


def test_logging_goes_on_when_the_operators_database_was_cut_off(external: tuple[Stack, str]) -> None:
    stack, database = external
    with stack.logged_in(), Writer(stack) as writer:
        writer.goes_on()
        with disconnected(f"{stack.project}_outside", database, "db.example.com"):
            stack.wait_not_ready()
        writer.goes_on()
        writer.assert_nothing_lost()
    stack.wait_ready()


def test_permissions_want_a_database_of_their_own_beside_it(external: tuple[Stack, str]) -> None:
    stack, database = external
    stack.extra["AUTHORIZATION"] = "rbac"
    refused = stack.verb("up", "--no-build", check=False)
    assert "keeps permissions in the database mlflow_auth" in refused.stderr
    assert 'CREATE DATABASE "mlflow_auth" OWNER "mlflow"' in refused.stderr
    psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-qc")
    docker("exec", database, *psql, 'CREATE DATABASE "mlflow_auth" OWNER "mlflow"')
    stack.verb("up", "--no-build")
    assert stack.get("/api/2.0/mlflow/users/current").json()["user"]["is_admin"] is True
