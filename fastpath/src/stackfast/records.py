"""Whole runs as MLflow's JSON, put together by PostgreSQL (mlflow/entities/run.py: to_proto)."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass

import asyncpg

from stackfast.database import run_on
from stackfast.outcomes import NotMineError

ENTRIES = 300_000
"""A page with more metrics, params, tags or inputs (of each) is MLflow's."""
PORTION = 1001
"""So many runs are read at once: a page of 1,000 and the one more."""
NOT_ASCII_BYTES = 4 << 20
"""A portion that is larger and not all ASCII is MLflow's: to make it that takes nine times its size."""
_PAIR = "CASE WHEN value IS NULL THEN 1 << 30 ELSE 30 + octet_length(key) + octet_length(value) END"


def size_of(entries: int) -> str:
    """Return the statement for about the bytes of the JSON of runs.

    Far too many where there are as many entries, and where a tag has no value, as old servers have left, or
    a metric no time: these are MLflow's too.
    """

    def sizes(table: str, size: str, where: str = "run_uuid = ANY($1::text[])") -> str:
        rows = f"SELECT {size} AS size FROM {table} WHERE {where} LIMIT {entries}"
        more = f"CASE count(*) WHEN {entries} THEN 1 << 30 ELSE 0 END"
        return f"(SELECT coalesce(sum(size), 0) + {more} FROM ({rows}) AS counted)"

    all_of_it = (
        sizes("latest_metrics", "CASE WHEN timestamp IS NULL THEN 1 << 30 ELSE 80 + octet_length(key) END"),
        sizes("params", _PAIR),
        sizes("tags", _PAIR),
        sizes(
            "inputs JOIN datasets ON dataset_uuid = source_id LEFT JOIN input_tags USING (input_uuid)",
            "400 + coalesce(octet_length(dataset_schema), 0) + coalesce(octet_length(dataset_profile), 0)"
            " + octet_length(dataset_source) + coalesce(octet_length(input_tags.value), 0)",
            "destination_type = 'RUN' AND destination_id = ANY($1::text[])",
        ),
        sizes("inputs", "100", "source_type = 'RUN_OUTPUT' AND source_id = ANY($1::text[])"),
    )
    return f"SELECT ({' + '.join(all_of_it)})::bigint"


SIZE = size_of(ENTRIES)


def _object(**fields: str) -> str:
    """Return SQL for a JSON object as text, of fields given as SQL for their JSON; null ones are left out."""
    return (
        "'{' || concat_ws(',', "
        + ", ".join(f"""'"{name}":' || {sql}""" for name, sql in fields.items())
        + ") || '}'"
    )


def _list(source: str, **fields: str) -> str:
    """Return SQL for a JSON list of such an object for each row of a source, null where there is no row.

    No field may be null: the row would be left out. SIZE is large where one is.
    """
    entry = " || ',".join(f""""{name}":' || {sql}""" for name, sql in fields.items())
    return f"(SELECT '[' || string_agg('{{{entry} || '}}', ',') || ']' FROM {source})"


def _text(column: str) -> str:
    return f"to_json({column})::text"


# As Python writes it: a whole number has a ".0" (from 1e15 on an exponent, as PostgreSQL gives it anyway).
_NUMBER = """CASE WHEN is_nan THEN '"NaN"' WHEN value = trunc(value) AND abs(value) < 1e15 THEN value || '.0'
    ELSE to_json(value)::text END"""
_OF_RUN = "WHERE run_uuid = run.run_uuid"
_DATASETS = """(SELECT json_strip_nulls(json_agg(json_build_object(
    'tags', (SELECT json_agg(json_build_object('key', name, 'value', input_tags.value))
        FROM input_tags WHERE input_tags.input_uuid = inputs.input_uuid),
    'dataset', json_build_object('name', datasets.name, 'digest', digest,
        'source_type', dataset_source_type, 'source', dataset_source,
        'schema', nullif(dataset_schema, ''), 'profile', nullif(dataset_profile, '')))))::text
    FROM inputs JOIN datasets ON dataset_uuid = source_id
    WHERE destination_type = 'RUN' AND destination_id = run.run_uuid)"""


def _models(source_type: str, destination_type: str, **more: str) -> str:
    linked = f"source_type = '{source_type}' AND destination_type = '{destination_type}'"
    return _list(
        f"inputs WHERE {linked} AND source_id = run.run_uuid", model_id=_text("destination_id"), **more
    )


