"""Retention without a database: places of artifacts, groups of objects, tables, approval, growth."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackops.retention import cleanup, inventory, journal, plan, policy, show, tables, usage
from stackops.retention.places import Place, of_key, of_location
from stackserver.database import pinned_revision

RUN = "0123456789abcdef0123456789abcdef"
NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=32)


# Places.


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (f"artifacts/7/{RUN}/artifacts/a/b", Place("run", RUN, 7, f"artifacts/7/{RUN}/artifacts/")),
        ("artifacts/7/models/m-1a/MLmodel", Place("model", "m-1a", 7, "artifacts/7/models/m-1a/")),
        ("artifacts/7/models/m-1a/artifacts/x", Place("model", "m-1a", 7, "artifacts/7/models/m-1a/")),
        ("artifacts/7/traces/tr-1/traces.json", Place("trace", "tr-1", 7, "artifacts/7/traces/tr-1/")),
    ],
)
def test_a_key_of_a_known_shape_has_an_owner(key: str, place: Place) -> None:
    assert of_key(key) == place


@pytest.mark.parametrize(
    "key",
    [
        *(
            "",
            "artifacts",
            "artifacts/",
            ".stack/bucket",
            "other/7/x/artifacts/a",
            "artifacts/x/y/artifacts/a",
        ),
        *(f"artifacts/7/{RUN}/other/a", f"artifacts/7/{RUN}", f"artifacts/7/{RUN}/artifacts"),
        *("artifacts/7/models/x-1/a", "artifacts/7/models/m-1", "artifacts/7/traces/1/a", "artifacts/7/a"),
        *("artifacts/7/models/artifacts/a", "artifacts/7/traces/artifacts/a", "artifacts//models/m-1/a"),
        *("artifacts/7/../8/artifacts/a", "artifacts/7/a b/artifacts/a", "artifacts/-1/models/m-1/a"),
    ],
)
def test_a_key_of_another_shape_is_nobodys(key: str) -> None:
    assert of_key(key) is None


@given(NAMES, st.integers(0, 10**9), st.text(min_size=1))
def test_an_owners_prefix_never_covers_anothers_object(name: str, experiment: int, path: str) -> None:
    for key in (
        f"artifacts/{experiment}/{name}/artifacts/{path}",
        f"artifacts/{experiment}/models/m-{name}/{path}",
    ):
        place = of_key(key)
        if place:
            assert key.startswith(place.prefix)
            assert place.prefix.endswith("/")
            assert f"/{place.id}/" in place.prefix


@pytest.mark.parametrize(
    ("kind", "name", "uri", "prefix"),
    [
        ("run", RUN, f"mlflow-artifacts:/7/{RUN}/artifacts", f"artifacts/7/{RUN}/artifacts/"),
        ("run", RUN, f"s3://mlflow/artifacts/7/{RUN}/artifacts/", f"artifacts/7/{RUN}/artifacts/"),
        ("model", "m-1", "mlflow-artifacts:/7/models/m-1/artifacts/", "artifacts/7/models/m-1/"),
        ("trace", "tr-1", "mlflow-artifacts:/7/traces/tr-1/artifacts", "artifacts/7/traces/tr-1/"),
        ("run", RUN, "mlflow-artifacts:/7/another/artifacts", None),
        ("run", RUN, f"s3://elsewhere/artifacts/7/{RUN}/artifacts", None),
        ("run", RUN, f"file:///tmp/7/{RUN}/artifacts", None),
        ("run", RUN, f"mlflow-artifacts://host/7/{RUN}/artifacts", None),
        ("run", RUN, f"mlflow-artifacts:/7/{RUN}", None),
        ("run", RUN, "", None),
        ("run", RUN, None, None),
        ("model", RUN, f"mlflow-artifacts:/7/{RUN}/artifacts", None),
    ],
)
def test_only_a_place_of_its_own_in_our_bucket_is_a_records_place(
    kind: str, name: str, uri: str | None, prefix: str | None
) -> None:
    place = of_location(kind, name, uri, "mlflow")
    assert (place.prefix if place else None) == prefix


# Groups.


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 99)), max_size=40))
def test_groups_count_every_object_once(made: list[tuple[str, int, int]]) -> None:
    keys = {
        (f"artifacts/1/{name}/artifacts/{number}" if name != "c" else f"artifacts/odd/{number}"): size
        for name, number, size in made
    }
    unknown = inventory.Unknown()
    groups = list(inventory.groups(sorted(keys.items()), unknown))
    assert [group.place.id for group in groups] == sorted({name for name, _, _ in made} - {"c"})
    assert sum(group.objects for group in groups) + unknown.objects == len(keys)
    assert sum(group.bytes for group in groups) + unknown.bytes == sum(keys.values())
    assert unknown.keys == sorted(key for key in keys if "odd" in key)


# MLflow's tables.


def test_the_revision_that_cleanup_knows_is_the_pinned_one() -> None:
    assert pinned_revision() in journal.REVISIONS


def test_what_points_to_a_record_is_deleted_before_it() -> None:
    keys = {
        "runs": [("tags", "run_uuid", "run_uuid")],
        "experiments": [("runs", "experiment_id", "experiment_id")],
    }
    texts = [_text(statement) for statement in tables.deletions(keys, "experiments", "experiment_id")]
    assert [text.split()[2] for text in texts[-3:]] == ["tags", "runs", "experiments"]
    assert (
        "SELECT run_uuid FROM runs WHERE experiment_id IN (SELECT experiment_id FROM experiments" in texts[-3]
    )


def test_links_without_a_foreign_key_are_those_that_are_known() -> None:
    """A new table or column that names runs, models or traces must be looked at by a person."""
    import mlflow.store.model_registry.dbmodels.models
    import mlflow.store.tracking.dbmodels.models  # noqa: F401
    from mlflow.store.db.base_sql_model import Base

    names = {
        "run_id",
        "run_uuid",
        "source_run_id",
        "model_id",
        "trace_id",
        "request_id",
        "source_id",
        "destination_id",
    }
    found = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        for column in table.columns
        if column.name in names and not column.foreign_keys and not column.primary_key
    }
    assert found == {
        "assessments.run_id",  # keeps the run
        "assessments.source_id",  # who assessed
        "evaluation_dataset_records.source_id",  # keeps the trace
        "logged_models.source_run_id",  # the model goes with the run
        "model_versions.run_id",  # keeps the run
    }


def _text(statement: object) -> str:
    parts = getattr(statement, "seq", None)
    if parts is not None:
        return "".join(_text(part) for part in parts)
    return getattr(statement, "string", None) or ".".join(getattr(statement, "strings", ()))


# Batches.


def planned(runs: int, active: int) -> plan.Plan:
    return plan.Plan({"run": runs} if runs else {}, active_runs=active)


@pytest.mark.parametrize(
    ("runs", "active", "first", "waits"),
    [
        (0, 1000, True, False),
        (1, 1000, True, True),
        (100, 100, False, False),
        (101, 505, False, False),
        (101, 504, False, True),
        (5000, 100_000, False, False),
    ],
)
def test_the_first_batch_and_a_large_one_wait(runs: int, active: int, first: bool, waits: bool) -> None:
    assert cleanup.needs_approval(planned(runs, active), first=first) == waits


def test_a_batch_that_waits_says_what_to_do() -> None:
    facts = {"runs": 4812, "killed": 0, "traces": 0, "artifact_runs": 0, "bytes": 31_000_000_000}
    said = "cleanup waits for approval: 4,812 runs, 31.0 GB; ./stack cleanup approve 20261121T020000"
    assert show.waiting("20261121T020000", facts) == said


# Growth.


@pytest.mark.parametrize(
    ("history", "growth"),
    [
        ([], None),
        ([(10, 500)], None),
        ([(10, 500), (16, 900)], None),
        ([(10, 500), (17, 900)], 400),
        ([(1, 0), (10, 500), (38, 900)], 100),
        ([(10, 900), (24, 500)], -200),
    ],
)
def test_growth_is_that_of_the_last_weeks(history: list[tuple[int, int]], growth: int | None) -> None:
    assert usage.growth_per_week(history) == growth


def test_a_projection_never_goes_below_nothing() -> None:
    assert usage.projection(100, None) is None
    assert usage.projection(100, -200)["12m"] == 0
    assert usage.projection(0, 7)["1m"] == 30


def test_the_default_policy_deletes_finished_runs_restorably() -> None:
    (rule,) = policy.default(90).rules
    assert (rule.action, rule.status, rule.older_than_days) == ("delete-runs", ("FINISHED",), 90)
