"""Traces by the client and by OTLP, and prompts: stored, found, deleted."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence

import mlflow
import pytest
from mlflow.entities import SpanType
from mlflow.exceptions import MlflowException
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode

from kit.stack import Stack, poll


@mlflow.trace(span_type=SpanType.RETRIEVER)
def fetch(question: str) -> list[str]:
    return [f"{question} steht im Keller"]


@mlflow.trace(name="answer", span_type=SpanType.CHAIN, attributes={"language": "de"})
def answer(question: str) -> dict:
    if question == "fail":
        raise ValueError("no such wine")
    mlflow.update_current_trace(tags={"question": question})
    with mlflow.start_span("model", span_type=SpanType.LLM) as span:
        span.set_inputs({"documents": fetch(question)})
        span.set_outputs({"text": "Grüner Veltliner"})
    return {"text": "Grüner Veltliner", "sure": 0.5}


def ask(*questions: str) -> None:
    """Trace a call for each question, and wait until the client has sent the traces."""
    for question in questions:
        with contextlib.suppress(ValueError):
            answer(question)
    mlflow.flush_trace_async_logging()


def stored_traces(experiment_id: str, count: int, **keywords: object) -> list[mlflow.entities.Trace]:
    """Return the traces that a search finds, once there are `count`."""

    def found() -> list[mlflow.entities.Trace]:
        traces = mlflow.search_traces(locations=[experiment_id], return_type="list", **keywords)
        assert len(traces) == count
        return traces

    return poll(found, seconds=60, what=f"{count} traces are stored") if count else found()


def test_a_trace_keeps_its_spans_inputs_and_outputs(experiment_id: str) -> None:
    ask("Veltliner?")
    (trace,) = stored_traces(experiment_id, 1)
    assert (trace.info.state, trace.info.experiment_id) == ("OK", experiment_id)
    spans = {span.name: span for span in trace.data.spans}
    assert set(spans) == {"answer", "model", "fetch"}
    assert spans["answer"].parent_id is None
    assert spans["model"].parent_id == spans["answer"].span_id
    assert spans["fetch"].parent_id == spans["model"].span_id
    assert spans["answer"].inputs == {"question": "Veltliner?"}
    assert spans["answer"].outputs == {"text": "Grüner Veltliner", "sure": 0.5}
    assert spans["answer"].attributes["language"] == "de"
    assert spans["fetch"].outputs == ["Veltliner? steht im Keller"]
    assert spans["model"].span_type == "LLM"
    assert mlflow.get_trace(trace.info.trace_id).data.spans[0].name == "answer"


def test_a_trace_of_a_function_that_raises_is_an_error(experiment_id: str) -> None:
    ask("fail")
    (trace,) = stored_traces(experiment_id, 1)
    assert trace.info.state == "ERROR"
    (span,) = trace.data.spans
    (event,) = span.events
    assert event.attributes["exception.message"] == "no such wine"


def test_traces_are_found_by_tag_state_and_run(experiment_id: str) -> None:
    with mlflow.start_run() as run:
        ask("red")
    ask("white", "fail")
    stored_traces(experiment_id, 3)
    (red,) = stored_traces(experiment_id, 1, filter_string="tags.question = 'red'")
    assert red.info.tags["question"] == "red"
    (failed,) = stored_traces(experiment_id, 1, filter_string="trace.status = 'ERROR'")
    assert failed.info.state == "ERROR"
    (of_run,) = stored_traces(experiment_id, 1, run_id=run.info.run_id)
    assert of_run.info.trace_id == red.info.trace_id
    stored_traces(experiment_id, 0, filter_string="tags.question = 'rosé'")
    newest_first = stored_traces(experiment_id, 3, order_by=["timestamp_ms DESC"])
    times = [trace.info.request_time for trace in newest_first]
    assert times == sorted(times, reverse=True)


def test_tags_of_a_trace_change(experiment_id: str) -> None:
    ask("red")
    (trace,) = stored_traces(experiment_id, 1)
    trace_id = trace.info.trace_id
    mlflow.set_trace_tag(trace_id, "reviewed", "ja – gut")
    assert mlflow.get_trace(trace_id).info.tags["reviewed"] == "ja – gut"
    mlflow.delete_trace_tag(trace_id, "reviewed")
    assert "reviewed" not in mlflow.get_trace(trace_id).info.tags


def test_feedback_on_a_trace_is_kept(experiment_id: str) -> None:
    ask("red")
    (trace,) = stored_traces(experiment_id, 1)
    mlflow.log_feedback(trace_id=trace.info.trace_id, name="helpful", value=True, rationale="stimmt")
    (assessment,) = mlflow.get_trace(trace.info.trace_id).info.assessments
    assert (assessment.name, assessment.value, assessment.rationale) == ("helpful", True, "stimmt")


def test_deleted_traces_are_gone_and_the_others_stay(client: mlflow.MlflowClient, experiment_id: str) -> None:
    ask("red", "white", "rosé")
    traces = stored_traces(experiment_id, 3)
    gone, stays = traces[:2], traces[2]
    deleted = client.delete_traces(experiment_id, trace_ids=[trace.info.trace_id for trace in gone])
    assert deleted == 2
    (left,) = stored_traces(experiment_id, 1)
    assert left.info.trace_id == stays.info.trace_id
    with pytest.raises(MlflowException) as missing:
        client.get_trace(gone[0].info.trace_id)
    assert missing.value.error_code in {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}


def two_spans() -> Sequence[ReadableSpan]:
    """Return the spans of one trace, as an application with OpenTelemetry makes them."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "keller"}))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("test")
    order = tracer.start_as_current_span("order", attributes={"customer": "Müller", "bottles": 6})
    with order, tracer.start_as_current_span("pay") as pay:
        pay.set_status(Status(StatusCode.ERROR, "card refused"))
    return kept.get_finished_spans()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip], ids=["plain", "gzip"])
