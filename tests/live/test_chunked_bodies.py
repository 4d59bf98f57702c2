"""Requests whose bodies come in chunks, as some HTTP clients send them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

from kit.stack import Stack


def in_chunks(value: dict) -> Iterator[bytes]:
    text = json.dumps(value).encode()
    yield text[:5]
    yield text[5:]


def test_a_body_in_chunks_reaches_mlflow_whole(stack: Stack) -> None:
    name = f"chunked-{uuid.uuid4().hex[:8]}"
    headers = {"Content-Type": "application/json"}
    created = stack.post(
        "/api/2.0/mlflow/experiments/create", data=in_chunks({"name": name}), headers=headers
    )
    assert created.status_code == 200, created.text
    found = stack.get(f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}").json()
    assert found["experiment"]["experiment_id"] == created.json()["experiment_id"]


def test_the_answer_has_one_date(stack: Stack) -> None:
    answer = stack.get("/")
    assert answer.status_code == 200
    assert "," in answer.headers["Date"]
    assert answer.headers["Date"].count("GMT") == 1
    assert "duplicate header" not in stack.compose("logs", "--no-color", "nginx").stdout
