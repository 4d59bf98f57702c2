"""Retention on random histories in a real PostgreSQL, against a second, simple way to say what stays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection  # noqa: N812

from kit.mlflow_tables import mlflow_tables
from stackops import state
from stackops.errors import FailedError, OperationError
from stackops.retention import cleanup, inventory, journal, keep, plan, policy, purge, sweep, verbs
from stackops.retention.places import of_key
from stackops.settings import Settings, read_settings

HOUR_MS = 3_600_000
NOW_MS = int(time.time() * 1000)
OLD_MS = NOW_MS - 200 * 24 * HOUR_MS
TABLES = ("params", "tags", "metrics", "latest_metrics")


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    """A database with MLflow's tables as its migrations make them, and the journal."""
    with mlflow_tables() as uri:
        found = psycopg2.connect(uri)
        found.autocommit = True
        with found.cursor() as cursor:
            cursor.execute("CREATE SCHEMA stackops")
            cursor.execute(journal.SCHEMA)
        found.autocommit = False
        yield found
        found.close()


@dataclass
class Run:
    """A run of a random history."""

    number: int
    status: str
    old: bool
    known: bool
    deleted: str
    parent: int | None
    tagged: bool
    loss: float | None

    @property
    def id(self) -> str:
        return f"{self.number:032x}"


@dataclass
class Model:
    """A logged model; `run` is the number of its source run."""

    number: int
    run: int | None
    tagged: bool

    @property
    def id(self) -> str:
        return f"m-{self.number:04x}"


@dataclass
class Version:
    """A version of a registered model that names a run or model in one of MLflow's ways."""

    how: str
    target: int
    removed: bool


@dataclass
class World:
    """A random history."""

    runs: list[Run]
    models: list[Model] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    inputs: set[tuple[int, int]] = field(default_factory=set)
    traced: set[int] = field(default_factory=set)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(1, 8))
    numbers = st.integers(0, count - 1)
    runs = [
        Run(
            number,
            draw(st.sampled_from(["FINISHED", "FINISHED", "FINISHED", "FAILED", "RUNNING"])),
            draw(st.integers(0, 3)) > 0,
            draw(st.integers(0, 3)) > 0,
            draw(st.sampled_from(["", "", "", "long ago", "now"])),
            draw(st.none() | st.integers(0, count + 1)),
            draw(st.integers(0, 7)) == 0,
            draw(st.none() | st.integers(0, 3).map(float)),
        )
        for number in range(count)
    ]
    models = [
        Model(number, draw(st.none() | numbers), draw(st.integers(0, 7)) == 0)
        for number in range(draw(st.integers(0, 4)))
    ]
    ways = ["run_id", "runs:/", "path", "location"] + (["models:/", "model path"] if models else [])
    versions = []
    for _ in range(draw(st.integers(0, 2))):
        how = draw(st.sampled_from(ways))
        of_model = how in {"models:/", "model path"}
        target = draw(st.integers(0, len(models) - 1) if of_model else numbers)
        versions.append(Version(how, target, draw(st.integers(0, 4)) == 0))
    some_models = st.integers(0, max(0, len(models) - 1))
    inputs = draw(st.sets(st.tuples(numbers, some_models), max_size=2)) if models else set()
    return World(runs, models, versions, inputs, draw(st.sets(numbers, max_size=1)))


def store(connection: Connection, world: World) -> None:
    """Put a history into the emptied tables."""
    with connection, connection.cursor() as cursor:
        # Truncating takes a new file for each index of each table: deleting is faster.
        cursor.execute(
            "SELECT string_agg(format('DELETE FROM %I.%I', schemaname, tablename), '; ') FROM pg_tables"
            " WHERE schemaname = 'stackops' OR schemaname = 'public'"
            " AND tablename NOT IN ('alembic_version', 'experiments', 'workspaces')"
        )
        (statements,) = cursor.fetchone()
        cursor.execute(f"SET LOCAL session_replication_role = replica; {statements}")
        cursor.execute("SET LOCAL session_replication_role = origin")
        cursor.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
            " VALUES (1, 'one', 'mlflow-artifacts:/1', 'active', 'default') ON CONFLICT (experiment_id)"
            " DO UPDATE SET lifecycle_stage = 'active', last_update_time = NULL"
        )
        for run in world.runs:
            _store_run(cursor, run)
        for model in world.models:
            cursor.execute(
                "INSERT INTO logged_models (model_id, experiment_id, name, artifact_location,"
                " creation_timestamp_ms, last_updated_timestamp_ms, status, lifecycle_stage, source_run_id)"
                " VALUES (%s, 1, 'm', %s, 1, 1, 2, 'active', %s)",
                (
                    model.id,
                    f"mlflow-artifacts:/1/models/{model.id}/artifacts/",
                    None if model.run is None else world.runs[model.run].id,
                ),
            )
            if model.tagged:
                cursor.execute("INSERT INTO logged_model_tags VALUES (%s, 1, 'keep', '')", (model.id,))
        cursor.execute("INSERT INTO registered_models (name, workspace) VALUES ('a name', 'default')")
        for number, version in enumerate(world.versions, 1):
            _store_version(cursor, number, version, world)
        for number, (run, model) in enumerate(sorted(world.inputs)):
            cursor.execute(
                "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id)"
                " VALUES (%s, 'RUN_INPUT', %s, 'MODEL_INPUT', %s)",
                (f"i{number}", world.runs[run].id, world.models[model].id),
            )
        for number in world.traced:
            cursor.execute(
                "INSERT INTO entity_associations (association_id, source_type, source_id, destination_type,"
                " destination_id, created_time) VALUES (%s, 'trace', 'tr-1', 'run', %s, 1)",
                (f"a{number}", world.runs[number].id),
            )


def _store_run(cursor: object, run: Run) -> None:
    moment = OLD_MS if run.old else NOW_MS
    deleted = {"": None, "long ago": NOW_MS - 48 * HOUR_MS, "now": NOW_MS}[run.deleted]
    cursor.execute(
        "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage, deleted_time,"
        " artifact_uri, experiment_id) VALUES (%s, 'r', %s, %s, %s, %s, %s, %s, 1)",
        (
            *(run.id, run.status, moment, None if run.status == "RUNNING" else moment),
            *("deleted" if run.deleted else "active", deleted, f"mlflow-artifacts:/1/{run.id}/artifacts"),
        ),
    )
    if run.known:
        cursor.execute(
            "INSERT INTO stackops.known_runs VALUES (%s, now() - interval '200 days', %s,"
            " CASE WHEN %s THEN now() - interval '200 days' END)",
            (run.id, bool(run.deleted), run.status == "RUNNING"),
        )
    cursor.execute("INSERT INTO params VALUES ('p', '1', %s)", (run.id,))
    tags = {"x": "y"}
    if run.tagged:
        tags["keep"] = ""
    if run.parent is not None:
        tags["mlflow.parentRunId"] = f"{run.parent:032x}"
    for key, value in tags.items():
        cursor.execute("INSERT INTO tags VALUES (%s, %s, %s)", (key, value, run.id))
    if run.loss is not None:
        for table in ("metrics", "latest_metrics"):
            cursor.execute(
                f"INSERT INTO {table} (key, value, timestamp, step, is_nan, run_uuid)"
                " VALUES ('loss', %s, 1, 0, false, %s)",
                (run.loss, run.id),
            )


