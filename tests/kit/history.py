"""Two years of use, made in a minute: what clients log, made old, and what must become of each part."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from sklearn.naive_bayes import GaussianNB

from kit import stored
from kit.stack import Stack

KEPT, GONE, YOUNG, PURGED = "kept", "gone", "young", "purged"
"""What becomes of a run: protected; deleted by the policy; too young; deleted by a person before."""

_BULK = """
INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage,
        artifact_uri, experiment_id)
    SELECT id, 'bulk', 'LOCAL', 'tester', 'FINISHED', ms, ms + 1000, 'active',
        'mlflow-artifacts:/{experiment}/' || id || '/artifacts', {experiment} FROM bulk;
INSERT INTO params SELECT key, number::text, id FROM bulk, unnest(ARRAY['lr', 'depth']) AS key;
INSERT INTO tags SELECT 'mlflow.user', 'tester', id FROM bulk;
INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)
    SELECT 'loss', step, ms + step, id, step, false FROM bulk, generate_series(0, 9) AS step;
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
    SELECT 'loss', 9, ms + 9, 9, false, id FROM bulk;
"""

_PUT = """
import sys
from concurrent.futures import ThreadPoolExecutor
import boto3
client = boto3.client("s3", endpoint_url="http://minio:9000")
def put(key):
    client.put_object(Bucket="mlflow", Key=key, Body=key.encode())
with ThreadPoolExecutor(8) as pool:
    list(pool.map(put, sys.stdin.read().split()))
"""

_DIGESTS = """
SELECT id, md5(string_agg(text, E'\\n' ORDER BY text)) FROM (
    SELECT run_uuid AS id, 'run' || runs::text AS text FROM runs
    UNION ALL SELECT run_uuid, 'param' || params::text FROM params
    UNION ALL SELECT run_uuid, 'tag' || tags::text FROM tags
    UNION ALL SELECT run_uuid, 'metric' || metrics::text FROM metrics
    UNION ALL SELECT run_uuid, 'latest' || latest_metrics::text FROM latest_metrics
    UNION ALL SELECT destination_id, 'input' || inputs::text FROM inputs WHERE destination_type = 'RUN'
    UNION ALL SELECT source_id, 'model' || inputs::text FROM inputs WHERE source_type LIKE 'RUN%'
) AS rows GROUP BY id
"""


@dataclass
class History:
    """A stack's runs, and what is expected of each."""

    stack: Stack
    runs: dict[str, str] = field(default_factory=dict)
    """Run id: KEPT, GONE, YOUNG or PURGED."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Run id: words of the reason why it is kept."""
    models: dict[str, str] = field(default_factory=dict)
    """Logged model id: KEPT or GONE."""
    versions: list[tuple[str, str]] = field(default_factory=list)
    """(name, version) of each version of a registered model: all must load in the end."""

    def of(self, *fates: str) -> set[str]:
        """Return the runs with these fates."""
        return {run_id for run_id, fate in self.runs.items() if fate in fates}

    def digests(self) -> dict[str, str]:
        """Return a digest of all rows of each run."""
        lines = self.stack.psql(_DIGESTS).splitlines()
        return dict(line.split("|") for line in lines)

    def objects(self) -> dict[str, str]:
        """Return the digest of each artifact in the bucket by its key."""
        return stored.objects(self.stack)

    def put(self, keys: list[str]) -> None:
        """Put small objects into the bucket."""
        command = ("exec", "-T", "mlflow", "python", "-c", _PUT)
        self.stack.compose(*command, given="\n".join(keys))


def make(stack: Stack, bulk: int) -> History:
    """Log one of everything that retention must tell apart, and `bulk` ordinary runs; make it old."""
    history = History(stack)
    client = MlflowClient()
    experiment = client.create_experiment("history")
    mlflow.set_experiment(experiment_id=experiment)  # the active one may be of another stack
    _make_runs(history, client, experiment)
    _make_models(history, client, experiment)
    _make_deleted_experiments(history, client)
    _make_bulk(history, experiment, bulk)
    _grow_old(history)
    return history


def _run(history: History, client: MlflowClient, experiment: str, fate: str, **more: Any) -> str:
    run = client.create_run(experiment, tags=more.get("tags"), run_name=more.get("name"))
    run_id = run.info.run_id
    client.log_batch(run_id, [Metric("loss", 0.5, 1, 0)], [Param("lr", "0.1")], [RunTag("note", "x")])
    client.log_text(run_id, f"of {run_id}", "notes/text.txt")
    client.set_terminated(run_id, more.get("status", "FINISHED"))
    history.runs[run_id] = fate
    if "why" in more:
        history.reasons[run_id] = more["why"]
    return run_id


def _make_runs(history: History, client: MlflowClient, experiment: str) -> None:
    def run(fate: str, **more: Any) -> str:
        return _run(history, client, experiment, fate, **more)

    for _ in range(5):
        run(GONE)
    run(KEPT, tags={"keep": "yes"}, why="tag keep")
    run(YOUNG, status="FAILED")
    run(YOUNG)
    started = client.create_run(experiment).info.run_id  # RUNNING
    history.runs[started] = YOUNG
    for _ in range(3):
        client.delete_run(run(PURGED))

    parent = run(KEPT, tags={"keep": ""}, why="tag keep")
    child = run(KEPT, tags={"mlflow.parentRunId": parent}, why="another run of its tree")
    run(KEPT, tags={"mlflow.parentRunId": child}, why="another run of its tree")
    parent = run(GONE)
    run(GONE, tags={"mlflow.parentRunId": parent})

    with_data = run(GONE)
    with mlflow.start_run(run_id=with_data):
        frame = pd.DataFrame({"x": [1, 2]})
        mlflow.log_input(mlflow.data.from_pandas(frame, name="frame"), context="training")
    client.set_terminated(with_data)

    mlflow.genai.register_prompt(name="greeting", template="Hello {{name}}")
    mlflow.set_experiment(experiment_id=experiment)
    with mlflow.start_span("traced"):
        pass

    kept_experiment = client.create_experiment("history of an audit", tags={"keep": "yes"})
    _run(history, client, kept_experiment, KEPT, why="tag keep of the experiment")


