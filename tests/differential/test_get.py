"""runs/get."""

from __future__ import annotations

from typing import Any

from kit.differential import EXPERIMENT, Pair, Step, cases, fast, slow

R = "<run 1>"
DATASET = {
    "tags": [{"key": "mlflow.data.context", "value": "training"}],
    "dataset": {
        "name": "d",
        "digest": "0123",
        "source_type": "local",
        "source": "{}",
        "schema": "{}",
        "profile": "",
    },
}


def get(query: str, how: Any = fast, **more: Any) -> Step:
    """Return a runs/get."""
    return how("runs/get", query=query, **more)


GET = get("run_id=<run 1>")

PLAIN = {
    "by run_id": GET,
    "as the Python client does": get("run_uuid=<run 1>&run_id=<run 1>"),
    "the other way round": get("run_id=<run 1>&run_uuid=<run 1>"),
    "by run_uuid": get("run_uuid=<run 1>", slow),
    "ajax twin": get("run_id=<run 1>", prefix="/ajax-api/2.0/mlflow/"),
    "with everything": [
        fast(
            "runs/log-batch",
            {
                "run_id": R,
                "metrics": [
                    {"key": key, "value": value, "timestamp": 1700000000000, "step": step}
                    for key, value, step in (
                        ("a", 1, 0),
                        ("b", 0.1, -4),
                        ("c/d", 1e300, 2**40),
                        ("a", -2.5, 7),
                    )
                ],
                "params": [{"key": "p", "value": ""}, {"key": "q r", "value": 'ü\n"\\/\u2028🎉\x01'}],
                "tags": [{"key": "t", "value": "</script>"}, {"key": "mlflow.user", "value": "ada"}],
            },
        ),
        fast("runs/update", {"run_id": R, "status": "FINISHED", "end_time": 1700000009999}),
        GET,
    ],
    "deleted": [slow("runs/delete", {"run_id": R}), GET],
    "deleted with its experiment": [slow("experiments/delete", {"experiment_id": EXPERIMENT}), GET],
    "restored": [slow("runs/delete", {"run_id": R}), slow("runs/restore", {"run_id": R}), GET],
    "tag deleted": [
        fast("runs/set-tag", {"run_id": R, "key": "t", "value": "v"}),
        slow("runs/delete-tag", {"run_id": R, "key": "t"}),
        GET,
    ],
    "user id": [
        fast(
            "runs/create", {"experiment_id": EXPERIMENT, "user_id": "ada", "start_time": 5, "run_name": "a"}
        ),
        get("run_id=<run 2>"),
    ],
}

ODD = {
    "unknown": get("run_id=0123456789abcdef0123456789abcdef", slow),
    "empty": get("run_id=", slow),
    "empty and run_uuid": get("run_id=&run_uuid=<run 1>", slow),
    "absent": slow("runs/get"),
    "absent with ?": get("", slow),
    "upper case": get("run_id=<RUN 1>", slow),
    "blank before": get("run_id=%20<run 1>", slow),
    "plus after": get("run_id=<run 1>+", slow),
    "encoded": get("run_id=<run 1, encoded>", fast),
    "NUL": get("run_id=<run 1>%00", slow),
    "not UTF-8": get("run_id=%ff", slow),
    "two ids, same": get("run_id=<run 1>&run_id=<run 1>", slow),
    "two ids, first wrong": get("run_id=0&run_id=<run 1>", slow),
    "two ids, last wrong": get("run_id=<run 1>&run_id=0", slow),
    "run_uuid of another": get("run_id=<run 1>&run_uuid=0", slow),
    "run_id of another": get("run_id=0&run_uuid=<run 1>", slow),
    "camel case": get("runId=<run 1>", slow),
    "another parameter": get("run_id=<run 1>&a=b", slow),
    "another parameter before": get("a=b&run_id=<run 1>", slow),
    "semicolon": get("run_id=<run 1>;run_uuid=<run 1>", slow),
    "question mark": get("run_id=<run 1>?", slow),
    "in brackets": get("run_id[]=<run 1>", slow),
    "in a body": slow("runs/get", {"run_id": R}),
    "in a body as text": slow("runs/get", {"run_id": R}, headers={"Content-Type": "text/plain"}),
    "body beside the query": get("run_id=<run 1>", slow, body={"run_id": "0"}),
    "broken body beside the query": get("run_id=<run 1>", slow, body=b"{"),
    "content type beside the query": get("run_id=<run 1>", fast, headers={"Content-Type": "text/plain"}),
    "JSON content type beside the query": get("run_id=<run 1>", headers={"Content-Type": "application/json"}),
    "POST with a body": slow("runs/get", {"run_id": R}, method="POST"),
    "preview prefix": get("run_id=<run 1>", slow, prefix="/api/2.0/preview/mlflow/"),
    "version 1": get("run_id=<run 1>", slow, prefix="/api/1.0/mlflow/"),
    "slash at the end": slow("runs/get/", query="run_id=<run 1>", method="GET"),
    "encoded path": slow("runs%2Fget", query="run_id=<run 1>", method="GET"),
    "partly encoded path": slow("runs/g%65t", query="run_id=<run 1>", method="GET"),
    "path in upper case": slow("runs/GET", query="run_id=<run 1>", method="GET"),
    "path with a parameter": slow("runs/get;a=b", query="run_id=<run 1>", method="GET"),
}