def test_spans_sent_by_otlp_become_a_trace(
    stack: Stack, experiment_id: str, compression: Compression
) -> None:
    exporter = OTLPSpanExporter(
        f"{stack.url}/v1/traces",
        headers={"Authorization": stack.authorization, "x-mlflow-experiment-id": experiment_id},
        compression=compression,
        timeout=60,
    )
    assert exporter.export(two_spans()) is SpanExportResult.SUCCESS
    (trace,) = stored_traces(experiment_id, 1)
    spans = {span.name: span for span in trace.data.spans}
    assert set(spans) == {"order", "pay"}
    assert spans["pay"].parent_id == spans["order"].span_id
    assert spans["order"].attributes["customer"] == "Müller"
    assert spans["order"].attributes["bottles"] == 6
    assert (spans["pay"].status.status_code, spans["pay"].status.description) == ("ERROR", "card refused")


def test_otlp_without_a_login_stores_nothing(stack: Stack, experiment_id: str) -> None:
    exporter = OTLPSpanExporter(
        f"{stack.url}/v1/traces", headers={"x-mlflow-experiment-id": experiment_id}, timeout=60
    )
    assert exporter.export(two_spans()) is SpanExportResult.FAILURE
    assert stored_traces(experiment_id, 0) == []


def test_otlp_without_an_experiment_is_refused(stack: Stack) -> None:
    refusal = stack.post("/v1/traces", data=b"", headers={"Content-Type": "application/x-protobuf"})
    assert refusal.status_code in {400, 422}
    assert "x-mlflow-experiment-id" in refusal.text


@pytest.fixture
def prompt_name(stack: Stack) -> str:
    """The name of a prompt of the test's own."""
    return f"sommelier-{uuid.uuid4().hex[:8]}"


def test_prompt_versions_are_loaded_by_number_and_alias(prompt_name: str) -> None:
    first = mlflow.genai.register_prompt(
        prompt_name,
        "Welcher Wein passt zu {{dish}}?",
        commit_message="erste Fassung",
        tags={"language": "de"},
    )
    second = mlflow.genai.register_prompt(prompt_name, "Nenne drei Weine zu {{dish}} für {{guests}} Gäste.")
    assert (first.version, second.version) == (1, 2)
    mlflow.genai.set_prompt_alias(prompt_name, alias="production", version=1)

    loaded = mlflow.genai.load_prompt(f"prompts:/{prompt_name}/2")
    assert loaded.format(dish="Käse", guests=4) == "Nenne drei Weine zu Käse für 4 Gäste."
    by_alias = mlflow.genai.load_prompt(f"prompts:/{prompt_name}@production")
    assert (by_alias.version, by_alias.template) == (1, "Welcher Wein passt zu {{dish}}?")
    assert (by_alias.commit_message, by_alias.tags["language"]) == ("erste Fassung", "de")

    mlflow.genai.set_prompt_alias(prompt_name, alias="production", version=2)
    assert mlflow.genai.load_prompt(f"prompts:/{prompt_name}@production", cache_ttl_seconds=0).version == 2
    mlflow.genai.delete_prompt_alias(prompt_name, alias="production")
    with pytest.raises(MlflowException):
        mlflow.genai.load_prompt(f"prompts:/{prompt_name}@production", cache_ttl_seconds=0)


def test_a_chat_prompt_keeps_its_messages(prompt_name: str) -> None:
    messages = [
        {"role": "system", "content": "Du bist Sommelier."},
        {"role": "user", "content": "{{question}}"},
    ]
    mlflow.genai.register_prompt(prompt_name, messages)
    loaded = mlflow.genai.load_prompt(f"prompts:/{prompt_name}/1")
    assert loaded.template == messages
    assert loaded.format(question="Rot?")[1] == {"role": "user", "content": "Rot?"}


def test_prompts_are_found_and_are_no_models(client: mlflow.MlflowClient, prompt_name: str) -> None:
    names = [f"{prompt_name}-{letter}" for letter in "ab"]
    for name in names:
        mlflow.genai.register_prompt(name, "{{question}}", tags={"cellar": name[-1]})
    found = mlflow.genai.search_prompts(filter_string=f"name LIKE '{prompt_name}%'")
    assert sorted(prompt.name for prompt in found) == names
    assert client.search_registered_models(f"name LIKE '{prompt_name}%'") == []


def test_a_deleted_prompt_is_gone(client: mlflow.MlflowClient, prompt_name: str) -> None:
    mlflow.genai.register_prompt(prompt_name, "{{question}}")
    client.delete_prompt_version(prompt_name, "1")
    client.delete_prompt(prompt_name)
    assert mlflow.genai.search_prompts(filter_string=f"name = '{prompt_name}'") == []
    assert (
        mlflow.genai.load_prompt(f"prompts:/{prompt_name}/1", allow_missing=True, cache_ttl_seconds=0) is None
    )
