"""Fixtures for all tests. The first test that asks for `stack` starts one for the session."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from kit.stack import Stack, free_port

BY_HAND_ONLY = """\
AUDIT_SCHEDULE=10 0 29 2 *
BACKUP_SCHEDULE=0 1 29 2 *
DRILL_SCHEDULE=0 4 29 2 *
OFFSITE_SCHEDULE=20 0 29 2 *
RETENTION_SCHEDULE=0 2 29 2 *
USAGE_SCHEDULE=30 0 29 2 *
VERIFY_SCHEDULE=0 3 29 2 *
"""
"""Settings under which no job begins in the middle of a test, whatever the time of day is."""

hypothesis_settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis_settings.register_profile("long", max_examples=2000, deadline=None)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also what CI has no time for")
    parser.addoption(
        "--against",
        choices=["stack", "host", "stock"],
        default="stack",
        help="what tests/differential compares with stock MLflow: the stack; the fast path by itself,"
        " without Docker; or a second stock MLflow, to try the comparison itself",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    long_items = [item for item in items if "long" in item.keywords]
    config.hook.pytest_deselected(items=long_items)
    items[:] = [item for item in items if item not in long_items]


@pytest.fixture(scope="session")
def make_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Stack]]:
    """Return a function that describes a throwaway stack (not yet started); all are removed."""
    made: list[Stack] = []

    def make(name: str, **extra: str) -> Stack:
        settings_file: Path = tmp_path_factory.mktemp("settings") / "env"
        settings_file.write_text(BY_HAND_ONLY)
        stack = Stack(
            project=f"stacktest-{name}-{os.getpid()}",
            port=free_port(),
            settings_file=settings_file,
            image_tag=f"test-{os.getpid()}",
            extra=extra,
        )
        made.append(stack)
        return stack

    yield make
    for stack in reversed(made):
        stack.remove()


@pytest.fixture(scope="session")
def stack(make_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """The session's stack, started by ./stack up, with this process's MLflow client logged in."""
    stack = make_stack("main")
    stack.verb("up", "--yes", timeout=1800)
    # Its last words at exit would come after the summary.
    logging.getLogger("mlflow.tracing.export.async_export_queue").setLevel(logging.WARNING)
    with stack.logged_in():
        yield stack
