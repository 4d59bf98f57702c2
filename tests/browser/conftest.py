"""Fixtures of the browser tests: Debian's Chromium, pages under watch, data to look at."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import mlflow
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from browser import seeds as seeding
from browser.seeds import Seeds
from browser.watch import PATIENCE_SECONDS, WatchedPage
from kit.stack import Stack

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--disable-sync",
]
SIZE = {"width": 1280, "height": 800}


@pytest.fixture
def experiment_id(stack: Stack, request: pytest.FixtureRequest) -> str:
    """A fresh experiment of the test's own, made the active one."""
    experiment_id = mlflow.create_experiment(f"{request.node.name[:60]}-{uuid.uuid4().hex[:8]}")
    mlflow.set_experiment(experiment_id=experiment_id)
    return experiment_id


@pytest.fixture
def client(stack: Stack) -> mlflow.MlflowClient:
    """A client of the session's stack."""
    return mlflow.MlflowClient(tracking_uri=stack.url)


@pytest.fixture(scope="session")
def seeds(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Seeds:
    """Runs, files, a model, a trace and a prompt, logged once."""
    return seeding.log_seeds(
        mlflow.MlflowClient(tracking_uri=stack.url), tmp_path_factory.mktemp("evaluation")
    )


@pytest.fixture(scope="module")  # a session's would keep an event loop running in other tests
def browser() -> Iterator[Browser]:
    """A Chromium that asks no server of its makers."""
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def watch(browser: Browser, stack: Stack) -> Iterator[Callable[..., WatchedPage]]:
    """Return a function that opens an empty page in a fresh browser profile that can log in."""
    contexts = []

    def watch(name: str) -> WatchedPage:
        context = browser.new_context(
            http_credentials={"username": "admin", "password": stack.password}, viewport=SIZE
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        return WatchedPage(context.new_page(), name)

    yield watch
    for context in contexts:
        context.close()


@pytest.fixture
def visit(watch: Callable[..., WatchedPage], stack: Stack) -> Iterator[Callable[..., Page]]:
    """Return a function that opens an address of the stack and returns the page.

    When the test is over, the page must have raised no error, and must show nothing of the
    features that are off. build/screenshots/NAME.png shows it.
    """
    visited = []

    def visit(name: str, path: str, *, host: str = "127.0.0.1") -> Page:
        watched = watch(name)
        visited.append(watched)
        watched.page.goto(f"http://{host}:{stack.port}{path}", wait_until="load")
        return watched.page

    yield visit
    for watched in visited:
        watched.settle()
        watched.screenshot()
    assert {watched.name: watched.problems for watched in visited if watched.problems} == {}
    shown = {watched.name: watched.features_shown() for watched in visited}
    assert {name: features for name, features in shown.items() if features} == {}
