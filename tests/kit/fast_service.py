"""The fast path without its listener, on a database of a test's own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from stackfast.counters import Counters
from stackfast.database import READING, WRITING, Database
from stackfast.gate import Gate
from stackfast.requests import Request
from stackfast.routes import Router, routes
from stackserver.audit import AuditLog, AuditRecorder


class Service:
    """The service without its listener, and a look into its database."""

    def __init__(
        self, writer: Database, counters: Counters, answer: Callable, look: asyncpg.Connection
    ) -> None:
        self.writer, self.counters, self.answer, self.look = writer, counters, answer, look
        self.experiment_id = "0"

    async def post(self, route: str, **fields: Any) -> tuple[int, Any]:
        body = json.dumps(fields).encode()
        request = Request(
            b"POST", b"/api/2.0/mlflow/" + route.encode(), b"", {b"content-type": b"application/json"}, body
        )
        head, _, rest = (await self.answer(request)).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(rest) if rest else None

    async def run(self, **fields: Any) -> str:
        fields = {"experiment_id": self.experiment_id, "user_id": "u", "start_time": 1} | fields
        status, answer = await self.post("runs/create", **fields)
        assert status == 200
        return answer["run"]["info"]["run_id"]

    async def rows(self, statement: str, *arguments: Any) -> list[tuple]:
        return [tuple(row) for row in await self.look.fetch(statement, *arguments)]


@asynccontextmanager
async def service(address: str, folder: Path, **options: str):
    async def connect(server_settings: dict[str, str]) -> asyncpg.Connection:
        return await asyncpg.connect(address, server_settings=server_settings, timeout=5)

    gate = Gate()
    writer = Database(lambda: connect({**WRITING, **options}), 4, gate.check)
    reader = Database(lambda: connect(READING), 2, gate.check)
    counters = Counters()
    router = Router(routes(writer, reader, writes=True), counters, AuditRecorder(AuditLog(folder)))
    look = await asyncpg.connect(address)
    found = Service(writer, counters, router.answer, look)
    try:
        _, answer = await found.post("experiments/create", name=f"e{time.time_ns()}")
        found.experiment_id = answer["experiment_id"]
        yield found
        assert b"mlflow_fastpath_unexpected_total 0.0" in counters.text()
    finally:
        await writer.close()
        await reader.close()
        await look.close()


def work(address: str, folder: Path, do: Callable[[Service], Awaitable[None]], **options: str) -> None:
    async def all_of_it() -> None:
        async with service(address, folder, **options) as found:
            await do(found)

    asyncio.run(asyncio.wait_for(all_of_it(), 120))