def _store_version(cursor: object, number: int, version: Version, world: World) -> None:
    columns = {"run_id": None, "source": "elsewhere", "storage_location": None}
    if version.how in {"models:/", "model path"}:
        root = "models:/" if version.how == "models:/" else "mlflow-artifacts:/1/models/"
        columns["source"] = root + world.models[version.target].id
    else:
        name = world.runs[version.target].id
        columns |= {
            "run_id": {"run_id": name},
            "runs:/": {"source": f"runs:/{name}/model"},
            "path": {"source": f"mlflow-artifacts:/1/{name}/artifacts/model"},
            "location": {"storage_location": f"s3://mlflow/artifacts/1/{name}/artifacts"},
        }[version.how]
    cursor.execute(
        "INSERT INTO model_versions (name, version, workspace, run_id, source, storage_location,"
        " current_stage, creation_time, last_updated_time, status)"
        " VALUES ('a name', %s, 'default', %s, %s, %s, %s, 1, 1, 'READY')",
        (number, *columns.values(), "Deleted_Internal" if version.removed else "None"),
    )


def what_stays(world: World, also: frozenset[int] = frozenset()) -> tuple[set[str], set[str]]:
    """Return the ids of the runs and models that nothing may delete, by the rules of docs/retention.md.

    `also` are numbers of runs that a rule keeps.
    """
    versions = [version for version in world.versions if not version.removed]
    runs = {version.target for version in versions if not version.how.startswith("model")}
    models = {version.target for version in versions if version.how.startswith("model")}
    models |= {model.number for model in world.models if model.tagged}
    models |= {
        model for run, model in world.inputs if not world.runs[run].deleted and world.models[model].run != run
    }
    runs |= {world.models[model].run for model in models if world.models[model].run is not None}
    runs |= {run.number for run in world.runs if run.tagged} | world.traced | also
    neighbours: dict[int, set[int]] = {}
    for run in world.runs:
        if run.parent is not None:
            neighbours.setdefault(run.number, set()).add(run.parent)
            neighbours.setdefault(run.parent, set()).add(run.number)
    waiting = list(runs)
    while waiting:
        for other in neighbours.get(waiting.pop(), set()) - runs:
            runs.add(other)
            waiting.append(other)
    models |= {model.number for model in world.models if model.run in runs}
    return {f"{number:032x}" for number in runs}, {world.models[number].id for number in models}


def without(world: World, gone: set[str]) -> World:
    """Return a history in which some runs have been deleted just now: what they use is free."""
    runs = [replace(run, deleted=run.deleted or ("now" if run.id in gone else "")) for run in world.runs]
    return replace(world, runs=runs)


def ids(connection: Connection, query: str) -> set[str]:
    with connection, connection.cursor() as cursor:
        cursor.execute(query)
        return {row[0] for row in cursor}


def planned(connection: Connection, rules: policy.Policy) -> list[journal.Item]:
    """Plan, and return the items."""
    plan.make(connection, rules)
    return plan.items(connection)


def rows_of(connection: Connection, run_ids: set[str]) -> set[tuple]:
    """Return all rows of some runs."""
    found = set()
    with connection, connection.cursor() as cursor:
        for table in ("runs", *TABLES):
            cursor.execute(f"SELECT t::text FROM {table} AS t WHERE run_uuid = ANY(%s)", (list(run_ids),))
            found |= {(table, *row) for row in cursor}
    return found


