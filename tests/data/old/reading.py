"""Read everything of a server back with whatever MLflow is installed, as plain data.

The same code reads the old server with the old client (make.py writes expected.json with
it) and the new server with the new one (tests/faults/test_old_databases.py): no field is
left out here because it might differ. `python reading.py URI FILE` writes the JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient

ALL = 3  # ViewType.ALL of every version


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it; a float as its exact text (NaN, -0.0, all digits)."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def fields(record: Any, *names: str) -> dict[str, Any]:
    """Return the named attributes of an MLflow entity; what its version does not have is left out."""
    return {name: plain(getattr(record, name)) for name in names if hasattr(record, name)}


def pages(search: Any, **keywords: Any) -> list[Any]:
    """Return the results of all pages of a search."""
    found, token = [], None
    while True:
        page = search(page_token=token, **keywords)
        found += page
        token = page.token
        if not token:
            return found


def read_experiment(experiment: Any) -> dict[str, Any]:
    """Return an experiment."""
    names = ("name", "artifact_location", "lifecycle_stage", "tags", "creation_time", "last_update_time")
    return fields(experiment, *names)


def read_files(client: MlflowClient, run_id: str, folder: str | None = None) -> dict[str, str]:
    """Return the SHA-256 of each file of a run, downloaded, by path."""
    files = {}
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            files |= read_files(client, run_id, entry.path)
            continue
        with tempfile.TemporaryDirectory() as target:
            local = Path(client.download_artifacts(run_id, entry.path, target))
            files[entry.path] = hashlib.sha256(local.read_bytes()).hexdigest()
    return files


def read_inputs(run: Any) -> dict[str, Any]:
    """Return the datasets and models that went into a run and came out of it."""
    datasets = [
        {
            **fields(entry.dataset, "name", "digest", "source_type", "source", "schema", "profile"),
            "tags": {tag.key: tag.value for tag in entry.tags},
        }
        for entry in run.inputs.dataset_inputs
    ]
    models = sorted(entry.model_id for entry in getattr(run.inputs, "model_inputs", None) or [])
    outputs = getattr(getattr(run, "outputs", None), "model_outputs", None) or []
    return {
        "datasets": datasets,
        "models": models,
        "outputs": sorted((entry.model_id, entry.step) for entry in outputs),
    }


def read_run(client: MlflowClient, run: Any) -> dict[str, Any]:
    """Return a run with its whole metric histories, its inputs and the digests of its files."""
    names = (
        *("run_name", "experiment_id", "status", "start_time", "end_time"),
        *("lifecycle_stage", "artifact_uri", "user_id"),
    )
    histories = {
        key: sorted(
            [point.timestamp, point.step, plain(point.value)]
            for point in client.get_metric_history(run.info.run_id, key)
        )
        for key in run.data.metrics
    }
    latest = {point.key: [point.timestamp, point.step, plain(point.value)] for point in run.data._metric_objs}
    return plain(
        {
            **fields(run.info, *names),
            "params": run.data.params,
            "tags": run.data.tags,
            "latest_metrics": latest,
            "metrics": histories,
            **read_inputs(run),
            "files": read_files(client, run.info.run_id),
        }
    )


def read_registered_model(client: MlflowClient, model: Any) -> dict[str, Any]:
    """Return a registered model with its versions."""
    names = (
        *("current_stage", "description", "source", "run_id", "run_link", "status", "status_message"),
        *("tags", "aliases", "creation_timestamp", "last_updated_timestamp", "user_id", "model_id"),
    )
    versions = pages(client.search_model_versions, filter_string=f"name='{model.name}'")
    return {
        **fields(model, "description", "tags", "creation_timestamp", "last_updated_timestamp"),
        "aliases": {alias: str(version) for alias, version in sorted(dict(model.aliases).items())},
        "latest_versions": sorted(
            [entry.current_stage, str(entry.version)] for entry in model.latest_versions
        ),
        "versions": {
            str(entry.version): {
                **fields(client.get_model_version(model.name, str(entry.version)), *names),
                "download_uri": client.get_model_version_download_uri(model.name, str(entry.version)),
            }
            for entry in versions
        },
    }


def read_trace(trace: Any) -> dict[str, Any]:
    """Return a trace with its spans, whatever its version calls the fields."""
    info = trace.info.to_dict()
    spans = [
        {
            **fields(span, "name", "parent_id", "span_type", "inputs", "outputs", "attributes"),
            **fields(span, "start_time_ns", "end_time_ns"),
            "status": str(getattr(span.status.status_code, "value", span.status.status_code)),
            "events": [plain({"name": event.name, "attributes": event.attributes}) for event in span.events],
        }
        for span in trace.data.spans
    ]
    return {
        "info": plain(info),
        "spans": {span.span_id: entry for span, entry in zip(trace.data.spans, spans, strict=True)},
    }


def read_traces(client: MlflowClient, experiment_ids: list[str]) -> dict[str, Any]:
    """Return all traces by id."""
    if not hasattr(client, "search_traces"):
        return {}
    where = {"locations": experiment_ids}
    if "locations" not in client.search_traces.__code__.co_varnames:
        where = {"experiment_ids": experiment_ids}
    found = pages(client.search_traces, **where)
    return {
        getattr(trace.info, "trace_id", None) or trace.info.request_id: read_trace(trace) for trace in found
    }


def load_prompt(client: MlflowClient, name: str, version: str) -> Any:
    """Return a version of a prompt. Newer clients' load_prompt would write a tag: not used there."""
    if hasattr(client, "get_prompt_version"):
        return client.get_prompt_version(name, version)
    return mlflow.load_prompt(name, version=int(version))


