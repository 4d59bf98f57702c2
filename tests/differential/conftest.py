"""Fixtures of the differential suite: stock MLflow, and what is compared with it (--against)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kit.differential import Pair, Side
from kit.differential_servers import (
    Door,
    HostTables,
    StackTables,
    door_for_clients,
    fastpath,
    mlflow_server,
    postgres,
    tcp_wire,
)
from kit.stack import Stack

Metrics = Callable[[], str]
READ_METRICS = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8092/metrics').read().decode())"


@pytest.fixture(scope="session")
def against(request: pytest.FixtureRequest) -> str:
    """What is compared with stock MLflow: stack, host or stock."""
    return request.config.getoption("--against")


@pytest.fixture(scope="session")
def servers() -> Iterator[ExitStack]:
    """What ends the suite's processes."""
    with ExitStack() as started:
        yield started


@pytest.fixture(scope="session")
def make_database(servers: ExitStack) -> Callable[[str], str]:
    """Return a function that makes a database with MLflow's tables."""
    return servers.enter_context(postgres())


@pytest.fixture
def metrics_of(ours: tuple[Side, Metrics]) -> dict[str, float]:
    """The fast path's counters by name, each summed over its labels."""
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+)(?:\{.*\})? (\S+)$", ours[1](), re.MULTILINE):
        found[name] = found.get(name, 0) + float(value)
    return found


@pytest.fixture(scope="session")
def ours(
    request: pytest.FixtureRequest,
    servers: ExitStack,
    against: str,
    make_database: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Side, Metrics]:
    """What is compared with stock MLflow, and what reads its fast path's metrics."""
    if against == "stack":
        return _stack_side(request.getfixturevalue("stack"), servers)
    folder: Path = tmp_path_factory.mktemp("ours")
    database = make_database("ours")
    tables = HostTables(database)
    servers.callback(tables.close)
    url = servers.enter_context(mlflow_server(database, folder / "mlflow"))
    if against == "stock":
        return Side("ours", url, tcp_wire(url).ask, tables), str
    hot = servers.enter_context(fastpath(database, folder / "fastpath"))

    def make_door() -> Door:
        return Door(hot.socket, url)

    for_clients = servers.enter_context(door_for_clients(make_door))
    return Side("ours", for_clients, make_door().ask, tables), hot.metrics


def _stack_side(stack: Stack, servers: ExitStack) -> tuple[Side, Metrics]:
    tables = StackTables(stack)
    servers.callback(tables.close)
    wire = tcp_wire(stack.url, {"Authorization": stack.authorization})

    def read_metrics() -> str:
        return stack.compose("exec", "-T", "fastpath", "python", "-c", READ_METRICS).stdout

    return Side("ours", stack.url, wire.ask, tables), read_metrics


@pytest.fixture(scope="session")
def pair(
    ours: tuple[Side, Metrics],
    against: str,
    servers: ExitStack,
    make_database: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    """Stock MLflow and what is compared with it, with databases that only this suite writes to."""
    database = make_database("stock")
    tables = HostTables(database)
    servers.callback(tables.close)
    url = servers.enter_context(mlflow_server(database, tmp_path_factory.mktemp("stock") / "mlflow"))
    stock = Side("stock", url, tcp_wire(url).ask, tables)
    found = Pair(stock, ours[0], tells=against != "stock", is_stack=against == "stack")
    found.prepare()
    return found