LONG = settings().max_examples > 100
STEP = 1 if LONG else 3
"""Of the statements at which a purge dies, every third one; all of them in the long test."""
ON_DATABASE = settings(
    max_examples=500 if LONG else 60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@ON_DATABASE
@given(worlds())
def test_what_is_protected_is_never_touched_and_all_else_goes(connection: Connection, world: World) -> None:
    store(connection, world)
    journal.learn_runs(connection)
    runs, models = what_stays(world)
    rules = policy.default(90)
    keep.find(connection, rules.keep_tags)
    there = {run.id for run in world.runs}
    assert ids(connection, "SELECT id FROM kept_runs") & there == runs & there
    assert ids(connection, "SELECT id FROM kept_models") == models
    protected = rows_of(connection, runs)

    swept = {
        run.id for run in world.runs if not run.deleted and run.status == "FINISHED" and run.old and run.known
    } - runs
    assert {item.id for item in planned(connection, rules)} == swept
    cleanup.run(connection, rules, scheduled=False, now=datetime.now(UTC))
    by_hand = {run.id for run in world.runs if run.deleted}
    assert ids(connection, "SELECT run_uuid FROM runs WHERE lifecycle_stage = 'deleted'") == swept | by_hand

    assert rows_of(connection, runs) == protected
    runs, _ = what_stays(without(world, swept))
    protected = rows_of(connection, runs)
    long_ago = {run.id for run in world.runs if run.deleted == "long ago" and run.known} - runs
    _purge(connection, rules, NOW_MS - HOUR_MS)
    assert ids(connection, "SELECT run_uuid FROM runs") == there - long_ago
    _purge(connection, rules, int(time.time() * 1000) + HOUR_MS)
    gone = (swept | by_hand) - runs
    assert ids(connection, "SELECT run_uuid FROM runs") == there - gone
    for table in TABLES:
        assert ids(connection, f"SELECT run_uuid FROM {table}") <= there - gone
    gone_models = {
        model.id for model in world.models if model.run is not None and world.runs[model.run].id in gone
    }
    assert (
        ids(connection, "SELECT model_id FROM logged_models")
        == {model.id for model in world.models} - gone_models
    )
    doomed = {f"artifacts/1/{run_id}/artifacts/" for run_id in gone}
    doomed |= {f"artifacts/1/models/{model_id}/" for model_id in gone_models}
    assert ids(connection, "SELECT prefix FROM stackops.doomed_objects") == doomed
    assert rows_of(connection, runs) == protected


def _purge(connection: Connection, rules: policy.Policy, before_ms: int) -> None:
    work = purge.Purge(connection, rules, "mlflow", before_ms)
    work.run()
    assert work.problems == set()


@ON_DATABASE
@given(worlds())
def test_undo_brings_everything_back_as_it_was(connection: Connection, world: World) -> None:
    store(connection, world)
    before = rows_of(connection, {run.id for run in world.runs})
    done = cleanup.run(connection, policy.default(90), scheduled=False, now=datetime.now(UTC))
    if done["batch"]:
        cleanup.undo(connection, done["batch"])
    assert rows_of(connection, {run.id for run in world.runs}) == before
    assert [
        item for item in planned(connection, policy.default(90)) if item.kind == "run"
    ] == []  # what came back stays


@ON_DATABASE
@given(
    worlds(), st.none() | st.integers(1, 3), st.none() | st.integers(1, 3), st.sampled_from(["min", "max"])
)
def test_the_newest_and_the_best_stay(
    connection: Connection, world: World, last: int | None, best: int | None, mode: str
) -> None:
    store(connection, world)
    lines = ["[[rules]]", 'name = "a"', 'action = "delete-runs"', "older_than_days = 90"]
    if last:
        lines.append(f"keep_last = {last}")
    if best:
        lines.append(f'keep_best = {{ metric = "loss", mode = "{mode}", count = {best} }}')
    found = {item.id for item in planned(connection, policy.parse("\n".join(lines), 90))}
    runs, _ = what_stays(world)
    ranked = [run for run in world.runs if not run.deleted and run.status == "FINISHED"]
    newest = sorted(ranked, key=lambda run: (-(OLD_MS if run.old else NOW_MS), run.id))[: last or 0]
    sign = 1 if mode == "min" else -1
    with_loss = [run for run in ranked if run.loss is not None]
    with_loss.sort(key=lambda run: (sign * run.loss, -(OLD_MS if run.old else NOW_MS), run.id))
    spared = {run.id for run in [*newest, *with_loss[: best or 0]]}
    assert found == {run.id for run in ranked if run.old and run.known} - runs - spared


AGES = {90: True, 300: False}
"""Days, and whether an old run is older."""


@st.composite
def policies(draw: st.DrawFn) -> policy.Policy:
    """Some rules in any order, before the built-in one."""
    rules = []
    for number in range(draw(st.integers(1, 3))):
        action = draw(st.sampled_from(["keep", "delete-runs", "delete-artifacts", "mark-killed"]))
        values: dict = {"status": policy.DEFAULT_STATUS.get(action, ())}
        if action == "mark-killed":
            values["without_metric_for_days"] = draw(st.sampled_from(sorted(AGES)))
        else:
            ended = st.sampled_from([(), ("FINISHED",), ("FAILED",), ("FINISHED", "FAILED")])
            values["status"] = draw(ended) or values["status"]
            values["older_than_days"] = draw(st.sampled_from(sorted(AGES)))
        if draw(st.booleans()):
            values["tags"] = draw(st.sampled_from([(("x", "?"),), (("x", "z*"),), (("keep", "*"),)]))
        if action == "delete-runs":
            values["keep_last"] = draw(st.none() | st.integers(1, 2))
            best = st.builds(policy.KeepBest, st.just("loss"), st.just("min"), st.integers(1, 2))
            values["keep_best"] = draw(st.none() | best)
        if action == "delete-artifacts":
            values["artifacts"] = ("checkpoints/*",)
        rules.append(policy.Rule(f"r{number}", action, **values))
    built_in = policy.default(90).rules
    return policy.Policy((*rules, *built_in), ("keep",), None)


def what_rules_say(world: World, rules: policy.Policy) -> tuple[dict[int, policy.Rule], dict[int, str]]:
    """Return the rule that decides over each run, and what spares some of these."""
    decided: dict[int, policy.Rule] = {}
    spared: dict[int, str] = {}
    for rule in rules.rules:
        matched = [
            run
            for run in world.runs
            if (not rule.status or run.status in rule.status)
            and all({"x": "?", "keep": "*"}.get(key) == value for key, value in rule.tags)
            and (run.tagged or "keep" not in dict(rule.tags))
        ]
        by_age = sorted(matched, key=lambda run: (-(OLD_MS if run.old else NOW_MS), run.id))
        by_age = [run for run in by_age if not run.deleted]
        best = sorted((run for run in by_age if run.loss is not None), key=lambda run: run.loss)
        high = by_age[: rule.keep_last or 0] + best[: rule.keep_best.count if rule.keep_best else 0]
        days = rule.older_than_days or rule.without_metric_for_days
        for run in matched:
            if run.number not in decided and run.old and run.known and AGES[days]:
                decided[run.number] = rule
                if rule.action == "keep":
                    spared[run.number] = "keep"
                elif run in high:
                    spared[run.number] = "rank"
    return decided, spared


@ON_DATABASE
@given(worlds(), policies())
def test_no_policy_touches_what_is_protected(
    connection: Connection, world: World, rules: policy.Policy
) -> None:
    store(connection, world)
    journal.learn_runs(connection)
    decided, spared = what_rules_say(world, rules)
    kept = frozenset(number for number, why in spared.items() if why == "keep")
    stays, _ = what_stays(world, kept)
    parents = {run.number: run.parent for run in world.runs}
    for number in [number for number, why in spared.items() if why == "rank"]:
        above, seen = parents.get(number), set()
        while above is not None and above not in seen:
            seen.add(above)
            spared.setdefault(above, "below")
            above = parents.get(above)
    expected = {
        (plan.KINDS[rule.action], world.runs[number].id, rule.name)
        for number, rule in decided.items()
        if number not in spared and world.runs[number].id not in stays and not world.runs[number].deleted
    }
    assert {(item.kind, item.id, item.rule) for item in planned(connection, rules)} == expected
    protected = stays | {world.runs[number].id for number in spared if number in decided}
    before = rows_of(connection, protected)
    cleanup.run(connection, rules, scheduled=False, now=datetime.now(UTC))
    assert rows_of(connection, protected) == before
    swept = {name for kind, name, _ in expected if kind == "run"}
    stays, _ = what_stays(without(world, swept), kept)
    protected -= swept | {run.id for run in world.runs if run.deleted and run.id not in stays}
    before = rows_of(connection, protected)
    gone = swept | {run.id for run in world.runs if run.deleted} - stays
    _purge(connection, rules, int(time.time() * 1000) + HOUR_MS)
    assert ids(connection, "SELECT run_uuid FROM runs") == {run.id for run in world.runs} - gone
    assert rows_of(connection, protected) == before


def test_an_interrupted_batch_is_finished_by_the_next_run(connection: Connection) -> None:
    runs = [Run(number, "FINISHED", True, True, "", None, False, None) for number in range(3)]
    store(connection, World(runs))
    plan.make(connection, policy.default(90))
    journal.write_batch(connection, "interrupted", journal.RUNNING, {"runs": 3})
    done = cleanup.run(connection, policy.default(90), scheduled=True, now=datetime.now(UTC))
    assert done["state"] == "nothing to do"
    assert journal.batch(connection, "interrupted").state == journal.DONE
    assert cleanup.undo(connection, "interrupted")["undone"] == {"run": 3}


def test_a_run_whose_artifacts_are_elsewhere_is_named_and_stays(connection: Connection) -> None:
    runs = [Run(number, "FINISHED", True, True, "long ago", None, False, 1.0) for number in range(3)]
    store(connection, World(runs))
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE runs SET artifact_uri = 'file:///x' WHERE run_uuid = %s", (runs[1].id,))
    work = purge.Purge(connection, policy.default(90), "mlflow", NOW_MS)
    work.run()
    assert work.problems == {f"run {runs[1].id}: its artifacts are at file:///x"}
    assert ids(connection, "SELECT run_uuid FROM runs") == {runs[1].id}


def test_a_registration_while_rows_go_is_noticed(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between finding out what must stay and the deletion: the run stays."""
    runs = [Run(number, "FINISHED", True, True, "long ago", None, False, 1.0) for number in range(2)]
    store(connection, World(runs))
    original = purge.due
    registered = []

    def due(*arguments: object) -> list:
        found = original(*arguments)
        if arguments[1] is purge.RUNS and not registered:
            registered.append(True)
            with connection, connection.cursor() as cursor:
                _store_version(cursor, 1, Version("path", 0, removed=False), World(runs))
        return found

    monkeypatch.setattr(purge, "due", due)
    work = purge.Purge(connection, policy.default(90), "mlflow", NOW_MS)
    work.run()
    assert work.problems == set()
    assert ids(connection, "SELECT run_uuid FROM runs") == {runs[0].id}


def test_a_clock_in_the_past_is_refused(connection: Connection) -> None:
    store(connection, World([]))
    journal.check_clock(connection)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO stackops.batches VALUES ('x', now() + interval '2 hours', 'done', NULL, '{}')"
        )
    with pytest.raises(OperationError, match="the clock says"):
        journal.check_clock(connection)


class Listed:
    """A bucket with these objects, all written long ago but those in `young`."""

    name = "mlflow"

    def __init__(self, keys: list[str], young: tuple[str, ...] = ()) -> None:
        self.keys = keys
        self.young = young

    def below(self, prefixes: list[str]) -> Iterator[tuple[str, str, int, datetime]]:
        for prefix in prefixes:
            for key, size in self.objects(prefix):
                moment = datetime.now(UTC) if key in self.young else datetime(2020, 1, 1, tzinfo=UTC)
                yield prefix, key, size, moment

    def delete(self, keys: list[str]) -> dict[str, str]:
        self.keys = [key for key in self.keys if key not in keys]
        return {}

    def objects(self, prefix: str) -> Iterator[tuple[str, int]]:
        yield from ((key, 7) for key in sorted(self.keys) if key.startswith(prefix))

    def uploads(self, prefix: str) -> list:
        return []


NEWLY_KEPT = {
    "tag": "INSERT INTO tags VALUES ('keep', '', '{run}')",
    "parent's tag": "INSERT INTO tags VALUES ('keep', '', '{active}')",
    "experiment's tag": "INSERT INTO experiment_tags VALUES ('keep', '', 2)",
    "model's tag": "INSERT INTO logged_model_tags VALUES ('m-0001', 2, 'keep', '')",
    "input": "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id)"
    " VALUES ('i', 'RUN_INPUT', '{active}', 'MODEL_INPUT', 'm-0001')",
    "output": "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id)"
    " VALUES ('i', 'RUN_OUTPUT', '{active}', 'MODEL_OUTPUT', 'm-0001')",
    "trace": "INSERT INTO entity_associations (association_id, source_type, source_id, destination_type,"
    " destination_id, created_time) VALUES ('a', 'trace', 'tr-1', 'run', '{run}', 1)",
    "parent's trace": "INSERT INTO entity_associations (association_id, source_type, source_id,"
    " destination_type, destination_id, created_time) VALUES ('a', 'trace', 'tr-1', 'run', '{active}', 1)",
    "assessment": "INSERT INTO assessments (assessment_id, trace_id, name, assessment_type, value,"
    " created_timestamp, last_updated_timestamp, source_type, source_id, valid, assessment_metadata)"
    " VALUES ('a-1', 'tr-0', 'good', 'feedback', '1', 1, 1, 'HUMAN', 'ada', true,"
    ' \'{{"mlflow.assessment.sourceRunId": "{run}"}}\')',
    "metric of a kept model": "INSERT INTO logged_model_metrics (model_id, metric_name, metric_timestamp_ms,"
    " metric_step, metric_value, experiment_id, run_id) VALUES ('m-0002', 'f1', 1, 0, 1, 2, '{run}')",
}
TWO = """
INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)
    VALUES (2, 'two', 'mlflow-artifacts:/2', 'active', 'default') ON CONFLICT DO NOTHING;
UPDATE runs SET experiment_id = 2, artifact_uri = replace(artifact_uri, ':/1/', ':/2/')
    WHERE run_uuid = %(run)s;
UPDATE logged_models SET experiment_id = 2, artifact_location = replace(artifact_location, ':/1/', ':/2/');
UPDATE logged_model_tags SET experiment_id = 2;
INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('tr-0', 1, 1, 'OK');
"""


@pytest.mark.parametrize("statement", NEWLY_KEPT.values(), ids=NEWLY_KEPT)
def test_what_is_tagged_or_linked_while_rows_go_stays(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    doomed = Run(0, "FINISHED", True, True, "long ago", 2, False, 1.0)
    other = Run(1, "FINISHED", True, True, "long ago", None, False, 1.0)
    active = Run(2, "RUNNING", True, True, "", None, False, 1.0)
    models = [Model(0, None, False), Model(1, 0, False), Model(2, None, True)]
    store(connection, World([doomed, other, active], models))
    with connection, connection.cursor() as cursor:
        cursor.execute(TWO, {"run": doomed.id})
    original = purge.due
    done = []

    def due(*arguments: object) -> list:
        found = original(*arguments)
        if arguments[1] is purge.RUNS and not done:
            done.append(True)
            with connection, connection.cursor() as cursor:
                cursor.execute(statement.format(run=doomed.id, active=active.id))
        return found

    monkeypatch.setattr(purge, "due", due)
    work = purge.Purge(connection, policy.default(90), "mlflow", NOW_MS)
    work.run()
    assert work.problems == set()
    assert ids(connection, "SELECT run_uuid FROM runs") == {doomed.id, active.id}
    assert ids(connection, "SELECT model_id FROM logged_models") == {"m-0000", "m-0001", "m-0002"}


CHECKPOINTS = """
[[rules]]
name = "checkpoints"
action = "delete-artifacts"
older_than_days = 90
artifacts = ["checkpoints/*"]
"""


@pytest.mark.parametrize("taken_up", [False, True])
def test_checkpoints_go_but_not_young_ones_nor_those_of_a_run_that_goes_on(
    connection: Connection, taken_up: bool
) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    rules = policy.parse(CHECKPOINTS, 90)
    done = cleanup.run(connection, rules, scheduled=False, now=datetime.now(UTC))
    assert done["done"] == {"artifacts": 1}
    again = cleanup.run(connection, rules, scheduled=False, now=datetime.now(UTC))
    assert again["state"] == "nothing to do"  # noted once
    root = f"artifacts/1/{run.id}/artifacts"
    old, young, model = f"{root}/checkpoints/1", f"{root}/checkpoints/2", f"{root}/model.bin"
    bucket = Listed([old, young, model], (young,))
    if taken_up:
        with connection, connection.cursor() as cursor:
            cursor.execute("UPDATE runs SET status = 'RUNNING'")
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE stackops.batch_items SET done = done - interval '2 hours'")
    swept = sweep.doomed_artifacts(
        connection, bucket, rules, rules.rules[0], int(time.time() * 1000) - HOUR_MS
    )
    assert swept.problems == set()
    assert bucket.keys == ([old, young, model] if taken_up else [young, model])


def test_a_doomed_prefix_whose_record_is_there_again_is_kept(connection: Connection) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    key, other = f"artifacts/1/{run.id}/artifacts/a", f"artifacts/1/{'e' * 32}/artifacts/a"
    with connection, connection.cursor() as cursor:
        for name in (key, other):
            place = of_key(name)
            cursor.execute(
                "INSERT INTO stackops.doomed_objects VALUES (%s, 'run', %s)", (place.prefix, place.id)
            )
    bucket = Listed([key, other])
    swept = sweep.doomed_prefixes(connection, bucket)
    assert bucket.keys == [key]
    assert swept.problems == {f"{of_key(key).prefix}: kept, its record is there again"}


def test_an_experiment_with_the_tag_keeps_its_models_and_itself(connection: Connection) -> None:
    store(connection, World([], [Model(1, None, tagged=False)]))
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE experiments SET lifecycle_stage = 'deleted', last_update_time = 1")
        cursor.execute("INSERT INTO experiment_tags VALUES ('keep', '', 1)")
    work = purge.Purge(connection, policy.default(90), "mlflow", NOW_MS)
    work.run()
    assert ids(connection, "SELECT model_id FROM logged_models") == {"m-0001"}
    with connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM experiment_tags")
    purge.Purge(connection, policy.default(90), "mlflow", NOW_MS).run()
    assert ids(connection, "SELECT experiment_id FROM experiments WHERE experiment_id = 1") == set()


def test_an_orphan_is_doomed_only_when_two_inventories_apart_have_seen_it(connection: Connection) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    mine = f"artifacts/1/{run.id}/artifacts/a"
    orphan, model = f"artifacts/1/{'f' * 32}/artifacts/a", "artifacts/1/models/m-ff/MLmodel"
    bucket = Listed([mine, orphan, model, "artifacts/odd"])
    facts = inventory.take(connection, bucket)
    assert (facts["objects"], facts["unknown_keys"]) == (4, ["artifacts/odd"])
    assert {entry["prefix"] for entry in inventory.orphans(connection)} == {
        of_key(orphan).prefix,
        of_key(model).prefix,
    }
    assert inventory.doom_orphans(connection, "mlflow", 5, datetime.now(UTC)) == 0
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE stackops.orphans SET first_seen = first_seen - interval '6 days'")
    inventory.take(connection, Listed([mine, orphan]))  # the model has gone meanwhile
    assert inventory.doom_orphans(connection, "mlflow", 7, datetime.now(UTC)) == 0
    assert inventory.doom_orphans(connection, "mlflow", 5, datetime.now(UTC)) == 1
    assert ids(connection, "SELECT prefix FROM stackops.doomed_objects") == {of_key(orphan).prefix}
    inventory.take(connection, Listed([mine, orphan]))
    assert inventory.orphans(connection) == []  # it is on its way


# What is somewhere else than MLflow puts it.


def test_files_of_an_experiment_at_an_unusual_place_are_no_orphans(connection: Connection) -> None:
    """Its runs' keys look like files of a run `team`."""
    store(connection, World([]))
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
            " VALUES (9, 'odd', 'mlflow-artifacts:/2024/team/artifacts', 'active', 'default')"
        )
    key = f"artifacts/2024/team/artifacts/{'a' * 32}/artifacts/model.bin"
    bucket = Listed([key])
    assert of_key(key) is not None
    inventory.take(connection, bucket)
    assert inventory.orphans(connection) == []
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO stackops.doomed_objects (prefix, kind, id) VALUES (%s, 'run', 'team')",
            (of_key(key).prefix,),
        )
    swept = sweep.doomed_prefixes(connection, bucket)
    assert swept.problems == {f"{of_key(key).prefix}: kept, another record has its artifacts there"}
    assert bucket.keys == [key]
    with connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM experiments WHERE experiment_id = 9")