def _whole(inputs: dict[str, str]) -> str:
    """Return the statement for whole runs.

    As text: json_build_object took 1.5 times as long for a page of 100 runs. What MLflow leaves out when it
    is null or "" is left out here. A run whose record is odd (no name, no user, no start) comes back as null;
    so do all if they have more than $2 bytes together.
    """
    info = _object(
        run_uuid=_text("run.run_uuid"),
        run_id=_text("run.run_uuid"),
        run_name=_text("run.name"),
        experiment_id=_text("run.experiment_id::text"),
        user_id=_text("run.user_id"),
        status=_text("run.status"),
        start_time="run.start_time",
        end_time="nullif(run.end_time, 0)",
        artifact_uri=_text("run.artifact_uri"),
        lifecycle_stage=_text("run.lifecycle_stage"),
    )
    pair = {"key": _text("key"), "value": _text("value")}
    data = _object(
        metrics=_list(
            f"latest_metrics {_OF_RUN}", key=_text("key"), value=_NUMBER, timestamp="timestamp", step="step"
        ),
        params=_list(f"params {_OF_RUN}", **pair),
        tags=_list(f"tags {_OF_RUN}", **pair),
    )
    outputs = _object(model_outputs=_models("RUN_OUTPUT", "MODEL_OUTPUT", step="step"))
    record = _object(info=info, data=data, inputs=_object(**inputs), outputs=outputs)
    return f"""
WITH page AS MATERIALIZED (
    SELECT run_uuid, CASE WHEN run.name <> '' AND run.artifact_uri <> ''
        AND num_nulls(run.user_id, run.start_time, run.status, run.lifecycle_stage, run.experiment_id) = 0
        THEN {record} END AS record
    FROM runs AS run WHERE run_uuid = ANY($1::text[]))
SELECT run_uuid, size, CASE WHEN size <= $2::bigint THEN record END AS record
FROM page, (SELECT sum(octet_length(record)) AS size FROM page) AS whole"""


# A page of runs has no inputs that are models: MLflow's search leaves them out.
PAGE = _whole({"dataset_inputs": _DATASETS})
SINGLE = _whole({"dataset_inputs": _DATASETS, "model_inputs": _models("RUN_INPUT", "MODEL_INPUT")})


@dataclass
class Memory:
    """How many bytes a page may have, and all that are under way together.

    Pages take up to six times their size; of those that are read in portions the most has been four times.
    """

    page: int
    together: int
    taken: int = 0


FOR_ALL = Memory(16 << 20, 20 << 20)
FOR_LARGE = Memory(32 << 20, 32 << 20)
"""For pages that wait for each other: they leave the others their room."""


async def whole_runs(
    connection: asyncpg.Connection,
    run_ids: list[str],
    *,
    with_model_inputs: bool = False,
    memory: Memory = FOR_ALL,
    until: float = math.inf,
) -> list[bytes]:
    """Return the JSON of runs in the order of their ids.

    Raise NotMineError if one is not there, is odd, there is too much of them, or some are still to be read
    at a time of the event loop.
    """
    if not run_ids:
        return []
    ((size,),) = await run_on(connection, SIZE, run_ids)
    size += 600 * len(run_ids)
    if size <= memory.page:  # a half more for JSON in texts: its quotes are two bytes each
        size = min(size * 3 // 2, memory.page)
    statement = SINGLE if with_model_inputs else PAGE
    records: list[bytes] = []
    with _Room(memory) as room:
        room.grow(size)
        for begin in range(0, len(run_ids), PORTION):
            if asyncio.get_running_loop().time() > until:
                raise NotMineError("slow")
            records += await _portion(connection, statement, run_ids[begin : begin + PORTION], room)
    return records


class _Room:
    """What a page takes of the memory; `left` of it is not yet used."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._size = self.left = 0

    def grow(self, size: int) -> None:
        """Take so many bytes more. Raise NotMineError if there are none."""
        if self._size + size > self._memory.page:
            raise NotMineError("large")
        if self._memory.taken + size > self._memory.together:
            raise NotMineError("busy")
        self._memory.taken += size
        self._size += size
        self.left += size

    def use(self, size: int) -> None:
        """Use so many bytes, and take more if there are not as many left."""
        if size > self.left:
            self.grow(size - self.left)
        self.left -= size

    def __enter__(self) -> _Room:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.taken -= self._size


async def _portion(
    connection: asyncpg.Connection, statement: str, run_ids: list[str], room: _Room
) -> list[bytes]:
    for _ in range(2):
        rows = await run_on(connection, statement, run_ids, room.left)
        size = int(rows[0]["size"] or 0) if rows else 0
        if size <= room.left:
            room.use(size)
            records = _in_order(run_ids, {row["run_uuid"]: row["record"] for row in rows})
            if all(map(str.isascii, records)):
                return [record.encode() for record in records]
            if size > NOT_ASCII_BYTES:
                raise NotMineError("large")
            in_ascii = await asyncio.to_thread(_in_ascii, records)  # or it would hold up every other request
            room.use(sum(map(len, in_ascii)) - size)
            return in_ascii
        room.grow(size - room.left)  # texts that are far longer in JSON: control characters
    raise NotMineError("large")


def _in_order(run_ids: list[str], found: dict[str, str | None]) -> list[str]:
    records = [record for run_id in run_ids if (record := found.get(run_id)) is not None]
    if len(records) < len(run_ids):
        raise NotMineError("odd run")
    return records


def _in_ascii(records: list[str]) -> list[bytes]:
    return [json.dumps(json.loads(record)).encode() for record in records]
