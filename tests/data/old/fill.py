"""Fill a server of an old MLflow with its own client: a little of everything it can hold.

Run by make.py in the virtual environment of that version: `python fill.py URI`. What a
version does not have is left out by asking the client, not by comparing version numbers.
"""

from __future__ import annotations

import json
import sys
import warnings
from inspect import signature

import mlflow
import pandas
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from sklearn.linear_model import LogisticRegression

BASE_MS = 1_700_000_000_123
FRAME = pandas.DataFrame(
    {"length": [1.0, 2.0, 3.0, 4.0], "depth": [0.5, 0.1, 0.9, 0.7], "kind": [0, 0, 1, 1]}
)
HISTORY = [
    ("loss", 1.0, 0),
    ("loss", 0.5, 1),
    ("loss", 0.25, 1),
    ("loss", 0.25, 1),
    ("loss", 0.125, 7),
    ("late", 2.0, 2**40),
    ("negative step", 3.0, -2),
    ("nan", float("nan"), 0),
    ("nan", 1.0, 1),
    ("ends in nan", 1.0, 0),
    ("ends in nan", float("nan"), 1),
    ("inf", float("inf"), 1),
    ("minus inf", float("-inf"), 1),
    ("exact", 0.1 + 0.2, 0),
    ("tiny", 5e-324, 0),
    ("path/like.key", -0.0, 3),
]


def fitted() -> LogisticRegression:
    """Return a model of four points."""
    return LogisticRegression().fit(FRAME[["length", "depth"]], FRAME["kind"])


def log_model(name: str) -> str:
    """Log a model to the active run; return its URI."""
    requirements = ["scikit-learn"]  # asking pip what else is installed takes half a minute
    if hasattr(mlflow, "initialize_logged_model"):
        return mlflow.sklearn.log_model(
            fitted(), name=name, pip_requirements=requirements, params={"C": "1.0"}, step=1
        ).model_uri
    return mlflow.sklearn.log_model(fitted(), name, pip_requirements=requirements).model_uri


def child(client: MlflowClient, number: int) -> str:
    """Make one full run below the active one; return its id."""
    with mlflow.start_run(run_name=f"child {number}", nested=True) as run:
        run_id = run.info.run_id
        # Before the metrics: 3.1 copies a run's metrics to the model and fails on one that ends in NaN.
        mlflow.set_tag("model uri", log_model("model"))
        metrics = [
            Metric(key, value, BASE_MS + order, step) for order, (key, value, step) in enumerate(HISTORY)
        ]
        params = [
            Param("C", "0.1"),
            Param("tiếng Việt", "đường"),
            Param("long", "x" * 490),
            Param("empty", ""),
        ]
        tags = [RunTag("long", "y" * 4900), RunTag("mlflow.note.content", "Ghi chú **markdown**")]
        client.log_batch(run_id, metrics, params, tags)
        dataset = mlflow.data.from_pandas(
            FRAME, source="s3://bucket/penguins.csv", name="penguins", targets="kind"
        )
        mlflow.log_input(dataset, context="training", tags={"split": str(number)})
        mlflow.log_dict({"a": 1, "đ": "ủ"}, "config/settings.json")
        mlflow.log_text(f"run {number}\n", "notes/note one.txt")
    return run_id


def single_runs(client: MlflowClient, experiment_id: str) -> None:
    """Make runs of every status, with times of their own, one of them deleted."""
    for name, status in (("failed", "FAILED"), ("killed", "KILLED"), ("deleted", "FINISHED")):
        run = client.create_run(experiment_id, start_time=BASE_MS, run_name=name, tags={"mlflow.user": "bob"})
        client.log_metric(run.info.run_id, "m", 1.5, timestamp=BASE_MS, step=3)
        client.log_param(run.info.run_id, "p", name)
        client.set_terminated(run.info.run_id, status, BASE_MS + 360_000)
        if name == "deleted":
            client.log_text(run.info.run_id, "still here\n", "kept.txt")
            client.delete_run(run.info.run_id)
    client.create_run(experiment_id, run_name="running")
    client.update_run(client.create_run(experiment_id, run_name="named").info.run_id, "SCHEDULED", "renamed")


def registry(client: MlflowClient, run_ids: list[str]) -> None:
    """Register models: stages, aliases, tags, a gap in the numbers, a version of a deleted run."""
    client.create_registered_model("penguin-clf", tags={"owner": "alice"}, description="mô tả")
    for number, run_id in enumerate([*run_ids, run_ids[0]]):
        uri = client.get_run(run_id).data.tags["model uri"]
        if not uri.startswith("models:/"):
            uri = f"runs:/{run_id}/model"
        mlflow.register_model(uri, "penguin-clf", tags={"number": str(number)})
        client.update_model_version("penguin-clf", str(number + 1), description=f"description {number}")
    client.delete_model_version("penguin-clf", "2")
    for version, stage in (("1", "Archived"), ("3", "Production"), ("4", "Staging")):
        client.transition_model_version_stage("penguin-clf", version, stage)
    client.set_registered_model_alias("penguin-clf", "champion", "3")
    client.set_registered_model_alias("penguin-clf", "challenger", "4")
    client.set_model_version_tag("penguin-clf", "4", "long", "z" * 4900)
    client.create_registered_model("no versions")

    with mlflow.start_run(run_name="registered, then deleted") as run:
        uri = log_model("model")
        mlflow.register_model(uri, "of a deleted run")
    client.delete_run(run.info.run_id)


