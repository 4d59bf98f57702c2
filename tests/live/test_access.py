"""Users, roles and tokens through the door: each may do what its role says, and nothing more."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kit.door import basic
from kit.people import bearer, one_of_each_role, token_of
from kit.stack import Stack, poll


@pytest.fixture(scope="module")
def tokens(stack: Stack) -> Iterator[dict[str, str]]:
    """A token of a user for each role; the user has the role's name."""
    with one_of_each_role(stack) as made:
        yield made


@pytest.fixture
def as_role(
    stack: Stack, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], MlflowClient]:
    """Return a function that makes MLflow's client of this process the user of a role."""

    def become(role: str) -> MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", f"the-{role}")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", tokens[role])
        return MlflowClient()

    return become


def test_the_life_of_a_model_takes_its_roles(as_role: Callable[[str], MlflowClient]) -> None:
    name = f"model-{uuid.uuid4().hex[:8]}"
    reader = as_role("reader")
    with pytest.raises(MlflowException, match="the-reader has the role reader; this needs the role writer"):
        reader.create_experiment(name)
    writer = as_role("writer")
    experiment = writer.create_experiment(name)
    run = writer.create_run(experiment).info
    writer.log_metric(run.run_id, "acc", 0.5)
    writer.log_text(run.run_id, "text", "a.txt")
    writer.create_registered_model(name)
    version = writer.create_model_version(name, f"{run.artifact_uri}/model", run.run_id).version
    with pytest.raises(MlflowException, match="needs the role approver"):
        writer.set_registered_model_alias(name, "champion", version)
    with pytest.raises(MlflowException, match="needs the role approver"):
        writer.transition_model_version_stage(name, version, "Production")
    approver = as_role("approver")
    approver.set_registered_model_alias(name, "champion", version)
    approver.transition_model_version_stage(name, version, "Production")
    reader = as_role("reader")
    assert reader.get_model_version_by_alias(name, "champion").version == version
    assert reader.get_run(run.run_id).data.metrics == {"acc": 0.5}
    assert mlflow.artifacts.load_text(f"runs:/{run.run_id}/a.txt") == "text"
    approver = as_role("approver")
    with pytest.raises(MlflowException, match="needs the role admin"):
        approver.delete_registered_model(name)
    with pytest.raises(MlflowException, match="needs the role admin"):
        approver.delete_experiment(experiment)
    admin = as_role("admin")
    admin.delete_registered_model(name)
    admin.delete_experiment(experiment)


def reads(stack: Stack, authorization: str) -> int:
    path = f"{stack.url}/api/2.0/mlflow/experiments/get"
    headers = {"Authorization": authorization}
    return requests.get(path, params={"experiment_id": "0"}, headers=headers, timeout=30).status_code


def soon(check: Callable[[], bool], what: str) -> None:
    """Two seconds on an idle machine; the bound is for a busy one."""
    poll(check, seconds=20, what=what)


def test_changes_of_a_user_count_without_a_restart(stack: Stack) -> None:
    said = stack.verb("user", "add", "ada", "--role", "reader").stdout
    password = re.findall(r"^export MLFLOW_TRACKING_PASSWORD=(\S+)$", said, re.MULTILINE)[0]
    login = basic("ada", password)
    stack.handed_out |= {password, login.split()[1]}
    token = token_of(stack, "ada", "laptop", "--days", "1")
    soon(lambda: reads(stack, login) == 200, "ada comes in")
    soon(lambda: reads(stack, f"Bearer {token}") == 200, "the token opens")
    assert reads(stack, basic("ada", token)) == 200
    assert reads(stack, basic("admin", token)) == 401

    def create() -> int:
        return requests.post(
            f"{stack.url}/api/2.0/mlflow/runs/create",
            headers=bearer(token),
            json={"experiment_id": "0"},
            timeout=30,
        ).status_code

    assert create() == 403
    stack.verb("user", "role", "ada", "writer")
    soon(lambda: create() == 200, "ada may write")
    stack.verb("user", "token", "ada", "--revoke", "laptop")
    soon(lambda: reads(stack, f"Bearer {token}") == 401, "the token is taken back")
    assert reads(stack, login) == 200
    stack.verb("user", "disable", "ada")
    soon(lambda: reads(stack, login) == 401, "ada is out")
    stack.verb("user", "enable", "ada")
    soon(lambda: reads(stack, login) == 200, "ada is in again")
    stack.verb("user", "remove", "ada")
    soon(lambda: reads(stack, login) == 401, "ada is gone")


def test_traces_come_in_with_a_token_in_the_exporters_headers(stack: Stack, tokens: dict[str, str]) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

    experiment = MlflowClient().create_experiment(f"otlp-{uuid.uuid4().hex[:8]}")
    exporter = OTLPSpanExporter(
        f"{stack.url}/v1/traces",
        headers={**bearer(tokens["writer"]), "x-mlflow-experiment-id": experiment},
    )
    results = []
    original = exporter.export
    exporter.export = lambda spans: results.append(original(spans)) or results[-1]
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("outside"):
        pass
    assert results == [SpanExportResult.SUCCESS]
    poll(
        lambda: mlflow.search_traces(locations=[experiment], return_type="list"),
        seconds=30,
        what="the trace is there",
    )


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("role", "admin", "king"), "is no role"),
        (("add", "a:b"), "is no user name"),
        (("passwd", "nobody"), "there is no user nobody"),
    ],
)
def test_what_cannot_be_is_refused(stack: Stack, words: tuple[str, ...], wrong: str) -> None:
    done = stack.verb("user", *words, check=False)
    assert done.returncode == 5
    assert wrong in done.stderr
    assert "Traceback" not in done.stderr


def test_the_audit_log_says_who_changed_what(stack: Stack, as_role: Callable[[str], MlflowClient]) -> None:
    writer = as_role("writer")
    run = writer.create_run("0").info
    for step in range(5):
        writer.log_metric(run.run_id, "hidden-metric", 0.123456789, step=step)
    writer.log_text(run.run_id, "first", "a.txt")
    writer.log_text(run.run_id, "second", "a.txt")
    writer.delete_run(run.run_id)

    def told(*words: str) -> list[dict]:
        done = stack.verb("audit", "--json", "--since", "1h", *words)
        return [json.loads(line) for line in done.stdout.splitlines()]

    found = told("--user", "the-writer", "--words", run.run_id)
    assert [(line["event"], line["status"]) for line in found] == [
        ("overwrite", 200),
        ("POST /runs/delete", 200),
    ]
    assert found[1]["objects"] == {"run_id": run.run_id}
    (request,) = poll(
        lambda: told("--requests", "--user", "the-writer", "--words", "/runs/delete"),
        seconds=20,
        what="nginx has written its line",
    )
    assert request["request"] == found[1]["request"]
    poll(
        # Each worker of MLflow writes its own counts, a minute after the first of them.
        lambda: (
            sum(
                line.get("metrics", 0)
                for line in told("--user", "the-writer")
                if line["event"] == "logged" and line["run_id"] == run.run_id
            )
            == 5
        ),
        seconds=150,
        interval=5,
        what="what the run logged is counted",
    )
    made = told("--words", "the-writer")
    assert {"user add", "user token"} <= {line["event"] for line in made}
    everything = stack.verb("audit", "--json", "--since", "1d").stdout
    assert "0.123456789" not in everything
    assert "second" not in everything
