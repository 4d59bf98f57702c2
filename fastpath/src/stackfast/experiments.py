"""experiments/create, experiments/get and experiments/get-by-name."""

from __future__ import annotations

import json
import time

import asyncpg

from stackfast.answers import encode
from stackfast.database import Database
from stackfast.outcomes import NotMineError, UndoneError
from stackfast.requests import Request, experiment_id_of, json_object, query_fields, text_of

NAME_LENGTH = 256
"""The column's; MLflow's own limit of 500 is an error of the database above this."""
ARTIFACT_ROOT = "mlflow-artifacts:/"
"""As stackserver.serve gives it to MLflow."""
_CREATE_FIELDS = frozenset({"name", "tags"})

CREATE = """
WITH new AS (SELECT nextval(pg_get_serial_sequence('experiments', 'experiment_id'))::int AS id)
INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, creation_time,
    last_update_time, workspace)
SELECT id, $1::text, $2::text || id, 'active', $3::bigint, $3::bigint, 'default' FROM new
WHERE NOT EXISTS (SELECT FROM experiments WHERE name = $1::text)
ON CONFLICT DO NOTHING RETURNING experiment_id
"""
_EXPERIMENT = """
SELECT experiment_id, name, artifact_location, lifecycle_stage, creation_time, last_update_time, workspace,
    (SELECT json_agg(json_build_object('key', key, 'value', value))::text FROM experiment_tags AS tag
        WHERE tag.experiment_id = experiments.experiment_id) AS tags
FROM experiments WHERE """
BY_ID = _EXPERIMENT + "experiment_id = $1::int"
BY_NAME = _EXPERIMENT + "name = $1::text"


class Experiments:
    """The routes of experiments."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, request: Request) -> bytes:
        """Answer experiments/create without tags or a place of its own."""
        given = json_object(request, _CREATE_FIELDS)
        name = text_of(given.get("name"), NAME_LENGTH)
        if not name or given.get("tags", []) != []:
            raise NotMineError("tags")
        try:
            rows = await self._database.run(CREATE, name, ARTIFACT_ROOT, int(time.time() * 1000))
        except UndoneError as error:
            raise NotMineError("refused by the database") from error
        if not rows:
            raise NotMineError("there already")
        return encode({"experiment_id": str(rows[0]["experiment_id"])})

    async def get(self, request: Request) -> bytes:
        """Answer experiments/get."""
        given = query_fields(request, frozenset({"experiment_id"}))
        return self._answer(await self._database.run(BY_ID, experiment_id_of(given.get("experiment_id"))))

    async def get_by_name(self, request: Request) -> bytes:
        """Answer experiments/get-by-name."""
        given = query_fields(request, frozenset({"experiment_name"}))
        name = text_of(given.get("experiment_name"), NAME_LENGTH)
        if not name:
            raise NotMineError("name")
        return self._answer(await self._database.run(BY_NAME, name))

    def _answer(self, rows: list[asyncpg.Record]) -> bytes:
        if len(rows) != 1 or not rows[0]["artifact_location"]:
            raise NotMineError("not there")
        row = dict(rows[0])
        row["experiment_id"] = str(row["experiment_id"])
        row["tags"] = [
            {name: value for name, value in tag.items() if value is not None}
            for tag in json.loads(row["tags"] or "[]")
        ]
        return encode({"experiment": {name: value for name, value in row.items() if value}})
