"""Databases that real servers of older MLflows left, migrated: the new client reads what the old one read.

The fixtures are described in tests/data/old/make.py. One stack serves all versions, one
after the other.
"""

from __future__ import annotations

import copy
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from packaging.version import Version

from kit.stack import ROOT, Stack, poll
from stackserver.migrate import MAINTENANCE_LOCK, TESTED_REVISIONS

OLD = ROOT / "tests" / "data" / "old"
VERSIONS = sorted((path.parent.name for path in OLD.glob("*/expected.json")), key=Version)
MIGRATE = ("run", "--rm", "--no-deps", "-T", "prepare", "python", "-m", "stackserver.prepare", "--migrate")
UNPACK = """
import os, sys, tarfile
from stackserver.settings import read_settings
from stackserver.storage import s3_client
settings = read_settings()
client = s3_client(os.environ["MLFLOW_S3_ENDPOINT_URL"])
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
    for entry in archive:
        key = settings.artifact_prefix + "/" + entry.name
        client.put_object(Bucket=settings.bucket, Key=key, Body=archive.extractfile(entry).read())
"""


@dataclass(frozen=True)
class Migrated:
    """A stack whose data came from an old MLflow, and what is known of it."""

    stack: Stack
    version: str
    outcome: dict[str, Any]
    expected: dict[str, Any]
    found: dict[str, Any]

    @property
    def client(self) -> MlflowClient:
        """A client of this stack."""
        return MlflowClient(tracking_uri=self.stack.url)

    def run_named(self, name: str) -> str:
        """Return the id of the run with a name."""
        (run_id,) = [run_id for run_id, run in self.expected["runs"].items() if run["run_name"] == name]
        return run_id


def fed(stack: Stack, data: bytes, *words: str) -> None:
    """Run docker compose WORDS with data on its standard input. Raise AssertionError with its errors."""
    done = subprocess.run(
        ["docker", "compose", *words],
        cwd=ROOT,
        env=stack.environment,
        input=data,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def load(stack: Stack, version: str) -> None:
    """Put an old database and its artifacts in the place of the stack's; MLflow is stopped."""
    stack.compose("stop", "nginx", "mlflow")
    for statement in (
        "DROP DATABASE mlflow WITH (FORCE)",
        "CREATE DATABASE mlflow OWNER mlflow",
        "REVOKE ALL ON DATABASE mlflow FROM PUBLIC",
        "GRANT CONNECT, CREATE ON DATABASE mlflow TO stackops",
    ):
        stack.psql(statement, database="postgres")
    dump = gzip.decompress((OLD / version / "database.sql.gz").read_bytes())
    psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "mlflow", "-qv", "ON_ERROR_STOP=1")
    fed(stack, b"SET ROLE mlflow;\n" + dump, "exec", "-T", "postgres", *psql)
    unpack_artifacts(stack, version)


def unpack_artifacts(stack: Stack, version: str) -> None:
    """Put an old server's artifacts into the bucket."""
    artifacts = (OLD / version / "artifacts.tar.gz").read_bytes()
    fed(stack, artifacts, "run", "--rm", "--no-deps", "-T", "mlflow", "python", "-c", UNPACK)


def migrate(stack: Stack) -> dict[str, Any]:
    """Migrate; return the outcome."""
    return json.loads(stack.compose(*MIGRATE).stdout.splitlines()[-1])


