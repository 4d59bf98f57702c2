"""A request as the routes see it, and the strict reading of what is in it.

Every function here either returns a value that MLflow would understand in the same way, or raises
NotMineError. The limits are those of mlflow/utils/validation.py of 3.17.2.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_plus

import orjson

from stackfast.outcomes import NotMineError

JSON_TYPES = frozenset({b"application/json", b"application/json; charset=utf-8"})
NOT_HERE = frozenset({b"content-encoding", b"transfer-encoding", b"x-mlflow-workspace", b"expect"})
"""With one of these headers a request is never plain."""
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH, NAME_LENGTH = 250, 6000, 8000, 250
INT64 = 2**63
INT32 = 2**31

_RUN_ID = re.compile(r"[0-9a-f]{32}").fullmatch
_EXPERIMENT_ID = re.compile(r"0|[1-9][0-9]{0,9}").fullmatch
_KEY = re.compile(r"[\w\-./: ]{1,250}").fullmatch


@dataclass(slots=True)
class Request:
    """One request, whole. `late` says that nginx has given it up, or will have before its end."""

    method: bytes = b""
    path: bytes = b""
    query: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    given: dict[str, Any] = field(default_factory=dict)
    """The fields of the body, once they are read; for the audit log."""
    done: bool = False
    """Whether something was changed for it: then nobody else may be asked."""

    def header(self, name: bytes) -> str:
        """Return a header's value, '' if it is not there."""
        return self.headers.get(name, b"").decode("latin-1")


def json_object(request: Request, known: frozenset[str]) -> dict[str, Any]:
    """Return the JSON object of a body, with no other fields than those known."""
    if request.query or request.headers.get(b"content-type") not in JSON_TYPES:
        raise NotMineError("content type or query")
    if not NOT_HERE.isdisjoint(request.headers):
        raise NotMineError("header")
    try:
        found = orjson.loads(request.body)
    except ValueError:
        raise NotMineError("no plain JSON") from None
    if type(found) is not dict or not known.issuperset(found):
        raise NotMineError("fields")
    request.given = found
    return found


def query_fields(request: Request, known: frozenset[str]) -> dict[str, str]:
    """Return the fields of a query, each once and all of them known."""
    if request.body or not NOT_HERE.isdisjoint(request.headers):
        raise NotMineError("header")
    found: dict[str, str] = {}
    try:
        for part in request.query.decode("ascii").split("&"):
            name, equals, value = part.partition("=")
            if not equals or name not in known or name in found:
                raise NotMineError("fields")
            found[name] = unquote_plus(value, errors="strict")
    except UnicodeDecodeError:
        raise NotMineError("encoding") from None
    return found


def run_id_of(given: dict[str, Any]) -> str:
    """Return the run's id, which clients send under two names."""
    run_id = given.get("run_id")
    if type(run_id) is not str or not _RUN_ID(run_id) or given.get("run_uuid", run_id) != run_id:
        raise NotMineError("run id")
    return run_id


def experiment_id_of(value: Any) -> int:
    """Return an experiment's number, written as MLflow writes it."""
    if type(value) is not str or not _EXPERIMENT_ID(value) or int(value) >= INT32:
        raise NotMineError("experiment id")
    return int(value)


@lru_cache(maxsize=20_000)
def is_plain_key(key: str) -> bool:
    """Return whether MLflow takes this name of a metric, param or tag as it is."""
    if not _KEY(key):
        return False
    if "/" not in key and "." not in key:
        return True
    return posixpath.normpath(key) == key and key != "." and not key.startswith(("..", "/"))


def key_of(value: Any) -> str:
    """Return the name of a metric, param or tag."""
    if type(value) is not str or len(value) > KEY_LENGTH or not is_plain_key(value):
        raise NotMineError("key")
    return value


def text_of(value: Any, limit: int) -> str:
    """Return a text of at most `limit` characters that PostgreSQL can hold."""
    if type(value) is not str or len(value) > limit or "\0" in value:
        raise NotMineError("text")
    return value


def int64_of(value: Any, low: int = -INT64) -> int:
    """Return a whole number of 64 bits, at least `low`."""
    if type(value) is not int or not low <= value < INT64:
        raise NotMineError("number")
    return value


def list_of(value: Any, limit: int) -> list[Any]:
    """Return a list of at most `limit` things."""
    if type(value) is not list or len(value) > limit:
        raise NotMineError("list")
    return value