def traces() -> list[str]:
    """Make traces with nested spans, one in a run, one that failed; return their ids."""

    @mlflow.trace(name="inner", span_type="TOOL")
    def inner(number: int) -> int:
        if number > 9:
            raise ValueError(number)
        return number + 1

    @mlflow.trace(name="agent", span_type="AGENT", attributes={"k": "v"})
    def agent(question: str) -> dict[str, int]:
        mlflow.update_current_trace(tags={"environment": "test", "tiếng": "Việt"})
        if "metadata" in signature(mlflow.update_current_trace).parameters:
            usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
            metadata = {"mlflow.trace.session": "session 1", "mlflow.trace.user": "alice"}
            mlflow.update_current_trace(metadata={**metadata, "mlflow.trace.tokenUsage": json.dumps(usage)})
            span = mlflow.get_current_active_span()
            cost = {"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.1 + 0.2}
            span.set_attributes(
                {"mlflow.llm.model": "gpt-x", "mlflow.llm.provider": "none", "mlflow.llm.cost": cost}
            )
        return {"answer": inner(len(question))}

    agent("câu hỏi")
    with mlflow.start_run(run_name="with a trace"):
        agent("in a run")
    try:
        agent("a question too long")
    except ValueError as error:
        print("as wanted:", error)
    mlflow.flush_trace_async_logging()
    experiment = mlflow.get_experiment_by_name("penguins")
    found = MlflowClient().search_traces(experiment_ids=[experiment.experiment_id])
    return [getattr(trace.info, "trace_id", None) or trace.info.request_id for trace in found]


def keeps_assessments() -> bool:
    """Return whether this version's server can store assessments (3.1's client can, its server cannot)."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return hasattr(SqlAlchemyStore, "create_assessment")


def assessments(trace_ids: list[str]) -> None:
    """Give feedback and an expectation to traces."""
    from mlflow.entities import AssessmentSource

    human = AssessmentSource("HUMAN", "alice")
    mlflow.log_feedback(trace_id=trace_ids[0], name="quality", value=0.8, rationale="good", source=human)
    mlflow.log_feedback(trace_id=trace_ids[0], name="polite", value=True, source=human, metadata={"a": "b"})
    mlflow.log_expectation(trace_id=trace_ids[1], name="answer", value={"x": 1}, source=human)


def prompts() -> None:
    """Register two versions of a prompt, with an alias and tags."""
    api = mlflow.genai if hasattr(getattr(mlflow, "genai", None), "register_prompt") else mlflow
    for text, message in (("Summarize {{text}}", "first"), ("Summarize {{text}} briefly", "second")):
        api.register_prompt("summary", text, commit_message=message, tags={"language": "en"})
    api.set_prompt_alias("summary", "prod", 1)


def logged_models(client: MlflowClient) -> None:
    """Make LoggedModels beside those of the runs: external, pending, deleted, with metrics and as input."""
    from mlflow.entities import LoggedModelInput

    with mlflow.start_run(run_name="logged models") as run:
        model = mlflow.create_external_model(
            name="external", params={"a": "b"}, tags={"x": "y"}, model_type="agent"
        )
        client.set_logged_model_tags(model.model_id, {"state": "candidate"})
        dataset = mlflow.data.from_pandas(
            FRAME, source="s3://bucket/penguins.csv", name="penguins", targets="kind"
        )
        mlflow.log_metric("accuracy", 0.9, step=1, model_id=model.model_id, dataset=dataset)
        mlflow.log_metric("accuracy", 0.95, step=2, model_id=model.model_id)
    with mlflow.start_run(run_name="uses a model") as run:
        client.log_inputs(run.info.run_id, models=[LoggedModelInput(model.model_id)])
    mlflow.initialize_logged_model(name="pending", params={"q": "1"})
    client.delete_logged_model(mlflow.create_external_model(name="to delete").model_id)


def main() -> None:
    """Fill the server."""
    warnings.filterwarnings("ignore")
    mlflow.set_tracking_uri(sys.argv[1])
    client = MlflowClient()
    note = {"team": "ml", "mlflow.note.content": "Ghi chú"}
    penguins = client.create_experiment("penguins", tags=note)
    other = client.create_experiment("tên có dấu / slash", tags={"k": "v"})
    deleted = client.create_experiment("deleted")

    mlflow.set_experiment("penguins")
    with mlflow.start_run(run_name="parent"):
        mlflow.log_param("p", "1")
        run_ids = [child(client, number) for number in range(3)]
        with (
            mlflow.start_run(run_name="middle", nested=True),
            mlflow.start_run(run_name="grandchild", nested=True),
        ):
            mlflow.log_metric("m", 1)
    single_runs(client, penguins)
    for experiment_id in (other, deleted, "0"):
        run = client.create_run(experiment_id, start_time=BASE_MS)
        client.log_metric(run.info.run_id, "m", 5.5, timestamp=BASE_MS, step=3)
        client.log_text(run.info.run_id, f"of {experiment_id}\n", "note.txt")
        client.set_terminated(run.info.run_id, end_time=BASE_MS + 1)
    client.delete_experiment(deleted)
    registry(client, run_ids)
    if hasattr(mlflow, "trace"):
        trace_ids = traces()
        if keeps_assessments():
            assessments(trace_ids)
    if hasattr(mlflow, "register_prompt"):
        prompts()
    if hasattr(mlflow, "create_external_model"):
        logged_models(client)


if __name__ == "__main__":
    main()
