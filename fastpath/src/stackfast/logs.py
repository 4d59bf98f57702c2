"""log-metric, log-parameter, set-tag and log-batch: one kind of item, one statement for many of them.

A statement has only the parts that its items need. PostgreSQL takes their locks in one order
everywhere: params, tags, latest_metrics, metrics, within each by run and key; MLflow has a transaction
for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Any

from stackfast.answers import EMPTY
from stackfast.batcher import Batcher
from stackfast.database import Database
from stackfast.outcomes import NotMineError
from stackfast.requests import (
    PARAM_LENGTH,
    TAG_LENGTH,
    Request,
    int64_of,
    json_object,
    key_of,
    list_of,
    run_id_of,
    text_of,
)

RUN_NAME = "mlflow.runName"
METRICS, PARAMS_OR_TAGS, ENTITIES = 1000, 100, 1000
_METRIC_FIELDS = frozenset({"run_id", "run_uuid", "key", "value", "timestamp", "step"})
_POINT_FIELDS = frozenset({"run_id", "key", "value", "timestamp", "step"})
_PAIR_FIELDS = frozenset({"key", "value"})
_ONE_FIELDS = frozenset({"run_id", "run_uuid", "key", "value"})
_BATCH_FIELDS = frozenset({"run_id", "metrics", "params", "tags"})


@dataclass(slots=True)
class Log:
    """What one request logs to one run."""

    run_id: str
    keys: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add_metric(self, given: dict[str, Any]) -> None:
        """Add a point; clients may name its run. NaN and infinities are strings in JSON, and MLflow's."""
        if given.get("run_id", self.run_id) != self.run_id:
            raise NotMineError("run id")
        value = given.get("value")
        if type(value) is int:
            value = float(int64_of(value))
        elif type(value) is not float or not math.isfinite(value):
            raise NotMineError("value")
        self.keys.append(key_of(given.get("key")))
        self.values.append(value + 0.0)  # as MLflow stores it: there is no -0.0
        self.timestamps.append(int64_of(given.get("timestamp"), 0))
        self.steps.append(int64_of(given.get("step", 0)))

    def add_param(self, given: dict[str, Any]) -> None:
        """Add a param; the same twice in one request is an error, and so MLflow's."""
        key = key_of(given.get("key"))
        if key in self.params:
            raise NotMineError("twice")
        self.params[key] = text_of(given.get("value"), PARAM_LENGTH)

    def add_tag(self, given: dict[str, Any]) -> None:
        """Add a tag; of several with one key the last counts. The run's name is more than a tag."""
        key = key_of(given.get("key"))
        if key == RUN_NAME:
            raise NotMineError("run name")
        self.tags[key] = text_of(given.get("value"), TAG_LENGTH)

    @property
    def exclusive(self) -> frozenset[tuple[str, str, str]]:
        """What no two items of one statement may share: rows that are looked at or written over."""
        params = [(self.run_id, "param", key) for key in self.params]
        return frozenset(params + [(self.run_id, "tag", key) for key in self.tags])

    @property
    def weight(self) -> int:
        """The number of rows."""
        return len(self.keys) + len(self.params) + len(self.tags)


