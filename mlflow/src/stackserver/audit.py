"""Who deleted, restored, registered or promoted what: a line of JSON each. Logging is only counted.

Every request that changes something is a line, unless it is known to be ordinary: what runs
log is counted per user and run and written every 20 seconds. A line has the ids that the request
names and nothing that it contains: no values of metrics, params, tags or secrets. nginx's
access log has the same request id.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from stackserver.asgi import App, Receive, Send

API = r"^/(?:ajax-)?api/\d\.\d/?mlflow"
LOGGING = re.compile(
    API + r"/runs/(create|update|log-batch|log-metric|log-parameter|log-inputs|log-model|outputs|set-tag)$"
)
"""Ordinary logging: counted, not listed."""
ORDINARY = re.compile(
    API + r"(/(experiments|runs|logged-models|datasets|issues|prompt-optimization/jobs)/search$"
    r"|/experiments/search-datasets$|/registered-models/get-latest-versions$"
    r"|/artifacts/presigned-|/traces($|/(search|batchGetInfos|metrics|calculate-filter-correlation)$)"
    r"|/logged-models($|/[^/]+/params$)|-artifacts/(artifacts/|mpu/)|/ui-telemetry$|/upload-artifact$)"
    r"|^/ajax-api/3\.0/jobs/search$|^/graphql$|^/v1/traces$|^/gateway/"
)
"""What reads, or writes what nobody has yet. An artifact that is deleted or written over is a line."""
ARTIFACT = re.compile(r"^/(?:ajax-)?api/\d\.\d/mlflow-artifacts/artifacts/(.+)$")
NAMES = frozenset(
    {
        *("run_id", "run_uuid", "experiment_id", "experiment_ids", "name", "new_name", "version", "alias"),
        *("stage", "archive_existing_versions", "model_id", "trace_id", "request_id", "request_ids"),
        *(
            "trace_ids",
            "assessment_id",
            "webhook_id",
            "dataset_id",
            "key",
            "tag_key",
            "path",
            "artifact_path",
        ),
        *("user_id", "username", "role", "permission", "endpoint_id", "secret_id", "secret_name"),
        *("role_id", "role_permission_id", "resource_type", "resource_id", "resource_pattern", "is_admin"),
        *("source", "workspace", "max_timestamp_millis", "lifecycle_stage", "status"),
    }
)
"""Fields of a request that name objects, or say what becomes of them."""
BODY_LIMIT = 32 << 20
"""MLflow holds a body whole in memory anyway."""
VALUE_LIMIT, LIST_LIMIT = 250, 1000
FLUSH_SECONDS = 20.0
LINES_AT_ONCE = 200

overwritten: ContextVar[list[str] | None] = ContextVar("overwritten", default=None)
"""Where artifacts.py notes the objects that the present request wrote over."""


def named(given: dict[str, Any], query: str, path: str) -> dict[str, Any]:
    """Return what a request names: fields of its JSON body and query, and the path of an artifact."""
    found: dict[str, Any] = {}
    for field, value in [*parse_qsl(query), *given.items()]:
        name = re.sub(r"(?<=[a-z])[A-Z]", lambda capital: f"_{capital[0].lower()}", field)
        if name in NAMES and value not in ("", None):
            found[name] = _short(value)
    artifact = ARTIFACT.match(path)
    if artifact:
        found["path"] = _short(artifact[1])
    return found


def fields_of(body: bytes) -> dict[str, Any]:
    """Return the fields of a JSON body, {} if it is none. MLflow takes JSON in a JSON string as well."""
    try:
        given = json.loads(body) if body else {}
        while isinstance(given, str):
            given = json.loads(given)
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}


def _short(value: Any) -> Any:
    if isinstance(value, list):
        rest = [f"and {len(value) - LIST_LIMIT} more"] * (len(value) > LIST_LIMIT)
        return [_short(each) for each in value[:LIST_LIMIT]] + rest
    return value if isinstance(value, bool | int) else str(value)[:VALUE_LIMIT]


class AuditLog:
    """Lines of JSON, a file a day (UTC), and the counts of what runs log.

    A line that cannot be written goes to standard output: a full volume stops no request.
    """

    def __init__(self, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._folder = folder
        self._clock = clock
        self._counts: dict[tuple[str, str], Counter[str]] = {}

    def write(self, **fields: Any) -> None:
        """Write a line with the present moment."""
        self._write([fields])

    def _write(self, lines: list[dict[str, Any]]) -> None:
        now = self._clock()
        moment = {"time": now.isoformat(timespec="milliseconds")}
        text = "".join(json.dumps(moment | fields) + "\n" for fields in lines)
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            descriptor = os.open(self._folder / f"audit-{now:%Y-%m-%d}.jsonl", flags, 0o644)
            try:
                os.write(descriptor, text.encode())  # one call: lines of several workers do not mix
            finally:
                os.close(descriptor)
        except OSError as error:
            print(f"audit: {error}: {text}", end="", file=sys.stderr, flush=True)

    def count(self, user: str, run_id: str, **amounts: int) -> None:
        """Count what a run has logged."""
        self._counts.setdefault((user, run_id), Counter()).update(amounts)

    def flush(self) -> None:
        """Write the counts down and begin anew."""
        counts, self._counts = self._counts, {}
        lines = [
            {"event": "logged", "user": user, "run_id": run_id, **amounts}
            for (user, run_id), amounts in counts.items()
        ]
        for start in range(0, len(lines), LINES_AT_ONCE):
            self._write(lines[start : start + LINES_AT_ONCE])


class AuditRecorder:
    """Decides of each change whether it is a line, a count or nothing."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._flush: asyncio.TimerHandle | None = None

    def flush(self) -> None:
        """Write down what is only counted so far."""
        self._log.flush()

    def note(
        self,
        *,
        method: str,
        path: str,
        query: str = "",
        user: str,
        address: str,
        request_id: str,
        given: dict[str, Any],
        status: int,
        replaced: list[str] | None = None,
    ) -> None:
        """Note a request that is not a mere look; `given` are the fields of its JSON body."""
        if LOGGING.match(path):
            self._count(user, path, given, status)
            return
        if ORDINARY.match(path) and not replaced and not (method == "DELETE" and ARTIFACT.match(path)):
            return
        self._log.write(
            event="overwrite" if replaced else f"{method} {re.sub(API, '', path)}",
            user=user,
            address=address,
            status=status,
            request=request_id,
            objects=named(given, query, path),
        )

    def _count(self, user: str, path: str, given: dict[str, Any], status: int) -> None:
        if status >= 400:
            return
        amounts = {"requests": 1}
        if path.endswith("/log-metric"):
            amounts["metrics"] = 1
        elif path.endswith("/log-parameter"):
            amounts["params"] = 1
        elif path.endswith("/set-tag"):
            amounts["tags"] = 1
        elif path.endswith("/log-batch"):
            lists = {name: given.get(name) for name in ("metrics", "params", "tags")}
            amounts |= {name: len(found) for name, found in lists.items() if isinstance(found, list)}
        names = ("run_id", "runId", "run_uuid", "runUuid")
        run_id = next((str(given[name]) for name in names if given.get(name)), "")
        self._log.count(user, run_id[:VALUE_LIMIT], **amounts)
        if self._flush is None or self._flush.when() <= asyncio.get_running_loop().time():
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._log.flush)


