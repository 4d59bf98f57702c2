"""PostgreSQL by asyncpg: a few connections made once, prepared statements, no query between two uses.

Every outcome of a statement is one of four: its rows; UndoneError (rolled back); NotMineError
(it was never sent); UnknownOutcomeError (it was sent, and its end is not known).
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import asyncpg

from stackfast.outcomes import NotMineError, UndoneError, UnknownOutcomeError
from stackfast.settings import FastSettings

CONNECT_SECONDS = 2.0
AWAY_SECONDS = 1.0
"""After a failed connection no other is tried for this long: requests go to MLflow at once."""
WAIT_SECONDS = 2.0
STATEMENT_TIMEOUT_MS = 4000
SEARCH_TIMEOUT_MS = 1500
"""A search is MLflow's if one of its statements (for a clause, the ids, the sizes, a portion) is slower."""
_TIMEOUT = "SELECT set_config('statement_timeout', $1::text, false)"
LOCK_TIMEOUT_MS = 150
"""All of a batch wait while one of it waits for a lock: then each goes alone."""
COMMIT_SECONDS = 12.0
"""PostgreSQL ends a statement after its timeout, but a commit may stall with the disk. With what may be
before (routes.AGE_SECONDS, two seconds in the queue, two for a connection) these are nginx's 20 s."""
FATAL = ("08", "57P", "58", "XX", "F0", "25P", "53")
"""SQLSTATE classes after which a connection is not used again and the outcome counts as unknown."""
STATEMENTS_KEPT = 200

_ALWAYS = {
    "application_name": "stackfast",
    "jit": "off",
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "extra_float_digits": "1",  # a server with less would round what it writes as text
}
WRITING = {
    **_ALWAYS,
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}
"""Plans are kept per connection, and none may be left from the days when a table was small: a join of a few
rows with a large table is a look into its index for each (the others read all of the index: 1.7 times less
runs/s after 10,000 runs, measured). That is right for any number of rows, so one plan is enough until the
next ANALYZE: PostgreSQL would plan each small batch anew (a tenth of its processor time, measured)."""
READING = {
    **_ALWAYS,
    "statement_timeout": str(SEARCH_TIMEOUT_MS),
    "plan_cache_mode": "force_custom_plan",
    "parallel_setup_cost": "100000",
}
"""A search is planned for its own experiment and page: one plan for all would be wrong for the largest.

Only what takes long is shared with other processes: it took 10 to 15 ms to start them, as long as a page by a
metric and a param takes without them.
"""


def password(path: Path, host: str, port: int, database: str, user: str) -> str | None:
    """Return the password that a file of libpq's form has for a connection, or None.

    Own code because asyncpg 0.32 leaves the backslash before an escaped colon (libpq, passfile).
    """
    wanted = (host, str(port), database, user)
    for line in path.read_text().splitlines():
        fields, field, escaped = [], "", False
        for sign in line:
            if escaped or sign not in "\\:":
                field, escaped = field + sign, False
            elif sign == "\\":
                escaped = True
            else:
                fields, field = [*fields, field], ""
        if len(fields) == 4 and all(has in ("*", want) for has, want in zip(fields, wanted, strict=True)):
            return field
    return None


def connector(
    settings: FastSettings, passwords: Path, server_settings: dict[str, str]
) -> Callable[[], Awaitable[asyncpg.Connection]]:
    """Return a function that makes a connection. The password is read anew each time: it may be rotated."""
    parts = urlsplit(settings.database_uri)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name != "connect_timeout"]
    address: dict[str, Any] = {
        "dsn": parts._replace(scheme="postgresql", query=urlencode(query)).geturl(),
        "user": unquote(parts.username or ""),
    }
    host, port = parts.hostname or "", parts.port or 5432

    def secret() -> str | None:
        return password(passwords, host, port, unquote(parts.path.lstrip("/")), address["user"])

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(
            **address,
            password=secret if passwords.exists() else None,
            passfile=os.devnull,
            timeout=CONNECT_SECONDS,
            server_settings=server_settings,
            statement_cache_size=STATEMENTS_KEPT,
            max_cached_statement_lifetime=0,
        )

    return connect


