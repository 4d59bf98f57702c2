"""A volume that PostgreSQL 16 wrote, with an older MLflow's schema in it: one upgrade moves both."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.test_old_databases import OLD, modern, read_back, unpack_artifacts
from kit.stack import ROOT, Stack, poll

VERSION = "2.22.5"
DOCKERFILE = """FROM mlflow-stack/base:trixie
COPY . /opt/wheel/
RUN mkdir -p /usr/lib/postgresql && ln -s /opt/wheel/pgserver/pginstall /usr/lib/postgresql/16 \\
    && chmod -R a+rX /opt/wheel && chmod a+x /usr/lib/postgresql/16/bin/* \\
    && groupadd --gid 10001 postgres && useradd --uid 10001 --gid 10001 --no-create-home postgres
USER 10001:10001
"""


@pytest.fixture(scope="module")
def postgres_16(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with PostgreSQL 16, whose server and initdb are in /usr/lib/postgresql/16/bin."""
    folder = tmp_path_factory.mktemp("postgres16")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--only-binary=:all:", "--python-version=3.11", "--platform=manylinux2014_x86_64"),
            *("--require-hashes", "--dest", str(folder)),
            *("--requirement", str(ROOT / "tests/data/postgresql-16.txt")),
        ],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    (folder / "Dockerfile").write_text(DOCKERFILE)
    image = f"mlflow-stack/postgres16:{stack.image_tag}"
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", image, str(folder)],
        check=True,
        capture_output=True,
    )
    yield image
    subprocess.run(["docker", "rmi", "--force", image], check=True, capture_output=True)


def write_former_volume(stack: Stack, image: str) -> None:
    """Put a cluster of PostgreSQL 16 with the old database into the place of the stack's."""
    dump = gzip.decompress((OLD / VERSION / "database.sql.gz").read_bytes())
    script = """set -e
        PATH=/usr/lib/postgresql/16/bin:$PATH
        rm -rf /data/17
        initdb -D /data/16 -U postgres --locale=C.UTF-8 --encoding=UTF8 >/dev/null
        pg_ctl -D /data/16 -w -l /tmp/log \
            -o "-c listen_addresses= -c unix_socket_directories=/tmp" start >/dev/null
        psql -h /tmp -U postgres -qc 'CREATE ROLE mlflow LOGIN' -c 'CREATE DATABASE mlflow OWNER mlflow' \
            -c 'CREATE DATABASE mlflow_auth OWNER mlflow'
        psql -h /tmp -U postgres -d mlflow_auth -qc 'SET ROLE mlflow' \
            -c "CREATE TABLE granted AS SELECT 'ada' AS name"
        (echo 'SET ROLE mlflow;'; grep -v '^SET transaction_timeout\\|^.restrict\\|^.unrestrict') |
            psql -h /tmp -U postgres -d mlflow -qv ON_ERROR_STOP=1 >/dev/null
        pg_ctl -D /data/16 -w -m fast stop >/dev/null"""
    volume = f"{stack.project}_postgres-data:/data"
    done = subprocess.run(
        ["docker", "run", "--rm", "--interactive", "--volume", volume, image, "sh", "-c", script],
        input=dump,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


@pytest.mark.long
def test_an_older_major_with_an_older_schema_is_upgraded_and_rolled_back(
    stack: Stack, make_stack: Callable[..., Stack], postgres_16: str, tmp_path: Path
) -> None:
    own = make_stack("major", POSTGRES_FORMER_IMAGE=postgres_16)
    own.verb("up", "--no-build")
    unpack_artifacts(own, VERSION)
    own.compose("stop", "nginx", "mlflow", "cron", "backup", "postgres")
    write_former_volume(own, postgres_16)
    refused = own.verb("up", "--no-build", check=False)
    assert "the data volume belongs to PostgreSQL 16" in refused.stderr

    own.verb("upgrade", "--yes")
    assert own.psql("SHOW server_version_num").startswith("17")
    assert own.psql("SELECT name FROM granted", database="mlflow_auth") == "ada"
    with own.logged_in():
        expected = modern(json.loads((OLD / VERSION / "expected.json").read_text()), VERSION)
        found = read_back(own, tmp_path)
    for kind in ("experiments", "runs", "registered_models", "prompts", "traces"):
        assert found[kind] == expected[kind], kind
    poll(
        lambda: json.loads(own.verb("backup", "list", "--json").stdout),
        seconds=120,
        what="the backup has begun anew",
    )

    back = own.verb("rollback", "--yes", check=False)  # this version refuses 16, and says so
    assert "the former database does not start" in back.stderr
    kept = own.compose("run", "--rm", "--no-deps", "-T", "restore", "restore", "former", "--json").stdout
    assert json.loads(kept)["major"] == "16"
    own.compose("down", "--volumes")