class Logs:
    """The routes that log."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batcher: Batcher[Log, bytes] = Batcher(self._write)

    async def log_metric(self, request: Request) -> bytes:
        """Answer runs/log-metric."""
        given = json_object(request, _METRIC_FIELDS)
        log = Log(run_id_of(given))
        log.add_metric(given)
        return await self._batcher.submit(log)

    async def log_param(self, request: Request) -> bytes:
        """Answer runs/log-parameter."""
        given = json_object(request, _ONE_FIELDS)
        log = Log(run_id_of(given))
        log.add_param(given)
        return await self._batcher.submit(log, log.exclusive)

    async def set_tag(self, request: Request) -> bytes:
        """Answer runs/set-tag."""
        given = json_object(request, _ONE_FIELDS)
        log = Log(run_id_of(given))
        log.add_tag(given)
        return await self._batcher.submit(log, log.exclusive)

    async def log_batch(self, request: Request) -> bytes:
        """Answer runs/log-batch."""
        given = json_object(request, _BATCH_FIELDS)
        log = Log(run_id_of(given))
        metrics = list_of(given.get("metrics", []), METRICS)
        params = list_of(given.get("params", []), PARAMS_OR_TAGS)
        tags = list_of(given.get("tags", []), PARAMS_OR_TAGS)
        if not 0 < len(metrics) + len(params) + len(tags) <= ENTITIES:
            raise NotMineError("list")
        for things, fields, add in (
            (metrics, _POINT_FIELDS, log.add_metric),
            (params, _PAIR_FIELDS, log.add_param),
            (tags, _PAIR_FIELDS, log.add_tag),
        ):
            for thing in things:
                if type(thing) is not dict or not fields.issuperset(thing):
                    raise NotMineError("fields")
                add(thing)
        return await self._batcher.submit(log, log.exclusive, log.weight)

    async def _write(self, logs: list[Log]) -> list[bytes | None]:
        kinds = (
            any(log.keys for log in logs),
            any(log.params for log in logs),
            any(log.tags for log in logs),
        )
        arguments: list[list[Any]] = [[log.run_id for log in logs]]
        if kinds[0]:
            arguments.append([n for n, log in enumerate(logs, 1) for _ in log.keys])
            for name in ("keys", "values", "timestamps", "steps"):
                arguments.append([value for log in logs for value in getattr(log, name)])
        for wanted, name in zip(kinds[1:], ("params", "tags"), strict=True):
            if wanted:
                arguments.append([n for n, log in enumerate(logs, 1) for _ in getattr(log, name)])
                arguments.append([key for log in logs for key in getattr(log, name)])
                arguments.append([value for log in logs for value in getattr(log, name).values()])
        rows = await self._database.run(_statement(*kinds), *arguments)
        done = {row["n"] for row in rows}
        return [EMPTY if n in done else None for n in range(1, len(logs) + 1)]


@cache
def _statement(metrics: bool, params: bool, tags: bool) -> str:
    """Return the statement for these kinds; it returns the numbers of the items that were written, whole.

    Not written, nor any part of them: items of runs that are not active, and of params that
    have another value already.
    """
    numbers = count(2)

    def given(wanted: bool, name: str, **columns: str) -> str:
        """Return a part that makes rows of arrays; the arguments are numbered in the order of these calls."""
        arrays = ", ".join(f"${next(numbers)}::{kind}[]" for kind in columns.values()) if wanted else ""
        return f"{name}({', '.join(columns)}) AS (SELECT * FROM unnest({arrays}))"

    metric = given(metrics, "metric", n="int", key="text", value="float8", ts="bigint", step="bigint")
    param = given(params, "param", n="int", key="text", value="text")
    tag = given(tags, "tag", n="int", key="text", value="text")
    parts = [
        """
        item AS (SELECT run_uuid, n FROM unnest($1::text[]) WITH ORDINALITY AS t(run_uuid, n)),
        active AS MATERIALIZED (
            SELECT n, run_uuid FROM item JOIN runs USING (run_uuid) WHERE lifecycle_stage = 'active')"""
    ]
    done = "active"
    if params:
        done = "done"
        parts += [
            param,
            """
            free AS MATERIALIZED (
                SELECT n, run_uuid FROM active WHERE NOT EXISTS (
                    SELECT FROM param JOIN params AS known ON known.key = param.key
                    WHERE param.n = active.n AND known.run_uuid = active.run_uuid
                        AND known.value <> param.value)),
            new_params AS (
                INSERT INTO params (run_uuid, key, value)
                SELECT run_uuid, key, value FROM param JOIN free USING (n) ORDER BY run_uuid, key
                ON CONFLICT DO NOTHING RETURNING run_uuid, key),
            -- Another is just writing one of them: no part of this statement may stay (an error of its own).
            done AS MATERIALIZED (
                SELECT n, run_uuid FROM free WHERE 1 = 1 / (CASE WHEN EXISTS (
                    SELECT FROM param WHERE param.n = free.n
                    AND NOT EXISTS (SELECT FROM new_params AS made
                        WHERE made.run_uuid = free.run_uuid AND made.key = param.key)
                    AND NOT EXISTS (SELECT FROM params AS known
                        WHERE known.run_uuid = free.run_uuid AND known.key = param.key)
                    ) THEN 0 ELSE 1 END))""",
        ]
    if metrics:
        parts += [
            metric,
            f"""
            new_metrics AS (
                INSERT INTO metrics (run_uuid, key, value, timestamp, step, is_nan)
                SELECT run_uuid, key, value, ts, step, false FROM metric JOIN {done} USING (n)
                ORDER BY run_uuid, key, step, ts, value
                ON CONFLICT DO NOTHING),
            new_latest AS (
                INSERT INTO latest_metrics AS known (run_uuid, key, value, timestamp, step, is_nan)
                SELECT DISTINCT ON (run_uuid, key) run_uuid, key, value, ts, step, false
                FROM metric JOIN {done} USING (n)
                ORDER BY run_uuid, key, step DESC, ts DESC, value DESC
                ON CONFLICT (key, run_uuid) DO UPDATE
                SET value = excluded.value, timestamp = excluded.timestamp, step = excluded.step,
                    is_nan = false
                WHERE (excluded.step, excluded.timestamp, excluded.value)
                    > (known.step, known.timestamp, known.value))""",
        ]
    if tags:
        parts += [
            tag,
            f"""
            new_tags AS (
                INSERT INTO tags (run_uuid, key, value)
                SELECT run_uuid, key, value FROM tag JOIN {done} USING (n) ORDER BY run_uuid, key
                ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value)""",
        ]
    return f"WITH {', '.join(parts)} SELECT n::int FROM {done}"
