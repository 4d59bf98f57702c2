"""The fast path on a real PostgreSQL: many clients at once, lost connections, locks; its own protocol."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import asyncpg
import psycopg2
import pytest

from kit.fast_service import Service, work
from kit.mlflow_tables import mlflow_tables
from stackfast import batcher, database, experiments, logs, protocol, records, runs, search
from stackfast.database import WRITING, Database
from stackfast.outcomes import NotMineError
from stackfast.protocol import Connections
from stackfast.requests import Request
from stackfast.routes import NOT_MINE

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
OLD = {"timestamp": 1, "step": 0}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with mlflow_tables() as uri:
        yield uri


def test_a_hundred_clients_write_the_same_things(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in MLflow: each point once, the newest is the latest, one value of a param, one of a tag."""

    monkeypatch.setattr(batcher, "LATE_SECONDS", 60)  # here nothing goes to MLflow for slowness

    async def do(found: Service) -> None:
        run_id = await found.run()

        async def client(number: int) -> list[int]:
            both = {"run_id": run_id, "run_uuid": run_id}
            answers = [
                await found.post(
                    "runs/log-metric", **both, key="m", value=number % 7, timestamp=5, step=number % 5
                ),
                await found.post("runs/log-parameter", **both, key="p", value=str(number % 3)),
                await found.post("runs/set-tag", **both, key="t", value=str(number)),
                await found.post("runs/update", **both, status="FINISHED", end_time=number + 1),
                await found.post(
                    "runs/log-batch",
                    run_id=run_id,
                    metrics=[{"key": key, "value": 1, **OLD} for key in ("b", "a", "m")],
                    params=[{"key": f"q{number % 10}", "value": "same"}],
                    tags=[{"key": key, "value": str(number)} for key in ("u", "t")],
                ),
            ]
            return [status for status, _ in answers]

        statuses = await asyncio.gather(*(client(number) for number in range(100)))
        for column in (0, 2, 3, 4):
            assert {row[column] for row in statuses} == {200}
        # Who wrote another value than the first goes to MLflow, which refuses it.
        (value,) = (
            row[0]
            for row in await found.rows("SELECT value FROM params WHERE run_uuid = $1 AND key = 'p'", run_id)
        )
        assert [row[1] for row in statuses] == [200 if str(n % 3) == value else 418 for n in range(100)]
        points = await found.rows("SELECT step, value FROM metrics WHERE run_uuid = $1 AND key = 'm'", run_id)
        assert sorted(points) == sorted([*{(n % 5, float(n % 7)) for n in range(100)}, (0, 1.0)])
        latest = await found.rows(
            "SELECT key, step, value FROM latest_metrics WHERE run_uuid = $1 ORDER BY key", run_id
        )
        assert latest == [("a", 0, 1.0), ("b", 0, 1.0), ("m", 4, 6.0)]
        assert len(await found.rows("SELECT FROM params WHERE run_uuid = $1", run_id)) == 11
        assert len(await found.rows("SELECT FROM tags WHERE run_uuid = $1", run_id)) == 3

    work(address, tmp_path, do, lock_timeout="60s", statement_timeout="60s")


def test_what_is_not_plain_changes_nothing_at_all(address: str, tmp_path: Path) -> None:
    async def do(found: Service) -> None:
        run_id, gone = await found.run(), await found.run()
        await found.look.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = $1", gone)
        await found.post("runs/log-parameter", run_id=run_id, key="p", value="1")
        before = await counts(found)
        metrics = [{"key": "m", "value": 1, **OLD}]
        tags = [{"key": "t", "value": "1"}]
        new = {"key": "new", "value": "1"}
        for fields in (
            {"run_id": run_id, "metrics": metrics, "tags": tags, "params": [new, {"key": "p", "value": "2"}]},
            {"run_id": gone, "metrics": metrics, "tags": tags, "params": [new]},
            {"run_id": "f" * 32, "metrics": metrics, "tags": tags, "params": [new]},
        ):
            assert (await found.post("runs/log-batch", **fields))[0] == 418
        for run in (gone, "f" * 32):
            assert (await found.post("runs/update", run_id=run, status="FINISHED"))[0] == 418
            assert (await found.post("runs/set-tag", run_id=run, key="k", value="v"))[0] == 418
        assert (await found.post("experiments/create", name="Default"))[0] in (200, 418)
        assert await counts(found) == before
        assert (await found.rows("SELECT status FROM runs WHERE run_uuid = $1", gone)) == [("RUNNING",)]

    work(address, tmp_path, do)