def test_a_run_that_keeps_its_files_above_an_orphan_protects_it(connection: Connection) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE runs SET artifact_uri = 's3://mlflow/artifacts/2024'")
    inventory.take(connection, Listed(["artifacts/2024/x/artifacts/a", "artifacts/2025/x/artifacts/a"]))
    assert [entry["prefix"] for entry in inventory.orphans(connection)] == ["artifacts/2025/x/artifacts/"]


# What was decided before a rule changed.


def test_a_rule_that_changed_its_meaning_decides_anew(connection: Connection) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    key = f"artifacts/1/{run.id}/artifacts/checkpoints/1"
    bucket = Listed([key])

    def purge_all(rules: policy.Policy) -> None:
        plan.make(connection, rules)
        sweep.doomed_artifacts(connection, bucket, rules, rules.rules[0], int(time.time() * 1000) + HOUR_MS)

    cleanup.run(
        connection,
        policy.parse(CHECKPOINTS.replace("checkpoints/", "logs/"), 90),
        scheduled=False,
        now=datetime.now(UTC),
    )
    changed = policy.parse(CHECKPOINTS, 90)
    purge_all(changed)
    assert bucket.keys == [key]
    now = datetime(2030, 1, 1, tzinfo=UTC)
    assert cleanup.run(connection, changed, scheduled=False, now=now)["done"] == {"artifacts": 1}
    purge_all(changed)
    assert bucket.keys == []


