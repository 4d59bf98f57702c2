"""Retention on a history of two years: what is protected stays as it was, byte for byte; the rest goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from kit import history as kit_history
from kit.door import docker
from kit.history import GONE, KEPT, PURGED, YOUNG, History
from kit.stack import Stack, poll
from kit.writer import Writer

BULK, LONG_BULK = 2_000, 10_000
DAY_MS = 86_400_000
FIRST_CHUNK = 20
"""Runs in the first transaction of a purge (stackops.retention.purge)."""


@pytest.fixture(scope="module")
def aged(
    stack: Stack,
    make_stack: Callable[..., Stack],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[History]:
    """A stack of its own with the history, which the tests take through its life in order."""
    config: Path = tmp_path_factory.mktemp("config")
    (config / "secrets").mkdir()
    aged = make_stack("aged", CONFIG_FOLDER=str(config), RETENTION_PURGE_AFTER_DAYS="")
    aged.image_tag = stack.image_tag
    aged.verb("up", "--no-build")
    with aged.logged_in():
        yield kit_history.make(aged, LONG_BULK if request.config.getoption("--long") else BULK)
    aged.compose("down", "--volumes")


@pytest.fixture(scope="module")
def client() -> MlflowClient:
    return MlflowClient()


def verb(history: History, *words: str, **extra: str) -> Any:
    return json.loads(history.stack.verb(*words, "--json", **extra).stdout)


def refused(history: History, *words: str, **extra: str) -> str:
    done = history.stack.verb(*words, check=False, **extra)
    assert done.returncode == 5, done.stderr
    return done.stderr


def scheduled(history: History) -> dict[str, Any]:
    done = history.stack.compose("exec", "-T", "cron", "stackops", "job", "cleanup")
    return json.loads(done.stdout)


def explained(history: History, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what the verb says of each, asked in one container: a start of one for each takes minutes."""
    loop = 'for id in "$@"; do stackops cleanup explain --json "$id"; done'
    done = history.stack.compose("exec", "-T", "cron", "sh", "-ec", loop, "sh", *ids)
    return dict(zip(ids, map(json.loads, done.stdout.splitlines()), strict=True))


def deleted(history: History) -> set[str]:
    return set(history.stack.psql("SELECT run_uuid FROM runs WHERE lifecycle_stage = 'deleted'").split())


def stored(history: History) -> set[str]:
    return set(history.stack.psql("SELECT run_uuid FROM runs").split())


def test_the_databases_foreign_keys_are_those_of_mlflows_own_metadata(stack: Stack) -> None:
    import mlflow.store.model_registry.dbmodels.models
    import mlflow.store.tracking.dbmodels.models  # noqa: F401  both fill the same metadata
    from mlflow.store.db.base_sql_model import Base

    described = {
        (table.name, key.column.table.name, (key.ondelete or "no action").lower())
        for table in Base.metadata.tables.values()
        for key in table.foreign_keys
    }
    lines = stack.psql(
        "SELECT conrelid::regclass, confrelid::regclass, CASE confdeltype WHEN 'a' THEN 'no action'"
        " WHEN 'c' THEN 'cascade' WHEN 'n' THEN 'set null' END FROM pg_constraint"
        " WHERE contype = 'f' AND connamespace = 'public'::regnamespace"
    )
    found = {tuple(line.split("|")) for line in lines.splitlines()}
    assert found <= described
    assert described - found == {("input_tags", "inputs", "no action")}  # MLflow's migrations forgot it


@pytest.fixture(scope="module")
def before(aged: History) -> tuple[dict[str, str], dict[str, str]]:
    """Rows and objects of everything, before any cleanup."""
    return aged.digests(), aged.objects()


def test_a_history_that_was_adopted_is_not_swept_on_its_first_day(aged: History, before: tuple) -> None:
    found = verb(aged, "cleanup", "plan")
    assert found["runs"] == 0
    assert found["purge"]["after_days"] is None


