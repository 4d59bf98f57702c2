"""Experiments, runs, params, metrics, tags, datasets: what the client logs is what comes back."""

from __future__ import annotations

import math
import uuid

import mlflow
import pandas as pd
import pytest
from mlflow.entities import LifecycleStage, Metric, Param, RunStatus, RunTag, ViewType
from mlflow.exceptions import MlflowException

from kit.stack import Stack

LARGEST_FLOAT = 1.7976931348623157e308  # MLflow's stand-in for infinity in SQL


def unique(name: str) -> str:
    return f"{name} {uuid.uuid4().hex[:8]}"


def logged_run(
    client: mlflow.MlflowClient, experiment_id: str, *, depth: int, accuracy: float, team: str
) -> str:
    run = client.create_run(experiment_id, run_name=f"depth {depth}", tags={"team": team})
    client.log_param(run.info.run_id, "depth", depth)
    client.log_metric(run.info.run_id, "accuracy", accuracy)
    client.set_terminated(run.info.run_id, "FINISHED" if accuracy > 0.5 else "FAILED")
    return run.info.run_id


@pytest.fixture
def three_runs(client: mlflow.MlflowClient, experiment_id: str) -> dict[str, str]:
    """Three runs by name: small, middle, large."""
    return {
        "small": logged_run(client, experiment_id, depth=2, accuracy=0.25, team="red"),
        "middle": logged_run(client, experiment_id, depth=5, accuracy=0.75, team="blue"),
        "large": logged_run(client, experiment_id, depth=10, accuracy=0.9, team="blue"),
    }


def test_an_experiment_is_created_renamed_deleted_and_restored(client: mlflow.MlflowClient) -> None:
    first_name, second_name = unique("Versuch äöü/1"), unique("renamed")
    experiment_id = client.create_experiment(first_name, tags={"goal": "wine"})
    created = client.get_experiment(experiment_id)
    assert (created.name, created.tags["goal"]) == (first_name, "wine")
    assert created.artifact_location.startswith("mlflow-artifacts:/")

    client.rename_experiment(experiment_id, second_name)
    assert client.get_experiment_by_name(first_name) is None
    assert client.get_experiment_by_name(second_name).experiment_id == experiment_id

    client.delete_experiment(experiment_id)
    assert client.get_experiment(experiment_id).lifecycle_stage == LifecycleStage.DELETED
    with pytest.raises(MlflowException) as refusal:
        client.create_run(experiment_id)
    assert refusal.value.error_code == "INVALID_PARAMETER_VALUE"

    client.restore_experiment(experiment_id)
    assert client.get_experiment(experiment_id).lifecycle_stage == LifecycleStage.ACTIVE
    assert client.create_run(experiment_id).info.experiment_id == experiment_id


def test_two_experiments_cannot_have_the_same_name(client: mlflow.MlflowClient) -> None:
    name = unique("taken")
    client.create_experiment(name)
    with pytest.raises(MlflowException) as refusal:
        client.create_experiment(name)
    assert refusal.value.error_code == "RESOURCE_ALREADY_EXISTS"


def test_experiments_are_found_by_name_tag_and_view(client: mlflow.MlflowClient) -> None:
    group = uuid.uuid4().hex
    names = [f"{group}-{letter}" for letter in "abc"]
    ids = [client.create_experiment(name, tags={"group": group}) for name in names]
    client.delete_experiment(ids[1])

    def found(view: ViewType) -> list[str]:
        experiments = client.search_experiments(
            view_type=view, filter_string=f"tags.group = '{group}'", order_by=["name DESC"]
        )
        return [experiment.name for experiment in experiments]

    assert found(ViewType.ACTIVE_ONLY) == [names[2], names[0]]
    assert found(ViewType.DELETED_ONLY) == [names[1]]
    assert found(ViewType.ALL) == names[::-1]
    by_name = client.search_experiments(filter_string=f"name LIKE '{group}-c%'")
    assert [experiment.experiment_id for experiment in by_name] == [ids[2]]


