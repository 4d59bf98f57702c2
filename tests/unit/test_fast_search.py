"""The fast path's searches on a real PostgreSQL: MLflow's answers, without reading the whole experiment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import psycopg2
import pytest
from mlflow.entities import ViewType
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from kit.fast_service import Service, work
from kit.mlflow_tables import mlflow_tables
from stackfast import database, search
from stackfast.database import READING
from stackfast.outcomes import UndoneError, UnknownOutcomeError
from stackserver.indexes import make_indexes

RUNS = 4000
"""In the experiment `many`, more in `others`. Few have with the keys p0 and m0 what most have with the
others; the oldest have p2 = old. The 200 in `few` have the least of m1."""
RARE = {
    ("params.p0 = '7'", 100): 4,
    ("metrics.m0 > 0.5", 100): 5,
    ("params.p1 = '7' and params.p0 = '7'", 100): 4,
    ("params.p2 = 'old'", 1): 1,
}
"""Filters, the runs that are asked for, and how many there are of them."""
FILTERS = [
    "params.p0 = '7'",
    "params.p1 = '7'",
    "params.p1 = 'none'",
    "params.p0 = 'x1'",
    f"params.long = '{'y' * 64}'",
    f"params.long = '{'y' * 65}'",
    "metrics.m0 = 0.1",
    "metrics.m0 >= 0.9",
    "metrics.m0 < 0.5 and params.p2 = 'old'",
    "metrics.m0 <= 0 and metrics.m0 >= 0",
    "tags.t = '7' and metrics.m1 > 0.5",
    "tags.t != '7' and params.p2 = 'old'",
    "run_name = 'r7' and params.p1 = '7'",
    "metrics.m3 > 0.5 and params.p3 = '7' and metrics.m0 < 0.5",
]
ORDERS = [[], ["metrics.m0 DESC"], ["params.p0"], ["attributes.start_time ASC"]]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with mlflow_tables() as uri, closing(psycopg2.connect(uri)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO experiments (experiment_id, name, lifecycle_stage, workspace)
                    VALUES (100, 'many', 'active', 'default'), (200, 'others', 'active', 'default'),
                        (300, 'few', 'active', 'default');
                CREATE TEMP TABLE many AS
                    SELECT md5(e || '-' || n) AS id, n, e, part, n % 800 = 0 AS rare
                    FROM generate_series(1, 4000) n, generate_series(0, 4) part, unnest(array[100, 200]) e;
                INSERT INTO runs (run_uuid, name, start_time, status, lifecycle_stage, experiment_id, user_id,
                        artifact_uri)
                    SELECT id, 'r' || n % 10, n / 3, 'FINISHED',
                        CASE n WHEN 1600 THEN 'deleted' ELSE 'active' END, e, 'u', repeat('a', 200)
                    FROM many WHERE part = 0;
                INSERT INTO runs (run_uuid, start_time, status, lifecycle_stage, experiment_id, user_id,
                        artifact_uri)
                    SELECT md5('more ' || n), n, 'FINISHED', 'active', 200, 'u', repeat('a', 200)
                    FROM generate_series(1, 30000) n;
                INSERT INTO runs (run_uuid, name, start_time, status, lifecycle_stage, experiment_id, user_id,
                        artifact_uri)
                    SELECT md5('few ' || n), 'few', n, 'FINISHED', 'active', 300, 'u', 'a'
                    FROM generate_series(1, 200) n;
                INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
                    SELECT 'm1', 0.1, 1, 0, false, md5('few ' || n) FROM generate_series(1, 200) n;
                INSERT INTO params (key, value, run_uuid) SELECT 'p' || part, CASE
                    WHEN part = 2 AND n <= 300 THEN 'old' WHEN part > 0 OR rare THEN '7' ELSE 'x' || n END, id
                    FROM many;
                INSERT INTO params (key, value, run_uuid)
                    SELECT 'long', repeat('y', 63 + n % 4), id FROM many WHERE part = 0 AND n % 10 = 0;
                INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
                    SELECT 'm' || part, CASE WHEN n = 2400 AND part = 0 THEN 0 WHEN part > 0 OR rare OR n < 3
                        THEN 0.9 ELSE 0.1 END, 1, 0, part = 0 AND n = 2400, id FROM many;
                INSERT INTO tags (key, value, run_uuid)
                    SELECT key, value, id FROM many, LATERAL (VALUES
                        ('t', (n % 9)::text), ('mlflow.runName', 'r' || n % 10)) AS tag (key, value)
                    WHERE part = 0;
                ANALYZE
                """
            )
        make_indexes(connection)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET random_page_cost = 1.1")  # postgres/postgresql.conf
            cursor.execute("SELECT pg_reload_conf()")
        yield uri