def test_the_plan_names_what_is_old_and_what_is_kept(aged: History) -> None:
    kit_history.forget_that_it_is_new(aged.stack)
    verb(aged, "usage", "--refresh")
    found = verb(aged, "cleanup", "plan")
    assert found["runs"] == len(aged.of(GONE))
    assert found["bytes"] > 0
    assert sum(found["kept"].values()) == len(aged.of(KEPT)) - 1  # one is in a deleted experiment
    assert found["purge"]["runs"] == len(aged.of(PURGED))
    text = aged.stack.verb("cleanup", "plan").stdout
    assert "delete runs that are FINISHED and older than 90 days" in text
    assert "nothing is purged (RETENTION_PURGE_AFTER_DAYS is empty)" in text
    assert deleted(aged) == aged.of(PURGED) | {run_id for run_id in aged.of(KEPT) if run_id in deleted(aged)}


def test_every_protection_is_explained(aged: History) -> None:
    for run_id, found in explained(aged, aged.reasons).items():
        assert aged.reasons[run_id] in found["kept_because"], (run_id, found)
    gone = sorted(aged.of(GONE))[0]
    for model, found in explained(aged, aged.models).items():
        assert found["doomed"] == (aged.models[model] == GONE), model
    found = verb(aged, "cleanup", "explain", gone)
    assert (found["rule"], found["doomed"], found["kept_because"]) == ("default", True, None)
    assert "there is no run, model or trace nowhere" in refused(aged, "cleanup", "explain", "nowhere")


def test_the_first_scheduled_batch_waits_and_status_says_so(aged: History, before: tuple) -> None:
    facts = scheduled(aged)
    assert facts["state"] == "waiting"
    assert aged.digests() == before[0]
    done = aged.stack.verb("status")
    assert f"cleanup waits for approval: {facts['runs']:,} runs" in done.stdout
    assert f"./stack cleanup approve {facts['batch']}" in done.stdout
    assert done.returncode == 0  # waiting is no failure
    assert scheduled(aged)["batch"] != facts["batch"]
    assert "does not wait" in refused(aged, "cleanup", "approve", facts["batch"])
    assert "there is no batch nothing" in refused(aged, "cleanup", "approve", "nothing")


def test_an_approved_batch_deletes_as_mlflow_does_and_can_be_undone(
    aged: History, client: MlflowClient, before: tuple
) -> None:
    (batch,) = [entry["batch"] for entry in verb(aged, "cleanup", "list") if entry["state"] == "waiting"]
    chosen = sorted(aged.of(GONE))[0]
    aged.stack.psql(f"INSERT INTO tags VALUES ('keep', '', '{chosen}')")  # since the plan was made
    done = verb(aged, "cleanup", "approve", batch)
    assert done["done"] == {"run": len(aged.of(GONE)) - 1}
    aged.stack.psql(f"DELETE FROM tags WHERE key = 'keep' AND run_uuid = '{chosen}'")
    assert deleted(aged) >= aged.of(GONE) - {chosen}
    assert aged.of(KEPT, YOUNG).isdisjoint(deleted(aged) - _deleted_by_hand(aged))

    other = sorted(aged.of(GONE))[1]
    client.restore_run(other)  # as the page's button does
    assert client.get_run(other).info.lifecycle_stage == "active"
    verb(aged, "cleanup", "undo", batch)
    assert aged.digests() == before[0]
    assert "nothing to undo" in refused(aged, "cleanup", "undo", batch)
    assert verb(aged, "cleanup", "plan")["runs"] <= 1  # what came back stays
    kit_history.forget_that_it_is_new(aged.stack)


def _deleted_by_hand(aged: History) -> set[str]:
    """The kept run of a deleted experiment."""
    experiment = "SELECT experiment_id FROM experiments WHERE name = 'deleted with a model'"
    return set(aged.stack.psql(f"SELECT run_uuid FROM runs WHERE experiment_id = ({experiment})").split())


def test_nothing_is_purged_before_an_operator_says_so_and_a_backup_is_proven(aged: History) -> None:
    verb(aged, "cleanup", "run")
    assert "RETENTION_PURGE_AFTER_DAYS is empty" in refused(aged, "cleanup", "purge")
    text = refused(aged, "cleanup", "purge", RETENTION_PURGE_AFTER_DAYS="1")
    assert "no verified backup" in text
    aged.stack.verb("backup", "run")
    aged.stack.verb("backup", "verify")
    assert verb(aged, "cleanup", "purge", RETENTION_PURGE_AFTER_DAYS="1")["objects"] > 0  # of the PURGED
    assert stored(aged).isdisjoint(aged.of(PURGED))
    assert stored(aged) >= aged.of(GONE)  # deleted a minute ago
    _let_a_day_pass(aged)


