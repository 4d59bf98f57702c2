"""What is lost when volumes are lost, and what a restore brings back: on a real stack."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime

import mlflow
import pytest

from kit.stack import Stack, poll
from kit.writer import Writer

SECONDS_LOST_AT_MOST = 5


@pytest.fixture(scope="module")
def protected(stack: Stack, make_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """A stack of its own with a first backup set, and MLflow's client logged in to it."""
    protected = make_stack("backup")
    with protected.protected("--yes"):
        yield protected


def state(stack: Stack, part: str) -> dict:
    return json.loads(stack.compose("exec", "-T", "backup", "cat", f"/backups/state/{part}.json").stdout)


def kill_everything(stack: Stack) -> None:
    """kill -9 of every container at once, with no way back."""
    containers = stack.compose("ps", "--quiet").stdout.split()
    subprocess.run(["docker", "kill", "--signal", "KILL", *containers], check=True, capture_output=True)


def lose_volume(stack: Stack, volume: str) -> None:
    stack.compose("rm", "--force", "--stop")
    subprocess.run(["docker", "volume", "rm", f"{stack.project}_{volume}"], check=True, capture_output=True)


def wait_copied(stack: Stack) -> None:
    """Wait for a copy of the bucket that began after now."""
    before = state(stack, "objects")["last_success"]
    poll(
        lambda: state(stack, "objects")["last_success"] > before,
        seconds=60,
        what="the next copy of the bucket",
    )
    before = state(stack, "objects")["last_success"]
    poll(
        lambda: state(stack, "objects")["last_success"] > before,
        seconds=60,
        what="the copy after it",
    )


def lost_seconds(writer: Writer) -> float:
    """The age at the kill of the oldest acknowledged point that is lost; 0 if none is."""
    lost = set(writer.acknowledged) - writer.stored()
    return max(
        (
            writer.acknowledged_at[-1] - writer.acknowledged_at[writer.acknowledged.index(step)]
            for step in lost
        ),
        default=0.0,
    )


