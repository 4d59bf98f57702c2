"""What people do with a client of MLflow, the same for clients of all years: `python flow.py URL`.

Run by record.py in the virtual environment of an old version. What a version does not have is left
out by asking the client, not by comparing version numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient


def refused(call: Callable[..., Any], *words: Any) -> None:
    """Call what the server must refuse."""
    try:
        call(*words)
    except MlflowException:
        return
    raise AssertionError(f"{call} took {words}")


def train() -> list[str]:
    """Log as a script does that trains: a run with others in it, one that fails."""
    with mlflow.start_run(run_name="outer") as outer:
        mlflow.log_param("lr", 0.1)
        mlflow.log_params({"layers": 3, "tiếng Việt": "đường", "empty": ""})
        for step in range(3):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        mlflow.log_metric("accuracy", 1)
        mlflow.log_metrics({"val_loss": 0.5, "tiny": 5e-324}, step=2)
        mlflow.log_metrics({"nan": float("nan"), "inf": float("inf")}, step=2)
        mlflow.set_tag("team", "a/b")
        mlflow.set_tags({"epoch": 3, "mlflow.note.content": "# Done"})
        with mlflow.start_run(nested=True) as inner:
            mlflow.log_metric("loss", 0.25)
    try:
        with mlflow.start_run(run_name="fails") as failed:
            raise KeyError
    except KeyError:
        pass
    with mlflow.start_run(run_id=outer.info.run_id):
        mlflow.log_metric("loss", 0.125, step=3)
    return [each.info.run_id for each in (outer, inner, failed)]


def tidy(client: MlflowClient, experiment_id: str) -> None:
    """Use the client by hand: batches, changes, mistakes, removal."""
    run_id = client.create_run(experiment_id, start_time=1_600_000_000_000, tags={"by": "hand"}).info.run_id
    points = [
        Metric(f"m{number % 50}", number / 3, 1_600_000_000_000 + number, number) for number in range(200)
    ]
    client.log_batch(run_id, points, [Param(f"p{number}", str(number)) for number in range(90)])
    client.log_batch(run_id, tags=[RunTag("mlflow.runName", "another name")])
    client.log_param(run_id, "p0", "0")
    refused(client.log_param, run_id, "p0", "1")
    refused(client.log_metric, run_id, "x" * 251, 1.0)
    refused(client.get_run, "f" * 32)
    if hasattr(client, "update_run"):
        client.update_run(run_id, "SCHEDULED", "renamed")
    client.set_terminated(run_id, "KILLED", 1_600_000_000_500)
    client.delete_tag(run_id, "by")
    client.delete_run(run_id)
    refused(client.set_tag, run_id, "a", "b")
    client.restore_run(run_id)
    client.get_run(run_id)
    client.get_metric_history(run_id, "m7")


def look(client: MlflowClient, experiment_id: str, runs: list[str]) -> None:
    """Search, page after page."""
    for filter_string, order_by in (
        ("", None),
        ("metrics.loss < 1 and params.lr = '0.1'", ["metrics.loss DESC"]),
        (f"tags.mlflow.parentRunId = '{runs[0]}'", None),
        ("attributes.status = 'FINISHED' and tags.team LIKE '%'", ["attributes.start_time ASC"]),
        ("params.`tiếng Việt` != 'x'", ["params.lr ASC", "start_time DESC"]),
    ):
        token = None
        while True:
            found = client.search_runs([experiment_id], filter_string, ViewType.ALL, 2, order_by, token)
            token = found.token
            if not token:
                break
    refused(client.search_runs, [experiment_id], "nonsense")
    for run_id in runs:
        client.get_run(run_id)
        client.get_metric_history(run_id, "loss")


def main() -> None:
    mlflow.set_tracking_uri(sys.argv[1])
    experiment_id = mlflow.set_experiment(f"requests of {mlflow.__version__}").experiment_id
    client = MlflowClient()
    client.set_experiment_tag(experiment_id, "team", "a")
    refused(client.create_experiment, f"requests of {mlflow.__version__}")
    runs = train()
    tidy(client, experiment_id)
    look(client, experiment_id, runs)
    client.rename_experiment(experiment_id, f"renamed by {mlflow.__version__}")
    client.get_experiment_by_name(f"renamed by {mlflow.__version__}")
    client.delete_experiment(experiment_id)
    client.get_experiment(experiment_id)


if __name__ == "__main__":
    main()