def _let_a_day_pass(aged: History) -> None:
    aged.stack.psql(
        f"UPDATE runs SET deleted_time = deleted_time - 2 * {DAY_MS}"
        f" WHERE deleted_time > extract(epoch FROM now()) * 1000 - {DAY_MS};"
        "UPDATE stackops.batch_items SET done = done - interval '2 days';"
        "UPDATE stackops.known_runs SET since = since - interval '2 days'"
    )


@contextmanager
def journal_locked(aged: History) -> Iterator[None]:
    """Hold the journal's table: a purge waits within its transaction, just before it commits."""
    query = "BEGIN; LOCK TABLE stackops.doomed_objects; SELECT pg_sleep(600)"
    psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "mlflow", "-Atqc", query)
    aged.stack.compose("exec", "-T", "--detach", "postgres", *psql)
    held = "SELECT count(*) FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock'"
    held += " AND relation = 'stackops.doomed_objects'::regclass"
    poll(lambda: aged.stack.psql(held) == "1", seconds=30, what="the journal is locked")
    yield
    aged.stack.psql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK TABLE %'"
    )


def waits_for_the_journal(aged: History) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    return aged.stack.psql(f"{query} AND relation = 'stackops.doomed_objects'::regclass") != "0"


def test_a_purge_that_is_killed_is_finished_by_the_next_one(aged: History) -> None:
    """Killed before a commit and while objects go; what it leaves is found by what comes after."""

    def purge_until(ready: Callable[[], bool]) -> None:
        name = f"{aged.stack.project}-purge"
        aged.stack.compose(
            *("run", "--detach", "--no-deps", "--name", name, "ops", "cleanup", "purge"),
            RETENTION_PURGE_AFTER_DAYS="1",
        )
        poll(ready, seconds=60, what="the purge is where it is to be killed", interval=0.05)
        aged.stack.kill_container(name)
        docker("rm", "--force", name)

    rows = len(stored(aged))
    with journal_locked(aged):
        purge_until(lambda: waits_for_the_journal(aged))
    assert len(stored(aged)) == rows

    docker("pause", aged.stack.container("minio"))
    try:
        doomed = "SELECT count(*) FROM stackops.doomed_objects"
        left = f"SELECT count(*) FROM runs WHERE run_uuid IN ({_names(aged.of(GONE))})"
        purge_until(lambda: aged.stack.psql(left) == "0")
    finally:
        docker("unpause", aged.stack.container("minio"))
    assert aged.stack.psql(doomed) != "0"
    aged.stack.wait_ready()


def _names(names: set[str]) -> str:
    return ",".join(f"'{name}'" for name in sorted(names))


def test_a_purge_beside_clients_frees_all_that_is_gone_and_nothing_else(
    aged: History, client: MlflowClient, before: tuple
) -> None:
    with Writer(aged.stack) as writer:
        poll(lambda: len(writer.acknowledged) > 5, seconds=60, what="a client logs")
        verb(aged, "cleanup", "purge", RETENTION_PURGE_AFTER_DAYS="1")
    assert writer.failed == []
    assert aged.stack.psql("SELECT count(*) FROM stackops.doomed_objects") == "0"
    digests, objects = aged.digests(), aged.objects()
    kept = aged.of(KEPT, YOUNG)
    assert {run_id: digests.get(run_id) for run_id in kept} == {run_id: before[0][run_id] for run_id in kept}
    assert set(digests).isdisjoint(aged.of(GONE, PURGED))

    def owner(key: str) -> str:
        parts = key.split("/")
        return parts[3] if parts[2] in {"models", "traces"} else parts[2]

    gone = aged.of(GONE, PURGED) | {name for name, fate in aged.models.items() if fate == GONE}
    expected = {key: digest for key, digest in before[1].items() if owner(key) not in gone}
    assert {key: digest for key, digest in objects.items() if key in before[1]} == expected
    for name, version in aged.versions:
        uri = client.get_model_version_download_uri(name, version)
        assert list(Path(mlflow.artifacts.download_artifacts(uri)).rglob("*"))
    remaining = set(aged.stack.psql("SELECT name FROM experiments").splitlines())
    assert "deleted" not in remaining
    assert "deleted with a model" in remaining