def _make_models(history: History, client: MlflowClient, experiment: str) -> None:
    def logged(fate: str, why: str = "") -> tuple[str, str]:
        with mlflow.start_run(experiment_id=experiment) as run:
            model = GaussianNB().fit([[0.0], [1.0]], [0, 1])
            info = mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
        history.runs[run.info.run_id] = fate
        history.models[info.model_id] = fate
        if why:
            history.reasons[run.info.run_id] = why
        return info.model_id, info.model_uri

    logged(GONE)
    for name in ("aliased", "staged", "plain"):
        _, uri = logged(KEPT, "registered model ")  # "plain" has a copy of another name
        mlflow.register_model(uri, name)
        history.versions.append((name, "1"))
    client.set_registered_model_alias("aliased", "champion", "1")
    client.transition_model_version_stage("staged", "1", "Production")

    _, uri = logged(KEPT, "its model: registered model without a run")
    mlflow.register_model(uri, "without a run")
    history.stack.psql("UPDATE model_versions SET run_id = NULL WHERE name = 'without a run'")
    history.versions.append(("without a run", "1"))

    client.create_registered_model("of artifacts")
    shared = _run(history, client, experiment, KEPT, why="registered model of artifacts version 1")
    client.create_model_version("of artifacts", client.get_run(shared).info.artifact_uri + "/notes", shared)
    history.stack.psql("UPDATE model_versions SET run_id = NULL WHERE name = 'of artifacts'")
    history.versions.append(("of artifacts", "1"))

    client.create_registered_model("copies")
    copied = client.copy_model_version("models:/plain/1", "copies")
    history.versions.append(("copies", str(copied.version)))

    _, uri = logged(GONE)
    client.delete_model_version("no more", mlflow.register_model(uri, "no more").version)

    # Evaluated by a run that stays.
    model_id, _ = logged(KEPT, "its model: used by run")
    evaluation = _run(history, client, experiment, YOUNG, status="FAILED")
    client.log_inputs(evaluation, models=[mlflow.entities.LoggedModelInput(model_id)])


def _make_deleted_experiments(history: History, client: MlflowClient) -> None:
    plain = client.create_experiment("deleted")
    _run(history, client, plain, PURGED)
    client.delete_experiment(plain)
    registered = client.create_experiment("deleted with a model")
    run_id = _run(history, client, registered, KEPT)
    client.create_registered_model("of a deleted experiment")
    source = client.get_run(run_id).info.artifact_uri + "/notes"
    client.create_model_version("of a deleted experiment", source, run_id)
    history.versions.append(("of a deleted experiment", "1"))
    client.delete_experiment(registered)


def _make_bulk(history: History, experiment: str, count: int) -> None:
    ids = [hashlib.md5(f"bulk {number}".encode()).hexdigest() for number in range(count)]
    bulk(history.stack, experiment, ids)
    history.runs |= dict.fromkeys(ids, GONE)


def bulk(stack: Stack, experiment: str, ids: list[str]) -> None:
    """Make runs with rows and two objects each, past the server: in seconds instead of minutes."""
    values = ",".join(f"('{name}', {number})" for number, name in enumerate(ids))
    now = "(extract(epoch FROM now()) * 1000)::bigint"
    table = (
        f"CREATE TEMP TABLE bulk AS SELECT *, {now} - 1000 AS ms FROM (VALUES {values}) AS v (id, number);"
    )
    stack.psql_script(table + _BULK.format(experiment=experiment))
    names = ("model.bin", "notes/text.txt")
    History(stack).put([f"artifacts/{experiment}/{run}/artifacts/{name}" for run in ids for name in names])


def _grow_old(history: History) -> None:
    """Move everything but the young into the past: the runs over two years, a day being the least."""
    names = ",".join(f"'{run_id}'" for run_id in sorted(history.of(KEPT, GONE, PURGED)))
    shift = "(91 + abs(hashtext(run_uuid)) % 640) * 86400000::bigint"
    history.stack.psql_script(
        # The failed and running ones too: their status is what keeps them.
        f"UPDATE runs SET start_time = start_time - {shift}, end_time = end_time - {shift},"
        f" deleted_time = deleted_time - {shift} WHERE run_uuid IN ({names})"
        " OR status IN ('FAILED', 'RUNNING');"
        "UPDATE logged_models SET last_updated_timestamp_ms ="
        " last_updated_timestamp_ms - 91 * 86400000::bigint;"
        "UPDATE experiments SET last_update_time = last_update_time - 91 * 86400000::bigint"
        " WHERE lifecycle_stage = 'deleted';"
    )


def forget_that_it_is_new(stack: Stack) -> None:
    """Let the stack have known every run for two years."""
    stack.psql(
        "UPDATE stackops.known_runs SET since = since - interval '2 years',"
        " running_since = running_since - interval '2 years'"
    )