def test_what_a_person_restores_stays_restored(connection: Connection) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    rules = policy.default(90)
    assert cleanup.run(connection, rules, scheduled=False, now=datetime.now(UTC))["done"] == {"run": 1}
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE runs SET lifecycle_stage = 'active', deleted_time = NULL")
    journal.learn_runs(connection)
    again = cleanup.run(connection, rules, scheduled=False, now=datetime(2030, 1, 1, tzinfo=UTC))
    assert again["state"] == "nothing to do"


def test_a_batch_that_waits_is_replaced_even_by_nothing(connection: Connection) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    rules = policy.default(90)
    waiting = cleanup.run(connection, rules, scheduled=True, now=datetime.now(UTC))
    assert waiting["state"] == journal.WAITING
    assert journal.totals(connection)["waiting"]["batch"] == waiting["batch"]
    with connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO tags VALUES ('keep', '', %s)", (run.id,))
    now = datetime(2030, 1, 1, tzinfo=UTC)
    assert cleanup.run(connection, rules, scheduled=True, now=now)["state"] == "nothing to do"
    assert journal.batch(connection, waiting["batch"]).state == journal.REPLACED
    assert journal.totals(connection)["waiting"] is None


# Links.


def test_a_run_that_evaluated_a_registered_model_stays_with_its_metrics(connection: Connection) -> None:
    trained = Run(0, "FINISHED", True, True, "", None, False, None)
    evaluated = Run(1, "FINISHED", True, True, "", None, False, None)
    parent_of_evaluation = Run(2, "FINISHED", True, True, "", None, False, None)
    evaluated.parent = 2
    world = World([trained, evaluated, parent_of_evaluation], [Model(0, 0, False)])
    world.versions = [Version("models:/", 0, removed=False)]
    store(connection, world)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO logged_model_metrics (model_id, metric_name, metric_timestamp_ms, metric_step,"
            " metric_value, experiment_id, run_id) VALUES ('m-0000', 'f1', 1, 0, 1, 1, %s)",
            (evaluated.id,),
        )
    assert planned(connection, policy.default(90)) == []
    found = plan.explain(connection, policy.default(90), evaluated.id)
    assert found["kept_because"] == "its metrics of model m-0000"
    found = plan.explain(connection, policy.default(90), "m-0000")
    assert found["kept_because"] == "registered model a name version 1"