def test_a_run_that_is_restored_and_registered_during_a_purge_stays(
    aged: History, client: MlflowClient
) -> None:
    """While the purge holds the first runs, just before its commit, clients take up the others."""
    experiment = client.create_experiment("races")
    runs: dict[str, str] = {}
    for number in range(FIRST_CHUNK + 8):
        run = client.create_run(experiment).info
        client.log_text(run.run_id, str(number), "a.txt")
        client.set_terminated(run.run_id)
        client.delete_run(run.run_id)
        runs[run.run_id] = run.artifact_uri
    order = sorted(runs)
    first, taken_up = order[:FIRST_CHUNK], order[FIRST_CHUNK:]
    odd = first.pop()
    aged.stack.psql(f"UPDATE runs SET artifact_uri = 's3://elsewhere/x' WHERE run_uuid = '{odd}'")
    assert {one["id"] for one in verb(aged, "cleanup", "deleted")} >= set(runs)  # they are known now
    _let_a_day_pass(aged)
    client.create_registered_model("racing")
    with ThreadPoolExecutor(1) as pool:
        with journal_locked(aged):
            purge = pool.submit(
                lambda: aged.stack.verb(
                    "cleanup", "purge", "--json", check=False, RETENTION_PURGE_AFTER_DAYS="1"
                )
            )
            poll(lambda: waits_for_the_journal(aged), seconds=60, what="the purge is about to commit")
            for run_id in taken_up:
                client.restore_run(run_id)
                client.create_model_version("racing", f"{runs[run_id]}", run_id)
        done = purge.result()
    assert done.returncode == 1
    assert f"run {odd}: its artifacts are at s3://elsewhere/x" in done.stderr
    found = json.loads(done.stdout)
    assert (found["runs"], found["skipped"]) == (len(first), 1)
    left = stored(aged)
    assert left.isdisjoint(first)
    assert left >= {odd, *taken_up}
    for run_id in taken_up:
        assert client.get_run(run_id).info.lifecycle_stage == "active"
        assert mlflow.artifacts.load_text(f"runs:/{run_id}/a.txt")
    aged.stack.psql(f"UPDATE runs SET lifecycle_stage = 'active' WHERE run_uuid = '{odd}'")


def test_orphans_are_listed_and_go_only_by_a_rule_and_twice_seen(aged: History) -> None:
    lost, unknown = f"artifacts/1/{'f' * 32}/artifacts/a.bin", "artifacts/something/else.bin"
    aged.put([lost, unknown])
    verb(aged, "usage", "--refresh")
    found = verb(aged, "cleanup", "orphans")
    assert [orphan["prefix"] for orphan in found["orphans"]] == [f"artifacts/1/{'f' * 32}/artifacts/"]
    assert found["unknown_keys"] == [unknown]
    verb(aged, "cleanup", "purge", RETENTION_PURGE_AFTER_DAYS="1")
    assert lost in aged.objects()

    policy = Path(aged.stack.extra["CONFIG_FOLDER"]) / "retention.toml"
    policy.write_text("[orphans]\ndelete_after_days = 5\n")
    verb(aged, "cleanup", "purge", RETENTION_PURGE_AFTER_DAYS="1")
    assert lost in aged.objects()  # seen once
    aged.stack.psql("UPDATE stackops.orphans SET first_seen = first_seen - interval '6 days'")
    verb(aged, "usage", "--refresh")
    verb(aged, "cleanup", "purge", RETENTION_PURGE_AFTER_DAYS="1")
    assert lost not in aged.objects()
    assert unknown in aged.objects()