async def counts(found: Service) -> list[tuple]:
    tables = ("metrics", "latest_metrics", "params", "tags", "runs")
    return [(await found.rows(f"SELECT count(*) FROM {table}"))[0] for table in tables]


def test_clients_that_lose_their_connections_hear_503_and_creations_are_made_once(
    address: str, tmp_path: Path
) -> None:
    async def do(found: Service) -> None:
        async def killer() -> None:
            for _ in range(30):
                await found.look.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'stackfast' AND pid <> pg_backend_pid()"
                )
                await asyncio.sleep(0.05)

        run_id = await found.run(run_name="for metrics")

        async def client(number: int) -> list[tuple[str, int, Any]]:
            said = []
            for turn in range(10):
                name = f"killed-{number}-{turn}"
                status, _ = await found.post(
                    "runs/create",
                    experiment_id=found.experiment_id,
                    user_id="u",
                    start_time=1,
                    run_name=name,
                )
                said.append(("run", status, name))
                step = number * 1000 + turn
                status, _ = await found.post(
                    "runs/log-metric", run_id=run_id, key="k", value=1, timestamp=1, step=step
                )
                said.append(("metric", status, step))
            return said

        killing = asyncio.create_task(killer())
        said = [
            each
            for client_said in await asyncio.gather(*(client(n) for n in range(20)))
            for each in client_said
        ]
        await killing
        assert {status for _, status, _ in said} <= {200, 418, 503}
        names = [row[0] for row in await found.rows("SELECT name FROM runs WHERE name LIKE 'killed-%'")]
        assert len(names) == len(set(names))
        # Of creations nothing is left unknown, unless the database stays away.
        assert sorted(names) == sorted(what for kind, status, what in said if kind == "run" and status == 200)
        assert not [what for kind, status, what in said if kind == "run" and status == 503]
        steps = [row[0] for row in await found.rows("SELECT step FROM metrics WHERE run_uuid = $1", run_id)]
        acknowledged = {what for kind, status, what in said if kind == "metric" and status == 200}
        refused = {what for kind, status, what in said if kind == "metric" and status == 418}
        assert acknowledged <= set(steps)
        assert refused.isdisjoint(steps)

    work(address, tmp_path, do)


def test_who_waits_for_a_lock_goes_to_mlflow_and_the_others_do_not(address: str, tmp_path: Path) -> None:
    async def do(found: Service) -> None:
        one, two = await found.run(), await found.run()
        for run_id in (one, two):
            await found.post("runs/log-metric", run_id=run_id, key="m", value=1, timestamp=1, step=1)
        async with found.look.transaction():
            await found.look.execute("SELECT FROM latest_metrics WHERE run_uuid = $1 FOR UPDATE", one)
            answers = await asyncio.gather(
                *(
                    found.post("runs/log-metric", run_id=run_id, key="m", value=2, timestamp=2, step=step)
                    for step in range(2, 5)
                    for run_id in (one, two)
                )
            )
        assert [status for status, _ in answers[1::2]] == [200] * 3 or 200 in {
            status for status, _ in answers[1::2]
        }
        assert {status for status, _ in answers[0::2]} == {418}

    work(address, tmp_path, do)