def test_a_model_that_another_run_made_its_output_stays(connection: Connection) -> None:
    runs = [Run(number, "FINISHED", True, True, "", None, False, None) for number in range(2)]
    runs[1].status = "FAILED"
    store(connection, World(runs, [Model(0, 0, False)]))
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id)"
            " VALUES ('i', 'RUN_OUTPUT', %s, 'MODEL_OUTPUT', 'm-0000')",
            (runs[1].id,),
        )
    assert planned(connection, policy.default(90)) == []


# Trees and rules.

TREE = [
    Run(0, "FINISHED", True, True, "", None, False, None),
    Run(1, "FINISHED", True, True, "", 0, False, 1.0),
    Run(2, "FINISHED", True, True, "", 0, False, 2.0),
    Run(3, "FINISHED", True, True, "", 2, False, None),
]
"""A run with two below it, the second with one more."""


@pytest.mark.parametrize(
    ("rule", "gone"),
    [
        ('action = "keep"\ntags = { x = "y" }\nstatus = "FINISHED"', set()),
        (
            'action = "delete-runs"\nolder_than_days = 90\n'
            'keep_best = { metric = "loss", mode = "max", count = 1 }',
            {1, 3},
        ),
        ('action = "delete-runs"\nolder_than_days = 90', {0, 1, 2, 3}),
    ],
    ids=["keep", "keep_best", "none"],
)
def test_a_spared_run_keeps_its_parents(connection: Connection, rule: str, gone: set[int]) -> None:
    store(connection, World(TREE))
    rules = policy.parse(f'[[rules]]\nname = "a"\n{rule}', 90)
    assert {int(item.id, 16) for item in planned(connection, rules)} == gone


def test_a_rule_to_keep_one_run_keeps_its_tree(connection: Connection) -> None:
    store(connection, World(TREE))
    with connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO tags VALUES ('gold', '1', %s)", (TREE[3].id,))
    rules = policy.parse('[[rules]]\nname = "a"\naction = "keep"\ntags = { gold = "*" }', 90)
    assert planned(connection, rules) == []
    assert plan.explain(connection, rules, TREE[3].id)["kept_because"] == "rule a"
    assert plan.explain(connection, rules, TREE[1].id)["kept_because"] == "another run of its tree is kept"


# Beside a busy registry.


@pytest.mark.parametrize("related", [False, True], ids=["of others", "of its tree"])
def test_only_registrations_that_matter_hold_a_purge_up(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, related: bool
) -> None:
    doomed = Run(0, "FINISHED", True, True, "long ago", None, False, None)
    child = Run(1, "FINISHED", True, True, "", 0 if related else None, False, None)
    world = World([doomed, child])
    store(connection, world)
    original = purge.due
    finds: list[None] = []
    found_kept = purge.Purge._find_kept

    def find_kept(self: purge.Purge) -> None:
        finds.append(None)
        found_kept(self)

    def due(*arguments: object) -> list:
        found = original(*arguments)
        if len(finds) == 1 and purge.RUNS in arguments:
            with connection, connection.cursor() as cursor:
                _store_version(cursor, 1, Version("run_id", 1, removed=False), world)
        return found

    monkeypatch.setattr(purge, "due", due)
    monkeypatch.setattr(purge.Purge, "_find_kept", find_kept)
    work = purge.Purge(connection, policy.default(90), "mlflow", NOW_MS)
    work.run()
    assert work.problems == set()
    assert ids(connection, "SELECT run_uuid FROM runs") == ({doomed.id, child.id} if related else {child.id})
    assert len(finds) == (2 if related else 1)  # once, and once more where it mattered


def test_a_preview_counts_the_models_that_go_with_their_runs(connection: Connection) -> None:
    run = Run(0, "FINISHED", True, True, "long ago", None, False, None)
    store(connection, World([run], [Model(0, 0, False)]))
    with connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO stackops.usage VALUES ('run', %s, 1, 1, 5)", (run.id,))
        cursor.execute("INSERT INTO stackops.usage VALUES ('model', 'm-0000', 1, 1, 7)")
    found = purge.preview(connection, policy.default(90), NOW_MS)
    assert found == {"bytes": 12, "runs": 1, "models": 1, "traces": 0}
    (listed,) = journal.deleted(connection)
    assert (listed["id"], listed["by"], listed["bytes"]) == (run.id, "a person", 5)


# Killed anywhere.


class KilledError(BaseException):
    """What a kill -9 looks like from inside: nothing else runs."""