def test_rules_decide_over_checkpoints_traces_and_stuck_runs(aged: History, client: MlflowClient) -> None:
    experiment = client.create_experiment("rules")
    best = []
    for number in range(4):
        run = client.create_run(experiment).info.run_id
        client.log_metric(run, "acc", number)
        client.log_text(run, "x", "checkpoints/1.ckpt")
        client.log_text(run, "y", "model.bin")
        client.set_terminated(run)
        best.append(run)
    stuck = client.create_run(experiment).info.run_id
    mlflow.set_experiment(experiment_id=experiment)
    with mlflow.start_span("old") as span:
        trace = span.trace_id
    mlflow.flush_trace_async_logging()
    shift = f"start_time = start_time - 50 * {DAY_MS}::bigint, end_time = end_time - 50 * {DAY_MS}::bigint"
    aged.stack.psql(f"UPDATE runs SET {shift} WHERE experiment_id = {experiment}")
    shift = f"timestamp_ms = timestamp_ms - 50 * {DAY_MS}::bigint"
    aged.stack.psql(f"UPDATE trace_info SET {shift} WHERE request_id = '{trace}'")
    policy = Path(aged.stack.extra["CONFIG_FOLDER"]) / "retention.toml"
    policy.write_text(
        """
[[rules]]
name = "worst"
action = "delete-runs"
experiments = "rule?"
older_than_days = 40
keep_best = { metric = "acc", mode = "max", count = 2 }
keep_last = 1
[[rules]]
name = "stuck"
action = "mark-killed"
experiments = ["rules"]
without_metric_for_days = 7
[[rules]]
name = "traces"
action = "delete-traces"
experiments = ["rules"]
older_than_days = 40
"""
    )
    verb(aged, "cleanup", "list")
    kit_history.forget_that_it_is_new(aged.stack)
    done = verb(aged, "cleanup", "run")
    assert done["done"] == {"run": 2, "killed": 1, "trace": 1}
    assert client.get_run(stuck).info.status == "KILLED"
    stages = [client.get_run(run).info.lifecycle_stage for run in best]
    assert stages == ["deleted", "deleted", "active", "active"]
    verb(aged, "cleanup", "undo", done["batch"])
    assert client.get_run(stuck).info.status == "RUNNING"
    assert {client.get_run(run).info.lifecycle_stage for run in best} == {"active"}

    checkpoints = """
name = "checkpoints"
action = "delete-artifacts"
experiments = "rule?"
older_than_days = 40
artifacts = ["checkpoints/*"]
"""
    parts = policy.read_text().split("[[rules]]")
    policy.write_text("[[rules]]".join(["", checkpoints, *parts[2:]]))
    # What was undone has its time again.
    assert verb(aged, "cleanup", "run")["done"] == {"artifacts": 2}
    kit_history.forget_that_it_is_new(aged.stack)
    aged.stack.psql("UPDATE stackops.batch_items SET done = done - interval '50 days' WHERE state = 'undone'")
    done = verb(aged, "cleanup", "run")
    assert done["done"] == {"artifacts": 2, "killed": 1, "trace": 1}
    _let_a_day_pass(aged)
    verb(aged, "cleanup", "purge", RETENTION_PURGE_AFTER_DAYS="1")
    for run in best:  # written after they were doomed, as it looks now: kept
        assert [item.path for item in client.list_artifacts(run)] == ["checkpoints", "model.bin"]
    assert aged.stack.psql(f"SELECT count(*) FROM trace_info WHERE request_id = '{trace}'") == "0"


def test_a_policy_with_mistakes_is_refused_with_its_lines(aged: History) -> None:
    policy = Path(aged.stack.extra["CONFIG_FOLDER"]) / "retention.toml"
    policy.write_text('[[rules]]\nname = "x"\naction = "delete-runs"\nolder_than_days = -1\nbogus = 1\n')
    for words in (("cleanup", "plan"), ("cleanup", "run"), ("cleanup", "purge")):
        text = refused(aged, *words, RETENTION_PURGE_AFTER_DAYS="1")
        assert "config/retention.toml line 4" in text
        assert "line 5" in text
    policy.unlink()


def test_usage_names_the_storage_by_experiment(aged: History) -> None:
    found = verb(aged, "usage", "--refresh")
    named = {row["experiment"]: row for row in found["experiments"]}
    assert named["history"]["model_bytes"] > 0
    assert sum(row["bytes"] for row in found["experiments"]) + found["unknown_bytes"] == found["bytes"]
    assert found["largest_models"]
    text = aged.stack.verb("usage").stdout
    assert "growth: known after a week" in text
