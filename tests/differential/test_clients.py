"""MLflow's own client, as people use it, against both."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from kit.differential import HOT, Pair, Side, Step, check_equal
from kit.stack import ROOT

RECORDED = sorted((ROOT / "tests" / "data" / "clients").glob("*.json"))
MLFLOWS = ('"NaN"', '"another name"', '"renamed"')
"""What is in bodies that MLflow takes and the fast path leaves to it."""
assert RECORDED
START = 1700000000000
See = Callable[[Any], None]


def shown(run: mlflow.entities.Run) -> dict[str, Any]:
    """Return all of a run but its inputs and outputs."""
    return {"info": dict(run.info), "data": run.data.to_dictionary()}


def autolog_like(client: MlflowClient, side: Side, see: See) -> None:
    """What an automatic logger does: batches of params, metrics by step, tags, an end."""
    experiment_id = client.create_experiment("autolog")
    side.learn("experiment", experiment_id)
    run = client.create_run(experiment_id, start_time=START, tags={"mlflow.user": "ada"}, run_name="train")
    side.learn("run", run.info.run_id)
    see(shown(run))
    params = [Param(f"layer_{number}.units", str(number * 16)) for number in range(90)]
    client.log_batch(run.info.run_id, params=params)
    for epoch in range(10):
        points = [Metric(key, 1 / (epoch + 1), START + epoch, epoch) for key in ("loss", "val_loss", "lr")]
        client.log_batch(run.info.run_id, metrics=points, tags=[RunTag("epoch", str(epoch))])
    client.log_batch(run.info.run_id, metrics=[Metric(f"m{n % 50}", n, START, n) for n in range(1000)])
    client.set_tag(run.info.run_id, "mlflow.note.content", "# Done")
    client.set_terminated(run.info.run_id, "FINISHED", START + 5)
    see(shown(client.get_run(run.info.run_id)))
    see([dict(point) for point in client.get_metric_history(run.info.run_id, "loss")])


def by_hand(client: MlflowClient, side: Side, see: See) -> None:
    """One call after the other, with the errors that people meet."""
    experiment_id = client.create_experiment("by hand", tags={"team": "a"})
    side.learn("experiment", experiment_id)
    see(dict(client.get_experiment(experiment_id)))
    see(dict(client.get_experiment_by_name("by hand")))
    see(client.get_experiment_by_name("nobody's"))
    run = client.create_run(experiment_id, start_time=START, run_name="a")
    run_id = run.info.run_id
    side.learn("run", run_id)
    client.log_param(run_id, "lr", 0.1)
    client.log_param(run_id, "lr", 0.1)
    client.log_metric(run_id, "loss", 0.5, timestamp=START, step=0)
    client.log_metric(run_id, "loss", float("nan"), timestamp=START, step=1)
    client.log_metric(run_id, "bad", float("inf"), timestamp=START, step=1)
    client.set_tag(run_id, "a", 5)
    client.set_tag(run_id, "mlflow.runName", "b")
    see(shown(client.get_run(run_id)))
    client.update_run(run_id, status="FAILED", name="c")
    see(shown(client.get_run(run_id)))
    client.delete_tag(run_id, "a")
    client.delete_run(run_id)
    wrong: list[Callable[[], Any]] = [
        lambda: client.create_experiment("by hand"),
        lambda: client.log_param(run_id, "x", "y"),
        lambda: client.get_run("f" * 32),  # "0" * 32 is one of test_search.py
        lambda: client.get_experiment("1999999999"),
        lambda: client.search_runs([experiment_id], "nonsense"),
        lambda: client.search_runs([experiment_id], max_results=50001),
    ]
    for call in wrong:
        with pytest.raises(MlflowException) as error:
            call()
        see([error.value.error_code, str(error.value)])
    client.restore_run(run_id)
    with pytest.raises(MlflowException) as error:
        client.log_param(run_id, "lr", 0.2)
    see(str(error.value))
    client.set_terminated(run_id, "KILLED", START + 9)
    see(shown(client.get_run(run_id)))


def nested_with_search(client: MlflowClient, side: Side, see: See) -> None:
    """A parent with children, and the searches that follow."""
    experiment_id = client.create_experiment("nested")
    side.learn("experiment", experiment_id)
    parent = client.create_run(experiment_id, start_time=START, run_name="parent")
    side.learn("run", parent.info.run_id)
    for number in range(7):
        tags = {"mlflow.parentRunId": parent.info.run_id}
        child = client.create_run(experiment_id, START + 1 + number, tags, run_name=f"child {number}")
        side.learn("run", child.info.run_id)
        client.log_param(child.info.run_id, "depth", number)
        client.log_metric(child.info.run_id, "score", number / 4, timestamp=START, step=0)
        if number != 3:
            client.set_terminated(child.info.run_id, end_time=START + 100 + number)
    children = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    for filter_string, order_by in (
        ("", None),
        (children, ["metrics.score DESC"]),
        (f"{children} AND attributes.status = 'RUNNING'", None),
        ("params.depth != '2'", ["attributes.start_time ASC"]),
        ("metrics.score >= 0.5 AND params.depth LIKE '%'", ["params.depth DESC"]),
    ):
        token = None
        while True:
            page = client.search_runs([experiment_id], filter_string, ViewType.ALL, 3, order_by, token)
            see([shown(run) for run in page])
            token = page.token
            if not token:
                break


def with_a_dataset_and_a_model(client: MlflowClient, side: Side, see: See) -> None:
    """What the fast path does not know, between what it does."""
    experiment_id = client.create_experiment("inputs")
    side.learn("experiment", experiment_id)
    run_id = client.create_run(experiment_id, start_time=START, run_name="a").info.run_id
    side.learn("run", run_id)
    client.log_metric(run_id, "loss", 0.5, timestamp=START, step=0)
    dataset = mlflow.entities.Dataset("d", "0123", "local", "{}")
    client.log_inputs(run_id, [mlflow.entities.DatasetInput(dataset)])
    model = client.create_logged_model(experiment_id, name="m", source_run_id=run_id)
    side.learn("model", model.model_id)
    client.log_outputs(run_id, [mlflow.entities.LoggedModelOutput(model.model_id, 3)])
    client.log_metric(
        run_id,
        "accuracy",
        0.75,
        timestamp=START,
        step=3,
        model_id=model.model_id,
        dataset_name="d",
        dataset_digest="0123",
    )
    run = client.get_run(run_id)
    see(shown(run))
    see([each.to_dictionary() for each in run.inputs.dataset_inputs])
    see([[each.model_id, each.step] for each in run.outputs.model_outputs])
    found = client.search_runs([experiment_id], "metrics.loss > 0")
    see([shown(run) for run in found])
    see([each.to_dictionary() for run in found for each in run.inputs.dataset_inputs])


def many_threads(client: MlflowClient, side: Side, see: See) -> None:
    """Eight threads that log to one run, metrics and params by the same keys, so that they meet.

    Not tags: two that set a new one at the same time are told of an error by stock MLflow.
    """
    experiment_id = client.create_experiment("threads")
    side.learn("experiment", experiment_id)
    run_id = client.create_run(experiment_id, start_time=START, run_name="a").info.run_id
    side.learn("run", run_id)
    begun = threading.Barrier(8)

    def log(worker: int) -> None:
        begun.wait()
        for step in range(12):
            client.log_metric(run_id, "loss", worker + step / 16, timestamp=START + step, step=step)
            client.log_param(run_id, f"p{step}", "same")
            client.set_tag(run_id, f"t{worker}", str(step))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(log, range(8)))
    see(shown(client.get_run(run_id)))


FLOWS = [autolog_like, by_hand, nested_with_search, with_a_dataset_and_a_model, many_threads]


def play(pair: Pair, flow: Callable[[MlflowClient, Side, See], None]) -> None:
    """Play a flow against both and compare what was seen, and the tables."""

    def told(side: Side) -> str:
        side.begin()
        seen: list[Any] = []
        client = MlflowClient(tracking_uri=side.url)
        flow(client, side, lambda what: seen.append(json.loads(json.dumps(what))))
        return json.dumps(side.names.hide(seen), indent=1, sort_keys=True)

    check_equal(flow.__name__, told(pair.stock), told(pair.ours))
    pair.compare_tables()


@pytest.mark.parametrize("flow", FLOWS, ids=[flow.__name__ for flow in FLOWS])
def test_the_client_of_today(pair: Pair, flow: Callable[[MlflowClient, Side, See], None]) -> None:
    play(pair, flow)


def test_the_fluent_interface(pair: Pair) -> None:
    def flow(_: MlflowClient, side: Side, see: See) -> None:
        mlflow.set_tracking_uri(side.url)
        experiment = mlflow.set_experiment("fluent")
        side.learn("experiment", experiment.experiment_id)
        with mlflow.start_run(run_name="outer") as outer:
            side.learn("run", outer.info.run_id)
            mlflow.log_params({"a": 1, "b": None})
            mlflow.log_metrics({"loss": 0.5, "accuracy": 1}, step=3)
            with mlflow.start_run(nested=True) as inner:
                side.learn("run", inner.info.run_id)
                mlflow.set_tags({"k": "v", "mlflow.runName": "inner"})
                mlflow.log_metric("loss", 0.25)
        for run_id in (outer.info.run_id, inner.info.run_id):
            run = mlflow.get_run(run_id)
            see([run.data.metrics, run.data.params, run.data.tags, run.info.status, run.info.run_name])
        frame = mlflow.search_runs(order_by=["metrics.loss"])
        see([sorted(frame.columns), list(frame["metrics.loss"]), list(frame["run_id"])])

    before = mlflow.get_tracking_uri()
    try:
        play(pair, flow)
    finally:
        mlflow.set_tracking_uri(before)


def recorded(file: Path) -> list[Step]:
    """Return the requests that tests/data/clients/record.py kept of a client of some version."""
    steps = []
    for method, target, headers, body in json.loads(file.read_text(encoding="utf-8")):
        path, _, query = target.partition("?")
        is_hot = path in HOT and not any(text in body for text in MLFLOWS)
        how = "success" if is_hot else "fallback"
        steps.append(Step(path, body.encode() or None, how, method, query, dict(headers), prefix=""))
    return steps


@pytest.mark.parametrize("file", RECORDED, ids=[file.stem for file in RECORDED])
def test_recorded_clients(pair: Pair, file: Path) -> None:
    pair.both(Side.begin)
    for step in recorded(file):
        pair.send(step)
    pair.compare_tables()
