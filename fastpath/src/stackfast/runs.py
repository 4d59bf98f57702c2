"""runs/create, runs/update and runs/get."""

from __future__ import annotations

import asyncio
import importlib.util
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stackfast.answers import encode, run_info
from stackfast.batcher import Batcher
from stackfast.database import COMMIT_SECONDS, Database
from stackfast.logs import RUN_NAME
from stackfast.outcomes import NotMineError, UndoneError, UnknownOutcomeError
from stackfast.records import whole_runs
from stackfast.requests import (
    KEY_LENGTH,
    NAME_LENGTH,
    TAG_LENGTH,
    Request,
    experiment_id_of,
    int64_of,
    json_object,
    list_of,
    query_fields,
    run_id_of,
    text_of,
)

STATUSES = frozenset({"RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"})
USER_LENGTH = 256
TAGS_AT_CREATION = 1000
ALL_TRIES_SECONDS, TRY_AGAIN_SECONDS = COMMIT_SECONDS, 0.2
"""After an unknown outcome a creation is tried again with the same id, as long as a statement may take."""
PAIR_FIELDS = frozenset({"key", "value"})
_CREATE_FIELDS = frozenset({"experiment_id", "user_id", "start_time", "tags", "run_name"})
_UPDATE_FIELDS = frozenset({"run_id", "run_uuid", "status", "end_time"})
_GET_FIELDS = frozenset({"run_id", "run_uuid"})

CREATE = """
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::bigint[])
        AS t(run_uuid, experiment_id, name, user_id, start_time)),
-- Places behind which MLflow would only put the run's folder; others are MLflow's.
made AS (
    INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status,
        start_time, source_version, lifecycle_stage, artifact_uri, experiment_id)
    SELECT run_uuid, given.name, 'UNKNOWN', '', '', user_id, 'RUNNING',
        start_time, '', 'active', artifact_location || '/' || run_uuid || '/artifacts', experiment_id
    FROM given JOIN experiments USING (experiment_id)
    WHERE lifecycle_stage = 'active'
        AND artifact_location ~ ('^(mlflow-artifacts:/|[a-z][a-z0-9+]*://[A-Za-z0-9_.-]+/)'
            || '([A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*$')
    ON CONFLICT DO NOTHING RETURNING run_uuid, artifact_uri),
new_tags AS (
    INSERT INTO tags (run_uuid, key, value)
    SELECT run_uuid, key, value FROM unnest($6::text[], $7::text[], $8::text[]) AS t(run_uuid, key, value)
        JOIN made USING (run_uuid))
SELECT run_uuid, artifact_uri FROM made
"""
MADE = "SELECT run_uuid, artifact_uri FROM runs WHERE run_uuid = ANY($1::text[])"
UPDATE = """
WITH given AS (SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) AS t(run_uuid, status, end_time)),
locked AS (
    SELECT run_uuid FROM runs WHERE run_uuid = ANY($1::text[]) AND lifecycle_stage = 'active'
        AND name <> '' AND user_id IS NOT NULL AND start_time IS NOT NULL
    ORDER BY run_uuid FOR NO KEY UPDATE)
UPDATE runs
SET status = coalesce(given.status, runs.status), end_time = coalesce(given.end_time, runs.end_time)
FROM given JOIN locked USING (run_uuid) WHERE runs.run_uuid = given.run_uuid
RETURNING runs.run_uuid, runs.name, runs.user_id, runs.status, runs.start_time, runs.end_time,
    runs.lifecycle_stage, runs.artifact_uri, runs.experiment_id
"""


