"""runs/search in its common forms.

First the ids of the runs that a clause leaves, where they are few; then the page's; then their whole records.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import asyncpg

from stackfast.answers import encode
from stackfast.database import Database, run_on, snapshot, within
from stackfast.outcomes import NotMineError, UndoneError
from stackfast.records import FOR_ALL, FOR_LARGE, whole_runs
from stackfast.requests import Request, experiment_id_of, int64_of, json_object, list_of, text_of
from stackfast.searching import FEW, Arguments, Clause, begins_with_metric, clauses, condition, lookups, order

EXPERIMENTS = 1000
PAGE_LIMIT, PAGE_DEFAULT = 10_000, 1000
"""The default is MLflow's; larger pages are MLflow's too."""
LARGE, TURN_SECONDS = 1000, 3.0
"""Pages that may be larger are put together one after the other, and are MLflow's after that wait."""
PAGE_SECONDS = 8.0
"""After so long the next portion of a page is not read: nginx waits for 20 s in all."""
OFFSET_LIMIT = 1_000_000
SOON_MS = 200
"""What a look at only the runs that have a metric, or are few, may take; then all are looked at."""
FILTER_LENGTH = 2000
_FEW_OF_ALL = """
WITH bound AS (
    SELECT ceil(sqrt($2::float8 * greatest(reltuples, 0)))::bigint AS runs FROM pg_class
    WHERE oid = 'runs'::regclass)
SELECT count(*) < (SELECT runs FROM bound)
FROM (SELECT FROM runs WHERE experiment_id = ANY($1::int[]) LIMIT (SELECT runs FROM bound)) AS own
"""
"""In the order of a metric a page of n runs is together after n * all / own of them, if they are spread
evenly: more than the own ones where own * own < n * all."""
STAGES = {"ACTIVE_ONLY": ("active",), "DELETED_ONLY": ("deleted",), "ALL": ("active", "deleted")}
_FIELDS = frozenset({"experiment_ids", "filter", "run_view_type", "max_results", "order_by", "page_token"})
_TOKEN = re.compile(rb'\{"offset": ([1-9][0-9]{0,6})\}').fullmatch


