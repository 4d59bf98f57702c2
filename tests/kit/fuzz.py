"""Random but repeatable requests for every route of a REST schema, and which of them are a 500."""

from __future__ import annotations

from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings

SEED = 3172
EXAMPLES = (4, 30)
"""Requests to each route: in CI, and with --long."""
TIMEOUT_SECONDS = 60


def server_errors(
    document: dict[str, Any], base_url: str, session: requests.Session, examples: int
) -> dict[str, list[str]]:
    """Send `examples` requests to each operation; return those with a 500: "METHOD path" and what it said.

    501 and MLflow's own 503 are no errors: what is switched off says so.

    The requests are the same each time, for the same versions of hypothesis and schemathesis.
    """
    schema = schemathesis.openapi.from_dict(document)
    found: dict[str, list[str]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        name = f"{operation.method.upper()} {operation.path}"
        for status, body in _ask_all(operation, base_url, session, examples):
            if status in {500, 502, 504} or (status == 503 and "TEMPORARILY_UNAVAILABLE" in body):
                found.setdefault(name, []).append(f"{status} {body[:200]}")
    return found


def _ask_all(
    operation: Any, base_url: str, session: requests.Session, examples: int
) -> list[tuple[int, str]]:
    answers: list[tuple[int, str]] = []

    @seed(SEED)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        answer = case.call(base_url=base_url, session=session, timeout=TIMEOUT_SECONDS, allow_redirects=False)
        answers.append((answer.status_code, answer.text))

    ask()
    return answers
