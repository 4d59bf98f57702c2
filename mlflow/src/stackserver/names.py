"""Names of artifacts that no storage can hold are refused before anything is done with them.

Stock MLflow 3.17.2 answers them with a 500, which its client repeats for minutes: the server
cannot make its temporary file (a part of over 255 bytes), decode the name, or store the key.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

from mlflow.exceptions import MlflowException
from mlflow.utils.uri import validate_path_is_safe

from stackserver.asgi import App, Receive, Send, drain, refuse
from stackserver.limits import FOLDER_MARK, KEY_LIMIT, PART_LIMIT

RAW = re.compile(r"^/(?:ajax-)?api/2\.0/mlflow-artifacts/(?:artifacts|presigned|mpu/[a-z]+)/(.+)$")
BY_QUERY = re.compile(
    r"^/get-artifact$|^/model-versions/get-artifact$|^/ajax-api/2\.0/mlflow/upload-artifact$"
    r"|^/(?:ajax-)?api/2\.0/(?:mlflow/artifacts/list|mlflow-artifacts/artifacts)$"
    r"|^/ajax-api/2\.0/mlflow/logged-models/[^/]+/artifacts/"
)


def names_in(path: str, query: str) -> list[str]:
    """Return the names of artifacts that a request's path and query hold."""
    raw = RAW.match(path)
    if raw:
        return [raw[1]]
    if not BY_QUERY.match(path):
        return []
    given = parse_qs(query)
    return [*given.get("path", ()), *given.get("artifact_file_path", ())]


def what_is_wrong(name: str, *, is_file: bool) -> str | None:
    """Return why a name cannot be one, or None if it can. What MLflow itself refuses can."""
    try:
        decoded = validate_path_is_safe(name)
    except MlflowException:
        return None
    except ValueError:
        return "it cannot be decoded"
    parts = decoded.split("/")
    if any(len(part.encode("utf-8", "replace")) > PART_LIMIT for part in parts):
        return f"a part of it is longer than {PART_LIMIT} bytes"
    if len(decoded.encode("utf-8", "replace")) > KEY_LIMIT:
        return f"it is longer than {KEY_LIMIT} bytes"
    if any(part.endswith(FOLDER_MARK) for part in parts):
        return f"{FOLDER_MARK} at the end of a part is the storage's own"
    if is_file and parts[-1] in {"", "."}:
        return "it is that of a folder"
    return None


class NameLayer:
    """ASGI layer that refuses names that no storage can hold."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 400."""
        if scope["type"] == "http":
            is_file = scope["method"] in {"PUT", "POST"}
            for name in names_in(scope["path"], scope.get("query_string", b"").decode("latin-1")):
                if wrong := what_is_wrong(name, is_file=is_file):
                    message = f"'{name[:200]}' cannot be the name of an artifact: {wrong}."
                    if is_file:
                        await drain(receive)
                    await refuse(send, 400, "INVALID_PARAMETER_VALUE", message)
                    return
        await self._app(scope, receive, send)
