"""Fixtures of the attacks, and the figures that they end with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from kit import routes, stored
from kit.people import one_of_each_role
from kit.stack import Stack

FIGURES = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> dict[str, str]:
    """What the run counted, printed under its own head at the end."""
    return pytestconfig.stash.setdefault(FIGURES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(FIGURES, {})
    if found:
        terminalreporter.section("attacks")
        for name, figure in found.items():
            terminalreporter.write_line(f"{name}: {figure}")


@pytest.fixture(scope="session")
def tokens(stack: Stack) -> Iterator[dict[str, str]]:
    """A token for each role; the user's name is attack-ROLE."""
    with one_of_each_role(stack, "attack") as made:
        yield made


@pytest.fixture(scope="session")
def server_routes(stack: Stack) -> frozenset[tuple[str, str]]:
    """(method, path) of each of the server's routes."""
    return routes.of(stack)


@pytest.fixture
def nothing_changes(stack: Stack) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which no row and no artifact may change."""

    @contextmanager
    def compared() -> Iterator[None]:
        before = stored.everything(stack)
        yield
        after = stored.everything(stack)
        assert {name for name in before | after if before.get(name) != after.get(name)} == set()

    return compared