class Search:
    """The route runs/search."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def _turn_of(self, large: bool) -> AsyncIterator[None]:
        if not large:
            yield
            return
        try:
            await asyncio.wait_for(self._turn.acquire(), TURN_SECONDS)
        except TimeoutError:
            raise NotMineError("busy") from None
        try:
            yield
        finally:
            self._turn.release()

    async def search(self, request: Request) -> bytes:
        """Answer runs/search."""
        given = json_object(request, _FIELDS)
        experiments = sorted(
            {experiment_id_of(each) for each in list_of(given.get("experiment_ids"), EXPERIMENTS)}
        )
        if not experiments:
            raise NotMineError("experiments")
        limit = int64_of(given.get("max_results", PAGE_DEFAULT), 1)
        stages = STAGES.get(_text(given, "run_view_type") or "ACTIVE_ONLY")
        if limit > PAGE_LIMIT or stages is None:
            raise NotMineError("page")
        offset = _offset(_text(given, "page_token"))
        orders = [text_of(each, FILTER_LENGTH) for each in list_of(given.get("order_by", []), 20)]
        wanted = clauses(_text(given, "filter"))

        def statement(few: list[str] | None = None, *, measured: bool = False) -> tuple[str, list[object]]:
            arguments = Arguments()
            meets = [condition(clause, arguments) for clause in wanted]
            runs = "runs"
            if few is not None:
                # OFFSET 0: PostgreSQL begins with these, and does not look for them in the page's order.
                these = f"run_uuid = ANY({arguments.add(few, 'text[]')})"
                runs = f"(SELECT * FROM runs WHERE {these} OFFSET 0)"  # noqa: S608
            joins, ordering = order(orders, arguments, measured=measured)
            # One experiment by "=": PostgreSQL then reads its index in the order of the page.
            where = (
                f"run.experiment_id = {arguments.add(experiments[0], 'int')}"
                if len(experiments) == 1
                else f"run.experiment_id = ANY({arguments.add(experiments, 'int[]')})"
            )
            stage = (
                f"run.lifecycle_stage = '{stages[0]}'"
                if len(stages) == 1
                else "run.lifecycle_stage IN ('active', 'deleted')"
            )
            text = (
                f"SELECT run.run_uuid FROM {runs} AS run {joins} WHERE {' AND '.join([where, stage, *meets])}"  # noqa: S608
                f" ORDER BY {ordering} LIMIT {limit + 1} OFFSET {offset}"
            )
            return text, arguments.values

        until = asyncio.get_running_loop().time() + PAGE_SECONDS
        large = limit > LARGE
        order(orders, Arguments())  # what is not the fast path's is found before anything is asked
        try:
            async with self._turn_of(large), self._database.connection() as connection:
                few = await _of_rare_clause(connection, wanted)
                by_metric = (
                    few is None
                    and begins_with_metric(orders)
                    and not await _are_few(connection, experiments, offset + limit + 1)
                )
                ids: list[str] = []
                # What is read in portions must be of one moment; there an error would end all of it.
                async with snapshot(connection) if large else nullcontext():
                    if by_metric:
                        measured = _ids if large else _measured
                        ids = await measured(connection, *statement(measured=True))
                    if len(ids) <= limit:
                        ids = await _ids(connection, *statement(few))
                    # MLflow reads the one more too, and fails if it cannot.
                    memory = FOR_LARGE if large else FOR_ALL
                    records = (await whole_runs(connection, ids, memory=memory, until=until))[:limit]
        except UndoneError as error:
            raise NotMineError("refused by the database") from error
        answer = b'{"runs":[' + b",".join(records) + b"]" if records else b"{"
        if len(ids) > limit:
            token = base64.b64encode(json.dumps({"offset": offset + limit}).encode()).decode()
            answer += b',"next_page_token":' + encode(token)
        return answer + b"}"


async def _ids(connection: asyncpg.Connection, text: str, values: list[object]) -> list[str]:
    return [row["run_uuid"] for row in await run_on(connection, text, *values)]


async def _of_rare_clause(connection: asyncpg.Connection, wanted: list[Clause]) -> list[str] | None:
    """Return the ids of all runs that a clause leaves, where those are few and soon found.

    PostgreSQL does not know that a value is rare with one key and common with the others: it would look
    for it in each run of the experiment.
    """
    if not (statements := lookups(wanted)):
        return None
    try:
        async with within(connection, SOON_MS):
            for text, values in statements:
                if len(ids := await _ids(connection, text, values)) <= FEW:
                    return ids
    except UndoneError as error:
        if not error.slow:
            raise
    return None


async def _are_few(connection: asyncpg.Connection, experiments: list[int], rows: int) -> bool:
    """Return whether it is less to look at all runs of the experiments than for them in a metric's order."""
    ((few,),) = await run_on(connection, _FEW_OF_ALL, experiments, rows)
    return few


async def _measured(connection: asyncpg.Connection, text: str, values: list[object]) -> list[str]:
    """Return the ids of the runs that have the metric, or none where it took too long.

    PostgreSQL believes that an experiment's runs have a metric as often as all others: if few of them
    have it, it may look through those of all the others first.
    """
    try:
        async with within(connection, SOON_MS):
            return await _ids(connection, text, values)
    except UndoneError as error:
        if not error.slow:
            raise
        return []


def _text(given: dict[str, Any], name: str) -> str:
    return text_of(given.get(name, ""), FILTER_LENGTH)


def _offset(token: str) -> int:
    if not token:
        return 0
    try:
        match = _TOKEN(base64.b64decode(token, validate=True))
    except ValueError:
        match = None
    if not match or int(match[1]) > OFFSET_LIMIT:
        raise NotMineError("page token")
    return int(match[1])