def test_an_away_database_is_not_mine_and_one_that_is_back_is_used(address: str, tmp_path: Path) -> None:
    async def do(found: Service) -> None:
        real = found.writer._connect
        while found.writer._free:
            found.writer._free.pop().terminate()
            found.writer._room += 1

        async def refuse() -> asyncpg.Connection:
            raise ConnectionRefusedError

        found.writer._connect = refuse
        fields = {"experiment_id": found.experiment_id, "user_id": "u", "start_time": 1}
        assert (await found.post("runs/create", **fields))[0] == 418
        found.writer._connect = real
        assert (await found.post("runs/create", **fields))[0] == 418  # no other try for a second
        await asyncio.sleep(database.AWAY_SECONDS)
        assert (await found.post("runs/create", **fields))[0] == 200

    work(address, tmp_path, do)


def test_a_param_that_another_is_just_writing_leaves_no_part_behind(address: str, tmp_path: Path) -> None:
    async def do(found: Service) -> None:
        run_id = await found.run()
        before = await counts(found)
        batch = {
            "run_id": run_id,
            "params": [{"key": "a", "value": "1"}, {"key": "b", "value": "ours"}],
            "metrics": [{"key": "m", "value": 1, **OLD}],
        }
        transaction = found.look.transaction()
        await transaction.start()
        await found.look.execute(
            "INSERT INTO params (run_uuid, key, value) VALUES ($1, 'b', 'theirs')", run_id
        )
        posted = asyncio.create_task(found.post("runs/log-batch", **batch))
        await asyncio.sleep(0.05)
        await transaction.commit()
        assert (await posted)[0] == 418
        after = await counts(found)
        assert [n for (n,) in after] == [n + (table == 2) for table, (n,) in enumerate(before)]

    work(address, tmp_path, do)


def test_what_writes_looks_into_indexes_for_each_row_also_where_tables_are_empty(address: str) -> None:
    """Such plans are kept, while the tables grow."""
    statements = [runs.CREATE, runs.UPDATE, experiments.CREATE]
    statements += [logs._statement(*kinds) for kinds in product((False, True), repeat=3) if any(kinds)]
    options = " ".join(f"-c {name}={value}" for name, value in WRITING.items())
    with closing(psycopg2.connect(address, options=options)) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute("EXPLAIN (GENERIC_PLAN) " + statement)
            lines = [line.strip() for (line,) in cursor.fetchall()]
            plan = "\n".join(lines)
            assert not re.search("(Hash|Merge) .*Join", plan), plan
            scans = [n for n, line in enumerate(lines) if re.search(r"Scan .*on (runs|params|tags)\b", line)]
            assert all(lines[n + 1].startswith(("Index Cond", "Recheck Cond")) for n in scans), plan
            assert "Seq Scan" not in plan, plan


