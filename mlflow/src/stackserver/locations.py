"""Artifacts are in the stack's bucket, nowhere else.

An experiment at another place (a folder, somebody's bucket, another server) would have its
artifacts read and written there by this server, outside of backup, retention and audit: making
one is refused. A location can also be told by a trace's tag or a model version's source, and an
adopted database brings its own: so this server reads from no other place, whatever a record says.

With AUTHORIZATION=rbac an experiment keeps them in its own folder: MLflow decides about an artifact
by the experiment's number in its path, and about a path without one by the default permission.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from stackserver.asgi import App, Receive, Send, refuse
from stackserver.audit import fields_of
from stackserver.limits import FOLDER_MARK

CREATE = re.compile(r"^/(?:ajax-)?api/\d\.\d/mlflow/experiments/create$")
NAMES = ("artifact_location", "artifactLocation")
"""The field as its protobuf message takes it from JSON."""
BODY_LIMIT = 1 << 20


def is_ours(location: str, destination: str) -> bool:
    """Return whether a location is below the proxied root or the bucket's own address of it.

    A folder with the storage's own mark in its name is not: its objects are in no list (names.py).
    """
    if re.search(rf"(^|/)\.\.?(/|$)|[?#%\\]|{FOLDER_MARK}(/|$)", location):
        return False
    return re.match(r"mlflow-artifacts:/(?!/)", location) is not None or location.startswith(
        f"{destination}/"
    )


RESOLVED_SCHEMES = ("s3", "runs", "models")
"""What may be opened: our own storage (artifacts.py checks where), and what leads to another place."""


def close_other_places() -> None:
    """Make this process open no artifacts but those in S3: MLflow itself would open folders.

    By MLflow's registry of artifact repositories (mlflow/store/artifact/artifact_repository_registry.py
    of 3.17.2). Raise RuntimeError if ours for S3 is not in it: MLflow only warns of an entry point
    that could not be loaded.
    """
    # Here, not above: the registry itself loads our repository when it is imported.
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as registry

    known = registry.get_registered_artifact_repositories()
    if not known["s3"].__module__.startswith("stackserver."):
        raise RuntimeError(f"artifacts would be served by {known['s3']}")
    for scheme in known:
        if scheme not in RESOLVED_SCHEMES:
            registry.register(scheme, refuse_place)


def refuse_place(location: str, *_: Any, **__: Any) -> NoReturn:
    """Raise MlflowException (400) in place of opening a location."""
    message = f"This server opens artifacts in its own storage only, not at '{location[:200]}'."
    raise MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def location_in(body: bytes) -> str | None:
    """Return the artifact location that a body asks for, or None if it asks for none."""
    given = fields_of(body)
    return next((str(given[name]) for name in NAMES if given.get(name)), None)


class LocationLayer:
    """ASGI layer that refuses experiments at other places; at any, if none may be chosen."""

    def __init__(self, app: App, destination: str, *, may_choose: bool = True) -> None:
        self._app = app
        self._destination = destination
        self._may_choose = may_choose

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 400."""
        if scope["type"] != "http" or scope["method"] != "POST" or not CREATE.match(scope["path"]):
            await self._app(scope, receive, send)
            return
        messages = []
        body = b""
        while True:
            message = await receive()
            messages.append(message)
            body += message.get("body", b"")
            if message["type"] != "http.request" or not message.get("more_body") or len(body) > BODY_LIMIT:
                break
        location = location_in(body)
        if len(body) > BODY_LIMIT or (location is not None and not self._is_allowed(location)):
            await _refuse(send, location, may_choose=self._may_choose)
            return

        async def again() -> dict[str, Any]:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)

    def _is_allowed(self, location: str) -> bool:
        return self._may_choose and is_ours(location, self._destination)


async def _refuse(send: Send, location: str | None, *, may_choose: bool) -> None:
    where = f"'{location[:200]}'" if location else "that is so long"
    message = (
        f"artifact_location {where} is outside of this stack's storage; leave it out, or"
        f" write mlflow-artifacts:/FOLDER. Nothing was made."
    )
    if not may_choose:
        message = (
            f"artifact_location {where}: permissions go by the experiment's own folder"
            " (AUTHORIZATION=rbac); leave it out. Nothing was made."
        )
    await refuse(send, 400, "INVALID_PARAMETER_VALUE", message)