def test_a_run_keeps_its_params_tags_and_name(client: mlflow.MlflowClient, experiment_id: str) -> None:
    with mlflow.start_run(run_name="Lauf Nr. 1 – ü") as run:
        mlflow.log_params({"learning rate": 0.1, "optimiser": "adam", "note": "Zeile 1\nZeile 2 €"})
        mlflow.set_tags({"stage": "draft", "gone": "soon"})
        mlflow.set_tag("stage", "final")
        mlflow.delete_tag("gone")
    stored = client.get_run(run.info.run_id)
    assert stored.info.run_name == "Lauf Nr. 1 – ü"
    assert stored.info.experiment_id == experiment_id
    assert stored.data.params == {
        "learning rate": "0.1",
        "optimiser": "adam",
        "note": "Zeile 1\nZeile 2 €",
    }
    assert stored.data.tags["stage"] == "final"
    assert "gone" not in stored.data.tags


def test_a_param_cannot_change_its_value(client: mlflow.MlflowClient, experiment_id: str) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    client.log_param(run_id, "depth", 1)
    client.log_param(run_id, "depth", 1)
    with pytest.raises(MlflowException, match="value='1'"):
        client.log_param(run_id, "depth", 2)
    assert client.get_run(run_id).data.params == {"depth": "1"}


def test_metrics_that_are_no_ordinary_numbers_come_back(
    client: mlflow.MlflowClient, experiment_id: str
) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    values = {"nan": math.nan, "plus": math.inf, "minus": -math.inf, "tiny": 5e-324, "zero": -0.0}
    for name, value in values.items():
        client.log_metric(run_id, name, value)
    metrics = client.get_run(run_id).data.metrics
    assert math.isnan(metrics.pop("nan"))
    assert metrics == {"plus": LARGEST_FLOAT, "minus": -LARGEST_FLOAT, "tiny": 5e-324, "zero": 0.0}


def test_the_latest_metric_is_the_one_of_the_highest_step(
    client: mlflow.MlflowClient, experiment_id: str
) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    for step, value in [(7, 0.7), (-3, 0.3), (0, 0.5)]:
        client.log_metric(run_id, "loss", value, step=step)
    assert client.get_run(run_id).data.metrics == {"loss": 0.7}
    history = client.get_metric_history(run_id, "loss")
    assert {(point.step, point.value) for point in history} == {(7, 0.7), (-3, 0.3), (0, 0.5)}


def test_a_metric_history_comes_in_the_order_of_time(client: mlflow.MlflowClient, experiment_id: str) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    points = [
        Metric("loss", value, timestamp, 0) for value, timestamp in [(3.0, 3000), (1.0, 1000), (2.0, 2000)]
    ]
    client.log_batch(run_id, metrics=points)
    history = client.get_metric_history(run_id, "loss")
    assert [(point.timestamp, point.value) for point in history] == [(1000, 1.0), (2000, 2.0), (3000, 3.0)]


def test_a_history_of_1500_points_is_complete(client: mlflow.MlflowClient, experiment_id: str) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    points = [Metric("loss", 1 / (step + 1), 1_000 + step, step) for step in range(1500)]
    client.log_batch(run_id, metrics=points[:1000])
    client.log_batch(run_id, metrics=points[1000:])
    history = client.get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(point.step, point.value) for point in points]
    assert client.get_run(run_id).data.metrics["loss"] == 1 / 1500


def test_log_batch_stores_metrics_params_and_tags_together(
    client: mlflow.MlflowClient, experiment_id: str
) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    client.log_batch(
        run_id,
        metrics=[Metric(f"m{number}", number, 1, 0) for number in range(800)],
        params=[Param(f"p{number}", str(number)) for number in range(100)],
        tags=[RunTag(f"t{number}", str(number)) for number in range(100)],
    )
    data = client.get_run(run_id).data
    assert data.metrics == {f"m{number}": number for number in range(800)}
    assert data.params == {f"p{number}": str(number) for number in range(100)}
    assert {name: value for name, value in data.tags.items() if name.startswith("t")} == {
        f"t{number}": str(number) for number in range(100)
    }