@pytest.mark.parametrize("synchronous", ["off", pytest.param("on", marks=pytest.mark.long)])
def test_a_lost_database_volume_comes_back(
    protected: Stack, synchronous: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    protected.verb("up", "--no-build", BACKUP_SYNCHRONOUS=synchronous)
    with protected.logged_in():
        run = mlflow.MlflowClient().create_run("0", run_name=f"before the loss, {synchronous}")
        writer = Writer(protected)
        with writer, monkeypatch.context() as patch:
            poll(lambda: len(writer.acknowledged) > 200, seconds=120, what="200 points are logged")
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # nobody will answer
            kill_everything(protected)
        lose_volume(protected, "postgres-data")
        refused = protected.verb("restore", "--set", "nothing", check=False)
        assert refused.returncode != 0
        assert "there is no backup set nothing" in refused.stderr
        protected.verb("restore", "--yes", BACKUP_SYNCHRONOUS=synchronous)
        assert mlflow.MlflowClient().get_run(run.info.run_id).info.run_name == run.info.run_name
        allowed = SECONDS_LOST_AT_MOST if synchronous == "off" else 0
        lost = set(writer.acknowledged) - writer.stored()
        print(
            f"synchronous {synchronous}: {len(lost)} of {len(writer.acknowledged)} acknowledged points lost"
        )
        assert lost_seconds(writer) <= allowed
        # It goes on being protected: a new set appears by itself, on the new timeline.
        poll(
            lambda: protected.sets()[-1]["label"] == "after a restore",
            seconds=120,
            what="a set after the restore",
        )


def test_a_lost_bucket_comes_back_and_is_noticed_before(protected: Stack) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    digests = {}
    for number in range(20):
        text = os.urandom(2000).hex()
        client.log_text(run_id, text, f"folder/{number}.txt")
        digests[f"folder/{number}.txt"] = hashlib.sha256(text.encode()).hexdigest()
    wait_copied(protected)
    kill_everything(protected)
    lose_volume(protected, "minio-data")

    started = protected.verb("up", "--no-build", check=False)
    said = started.stdout + started.stderr
    assert "the bucket is not the one that the backups are from" in said, said
    assert protected.verb("backup", "status", check=False).returncode == 1

    protected.verb("restore", "--yes", "--replace")
    for path, digest in digests.items():
        text = mlflow.artifacts.load_text(f"runs:/{run_id}/{path}")
        assert hashlib.sha256(text.encode()).hexdigest() == digest
    poll(
        lambda: protected.verb("backup", "status", check=False).returncode == 0,
        seconds=60,
        what="the backup is well again",
    )


def test_a_restore_to_a_moment_is_exact_and_can_be_rolled_back(protected: Stack) -> None:
    protected.psql(
        "CREATE TABLE IF NOT EXISTS marker (number int, at timestamptz); TRUNCATE marker", "postgres"
    )
    protected.psql(
        "DO $$ BEGIN FOR number IN 1..100 LOOP INSERT INTO marker VALUES (number, clock_timestamp());"
        " COMMIT; PERFORM pg_sleep(0.1); END LOOP; END $$",
        "postgres",
    )
    rows = protected.psql("SELECT number, extract(epoch FROM at) FROM marker ORDER BY 1", "postgres")
    times = {int(number): float(at) for number, _, at in (row.partition("|") for row in rows.splitlines())}
    # The whole second that is farthest from any marker: 100 ms apart, one lies 50 ms away or more.
    seconds = range(int(times[20]) + 1, int(times[90]))
    chosen = max(seconds, key=lambda second: min(abs(second - at) for at in times.values()))
    expected = {number for number, at in times.items() if at <= chosen}
    assert 10 < len(expected) < 95

    moment = datetime.fromtimestamp(chosen).astimezone().isoformat()
    protected.verb("restore", "--yes", "--replace", "--to", moment)
    found = protected.psql("SELECT number FROM marker", "postgres").split()
    assert {int(number) for number in found} == expected

    protected.verb("rollback", "--yes")
    assert len(protected.psql("SELECT number FROM marker", "postgres").split()) == len(times)


@pytest.mark.long
def test_objects_come_back_as_they_were_at_a_moment(protected: Stack) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    # Over 8 MiB and of one size: uploaded in parts, such objects have no checksum to compare.
    first, second = "1" * 9_000_000, "2" * 9_000_000
    client.log_text(run_id, first, "note.txt")
    wait_copied(protected)
    moment = protected.psql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    client.log_text(run_id, second, "note.txt")
    protected.verb("restore", "--yes", "--replace", "--to", moment)
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/note.txt") == first
    protected.verb("rollback", "--yes")
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/note.txt") == second


def test_a_drill_proves_a_set_and_finds_what_is_missing(protected: Stack) -> None:
    from sklearn.linear_model import LinearRegression

    with mlflow.start_run(experiment_id="0"):
        model = LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])
        info = mlflow.sklearn.log_model(
            model, name="model", registered_model_name="drilled", serialization_format="pickle"
        )
    mlflow.MlflowClient().set_registered_model_alias("drilled", "champion", 1)
    made = json.loads(protected.verb("backup", "run", "--json").stdout)
    facts = json.loads(protected.verb("backup", "drill", "--json").stdout)
    assert facts["set"] == made["set"]
    assert facts["models_loaded"] == 1
    assert facts["missing_objects"] == 0
    assert facts["tables"] > 60
    assert facts["objects"] == made["objects"]

    key = info.artifact_path.removeprefix("mlflow-artifacts:/")
    script = (
        "import boto3; boto3.client('s3', endpoint_url='http://minio:9000')"
        f".delete_object(Bucket='mlflow', Key='artifacts/{key}/MLmodel')"
    )
    protected.compose("exec", "-T", "mlflow", "python", "-c", script)
    protected.verb("backup", "run")
    failed = protected.verb("backup", "drill", check=False)
    assert failed.returncode == 1
    assert f"no object artifacts/{key}/MLmodel" in failed.stderr
    assert "model drilled@champion does not load" in failed.stderr
    assert "FAILED" in protected.verb("status", check=False).stdout
    metrics = protected.verb("metrics").stdout
    assert 'stack_job_ok{job="drill"} 0.0' in metrics
    assert "stack_drill_missing_objects 2.0" in metrics

    # The set before still has it.
    protected.verb("restore", "--yes", "--replace", "--set", made["set"])
    assert mlflow.sklearn.load_model("models:/drilled@champion").predict([[2.0]]) == pytest.approx([4.0])
    protected.verb("backup", "run")
    protected.verb("backup", "drill")