def read_back(stack: Stack, folder: Path) -> dict[str, Any]:
    """Return what this environment's client reads through nginx, in a process of its own."""
    command = [sys.executable, str(OLD / "reading.py"), stack.url, str(folder / "found.json")]
    done = subprocess.run(
        command,
        cwd=folder,
        env=stack.environment | stack.client_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def own(stack: Stack, make_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """A stack of this module, started once so that its volumes and bucket are there."""
    own = make_stack("old")
    own.verb("up", "--no-build")
    mlflow.set_tracking_uri(own.url)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.client_environment.items():
            patch.setenv(name, value)
        yield own
    mlflow.set_tracking_uri(stack.url)
    own.compose("down", "--volumes")


IN_CI = ("2.9.2",)
"""The oldest; the others, and 2.22.5 in test_major.py, are in ./stack test --long."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(version, marks=() if version in IN_CI else pytest.mark.long) for version in VERSIONS
    ],
)
def migrated(
    own: Stack, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Migrated:
    """The stack after the migration of one version's data, serving."""
    version = request.param
    load(own, version)
    upgraded = own.verb("upgrade", "--yes").stdout
    (line,) = [line for line in upgraded.splitlines() if line.startswith('{"ok"')]
    outcome = json.loads(line)
    expected = json.loads((OLD / version / "expected.json").read_text())
    found = read_back(own, tmp_path_factory.mktemp("found"))
    return Migrated(own, version, outcome, expected, found)


def modern(expected: dict[str, Any], version: str) -> dict[str, Any]:
    """Return what an old client read in the form in which 3.17.2 shows the same.

    - A model version without a LoggedModel: 3.x has a `model_id` that says None, 2.x none.
    - An empty `status_message` of a model version: 2.9 says "", later clients None.
    - The tags of a prompt: 2.22 shows them on each of its versions too.
    - A trace of 2.22: `request_id` is called `trace_id`, `status` `state`, the times have
      other units, the experiment is a location, and no assessments are not shown.
    """
    expected = copy.deepcopy(expected)
    for model in expected["registered_models"].values():
        for entry in model["versions"].values():
            entry.setdefault("model_id", None)
            entry["status_message"] = entry["status_message"] or None
    if Version(version).major < 3:
        for prompt in expected["prompts"].values():
            for entry in prompt["versions"].values():
                entry["tags"] = dict(entry["tags"].items() - prompt["tags"].items())
        for trace in expected["traces"].values():
            trace["info"] = modern_trace_info(trace["info"])
    return expected


def modern_trace_info(info: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a trace of 2.22 as 3.x shows it."""
    time = datetime.fromtimestamp(info["timestamp_ms"] / 1000, UTC).isoformat(timespec="milliseconds")
    assert info["assessments"] == []
    return {
        "trace_id": info["request_id"],
        "trace_location": {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": info["experiment_id"]},
        },
        "request_time": time.replace("+00:00", "Z"),
        "execution_duration_ms": info["execution_time_ms"],
        "state": info["status"],
        "trace_metadata": info["request_metadata"],
        "tags": info["tags"],
    }


def test_there_is_a_fixture_of_each_tested_revision() -> None:
    from stackserver.database import pinned_revision

    tested = {version for revision, version in TESTED_REVISIONS.items() if revision != pinned_revision()}
    assert tested == set(VERSIONS)


def test_the_migration_loses_nothing_by_its_own_count(migrated: Migrated) -> None:
    outcome = migrated.outcome
    assert (outcome["ok"], outcome["migrated"], outcome["differences"]) == (True, True, [])
    assert outcome["mlflow_before"] == migrated.version
    assert outcome["mlflow_after"] == mlflow.__version__
    assert outcome["rows"]["runs"] == [len(migrated.expected["runs"])] * 2


@pytest.mark.parametrize(
    "kind", ["experiments", "runs", "registered_models", "prompts", "logged_models", "traces"]
)
def test_the_new_client_reads_what_the_old_client_read(migrated: Migrated, kind: str) -> None:
    expected, found = modern(migrated.expected, migrated.version)[kind], migrated.found[kind]
    assert found.keys() == expected.keys()
    for name, entry in expected.items():
        assert found[name] == entry, name


def test_a_registered_model_loads(migrated: Migrated) -> None:
    folder = mlflow.artifacts.download_artifacts("models:/penguin-clf@champion")
    model = mlflow.models.Model.load(folder)
    assert model.run_id == migrated.expected["registered_models"]["penguin-clf"]["versions"]["3"]["run_id"]
    assert (Path(folder) / model.flavors["sklearn"]["pickled_model"]).stat().st_size > 0


def test_a_deleted_run_comes_back_whole(migrated: Migrated) -> None:
    client, run_id = migrated.client, migrated.run_named("deleted")
    client.restore_run(run_id)
    run = client.get_run(run_id)
    assert (run.info.lifecycle_stage, run.data.params, run.data.metrics) == (
        "active",
        {"p": "deleted"},
        {"m": 1.5},
    )
    client.delete_run(run_id)


def test_new_things_take_ids_of_their_own(migrated: Migrated) -> None:
    client = migrated.client
    experiment_id = client.create_experiment("after the migration")
    assert experiment_id not in migrated.expected["experiments"]
    run_id = client.create_run(experiment_id).info.run_id
    client.log_metric(run_id, "m", 1.0)
    client.log_text(run_id, "new\n", "new.txt")
    assert [entry.path for entry in client.list_artifacts(run_id)] == ["new.txt"]
    child = migrated.run_named("child 0")
    version = client.create_model_version("penguin-clf", f"runs:/{child}/model", child)
    assert str(version.version) == "5"


def test_an_old_run_takes_more_metrics(migrated: Migrated) -> None:
    client, run_id = migrated.client, migrated.run_named("running")
    client.log_metric(run_id, "new", 2.0, step=1)
    client.set_terminated(run_id)
    assert client.get_run(run_id).data.metrics == {"new": 2.0}


@pytest.fixture
def loaded(own: Stack) -> Stack:
    """The stack with the oldest data, not yet migrated."""
    load(own, VERSIONS[0])
    return own


def refusal(stack: Stack, *words: str) -> str:
    done = stack.compose(*(words or MIGRATE), check=False)
    assert done.returncode == 78
    return done.stderr


def test_without_the_migration_an_old_database_is_refused(loaded: Stack) -> None:
    text = refusal(loaded, "run", "--rm", "--no-deps", "-T", "prepare")
    assert "REFUSED: the database has the older schema acf3f17fdcc7" in text


def test_a_revision_that_was_not_tested_is_refused(loaded: Stack) -> None:
    loaded.psql("UPDATE alembic_version SET version_num = '770bee3ae1dd'")
    text = refusal(loaded)
    assert "from which no migration was tested" in text
    assert "mlflow db upgrade" in text
    assert loaded.psql("SELECT version_num FROM alembic_version") == "770bee3ae1dd"


def sessions(stack: Stack, query: str) -> bool:
    """Return whether a session that runs this query is there."""
    found = f"SELECT count(*) FROM pg_stat_activity WHERE query = '{query}' AND pid <> pg_backend_pid()"
    return stack.psql(found.replace(query, query.replace("'", "''"))) != "0"


def end_sessions(stack: Stack) -> None:
    stack.psql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = 'mlflow' AND pid <> pg_backend_pid()"
    )


def test_a_migration_beside_another_maintenance_job_is_refused(loaded: Stack) -> None:
    query = f"SELECT pg_advisory_lock(hashtext('{MAINTENANCE_LOCK}')), pg_sleep(600)"
    psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "mlflow", "-Atqc", query)
    loaded.compose("exec", "-T", "--detach", "postgres", *psql)
    poll(lambda: sessions(loaded, query), seconds=20, what="the other job holds the lock")
    assert "another maintenance job" in refusal(loaded)
    end_sessions(loaded)
    assert migrate(loaded)["migrated"]
    again = migrate(loaded)
    assert (again["ok"], again["migrated"]) == (True, False)


def test_a_migration_beside_a_running_server_is_refused(loaded: Stack) -> None:
    query = "SELECT pg_sleep(600)"
    script = (
        "from stackserver.database import connect; from stackserver.settings import read_settings;"
        f"connect(read_settings().database_uri, timeout_ms=0).cursor().execute('{query}')"
    )
    loaded.compose("run", "--rm", "--detach", "--no-deps", "-T", "mlflow", "python", "-c", script)
    poll(lambda: sessions(loaded, query), seconds=20, what="the server is connected")
    assert "a server still runs" in refusal(loaded)
    end_sessions(loaded)
    assert migrate(loaded)["migrated"]


def test_a_table_that_the_migration_may_not_read_is_refused(loaded: Stack) -> None:
    loaded.psql("CREATE TABLE somebody_elses (number int)")
    assert "permission denied for table somebody_elses" in refusal(loaded)


def contents(stack: Stack) -> str:
    """Return the database as it is, as text."""
    dump = ("pg_dump", "-h", "/run/postgresql", "-U", "postgres", "--restrict-key=x", "mlflow")
    return stack.compose("exec", "-T", "postgres", *dump).stdout


def test_an_upgrade_that_fails_brings_the_old_data_back_by_itself(loaded: Stack) -> None:
    # The migration will want to make it.
    loaded.psql("CREATE TABLE logged_models (in_the_way int)")
    loaded.psql("ALTER TABLE logged_models OWNER TO mlflow")
    before = contents(loaded)
    done = loaded.verb("upgrade", "--yes", check=False)
    assert done.returncode == 1
    assert "MLflow's migration failed" in done.stdout + done.stderr
    assert contents(loaded) == before


@pytest.mark.long
def test_an_upgrade_is_rolled_back_and_the_roll_back_too(loaded: Stack) -> None:
    before = contents(loaded)
    loaded.verb("upgrade", "--yes")
    run = MlflowClient(tracking_uri=loaded.url).create_run("0", run_name="after the upgrade")
    # The former version is the same code here, so that it refuses the old schema: its data counts.
    back = loaded.verb("rollback", "--yes", check=False)
    assert "the former database does not start" in back.stderr
    assert contents(loaded) == before
    loaded.verb("rollback", "--yes")
    found = MlflowClient(tracking_uri=loaded.url).get_run(run.info.run_id)
    assert found.info.run_name == "after the upgrade"


def test_an_upgrade_from_an_untested_revision_changes_nothing(loaded: Stack) -> None:
    loaded.psql("UPDATE alembic_version SET version_num = '770bee3ae1dd'")
    before = contents(loaded)
    done = loaded.verb("upgrade", "--yes", check=False)
    assert done.returncode == 5
    assert "from which no migration was tested" in done.stderr
    assert contents(loaded) == before