@pytest.mark.parametrize(
    ("too_much", "words"),
    [
        ({"metrics": [{"key": f"m{n}", "value": 1.0, "timestamp": 1} for n in range(1001)]}, "1000"),
        ({"params": [{"key": f"p{n}", "value": "1"} for n in range(101)]}, "100"),
        ({"tags": [{"key": f"t{n}", "value": "1"} for n in range(101)]}, "100"),
        ({"params": [{"key": "p" * 251, "value": "1"}]}, "250"),
    ],
    ids=["1001 metrics", "101 params", "101 tags", "a long name"],
)
def test_a_batch_beyond_a_limit_gets_mlflows_own_error_and_stores_nothing(
    stack: Stack, client: mlflow.MlflowClient, experiment_id: str, too_much: dict, words: str
) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    answer = stack.post("/api/2.0/mlflow/runs/log-batch", json={"run_id": run_id, **too_much})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert words in answer.json()["message"]
    data = client.get_run(run_id).data
    assert (data.metrics, data.params) == ({}, {})


def test_nested_runs_know_their_parent(client: mlflow.MlflowClient, experiment_id: str) -> None:
    with mlflow.start_run() as parent:
        children = []
        for fold in range(3):
            with mlflow.start_run(nested=True, run_name=f"fold {fold}") as child:
                children.append(child.info.run_id)
    found = client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.info.run_id for run in found} == set(children)
    assert mlflow.get_parent_run(children[0]).info.run_id == parent.info.run_id


@pytest.mark.parametrize("status", ["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"])
def test_a_run_keeps_the_status_it_is_given(
    client: mlflow.MlflowClient, experiment_id: str, status: str
) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    if RunStatus.is_terminated(RunStatus.from_string(status)):
        client.set_terminated(run_id, status)
    else:
        client.update_run(run_id, status=status)
    info = client.get_run(run_id).info
    assert info.status == status
    assert (info.end_time is not None) == (status in {"FINISHED", "FAILED", "KILLED"})
    found = client.search_runs([experiment_id], f"attributes.status = '{status}'")
    assert [run.info.run_id for run in found] == [run_id]


def test_a_run_whose_block_raises_is_failed(client: mlflow.MlflowClient, experiment_id: str) -> None:
    def training_that_fails() -> None:
        with mlflow.start_run():
            mlflow.log_metric("before", 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        training_that_fails()
    (stored,) = client.search_runs([experiment_id])
    assert (stored.info.status, stored.data.metrics) == ("FAILED", {"before": 1})


@pytest.mark.parametrize(
    ("filter_string", "expected"),
    [
        ("metrics.accuracy > 0.5", "middle large"),
        ("metrics.accuracy <= 0.25", "small"),
        ("params.depth = '10'", "large"),
        ("params.depth != '10'", "small middle"),
        ("tags.team = 'blue' and metrics.accuracy < 0.8", "middle"),
        ("tags.team LIKE 'r%'", "small"),
        ("attributes.run_name ILIKE 'DEPTH %'", "small middle large"),
        ("attributes.status = 'FAILED'", "small"),
        ("metrics.unheard > 0", ""),
    ],
)
def test_a_search_finds_the_runs_its_filter_describes(
    client: mlflow.MlflowClient,
    experiment_id: str,
    three_runs: dict[str, str],
    filter_string: str,
    expected: str,
) -> None:
    found = client.search_runs([experiment_id], filter_string)
    assert {run.info.run_id for run in found} == {three_runs[name] for name in expected.split()}


def test_a_search_sorts_by_what_it_is_told(
    client: mlflow.MlflowClient, experiment_id: str, three_runs: dict[str, str]
) -> None:
    def order(*columns: str) -> list[str]:
        names = {run_id: name for name, run_id in three_runs.items()}
        return [names[run.info.run_id] for run in client.search_runs([experiment_id], order_by=list(columns))]

    assert order("metrics.accuracy DESC") == ["large", "middle", "small"]
    assert order("params.depth ASC") == ["large", "small", "middle"]  # params are text
    assert order("tags.team DESC", "metrics.accuracy ASC") == ["small", "middle", "large"]


def test_a_wrong_filter_gets_mlflows_own_error(client: mlflow.MlflowClient, experiment_id: str) -> None:
    with pytest.raises(MlflowException) as refusal:
        client.search_runs([experiment_id], "metrics.accuracy >>> 1")
    assert refusal.value.error_code == "INVALID_PARAMETER_VALUE"


def test_paging_through_a_search_shows_each_run_once(client: mlflow.MlflowClient, experiment_id: str) -> None:
    made = {client.create_run(experiment_id).info.run_id for _ in range(25)}
    seen: list[str] = []
    sizes: list[int] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=10, page_token=token)
        seen += [run.info.run_id for run in page]
        sizes.append(len(page))
        token = page.token
        if not token:
            break
    assert sizes == [10, 10, 5]
    assert len(seen) == len(set(seen))
    assert set(seen) == made


