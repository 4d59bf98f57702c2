"""The JSON of MLflow's answers. MLflow sends ASCII; so does this."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

EMPTY = b"{}"


def encode(answer: Any) -> bytes:
    """Return JSON in ASCII."""
    found = orjson.dumps(answer)
    return found if found.isascii() else json.dumps(answer, separators=(",", ":")).encode()


def run_info(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return MLflow's `info` of a row of `runs` (mlflow/entities/run_info.py: to_proto)."""
    found = {
        "run_uuid": row["run_uuid"],
        "run_id": row["run_uuid"],
        "run_name": row["name"],
        "experiment_id": str(row["experiment_id"]),
        "user_id": row["user_id"],
        "status": row["status"],
        "start_time": row["start_time"],
        "lifecycle_stage": row["lifecycle_stage"],
    }
    if row["end_time"]:
        found["end_time"] = row["end_time"]
    if row["artifact_uri"]:
        found["artifact_uri"] = row["artifact_uri"]
    return found