class AuditLayer:
    """ASGI layer that notes each change, after its answer."""

    def __init__(self, app: App, log: AuditLog) -> None:
        self._app = app
        self._recorder = AuditRecorder(log)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on, and write it down if it changes something."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            self._recorder.flush()
            return
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            await self._app(scope, receive, send)
            return
        body = bytearray()
        status = 500
        keep_body = not ARTIFACT.match(scope["path"])

        async def watched_receive() -> dict[str, Any]:
            message = await receive()
            if keep_body and len(body) <= BODY_LIMIT:
                body.extend(message.get("body", b""))
            return message

        async def watched_send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        replaced: list[str] = []
        token = overwritten.set(replaced)
        try:
            await self._app(scope, watched_receive, watched_send)
        finally:
            overwritten.reset(token)
            whole = bytes(body) if len(body) <= BODY_LIMIT else b'{"path": "a body of over 32 MB"}'
            self._note(scope, whole, status, replaced)

    def _note(self, scope: dict[str, Any], body: bytes, status: int, replaced: list[str]) -> None:
        headers = dict(scope["headers"])
        self._recorder.note(
            method=scope["method"],
            path=scope["path"],
            query=scope.get("query_string", b"").decode("latin-1"),
            user=headers.get(b"x-forwarded-user", b"").decode("latin-1"),
            address=headers.get(b"x-real-ip", b"").decode("latin-1"),
            request_id=headers.get(b"x-request-id", b"").decode("latin-1"),
            given=fields_of(body),
            status=status,
            replaced=replaced,
        )