def name_maker() -> Callable[[], str]:
    """Return MLflow's own function for names of runs, without importing MLflow, which takes seconds."""
    package = importlib.util.find_spec("mlflow")
    path = f"{package.submodule_search_locations[0]}/utils/name_utils.py"
    spec = importlib.util.spec_from_file_location("mlflow_name_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._generate_random_name


@dataclass(slots=True)
class Creation:
    """A run to be made; its id is ours, so that it can be looked for."""

    run_id: str
    experiment_id: int
    name: str
    user_id: str
    start_time: int
    tags: dict[str, str]


class Runs:
    """The routes of single runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._random_name = name_maker()
        self._creations: Batcher[Creation, str] = Batcher(self._create)
        self._updates: Batcher[tuple[str, str | None, int | None], bytes] = Batcher(self._update)

    async def create(self, request: Request) -> bytes:
        """Answer runs/create."""
        given = json_object(request, _CREATE_FIELDS)
        tags: dict[str, str] = {}
        for tag in list_of(given.get("tags", []), TAGS_AT_CREATION):
            if type(tag) is not dict or tag.keys() != PAIR_FIELDS:
                raise NotMineError("fields")
            key = text_of(tag["key"], KEY_LENGTH)
            if not key or key in tags:
                raise NotMineError("tags")
            tags[key] = text_of(tag["value"], TAG_LENGTH)
        name = text_of(given.get("run_name", ""), NAME_LENGTH)
        tagged = tags.get(RUN_NAME, name)
        if tagged != (name or tagged) or len(tagged) > NAME_LENGTH or (RUN_NAME in tags and not tagged):
            raise NotMineError("run name")
        name = name or tagged or self._random_name()
        tags.setdefault(RUN_NAME, name)
        creation = Creation(
            run_id=uuid.uuid4().hex,
            experiment_id=experiment_id_of(given.get("experiment_id")),
            name=name,
            user_id=text_of(given.get("user_id", ""), USER_LENGTH),
            start_time=int64_of(given.get("start_time", 0)),
            tags=tags,
        )
        artifact_uri = await self._creations.submit(creation, weight=1 + len(tags))
        info = run_info(
            {
                "run_uuid": creation.run_id,
                "name": name,
                "experiment_id": creation.experiment_id,
                "user_id": creation.user_id,
                "status": "RUNNING",
                "start_time": creation.start_time,
                "end_time": None,
                "artifact_uri": artifact_uri,
                "lifecycle_stage": "active",
            }
        )
        data = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        return encode({"run": {"info": info, "data": data, "inputs": {}}})

    async def update(self, request: Request) -> bytes:
        """Answer runs/update of status and end; a new name is more than a column, and MLflow's."""
        given = json_object(request, _UPDATE_FIELDS)
        run_id = run_id_of(given)
        status, end_time = given.get("status"), given.get("end_time")
        if "status" in given and (type(status) is not str or status not in STATUSES):
            raise NotMineError("status")
        if "end_time" in given:
            int64_of(end_time)
        return await self._updates.submit((run_id, status, end_time), frozenset({run_id}))

    async def get(self, request: Request) -> bytes:
        """Answer runs/get."""
        run_id = run_id_of(query_fields(request, _GET_FIELDS))
        async with self._database.connection() as connection:
            found = await whole_runs(connection, [run_id], with_model_inputs=True)
        return b'{"run":%b}' % found[0]

    async def _create(self, creations: list[Creation]) -> list[str | None]:
        tags = [(each.run_id, key, value) for each in creations for key, value in each.tags.items()]
        arguments = (
            [each.run_id for each in creations],
            [each.experiment_id for each in creations],
            [each.name for each in creations],
            [each.user_id for each in creations],
            [each.start_time for each in creations],
            *([tag[column] for tag in tags] for column in range(3)),
        )
        deadline = asyncio.get_running_loop().time() + ALL_TRIES_SECONDS
        try:
            rows = await self._database.run(CREATE, *arguments)
        except UnknownOutcomeError:
            try:
                async with asyncio.timeout_at(deadline):
                    rows = await self._make_sure(arguments)
            except TimeoutError:
                raise UnknownOutcomeError("creation") from None
        uris = {row["run_uuid"]: row["artifact_uri"] for row in rows}
        return [uris.get(each.run_id) for each in creations]

    async def _make_sure(self, arguments: tuple[Any, ...]) -> list[Any]:
        """Put the same runs down again, by their ids: those that are there already stay as they are.

        MLflow's client repeats a creation that got no answer, with another id: without this its
        first run would stay behind. An insertion waits for one of the same id whose end is open.
        """
        while True:
            try:
                await self._database.run(CREATE, *arguments)
                return await self._database.run(MADE, arguments[0])
            except (NotMineError, UndoneError, UnknownOutcomeError):
                await asyncio.sleep(TRY_AGAIN_SECONDS)

    async def _update(self, updates: list[tuple[str, str | None, int | None]]) -> list[bytes | None]:
        rows = await self._database.run(UPDATE, *map(list, zip(*updates, strict=True)))
        found = {row["run_uuid"]: encode({"run_info": run_info(row)}) for row in rows}
        return [found.get(update[0]) for update in updates]
