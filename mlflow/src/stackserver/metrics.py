"""Prometheus metrics of the server, over all worker processes of a replica.

Routes are counted by family, not by path: ids in paths would make a series each.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess

REQUESTS = Counter("stack_http_requests", "Requests answered by MLflow", ["family", "method", "status"])
SECONDS = Histogram(
    "stack_http_request_seconds",
    "Time from a request's first byte to the last byte of its answer",
    ["family"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)

_FAMILY = re.compile(
    r"^/(?:(?:ajax-)?api/\d\.\d/mlflow(?:/(?P<tracking>[a-z-]+))?"
    r"|(?:ajax-)?api/\d\.\d/(?P<artifacts>mlflow-artifacts)"
    r"|(?P<other>graphql|v1|gateway|static-files|get-artifact|model-versions|health|version))(?:/|$)"
)


def route_family(path: str) -> str:
    """Return the family of a request path, such as runs, experiments or mlflow-artifacts."""
    match = _FAMILY.match(path)
    if match is None:
        return "ui" if path == "/" else "other"
    return match["tracking"] or match["artifacts"] or match["other"] or "other"


class MetricsLayer:
    """ASGI layer that counts and times requests."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass the request on and record its status and duration."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        family = route_family(scope["path"])
        status = 500
        started = time.perf_counter()

        async def watched_send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            REQUESTS.labels(family, scope["method"], status).inc()
            SECONDS.labels(family).observe(time.perf_counter() - started)


def render_metrics(readiness: dict[str, Any]) -> bytes:
    """Return the metrics as Prometheus text, with a readiness report as gauges."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    lines = ["# HELP stack_ready Whether a dependency answers (1) or not (0)", "# TYPE stack_ready gauge"]
    for name, check in readiness["checks"].items():
        lines.append(f'stack_ready{{dependency="{name}"}} {int(check["ok"])}')
    return generate_latest(registry) + "\n".join(lines).encode() + b"\n"