def rows_read(address: str) -> int:
    """Return how many rows of the searched tables were read, by connections that are closed now."""
    with closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for _ in range(100):
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stackfast'")
            if cursor.fetchone() == (0,):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("connections stay open")
        cursor.execute(
            "SELECT sum(seq_tup_read + idx_tup_fetch)::int FROM pg_stat_user_tables"
            " WHERE relname IN ('runs', 'params', 'latest_metrics')"
        )
        return cursor.fetchone()[0]


@pytest.mark.parametrize(("wanted", "found"), RARE.items())
def test_what_few_runs_have_is_looked_up_though_its_value_is_common_with_other_keys(
    address: str, tmp_path: Path, wanted: tuple[str, int], found: int
) -> None:
    text, most = wanted

    async def do(service: Service) -> None:
        fields = {"experiment_ids": ["100"], "filter": text, "max_results": most}
        status, page = await service.post("runs/search", **fields)
        assert (status, len(page["runs"])) == (200, found)

    before = rows_read(address)
    work(address, tmp_path, do)
    assert rows_read(address) - before < RUNS / 2


def test_a_few_runs_of_many_are_not_looked_for_in_the_order_of_all_of_them(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL itself chooses that beside a million runs: 180 ms instead of 65 for 10,000."""
    looked: list[str] = []
    measured = search._measured

    async def noted(connection: asyncpg.Connection, text: str, values: list[object]) -> list[str]:
        looked.append(text)
        return await measured(connection, text, values)

    monkeypatch.setattr(search, "_measured", noted)

    async def do(service: Service) -> None:
        fields = {"order_by": ["metrics.m1 DESC"], "max_results": 10}
        status, page = await service.post("runs/search", experiment_ids=["300"], **fields)
        values = [run["data"]["metrics"][0]["value"] for run in page["runs"]]
        assert (status, values, len(looked)) == (200, [0.1] * 10, 0)
        status, page = await service.post("runs/search", experiment_ids=["100"], **fields)
        assert (status, len(page["runs"]), len(looked)) == (200, 10, 1)

    work(address, tmp_path, do)


@pytest.fixture(scope="module")
def answers(address: str) -> dict[tuple[str, int], list[str]]:
    """MLflow's own: the ids of a page by filter and number of the order."""
    store = SqlAlchemyStore(address.replace("postgresql://", "postgresql+psycopg2://"), "artifacts")
    return {
        (text, number): [
            run.info.run_id
            for run in store.search_runs(["100"], text, ViewType.ACTIVE_ONLY, max_results=12, order_by=order)
        ]
        for text in FILTERS
        for number, order in enumerate(ORDERS)
    }


async def assert_the_same(service: Service, answers: dict[tuple[str, int], list[str]]) -> None:
    found = {}
    for text, number in answers:
        fields = {"experiment_ids": ["100"], "filter": text, "max_results": 12, "order_by": ORDERS[number]}
        status, page = await service.post("runs/search", **fields)
        assert status == 200
        found[text, number] = [run["info"]["run_id"] for run in page.get("runs", [])]
    assert found == answers


@pytest.mark.parametrize("few", [search.FEW, 20, -1])
def test_pages_are_mlflows_whether_few_runs_are_looked_up_or_many_are_looked_through(
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[tuple[str, int], list[str]],
    few: int,
) -> None:
    monkeypatch.setattr(search, "FEW", few)
    assert sum(map(bool, answers.values())) > len(answers) / 2

    async def do(service: Service) -> None:
        await assert_the_same(service, answers)

    work(address, tmp_path, do)


def test_a_look_that_takes_too_long_is_left(
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[tuple[str, int], list[str]],
) -> None:
    monkeypatch.setattr(search, "SOON_MS", 20)
    monkeypatch.setattr(search, "lookups", lambda _: [("SELECT pg_sleep(60)::text AS run_uuid", [])])
    text = FILTERS[0]
    some = {where: ids for where, ids in answers.items() if where in {(text, 0), (text, 2)}}

    async def do(service: Service) -> None:
        await assert_the_same(service, some)

    work(address, tmp_path, do)


def test_a_search_page_is_in_mlflows_order_and_its_pages_hold_each_run_once(
    address: str, tmp_path: Path
) -> None:
    async def do(found: Service) -> None:
        made = [await found.run(start_time=1 + number // 3) for number in range(10)]
        seen: list[str] = []
        token = ""
        while True:
            fields = {"experiment_ids": [found.experiment_id], "max_results": 4}
            status, page = await found.post(
                "runs/search", **fields, **({"page_token": token} if token else {})
            )
            assert status == 200
            seen += [run["info"]["run_id"] for run in page["runs"]]
            token = page.get("next_page_token", "")
            if not token:
                break
        starts = {run_id: 1 + number // 3 for number, run_id in enumerate(made)}
        assert seen == sorted(made, key=lambda run_id: (-starts[run_id], run_id))
        empty = await found.post("runs/search", experiment_ids=["999999"])
        assert empty == (200, {})

    work(address, tmp_path, do)


def test_what_is_tried_first_takes_no_longer_than_it_may(address: str) -> None:
    async def do() -> None:
        connection = await asyncpg.connect(address, server_settings=READING)
        usual = await connection.fetchval("SHOW statement_timeout")
        with pytest.raises(UndoneError) as refused:
            async with database.within(connection, 50):
                await database.run_on(connection, "SELECT pg_sleep(60)")
        assert refused.value.slow
        assert await connection.fetchval("SHOW statement_timeout") == usual
        await connection.close()

    asyncio.run(asyncio.wait_for(do(), 50))


def test_a_connection_that_keeps_the_short_time_is_not_used_again(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do() -> None:
        connection = await asyncpg.connect(address, server_settings=READING)
        with pytest.raises(UnknownOutcomeError):
            async with database.within(connection, 50):
                monkeypatch.setattr(database, "_TIMEOUT", "SELECT $1::text, pg_sleep(60)")
        await connection.close()

    asyncio.run(asyncio.wait_for(do(), 50))


def test_an_order_by_a_metric_that_takes_too_long_to_begin_with_is_asked_as_a_whole(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do(found: Service) -> None:
        made = [await found.run(start_time=start) for start in range(3)]
        for number, run_id in enumerate(made):
            await found.post("runs/log-metric", run_id=run_id, key="m", value=-number, timestamp=1, step=0)
        page = {"experiment_ids": [found.experiment_id], "order_by": ["metrics.m DESC"], "max_results": 2}
        at_once = await found.post("runs/search", **page)
        monkeypatch.setattr(search, "_are_few", are_many)
        monkeypatch.setattr(search, "run_on", late(search.run_on))
        assert await found.post("runs/search", **page) == at_once
        assert [run["info"]["run_id"] for run in at_once[1]["runs"]] == made[:2]

    async def are_many(*_: object) -> bool:
        return False

    def late(run_on: Callable) -> Callable:
        """Return a function that ends the first statement as PostgreSQL ends a slow one."""
        ended = []

        async def run(connection: asyncpg.Connection, text: str, *values: object) -> list[asyncpg.Record]:
            if not ended:
                ended.append(text)
                raise UndoneError("57014")
            return await run_on(connection, text, *values)

        return run

    work(address, tmp_path, do)
