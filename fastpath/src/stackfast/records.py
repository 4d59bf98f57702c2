"""Whole runs as MLflow's JSON, put together by PostgreSQL (mlflow/entities/run.py: to_proto)."""

from __future__ import annotations

import asyncio
import json

import asyncpg

from stackfast.database import run_on
from stackfast.outcomes import NotMineError

ENTRIES, PAGE_BYTES, NOT_ASCII_BYTES = 150_000, 16 << 20, 4 << 20
"""A page with more metrics, params, tags or inputs, or larger, is MLflow's: the memory here is small."""
TOGETHER_BYTES = 20 << 20
"""Of all pages under way; each takes up to six times its size, nine times if not all of it is ASCII."""


def _sizes(table: str, size: str, where: str = "run_uuid = ANY($1::text[])") -> str:
    return f"SELECT {size} AS size FROM {table} WHERE {where} LIMIT {ENTRIES}"


_PAIR = "CASE WHEN value IS NULL THEN 1 << 30 ELSE 30 + octet_length(key) + octet_length(value) END"
# About the bytes of the JSON. A tag without a value, as old servers have left, is MLflow's too.
SIZE = " + ".join(
    f"(SELECT coalesce(sum(size), 0) + CASE count(*) WHEN {ENTRIES} THEN 1 << 30 ELSE 0 END FROM ({each}) t)"
    for each in (
        _sizes("latest_metrics", "80 + octet_length(key)"),
        _sizes("params", _PAIR),
        _sizes("tags", _PAIR),
        _sizes(
            "inputs JOIN datasets ON dataset_uuid = source_id LEFT JOIN input_tags USING (input_uuid)",
            "400 + coalesce(octet_length(dataset_schema), 0) + coalesce(octet_length(dataset_profile), 0)"
            " + octet_length(dataset_source) + coalesce(octet_length(input_tags.value), 0)",
            "destination_type = 'RUN' AND destination_id = ANY($1::text[])",
        ),
        _sizes("inputs", "100", "source_type = 'RUN_OUTPUT' AND source_id = ANY($1::text[])"),
    )
)
SIZE = f"SELECT ({SIZE})::bigint"

# A whole number has a ".0", as Python writes it. What MLflow leaves out when it is null or "" is left
# out here. A run whose record is odd (no name, no user, no start) comes back as null.
_WHOLE = """
SELECT run.run_uuid, CASE WHEN run.name <> '' AND run.user_id IS NOT NULL AND run.start_time IS NOT NULL
    AND run.status IS NOT NULL AND run.artifact_uri <> '' THEN
json_build_object(
    'info', json_strip_nulls(json_build_object(
        'run_uuid', run.run_uuid, 'run_id', run.run_uuid, 'run_name', run.name,
        'experiment_id', run.experiment_id::text, 'user_id', run.user_id, 'status', run.status,
        'start_time', run.start_time, 'end_time', nullif(run.end_time, 0),
        'artifact_uri', run.artifact_uri, 'lifecycle_stage', run.lifecycle_stage)),
    'data', json_strip_nulls(json_build_object(
        'metrics', (SELECT json_agg(json_build_object('key', key,
                'value', CASE WHEN is_nan THEN '"NaN"'::json
                    WHEN value = trunc(value) AND abs(value) < 1e15 THEN (value || '.0')::json
                    ELSE to_json(value) END,
                'timestamp', timestamp, 'step', step))
            FROM latest_metrics WHERE run_uuid = run.run_uuid),
        'params', (SELECT json_agg(json_build_object('key', key, 'value', value))
            FROM params WHERE run_uuid = run.run_uuid),
        'tags', (SELECT json_agg(json_build_object('key', key, 'value', value))
            FROM tags WHERE run_uuid = run.run_uuid))),
    'inputs', json_strip_nulls(json_build_object(
        'dataset_inputs', (SELECT json_agg(json_build_object(
                'tags', (SELECT json_agg(json_build_object('key', name, 'value', input_tags.value))
                    FROM input_tags WHERE input_tags.input_uuid = inputs.input_uuid),
                'dataset', json_build_object('name', datasets.name, 'digest', digest,
                    'source_type', dataset_source_type, 'source', dataset_source,
                    'schema', nullif(dataset_schema, ''), 'profile', nullif(dataset_profile, ''))))
            FROM inputs JOIN datasets ON dataset_uuid = source_id
            WHERE destination_type = 'RUN' AND destination_id = run.run_uuid)%s)),
    'outputs', json_strip_nulls(json_build_object(
        'model_outputs', (SELECT json_agg(json_build_object('model_id', destination_id, 'step', step))
            FROM inputs WHERE source_type = 'RUN_OUTPUT' AND source_id = run.run_uuid
                AND destination_type = 'MODEL_OUTPUT'))))::text END AS record
FROM runs AS run WHERE run_uuid = ANY($1::text[])
"""
_MODEL_INPUTS = """,
        'model_inputs', (SELECT json_agg(json_build_object('model_id', destination_id))
            FROM inputs WHERE source_type = 'RUN_INPUT' AND source_id = run.run_uuid
                AND destination_type = 'MODEL_INPUT')"""
_under_way: list[int] = []
"""The sizes of the pages that are."""
PAGE = _WHOLE % ""
SINGLE = _WHOLE % _MODEL_INPUTS
"""A page of runs has no inputs that are models: MLflow's search leaves them out."""


async def whole_runs(
    connection: asyncpg.Connection, run_ids: list[str], *, with_model_inputs: bool = False
) -> list[bytes]:
    """Return the JSON of runs in the order of their ids.

    Raise NotMineError if one is not there, is odd, or there is too much of them.
    """
    if not run_ids:
        return []
    ((size,),) = await run_on(connection, SIZE, run_ids)
    size += 600 * len(run_ids)
    if size > PAGE_BYTES:
        raise NotMineError("large")
    if sum(_under_way) + size > TOGETHER_BYTES:
        raise NotMineError("busy")
    _under_way.append(size)
    try:
        return await _records(connection, run_ids, with_model_inputs)
    finally:
        _under_way.remove(size)


async def _records(
    connection: asyncpg.Connection, run_ids: list[str], with_model_inputs: bool
) -> list[bytes]:
    rows = await run_on(connection, SINGLE if with_model_inputs else PAGE, run_ids)
    found = {row["run_uuid"]: row["record"] for row in rows}
    records = [found.get(run_id) for run_id in run_ids]
    if None in records:
        raise NotMineError("odd run")
    if all(map(str.isascii, records)):
        return [record.encode() for record in records]
    if sum(map(len, records)) > NOT_ASCII_BYTES:
        raise NotMineError("large")
    return await asyncio.to_thread(_in_ascii, records)  # or it would hold up every other request


def _in_ascii(records: list[str]) -> list[bytes]:
    return [json.dumps(json.loads(record)).encode() for record in records]