def test_datasets_of_a_run_are_stored_and_found(client: mlflow.MlflowClient, experiment_id: str) -> None:
    frame = pd.DataFrame({"alcohol": [12.5, 13.1], "cultivar": ["a", "b"]})
    dataset = mlflow.data.from_pandas(
        frame, source="https://example.org/wine.csv", name="wine", targets="cultivar"
    )
    with mlflow.start_run() as run:
        mlflow.log_input(dataset, context="training", tags={"split": "first"})
    (stored,) = client.get_run(run.info.run_id).inputs.dataset_inputs
    assert (stored.dataset.name, stored.dataset.digest) == ("wine", dataset.digest)
    assert {tag.key: tag.value for tag in stored.tags} == {
        "mlflow.data.context": "training",
        "split": "first",
    }
    assert '"num_rows": 2' in stored.dataset.profile
    found = client.search_runs([experiment_id], "datasets.name = 'wine' and datasets.context = 'training'")
    assert [found_run.info.run_id for found_run in found] == [run.info.run_id]


def test_a_deleted_run_leaves_the_search_and_returns_when_restored(
    client: mlflow.MlflowClient, experiment_id: str, three_runs: dict[str, str]
) -> None:
    run_id = three_runs["middle"]

    def visible(view: ViewType) -> set[str]:
        return {run.info.run_id for run in client.search_runs([experiment_id], run_view_type=view)}

    client.delete_run(run_id)
    assert client.get_run(run_id).info.lifecycle_stage == LifecycleStage.DELETED
    assert visible(ViewType.ACTIVE_ONLY) == set(three_runs.values()) - {run_id}
    assert visible(ViewType.DELETED_ONLY) == {run_id}
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        client.log_metric(run_id, "late", 1)

    client.restore_run(run_id)
    assert visible(ViewType.ACTIVE_ONLY) == set(three_runs.values())
    restored = client.get_run(run_id)
    assert (restored.data.metrics, restored.data.params) == ({"accuracy": 0.75}, {"depth": "5"})


def test_an_unknown_run_is_mlflows_own_404(stack: Stack) -> None:
    answer = stack.get("/api/2.0/mlflow/runs/get", params={"run_id": "0" * 32})
    assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


def test_the_stacks_own_database_is_reached_by_its_socket(
    stack: Stack, client: mlflow.MlflowClient, experiment_id: str
) -> None:
    client.search_registered_models()  # MLflow's own
    client.create_run(experiment_id)  # the fast path's
    ways = stack.psql("SELECT DISTINCT client_addr IS NULL FROM pg_stat_activity WHERE usename = 'mlflow'")
    assert ways == "t"