@pytest.mark.parametrize("keys", ["ab", "ba"])
def test_points_are_written_in_one_order_whatever_order_they_come_in(
    address: str, tmp_path: Path, keys: str
) -> None:
    """Else two that log the same points may each wait for the other."""

    async def do(found: Service) -> None:
        run_id = await found.run()
        points = [{"key": key, "value": 1, **OLD} for key in keys]
        columns = "run_uuid, key, value, timestamp, step, is_nan"
        insert = f"INSERT INTO metrics ({columns}) VALUES ($1, $2, 1, 1, 0, false)"
        another = found.look.transaction()
        await another.start()
        await found.look.execute(insert, run_id, "a")
        waiting = asyncio.create_task(found.post("runs/log-batch", run_id=run_id, metrics=points))
        while not await found.rows("SELECT FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
        # Less than PostgreSQL's deadlock_timeout: it would end the other's statement, which goes once more.
        await found.look.execute("SET LOCAL lock_timeout = '0.3s'")
        await found.look.execute(insert, run_id, "b")
        await another.commit()
        assert (await waiting)[0] == 200

    work(address, tmp_path, do, lock_timeout="60s")


def test_a_page_of_many_bytes_and_what_has_no_value_or_time_are_mlflows(address: str, tmp_path: Path) -> None:
    async def do(found: Service) -> None:
        made = [await found.run() for _ in range(25)]
        await found.look.execute(
            "INSERT INTO datasets (dataset_uuid, experiment_id, name, digest, dataset_source_type,"
            " dataset_source, dataset_schema) VALUES ('large', $1, 'd', 'x', 't', 's', repeat('x', 1000000))",
            int(found.experiment_id),
        )
        await found.look.execute(
            "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id, step)"
            " SELECT run, 'DATASET', 'large', 'RUN', run, 0 FROM unnest($1::text[]) AS run",
            made,
        )
        page = {"experiment_ids": [found.experiment_id]}
        assert (await found.post("runs/search", **page))[0] == 418
        status, answer = await found.post("runs/search", **page, max_results=5)
        assert (status, len(answer["runs"])) == (200, 5)
        await found.look.execute("INSERT INTO tags (run_uuid, key) VALUES ($1, 'old')", sorted(made)[0])
        assert (await found.post("runs/search", **page, max_results=5))[0] == 418
        await found.look.execute("DELETE FROM tags WHERE key = 'old'")
        assert (await found.post("runs/search", **page, max_results=5))[0] == 200
        await found.look.execute(
            "INSERT INTO latest_metrics (run_uuid, key, value, step, is_nan) VALUES ($1, 'old', 1, 0, false)",
            sorted(made)[0],
        )
        assert (await found.post("runs/search", **page, max_results=5))[0] == 418
        await found.look.execute("DELETE FROM inputs")

    work(address, tmp_path, do)


def test_a_page_of_ordinary_json_in_texts_is_asked_for_once(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's autologging leaves schemas of datasets, which are JSON: each of their quotes is two bytes."""
    schema = json.dumps(
        {"mlflow_colspec": [{"type": "double", "name": f"column {n}", "required": True} for n in range(60)]}
    )
    asked: list[str] = []
    run_on = records.run_on

    async def noted(connection: asyncpg.Connection, text: str, *values: object) -> list[asyncpg.Record]:
        asked.append(text)
        return await run_on(connection, text, *values)

    monkeypatch.setattr(records, "run_on", noted)

    async def do(found: Service) -> None:
        run_id = await found.run()
        await found.look.execute(
            "INSERT INTO datasets (dataset_uuid, experiment_id, name, digest, dataset_source_type,"
            " dataset_source, dataset_schema) VALUES ('json', $1, 'd', 'x', 't', 's', $2)",
            int(found.experiment_id),
            schema,
        )
        await found.look.execute(
            "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id, step)"
            " VALUES ('json', 'DATASET', 'json', 'RUN', $1, 0)",
            run_id,
        )
        status, answer = await found.post("runs/search", experiment_ids=[found.experiment_id])
        (given,) = answer["runs"][0]["inputs"]["dataset_inputs"]
        assert (status, given["dataset"]["schema"]) == (200, schema)
        assert asked == [records.SIZE, records.PAGE]
        await found.look.execute("DELETE FROM inputs")

    work(address, tmp_path, do)


def test_a_page_that_is_far_longer_as_json_counts_as_what_it_is(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do(found: Service) -> None:
        run_id = await found.run()
        params = [{"key": f"p{number}", "value": "\1" * 5000} for number in range(20)]
        assert (await found.post("runs/log-batch", run_id=run_id, params=params))[0] == 200
        page = {"experiment_ids": [found.experiment_id]}
        status, answer = await found.post("runs/search", **page)
        assert (status, sorted(answer["runs"][0]["data"]["params"], key=lambda each: each["key"])) == (
            200,
            sorted(params, key=lambda each: each["key"]),
        )
        for limit in ("page", "together"):
            with monkeypatch.context() as patch:
                patch.setattr(records.FOR_ALL, limit, 500_000)  # they have 100,000, and 600,000 in JSON
                assert (await found.post("runs/search", **page))[0] == 418
        assert records.FOR_ALL.taken == 0

    work(address, tmp_path, do)


def test_a_page_that_is_read_in_portions_is_whole_and_in_order(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PORTION", 2)

    async def do(found: Service) -> None:
        made = [await found.run(start_time=100 - number % 3) for number in range(7)]
        longer = {"key": "p", "value": "\1" * 5000}  # six times in JSON
        assert (await found.post("runs/log-batch", run_id=made[4], params=[longer]))[0] == 200
        page = {"experiment_ids": [found.experiment_id], "order_by": ["attributes.start_time ASC"]}
        for more in ({}, {"max_results": 10_000}):
            status, answer = await found.post("runs/search", **page, **more)
            started = [(run["info"]["start_time"], run["info"]["run_id"]) for run in answer["runs"]]
            assert (status, started) == (200, sorted(started))
            assert {run_id for _, run_id in started} == set(made)
            params = [run["data"]["params"] for run in answer["runs"] if "params" in run["data"]]
            assert params == [[longer]]
        assert records.FOR_ALL.taken == records.FOR_LARGE.taken == 0

    work(address, tmp_path, do)


def test_all_portions_of_a_page_count_and_what_they_are_in_ascii(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PORTION", 2)

    async def do(found: Service) -> None:
        made = [await found.run() for _ in range(6)]
        page = {"experiment_ids": [found.experiment_id], "max_results": 10_000}

        async def is_answered(**limits: int) -> bool:
            with monkeypatch.context() as patch:
                for name, value in limits.items():
                    patch.setattr(records.FOR_LARGE, name, value)
                status = (await found.post("runs/search", **page))[0]
            assert records.FOR_LARGE.taken == 0
            return status == 200

        async def tag_all(text: str) -> None:
            for run_id in made:
                logged = await found.post("runs/set-tag", run_id=run_id, key="t", value=text)
                assert logged[0] == 200

        await tag_all("\1" * 1000)  # six runs of about 1,500 bytes by their texts, and 6,500 in JSON
        assert await is_answered(page=45_000)
        assert not await is_answered(page=30_000)  # more than four of them, all of the six would need more
        await tag_all("ж" * 1000)  # 2,500 bytes, and 6,500 in ASCII
        assert await is_answered(page=45_000)
        assert not await is_answered(page=30_000)
        with monkeypatch.context() as patch:
            patch.setattr(records, "NOT_ASCII_BYTES", 4000)  # of a portion
            assert not await is_answered()
            patch.setattr(records, "NOT_ASCII_BYTES", 7000)
            assert await is_answered()

    work(address, tmp_path, do)


def test_a_page_of_many_entries_is_mlflows(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do(found: Service) -> None:
        run_id = await found.run()
        page = {"experiment_ids": [found.experiment_id]}
        for kind in ("metrics", "params", "tags"):
            points = [{"key": f"k{number}", "value": 1, "timestamp": 1, "step": 1} for number in range(9)]
            pairs = [{"key": f"k{number}", "value": "1"} for number in range(9)]
            given = {kind: points if kind == "metrics" else pairs}
            assert (await found.post("runs/log-batch", run_id=run_id, **given))[0] == 200
            for entries, status in ((9, 418), (12, 200)):  # a run has up to two tags of its own
                monkeypatch.setattr(records, "SIZE", records.size_of(entries))
                assert (await found.post("runs/search", **page))[0] == status

    work(address, tmp_path, do)


def test_a_page_in_portions_is_of_one_moment_and_has_an_end(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PORTION", 2)
    between: list[str] = []
    portion = records._portion

    async def do(found: Service) -> None:
        made = [await found.run() for _ in range(6)]
        filter_string = "attributes.status = 'RUNNING'"
        page = {"experiment_ids": [found.experiment_id], "filter": filter_string, "max_results": 10_000}

        async def slow(*arguments: Any) -> list[bytes]:
            for statement in between:
                await found.look.execute(statement)
            return await portion(*arguments)

        monkeypatch.setattr(records, "_portion", slow)
        between.append("UPDATE runs SET status = 'KILLED', lifecycle_stage = 'deleted'")
        status, answer = await found.post("runs/search", **page)
        assert (status, len(answer["runs"])) == (200, len(made))
        assert {(run["info"]["status"], run["info"]["lifecycle_stage"]) for run in answer["runs"]} == {
            ("RUNNING", "active")
        }
        assert (await found.post("runs/search", **page)) == (200, {})
        between[:] = ["UPDATE runs SET status = 'RUNNING', lifecycle_stage = 'active'"]
        await found.look.execute(between[0])
        assert len((await found.post("runs/search", **page))[1]["runs"]) == len(made)
        monkeypatch.setattr(search, "PAGE_SECONDS", -1.0)
        assert (await found.post("runs/search", **page))[0] == 418
        monkeypatch.setattr(search, "PAGE_SECONDS", 8.0)
        with monkeypatch.context() as patch:
            patch.setattr(records, "SIZE", "SELECT 1 / 0 WHERE $1::text[] IS NOT NULL")
            assert [(await found.post("runs/search", **page))[0] for _ in range(3)] == [418] * 3
        assert [(await found.post("runs/search", **page))[0] for _ in range(3)] == [200] * 3

    work(address, tmp_path, do)


def test_large_pages_at_once_are_mlflows(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do(found: Service) -> None:
        run_id = await found.run()
        page = {"experiment_ids": [found.experiment_id]}
        with monkeypatch.context() as patch:
            patch.setattr(records.FOR_ALL, "taken", records.FOR_ALL.together)
            assert (await found.post("runs/search", **page))[0] == 418
            assert (await found.post("runs/search", **page, max_results=10_000))[0] == 200
        status, answer = await found.post("runs/search", **page)
        assert (status, answer["runs"][0]["info"]["run_id"]) == (200, run_id)

    work(address, tmp_path, do)


def test_large_pages_wait_for_each_other_and_not_for_ever(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = asyncio.Event()
    at_once = [0, 0]
    run_on = records.run_on

    async def noted(connection: asyncpg.Connection, text: str, *values: object) -> list[asyncpg.Record]:
        at_once[0] += 1
        at_once[1] = max(at_once)
        await there.wait()
        try:
            return await run_on(connection, text, *values)
        finally:
            at_once[0] -= 1

    monkeypatch.setattr(records, "run_on", noted)

    async def do(found: Service) -> None:
        await found.run()
        page = {"experiment_ids": [found.experiment_id], "max_results": 10_000}
        asked = [asyncio.create_task(found.post("runs/search", **page)) for _ in range(3)]
        await asyncio.sleep(0.2)
        with monkeypatch.context() as patch:
            patch.setattr(search, "TURN_SECONDS", 0.05)
            assert (await found.post("runs/search", **page))[0] == 418
        there.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 3
        assert at_once[1] == 1

    work(address, tmp_path, do)


class Fake:
    """A connection that is there until it is closed."""

    closed = False

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True


def test_whoever_waits_for_a_connection_is_served_in_order_and_told_when_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 1.0)
    there = True

    async def connect() -> Fake:
        await asyncio.sleep(0)
        if not there:
            raise ConnectionRefusedError
        return Fake()

    async def fine(_: Fake) -> None: ...

    async def all_of_it() -> None:
        nonlocal there
        pool = Database(connect, 2, fine)
        served: list[int] = []

        async def client(number: int, turns: int) -> None:
            for _ in range(turns):
                async with pool.connection():
                    served.append(number)
                    await asyncio.sleep(0.001)

        await asyncio.gather(*(client(number, 5) for number in range(20)))
        # Nobody comes twice before all others that waited have come once.
        for turn in range(5):
            assert sorted(served[turn * 20 : turn * 20 + 20]) == list(range(20))
        assert pool._room + len(pool._free) == 2

        for connection in pool._free:
            connection.terminate()
        there = False
        began = time.monotonic()
        found = await asyncio.gather(*(client(number, 1) for number in range(30)), return_exceptions=True)
        assert {str(error) for error in found} == {"database away"}
        assert time.monotonic() - began < 1.0
        await asyncio.sleep(0)
        assert pool._room + len(pool._free) == 2
        there = True
        await asyncio.sleep(database.AWAY_SECONDS)

        async with pool.connection(), pool.connection():
            waiting = asyncio.create_task(client(1, 1))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(NotMineError, match="no connection free"):
                await client(2, 1)
        await client(3, 1)
        assert pool._room + len(pool._free) == 2

    asyncio.run(asyncio.wait_for(all_of_it(), 30))


def test_a_half_request_is_read_to_its_end_while_the_service_goes(tmp_path: Path) -> None:
    async def all_of_it() -> None:
        async def answer(request: Request) -> bytes:
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(request.body), request.body)

        shared = Connections(answer, NOT_MINE % b"large")
        server = await asyncio.get_running_loop().create_unix_server(shared, str(tmp_path / "s"))
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
        await asyncio.sleep(0.05)
        server.close()
        draining = asyncio.create_task(shared.drain(10))
        await asyncio.sleep(0.2)
        writer.write(b"half")
        assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"halfhalf")
        await draining
        writer.close()

    asyncio.run(asyncio.wait_for(all_of_it(), 30))


@pytest.mark.parametrize("done", [False, True], ids=["reads", "what was done"])
def test_large_answers_that_nobody_reads_have_a_limit_unless_something_was_done(
    tmp_path: Path, done: bool
) -> None:
    async def all_of_it() -> None:
        body = b"x" * (protocol.UNSENT_LIMIT // 4 - 100)

        async def answer(request: Request) -> bytes:
            request.done = done
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

        shared = Connections(answer, NOT_MINE % b"large")
        server = await asyncio.get_running_loop().create_unix_server(shared, str(tmp_path / "s"))
        clients = [await asyncio.open_unix_connection(str(tmp_path / "s")) for _ in range(8)]
        for _, writer in clients:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.5)
        assert shared.unsent > 0
        assert done or shared.unsent <= protocol.UNSENT_LIMIT
        heads = [await asyncio.wait_for(reader.readline(), 5) for reader, _ in clients]
        assert sum(b"200" in head for head in heads) == (8 if done else 4)
        assert sum(b"418" in head for head in heads) == (0 if done else 4)
        for reader, writer in clients:
            writer.close()
            await reader.read()
        await asyncio.sleep(0.1)
        assert shared.unsent == 0
        server.close()

    asyncio.run(asyncio.wait_for(all_of_it(), 30))


def test_the_protocol_answers_whole_requests_one_after_the_other_and_drains(tmp_path: Path) -> None:
    async def all_of_it() -> None:
        slow = asyncio.Event()

        async def answer(request: Request) -> bytes:
            if request.path == b"/slow":
                await slow.wait()
            text = request.method + b" " + request.path + b" " + request.query + b" " + request.body
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)

        shared = Connections(answer, NOT_MINE % b"large")
        server = await asyncio.get_running_loop().create_unix_server(shared, str(tmp_path / "s"))
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))

        async def read() -> tuple[bytes, bytes]:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return head, await reader.readexactly(length)

        whole = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
        for byte in whole:  # byte by byte
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await read())[1] == b"POST /a b=c body"
        writer.write(whole + b"GET /d HTTP/1.1\r\nHost: x\r\n\r\n")  # two at once
        assert (await read())[1] == b"POST /a b=c body"
        assert (await read())[1] == b"GET /d  "
        size = protocol.BODY_LIMIT + 1
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        head, _ = await read()
        assert b"418" in head
        assert b"X-Reason: large" in head
        writer.write(whole)
        assert (await read())[1] == b"POST /a b=c body"
        assert shared.held == 0
        # Going away: what was sent is still answered, then the connection ends.
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.05)
        server.close()
        draining = asyncio.create_task(shared.drain(5))
        await asyncio.sleep(0.1)
        slow.set()
        assert (await read())[1] == b"GET /slow  "
        assert await reader.read() == b""
        await draining
        assert not shared.open
        writer.close()

    asyncio.run(asyncio.wait_for(all_of_it(), 30))


def test_rubbish_ends_the_connection_and_nothing_else(tmp_path: Path) -> None:
    async def all_of_it() -> None:
        async def answer(_: Request) -> bytes:
            return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

        shared = Connections(answer, NOT_MINE % b"large")
        server = await asyncio.get_running_loop().create_unix_server(shared, str(tmp_path / "s"))
        for rubbish in (
            b"\x00\x01\r\n\r\n",
            b"GET / HTTP/9\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        ):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(rubbish)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
        writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(all_of_it(), 30))