class Dying:
    """A connection that is cut when its statements are used up."""

    def __init__(self, connection: Connection, statements: int) -> None:
        self._connection = connection
        self._left = [statements]

    def __enter__(self) -> Dying:
        self._connection.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.spend()  # killed before the commit
        self._connection.__exit__(*error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        elif not self._connection.closed:  # the dead change nothing
            setattr(self._connection, name, value)

    def spend(self) -> None:
        self._left[0] -= 1
        if self._left[0] <= 0:
            self._connection.close()
            raise KilledError

    def cursor(self) -> object:
        dying = self

        class Cursor(psycopg2.extensions.cursor):
            def execute(self, *arguments: object) -> None:
                dying.spend()
                super().execute(*arguments)

        return self._connection.cursor(cursor_factory=Cursor)


def test_a_cleanup_and_purge_killed_at_any_statement_are_finished_by_the_next(connection: Connection) -> None:
    """Every statement and commit is a point at which it dies once; then it is begun again."""
    run = [Run(number, "FINISHED", True, True, "", None, False, 1.0) for number in range(3)]
    run += [Run(number, "FINISHED", True, True, "long ago", None, number == 4, 1.0) for number in (3, 4)]
    world = World(run, [Model(0, 0, False), Model(1, 3, False), Model(2, 1, False)])
    world.versions = [Version("models:/", 2, removed=False)]
    rules = policy.default(90)
    keys = [f"artifacts/1/{one.id}/artifacts/a" for one in run]
    keys += [f"artifacts/1/models/{model.id}/artifacts/MLmodel" for model in world.models]

    def work(on: Connection, bucket: Listed) -> None:
        journal.learn_runs(on)
        cleanup.run(on, rules, scheduled=False, now=datetime.now(UTC))
        purge.Purge(on, rules, "mlflow", int(time.time() * 1000) + HOUR_MS).run()
        sweep.doomed_prefixes(on, bucket)

    def state(bucket: Listed) -> tuple:
        return (
            ids(connection, "SELECT run_uuid FROM runs"),
            ids(connection, "SELECT model_id FROM logged_models"),
            ids(connection, "SELECT prefix FROM stackops.doomed_objects"),
            set(bucket.keys),
        )

    store(connection, world)
    whole = Listed(list(keys))
    work(connection, whole)
    expected = state(whole)
    assert expected[0] == {run[1].id, run[4].id}
    assert expected[1] == {"m-0002"}
    points = 0
    while True:
        points += STEP
        store(connection, world)
        bucket = Listed(list(keys))
        dying = Dying(psycopg2.connect(connection.dsn), points)
        try:
            work(dying, bucket)
        except KilledError:
            pass
        else:
            dying.close()
            break
        assert set(bucket.keys) >= expected[3]
        work(connection, bucket)
        assert state(bucket) == expected, points
    assert points > 80


# The verbs.


@pytest.fixture
def stack_settings(connection: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Settings of a stack whose database is this one and whose bucket is empty; purges after a day."""

    @contextmanager
    def ours(*_: object, **__: object) -> Iterator[Connection]:
        yield connection

    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "retention.toml").write_text("")
    monkeypatch.setattr(verbs.journal, "opened", ours)
    monkeypatch.setattr(verbs.postgres, "maintenance_lock", ours)
    monkeypatch.setattr(verbs, "open_bucket", lambda _: Listed([]))
    return replace(
        read_settings({}),
        secrets=secrets,
        backups=tmp_path / "backups",
        purge_after_days=1,
        retention_days=90,
    )


def test_a_scheduled_cleanup_says_what_it_did_when_its_purge_may_not_be(
    connection: Connection, stack_settings: Settings
) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    with pytest.raises(FailedError, match="is waiting; the purge: no verified backup") as failed:
        verbs.run(stack_settings, scheduled=True)
    waiting = failed.value.facts
    assert (waiting["state"], waiting["purged"]) == ("waiting", {})
    noted = state.read_json(state.cleanup_path(stack_settings.backups))
    assert noted["waiting"]["batch"] == waiting["batch"]
    assert verbs.approve(stack_settings, waiting["batch"])["done"] == {"run": 1}
    noted = state.read_json(state.cleanup_path(stack_settings.backups))
    assert (noted["waiting"], noted["deleted_runs"]) == (None, 1)


def test_a_purge_that_could_not_do_all_says_what_it_did(
    connection: Connection, stack_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [Run(number, "FINISHED", True, True, "long ago", None, False, 1.0) for number in range(3)]
    store(connection, World(runs))
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE runs SET artifact_uri = 'file:///x' WHERE run_uuid = %s", (runs[1].id,))
    monkeypatch.setattr(verbs, "_proven_backup", lambda *_: datetime.now(UTC))
    with pytest.raises(FailedError, match="its artifacts are at file:///x") as failed:
        verbs.purge_now(stack_settings)
    assert failed.value.facts == {
        "runs": 2,
        "models": 0,
        "traces": 0,
        "experiments": 0,
        "orphans": 0,
        "unfinished_uploads": 0,
        "objects": 0,
        "bytes": 0,
        "skipped": 1,
        "problems": [f"run {runs[1].id}: its artifacts are at file:///x"],
    }


# Artifacts that a rule dooms, beside clients.


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE runs SET status = 'RUNNING'",
        "INSERT INTO tags VALUES ('keep', '', '{run}')",
        "INSERT INTO model_versions (name, version, workspace, source, current_stage, creation_time,"
        " last_updated_time, status) VALUES ('a name', 1, 'default',"
        " 'mlflow-artifacts:/1/{run}/artifacts/checkpoints/best', 'None', 1, 1, 'READY')",
    ],
    ids=["taken up", "tagged", "registered"],
)
def test_artifacts_of_a_run_that_comes_to_be_kept_meanwhile_stay(
    connection: Connection, statement: str
) -> None:
    runs = [Run(number, "FINISHED", True, True, "", None, False, None) for number in range(2)]
    store(connection, World(runs))
    rules = policy.parse(CHECKPOINTS, 90)
    cleanup.run(connection, rules, scheduled=False, now=datetime.now(UTC))

    class Slow(Listed):
        def below(self, prefixes: list[str]) -> Iterator[tuple[str, str, int, datetime]]:
            found = list(super().below(prefixes))
            with connection, connection.cursor() as cursor:
                cursor.execute(statement.format(run=runs[1].id))
            yield from found

    if statement.startswith("UPDATE"):
        statement += f" WHERE run_uuid = '{runs[1].id}'"
    keys = [f"artifacts/1/{run.id}/artifacts/checkpoints/best" for run in runs]
    bucket = Slow(list(keys))
    swept = sweep.doomed_artifacts(
        connection, bucket, rules, rules.rules[0], int(time.time() * 1000) + HOUR_MS
    )
    assert bucket.keys == keys[1:]
    assert swept.objects == 1


def test_artifacts_that_two_runs_share_stay(connection: Connection) -> None:
    runs = [Run(number, "FINISHED", True, True, "", None, number == 1, None) for number in range(2)]
    store(connection, World(runs))
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE runs SET artifact_uri = %s WHERE run_uuid = %s",
            (f"mlflow-artifacts:/1/{runs[0].id}/artifacts/checkpoints", runs[1].id),
        )
    rules = policy.parse(CHECKPOINTS, 90)
    cleanup.run(connection, rules, scheduled=False, now=datetime.now(UTC))
    key = f"artifacts/1/{runs[0].id}/artifacts/checkpoints/best"
    bucket = Listed([key])
    swept = sweep.doomed_artifacts(
        connection, bucket, rules, rules.rules[0], int(time.time() * 1000) + HOUR_MS
    )
    assert bucket.keys == [key]
    assert "another record has its artifacts there" in " ".join(swept.problems)


def test_artifacts_that_a_run_writes_later_are_noted_again(connection: Connection) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    rules = policy.parse(CHECKPOINTS, 90)
    cleanup.run(connection, rules, scheduled=False, now=datetime.now(UTC))
    bucket = Listed([f"artifacts/1/{run.id}/artifacts/checkpoints/1"])
    sweep.doomed_artifacts(connection, bucket, rules, rules.rules[0], int(time.time() * 1000) + HOUR_MS)
    assert planned(connection, rules) == []
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE stackops.batch_items SET done = now() - interval '300 days'")
    assert [item for item in planned(connection, rules) if item.kind == "artifacts"]  # it ended after that


# Records elsewhere.


def test_a_trace_elsewhere_stays_and_one_of_mlflow_2_goes_with_its_objects(connection: Connection) -> None:
    store(connection, World([]))
    old = "0123456789abcdef" * 2
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE experiments SET lifecycle_stage = 'deleted', last_update_time = 1")
        places = {"tr-1": "s3://else/1/traces/tr-1", old: f"mlflow-artifacts:/1/traces/{old}/artifacts"}
        for name, uri in places.items():
            cursor.execute(
                "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status)"
                " VALUES (%s, 1, 1, 'OK')",
                (name,),
            )
            cursor.execute("INSERT INTO trace_tags VALUES ('mlflow.artifactLocation', %s, %s)", (uri, name))
    work = purge.Purge(connection, policy.default(90), "mlflow", NOW_MS)
    work.run()
    assert work.problems == {"trace tr-1: its artifacts are at s3://else/1/traces/tr-1"}
    assert ids(connection, "SELECT request_id FROM trace_info") == {"tr-1"}
    assert ids(connection, "SELECT prefix FROM stackops.doomed_objects") == {f"artifacts/1/traces/{old}/"}


def test_a_run_whose_model_is_elsewhere_stays_with_all_its_models(connection: Connection) -> None:
    runs = [Run(number, "FINISHED", True, True, "long ago", None, False, 1.0) for number in range(2)]
    store(connection, World(runs, [Model(0, 0, False), Model(1, 0, False), Model(2, 1, False)]))
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE logged_models SET artifact_location = 's3://else/m' WHERE model_id = 'm-0000'")
    for _ in range(2):
        work = purge.Purge(connection, policy.default(90), "mlflow", NOW_MS)
        work.run()
        assert work.problems == {"model m-0000: its artifacts are at s3://else/m"}
    assert ids(connection, "SELECT run_uuid FROM runs") == {runs[0].id}
    assert ids(connection, "SELECT model_id FROM logged_models") == {"m-0000", "m-0001"}
    prefixes = ids(connection, "SELECT prefix FROM stackops.doomed_objects")
    assert prefixes == {f"artifacts/1/{runs[1].id}/artifacts/", "artifacts/1/models/m-0002/"}


# Odd rows, lost connections.


def test_empty_links_stop_nothing(connection: Connection) -> None:
    runs = [Run(number, "FINISHED", True, True, "", None, number == 0, None) for number in range(3)]
    store(connection, World(runs))
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tags VALUES ('mlflow.parentRunId', '', %s), ('mlflow.parentRunId', NULL, %s)",
            (runs[1].id, runs[0].id),
        )
        cursor.execute("INSERT INTO tags VALUES ('mlflow.parentRunId', '', %s)", (runs[2].id,))
        cursor.execute(
            "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status)"
            " VALUES ('tr-0', 1, 1, 'OK')"
        )
        cursor.execute(NEWLY_KEPT["assessment"].format(run=""))
    assert {item.id for item in planned(connection, policy.default(90))} == {runs[1].id, runs[2].id}


def test_a_database_that_goes_away_is_no_records_fault(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [Run(number, "FINISHED", True, True, "long ago", None, False, 1.0) for number in range(3)]
    store(connection, World(runs))
    own = psycopg2.connect(connection.dsn)
    work = purge.Purge(own, policy.default(90), "mlflow", NOW_MS)
    original = purge.Purge._places

    def places(self: purge.Purge, *given: object) -> object:
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", (own.info.backend_pid,))
        return original(self, *given)

    monkeypatch.setattr(purge.Purge, "_places", places)
    with pytest.raises((psycopg2.OperationalError, psycopg2.InterfaceError)):
        work.run()
    assert work.problems == set()


# Time again for what was brought back.


def test_what_is_undone_has_its_time_again(connection: Connection) -> None:
    stuck = Run(0, "RUNNING", True, True, "", None, False, None)
    done = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([stuck, done]))
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status)"
            " VALUES ('tr-0', 1, 1, 'OK')"
        )
    stuck_rule = '[[rules]]\nname = "s"\naction = "mark-killed"\nwithout_metric_for_days = 90\n'
    traces = '[[rules]]\nname = "t"\naction = "delete-traces"\nolder_than_days = 90\n'
    rules = policy.parse(CHECKPOINTS + stuck_rule + traces, 90)
    batch = cleanup.run(connection, rules, scheduled=False, now=datetime.now(UTC))
    assert batch["done"] == {"artifacts": 1, "killed": 1, "trace": 1}
    journal.learn_runs(connection)
    assert set(cleanup.undo(connection, batch["batch"])["undone"]) == {"artifacts", "killed", "trace"}
    journal.learn_runs(connection)
    assert planned(connection, rules) == []


def test_a_run_that_a_person_deleted_and_restored_is_new_again(connection: Connection) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    for stage in ("deleted", "active"):
        with connection, connection.cursor() as cursor:
            cursor.execute("UPDATE runs SET lifecycle_stage = %s", (stage,))
        journal.learn_runs(connection)
    assert planned(connection, policy.default(90)) == []


def test_a_run_that_was_taken_up_again_is_not_stuck_at_once(connection: Connection) -> None:
    run = Run(1, "FINISHED", True, True, "", None, False, None)
    store(connection, World([run]))
    rules = policy.parse('[[rules]]\nname = "s"\naction = "mark-killed"\nwithout_metric_for_days = 7\n', 90)
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE runs SET status = 'RUNNING'")  # MLflow leaves the old end
    journal.learn_runs(connection)
    assert planned(connection, rules) == []
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE stackops.known_runs SET running_since = running_since - interval '8 days'")
    assert [item.kind for item in planned(connection, rules)] == ["killed"]


def test_the_first_scheduled_batch_waits_even_after_one_by_hand(connection: Connection) -> None:
    runs = [Run(number, "FINISHED", True, True, "", None, False, None) for number in range(2)]
    store(connection, World(runs[:1]))
    rules = policy.default(90)
    cleanup.run(connection, rules, scheduled=False, now=datetime.now(UTC))
    with connection, connection.cursor() as cursor:
        _store_run(cursor, runs[1])
    first = cleanup.run(connection, rules, scheduled=True, now=datetime.now(UTC))
    assert first["state"] == journal.WAITING
    cleanup.approve(connection, rules, first["batch"])
    with connection, connection.cursor() as cursor:
        cursor.execute("UPDATE runs SET lifecycle_stage = 'active', deleted_time = NULL")
    assert cleanup.run(connection, rules, scheduled=True, now=datetime.now(UTC))["state"] == journal.DONE