INPUTS = {
    "dataset inputs": [
        slow("runs/log-inputs", {"run_id": R, "datasets": [DATASET]}),
        fast("runs/get", query="run_id=<run 1>"),
        fast("runs/search", {"experiment_ids": [EXPERIMENT]}),
        slow("runs/search", {"experiment_ids": [EXPERIMENT], "filter": "dataset.name = 'd'"}),
    ],
    "dataset inputs after a read": [
        GET,
        slow("runs/log-inputs", {"run_id": R, "datasets": [DATASET]}),
        fast("runs/get", query="run_id=<run 1>"),
    ],
    "an input of a run beside one without": [
        fast("runs/create", {"experiment_id": EXPERIMENT, "user_id": "", "start_time": 5, "run_name": "a"}),
        slow("runs/log-inputs", {"run_id": R, "datasets": [DATASET]}),
        fast("runs/get", query="run_id=<run 2>"),
        fast("runs/search", {"experiment_ids": [EXPERIMENT]}),
    ],
    "a logged model as output": [
        slow("logged-models", {"experiment_id": EXPERIMENT, "name": "m", "source_run_id": R}),
        slow("runs/outputs", {"run_id": R, "models": [{"model_id": "<model 1>", "step": 3}]}),
        fast("runs/get", query="run_id=<run 1>"),
        fast("runs/search", {"experiment_ids": [EXPERIMENT]}),
    ],
    "a logged model as input": [
        slow("logged-models", {"experiment_id": EXPERIMENT, "name": "m", "source_run_id": R}),
        slow("runs/log-inputs", {"run_id": R, "models": [{"model_id": "<model 1>"}]}),
        fast("runs/get", query="run_id=<run 1>"),
        fast("runs/search", {"experiment_ids": [EXPERIMENT]}),
    ],
    "a logged model of the run, neither input nor output": [
        slow("logged-models", {"experiment_id": EXPERIMENT, "name": "m", "source_run_id": R}),
        fast("runs/get", query="run_id=<run 1>"),
        fast("runs/search", {"experiment_ids": [EXPERIMENT]}),
    ],
    "a metric of a logged model": [
        slow("logged-models", {"experiment_id": EXPERIMENT, "name": "m", "source_run_id": R}),
        slow(
            "runs/log-metric",
            {"run_id": R, "key": "a", "value": 1, "timestamp": 5, "step": 0, "model_id": "<model 1>"},
        ),
        slow(
            "runs/log-batch",
            {
                "run_id": R,
                "metrics": [{"key": "b", "value": 1, "timestamp": 5, "step": 0, "model_id": "<model 1>"}],
            },
        ),
        fast("runs/get", query="run_id=<run 1>"),
    ],
}


@cases(PLAIN)
def test_plain_reads(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@cases(ODD)
def test_odd_reads(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@cases(INPUTS)
def test_inputs_and_outputs(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)
