"""Where MLflow keeps whose artifacts in the bucket: the three shapes of keys, and nothing else.

A run's are below EXPERIMENT/RUN/artifacts, a logged model's below EXPERIMENT/models/m-…, a
trace's below EXPERIMENT/traces/tr-… (of MLflow 2: 32 hexadecimal digits), all below the prefix
of the proxied artifact root.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stackops.objects import PREFIX

_SHAPES = (
    ("run", re.compile(r"(?P<experiment>[0-9]{1,9})/(?P<id>[0-9a-zA-Z_-]+)/artifacts/")),
    ("model", re.compile(r"(?P<experiment>[0-9]{1,9})/models/(?P<id>m-[0-9a-zA-Z]+)/")),
    ("trace", re.compile(r"(?P<experiment>[0-9]{1,9})/traces/(?P<id>tr-[0-9a-zA-Z]+|[0-9a-f]{32})/")),
)


@dataclass(frozen=True)
class Place:
    """A run, model or trace, and the prefix of its keys in the bucket (it ends with a slash)."""

    kind: str
    id: str
    experiment_id: int
    prefix: str


def of_key(key: str) -> Place | None:
    """Return whose object a key is; None for a key of an unknown shape: nobody's to delete."""
    if not key.startswith(f"{PREFIX}/"):
        return None
    for kind, shape in _SHAPES:
        found = shape.match(key, len(PREFIX) + 1)
        if found and not (kind == "run" and found["id"] in {"models", "traces"}):
            return Place(kind, found["id"], int(found["experiment"]), key[: found.end()])
    return None


def of_location(kind: str, name: str, uri: str | None, bucket: str) -> Place | None:
    """Return where a record says its artifacts are; None if that is no place of its own in this bucket."""
    for root in ("mlflow-artifacts:/", f"s3://{bucket}/{PREFIX}/"):
        if uri and uri.startswith(root):
            path = uri.removeprefix(root).strip("/")
            # Of a model both MODEL and MODEL/artifacts are in use.
            place = of_key(f"{PREFIX}/{path}/")
            if place and (place.kind, place.id) == (kind, name):
                return place
    return None