class Database:
    """A bounded number of connections; who comes when all are taken waits for the next, in order.

    `check` looks at each new connection and raises NotMineError if it must not be used.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        size: int,
        check: Callable[[asyncpg.Connection], Awaitable[None]],
    ) -> None:
        self._connect = connect
        self._check = check
        self._room = size
        """Connections that may still be made."""
        self._free: list[asyncpg.Connection] = []
        self._waiting: deque[asyncio.Future[asyncpg.Connection | None]] = deque()
        """Each gets a connection, or None: room to make one."""
        self._away_until = 0.0
        self._away_reason = ""

    async def fill(self) -> None:
        """Make all connections now, so that the first requests need not wait; none is no error."""
        held: list[asyncpg.Connection] = []
        try:
            while self._room:
                held.append(await self._take())
        except NotMineError:
            pass
        for connection in held:
            self._give_back(connection)

    async def close(self) -> None:
        """Close what is free."""
        while self._free:
            await self._free.pop().close()

    async def run(
        self, statement: str, *arguments: Any, seconds: float = COMMIT_SECONDS
    ) -> list[asyncpg.Record]:
        """Run a statement and return its rows after its commit."""
        async with self.connection() as connection:
            return await run_on(connection, statement, *arguments, seconds=seconds)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Hold a connection, for more than one statement. Raise NotMineError if none comes free."""
        connection = await self._take()
        try:
            yield connection
        except UnknownOutcomeError:
            connection.terminate()
            self._drop_free()  # what broke this one has mostly broken all
            raise
        finally:
            self._give_back(connection)

    async def _take(self) -> asyncpg.Connection:
        waiter: asyncio.Future[asyncpg.Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._serve()
        try:
            connection = await asyncio.wait_for(waiter, WAIT_SECONDS)
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._return(waiter.result())
            if isinstance(error, TimeoutError):
                raise NotMineError("no connection free") from None
            raise
        return connection or await self._make()

    def _serve(self) -> None:
        while self._waiting and (self._free or self._room):
            waiter = self._waiting.popleft()
            if waiter.done():
                continue
            connection = self._free.pop() if self._free else None
            if connection is not None and connection.is_closed():
                connection = None
            elif connection is None:
                self._room -= 1
            waiter.set_result(connection)

    async def _make(self) -> asyncpg.Connection:
        """Make a connection in the room that was kept for it."""
        loop = asyncio.get_running_loop()
        connection = None
        if loop.time() < self._away_until:
            self._return(None)
            raise NotMineError(self._away_reason)
        try:
            connection = await self._connect()
            await asyncio.wait_for(self._check(connection), CONNECT_SECONDS)
            return connection
        except BaseException as error:
            if connection is not None:
                connection.terminate()
            if not isinstance(error, Exception):
                self._return(None)
                raise
            reason = error.reason if isinstance(error, NotMineError) else "database away"
            if loop.time() >= self._away_until:
                if not isinstance(error, NotMineError):
                    print(f"database away: {type(error).__name__}: {error}", flush=True)
                self._away_until, self._away_reason = loop.time() + AWAY_SECONDS, reason
                self._send_away(reason)
            self._return(None)
            raise NotMineError(reason) from error

    def _send_away(self, reason: str) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(NotMineError(reason))

    def _give_back(self, connection: asyncpg.Connection) -> None:
        self._return(None if connection.is_closed() else connection)

    def _return(self, connection: asyncpg.Connection | None) -> None:
        if connection is None:
            self._room += 1
        else:
            self._free.append(connection)
        self._serve()

    def _drop_free(self) -> None:
        while self._free:
            self._free.pop().terminate()
            self._room += 1
        self._serve()


@asynccontextmanager
async def within(connection: asyncpg.Connection, milliseconds: int) -> AsyncIterator[None]:
    """End the statements of a held connection of READING sooner than else."""
    await run_on(connection, _TIMEOUT, str(milliseconds))
    try:
        yield
    finally:
        try:
            await run_on(connection, _TIMEOUT, str(SEARCH_TIMEOUT_MS))
        except UndoneError as error:  # too slow for itself: with this timeout nobody else shall have it
            raise UnknownOutcomeError(error.sqlstate) from error


@asynccontextmanager
async def snapshot(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Let the statements on a held connection see the rows of one moment. They only read."""
    await run_on(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        yield
    finally:
        try:
            await run_on(connection, "ROLLBACK")
        except UndoneError as error:  # nobody else shall have this connection
            raise UnknownOutcomeError(error.sqlstate) from error


async def run_on(
    connection: asyncpg.Connection, statement: str, *arguments: Any, seconds: float = COMMIT_SECONDS
) -> list[asyncpg.Record]:
    """Run a statement on a held connection. Raise UndoneError or UnknownOutcomeError."""
    try:
        return await connection.fetch(statement, *arguments, timeout=seconds)
    except asyncpg.PostgresError as error:
        state = error.sqlstate or "XX000"
        if state.startswith(FATAL) and state != "57014":  # query_canceled: the statement's own timeout
            raise UnknownOutcomeError(state) from error
        raise UndoneError(state) from error
    except (asyncpg.DataError, asyncpg.exceptions.UnsupportedClientFeatureError) as error:
        raise UndoneError("22000") from error  # an argument that has no form on the wire: nothing was sent
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        raise UnknownOutcomeError(type(error).__name__) from error