@pytest.mark.long
def test_a_damaged_set_is_named_and_refused_before_anything_is_touched(protected: Stack) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_text(run_id, "whole", "note.txt")
    made = json.loads(protected.verb("backup", "run", "--full", "--json").stdout)

    def inside(command: str) -> str:
        return protected.compose("exec", "-T", "backup", "sh", "-ec", command).stdout.strip()

    def refuses(*expected: str) -> None:
        for words in (
            ("restore", "--yes", "--replace", "--set", made["set"]),
            ("backup", "verify", made["set"]),
        ):
            done = protected.verb(*words, check=False)
            assert done.returncode == 1
            for text in expected:
                assert text in done.stderr
        assert client.get_run(run_id).info.status == "RUNNING"  # it went on all the time

    script = (
        "f = open(sys.argv[1], 'r+b'); f.seek(100); b = f.read(1); f.seek(100); f.write(bytes([b[0] ^ 1]))"
    )
    flip = f'python3 -c "import sys; {script}"'
    flip_first = flip.replace("seek(100)", "seek(0)")
    base = f"/backups/barman/mlflow/base/{made['set']}/data"
    inside(f"{flip} {base}/global/pg_control")
    refuses("global/pg_control")
    inside(f"{flip} {base}/global/pg_control")

    manifest = json.loads(inside(f"cat /backups/sets/{made['set']}/manifest.json"))
    segment = manifest["reference"]["wal_file"]
    path = f"/backups/barman/mlflow/wals/{segment[:16]}/{segment}"
    inside(f"mv {path} /backups/aside")
    refuses(f"log segment {segment}: missing")
    inside(f"mv /backups/aside {path}; {flip} {path}")
    refuses(f"log segment {segment}")
    inside(f"{flip} {path}")

    key = inside("cd /backups/objects/current && find artifacts -type f -size +0 | sort | head -n 1")
    path = f"/backups/objects/current/{key}"
    inside(f"touch -r '{path}' /tmp/time; {flip_first} '{path}'; touch -r /tmp/time '{path}'")
    refuses(f"object {key}: other bytes")
    # It is not the bucket's fault: the copy is fetched again.
    poll(
        lambda: inside(f"if test -e '{path}'; then echo there; fi"),
        seconds=60,
        what="the object is there again",
    )

    newer = json.dumps(manifest | {"mlflow_version": "99.0.0", "schema_revision": "newer"})
    inside(f"cat >/backups/sets/{made['set']}/manifest.json <<'END'\n{newer}\nEND")
    done = protected.verb("restore", "--yes", "--replace", "--set", made["set"], check=False)
    assert done.returncode == 5
    assert "was made by MLflow 99.0.0" in done.stderr
    inside(f"cat >/backups/sets/{made['set']}/manifest.json <<'END'\n{json.dumps(manifest)}\nEND")

    for words, text in (
        (("--to", "2031-01-01 00:00:00"), "lies in the future"),
        (("--to", "2001-01-01 00:00:00"), "no backup set is older"),
        (("--to", "yesterday"), "is no moment"),
    ):
        done = protected.verb("restore", "--yes", "--replace", *words, check=False)
        assert done.returncode == 5
        assert text in done.stderr
    protected.verb("backup", "verify", made["set"])
    assert client.get_run(run_id).info.status == "RUNNING"
