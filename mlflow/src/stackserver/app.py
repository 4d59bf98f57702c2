"""The ASGI application that gunicorn serves: MLflow's own behind the stack's layers.

From the outside in: answers that leave whole, metrics, the stack's own routes, who it is (with
AUTHORIZATION=rbac), the audit log, the places of experiments, the names of artifacts, room on the
temporary volume, a length for chunked bodies, what nginx moves itself, MLflow.
The own routes (/stack/ready, /stack/metrics) are not reachable through nginx.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio.to_thread

from stackserver.answers import HeldHeadLayer
from stackserver.audit import AuditLayer, AuditLog
from stackserver.bodies import HeldBodyLayer
from stackserver.database import check_database, pinned_revision
from stackserver.handover import HandoverLayer
from stackserver.identity import DoorKey, IdentityLayer, People
from stackserver.locations import LocationLayer, close_other_places
from stackserver.metrics import MetricsLayer, render_metrics
from stackserver.names import NameLayer
from stackserver.permissions_schema import check_permissions_ready, revisions
from stackserver.readiness import (
    DATABASE_REMEMBERED_SECONDS,
    STORAGE_REMEMBERED_SECONDS,
    Check,
    report,
)
from stackserver.serve import SECRETS
from stackserver.settings import Settings, read_server_settings
from stackserver.sources import read_less_of_source_runs
from stackserver.storage import check_storage
from stackserver.tempspace import TempSpaceLayer


class StackRoutes:
    """ASGI layer with the stack's own routes; everything else is MLflow's."""

    def __init__(self, app: Callable[..., Awaitable[None]], settings: Settings) -> None:
        self._app = app
        self._threads = settings.threads
        self._checks = [
            Check("database", lambda: check_database(settings.database_uri), DATABASE_REMEMBERED_SECONDS),
            Check(
                "storage",
                lambda: check_storage(settings.s3_endpoint, settings.bucket),
                STORAGE_REMEMBERED_SECONDS,
            ),
        ]
        if settings.rbac:
            self._checks.append(
                Check("permissions", lambda: check_permissions_ready(settings), DATABASE_REMEMBERED_SECONDS)
            )
        # Outside the pool that requests use: a probe must not wait for a busy server.
        self._limiter = anyio.CapacityLimiter(4)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer /stack/*, or pass the request on."""
        if scope["type"] == "lifespan":
            # The number of requests that are in MLflow's Flask part at once, per worker.
            anyio.to_thread.current_default_thread_limiter().total_tokens = self._threads
        elif scope["type"] == "http" and scope["path"].startswith("/stack/"):
            await self._answer(scope["path"], send)
            return
        await self._app(scope, receive, send)

    async def _answer(self, path: str, send: Any) -> None:
        readiness = await anyio.to_thread.run_sync(report, self._checks, limiter=self._limiter)
        if path == "/stack/ready":
            status = 200 if readiness["status"] == "ready" else 503
            content_type, body = b"application/json", json.dumps(readiness).encode()
        elif path == "/stack/metrics":
            status, content_type = 200, b"text/plain; version=0.0.4"
            body = await anyio.to_thread.run_sync(render_metrics, readiness, limiter=self._limiter)
        else:
            status, content_type, body = 404, b"text/plain", b"not found\n"
        headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def mlflow_app(settings: Settings) -> tuple[Callable[..., Awaitable[None]], People | None]:
    """Return MLflow's application and, with AUTHORIZATION=rbac, who remembers its users."""
    if settings.rbac:
        from stackserver import permissions

        return permissions.create_app(settings)
    # MLflow looks for its auth app at each search of runs, and would ask it even where it is off.
    sys.modules["mlflow.server.auth"] = None  # type: ignore[assignment]
    from mlflow.server.fastapi_app import app

    return app, None


def create_app(settings: Settings) -> Callable[..., Awaitable[None]]:
    """Return the whole application."""
    pinned_revision()  # read once, before the workers fork
    close_other_places()
    mlflow, people = mlflow_app(settings)
    read_less_of_source_runs()
    limited = TempSpaceLayer(
        HeldBodyLayer(HandoverLayer(mlflow)),
        Path(os.environ["TMPDIR"]).parent,
        settings.tmp_limit_bytes,
        settings.tmp_reserve_bytes,
    )
    placed = LocationLayer(NameLayer(limited), settings.artifact_destination, may_choose=not settings.rbac)
    inner: Callable[..., Awaitable[None]] = AuditLayer(placed, AuditLog(settings.audit_folder))
    if people is not None:
        revisions()
        inner = IdentityLayer(inner, DoorKey(SECRETS / "door_key"), people)
    return HeldHeadLayer(MetricsLayer(StackRoutes(inner, settings)))


app = create_app(read_server_settings())