def read_prompt(client: MlflowClient, model: Any) -> dict[str, Any]:
    """Return the versions of a prompt, its tags and aliases."""
    which = f"name='{model.name}' AND tag.`mlflow.prompt.is_prompt` = 'true'"
    names = ("template", "tags", "commit_message", "aliases", "variables", "creation_timestamp")
    return {
        "tags": plain(model.tags),
        "aliases": {alias: str(version) for alias, version in sorted(dict(model.aliases).items())},
        "versions": {
            str(entry.version): fields(load_prompt(client, model.name, str(entry.version)), *names)
            for entry in pages(client.search_model_versions, filter_string=which)
        },
    }


def read_logged_models(client: MlflowClient, experiment_ids: list[str]) -> dict[str, Any]:
    """Return all LoggedModels by id."""
    if not hasattr(client, "search_logged_models"):
        return {}
    names = (
        *("name", "experiment_id", "source_run_id", "artifact_location", "creation_timestamp"),
        *("last_updated_timestamp", "model_type", "status", "status_message", "tags", "params"),
    )
    metric_names = (
        "key",
        "value",
        "step",
        "timestamp",
        "dataset_name",
        "dataset_digest",
        "run_id",
        "model_id",
    )
    found = pages(client.search_logged_models, experiment_ids=experiment_ids)
    return {
        model.model_id: {
            **fields(model, *names),
            "metrics": sorted(
                (fields(point, *metric_names) for point in model.metrics or []),
                key=json.dumps,
            ),
        }
        for model in found
    }


def read_all(uri: str) -> dict[str, Any]:
    """Return everything that the client of this process finds on the server."""
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    experiments = pages(client.search_experiments, view_type=ALL)
    experiment_ids = sorted((entry.experiment_id for entry in experiments), key=int)
    active = [entry.experiment_id for entry in experiments if entry.lifecycle_stage == "active"]
    models = pages(client.search_registered_models)
    prompts = pages(client.search_registered_models, filter_string="tags.`mlflow.prompt.is_prompt` = 'true'")
    return {
        "experiments": {entry.experiment_id: read_experiment(entry) for entry in experiments},
        "runs": {
            run.info.run_id: read_run(client, client.get_run(run.info.run_id))
            for run in pages(client.search_runs, experiment_ids=experiment_ids, run_view_type=ALL)
        },
        "registered_models": {model.name: read_registered_model(client, model) for model in models},
        "prompts": {entry.name: read_prompt(client, entry) for entry in prompts},
        "logged_models": read_logged_models(client, active),
        "traces": read_traces(client, active),
    }


def main() -> None:
    """Write what is read as JSON."""
    Path(sys.argv[2]).write_text(
        json.dumps(read_all(sys.argv[1]), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    main()
