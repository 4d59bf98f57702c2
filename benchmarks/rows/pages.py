"""MLflow's page in Chromium: its first load, and the time until the runs of an experiment are there."""

from __future__ import annotations

import time
from typing import Any

import seeding
from figures import Measure, Measured
from peers import Server, experiment_of
from rows.row import Bench, Options, Row

SERVERS = ("ours", "stock", "stockuv")
MS = Measure("ms", "less")
FIRST_LOAD = "first load of the page, nothing in the browser's cache"
PATIENCE_MS = 120_000


def _sizes(options: Options) -> list[int]:
    return [10, *options.sizes]


def _steps(options: Options) -> list[Any]:
    return [FIRST_LOAD, *_sizes(options)]


def _prepare(bench: Bench) -> None:
    bench.seed(SERVERS, _sizes(bench.options))


def measure(bench: Bench, name: str, step: str | int) -> dict[str, Measured]:
    """Open the page in a new profile, and time it. Raise RuntimeError if what is waited for does not come.

    The runs: with the page's files in the cache, from the address to the name of the newest run.
    """
    if isinstance(step, int) and not seeding.takes_part(name, step):
        return {}
    from playwright.sync_api import Error, sync_playwright

    from browser.conftest import ARGUMENTS, CHROMIUM, SIZE

    server = bench.server(name)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        login = {"username": server.user, "password": server.password} if server.user else None
        context = chromium.new_context(http_credentials=login, viewport=SIZE)
        context.set_default_timeout(PATIENCE_MS)
        try:
            first = _home(context.new_page(), server)
            if step == FIRST_LOAD:
                return {FIRST_LOAD: Measured({MS.name: first})}
            experiment_id = experiment_of(bench.peers, server, seeding.experiment_name(step))
            ms = _runs(context.new_page(), server, experiment_id)
            return {f"an experiment of {step:,} runs": Measured({MS.name: ms})}
        except Error as error:
            raise RuntimeError(f"{name}: {error}") from error
        finally:
            chromium.close()


def _home(page: Any, server: Server) -> float:
    started = time.perf_counter()
    page.goto(f"{server.url}/", wait_until="commit")
    page.get_by_role("heading", name="Welcome to MLflow").wait_for()
    return (time.perf_counter() - started) * 1000


def _runs(page: Any, server: Server, experiment_id: str) -> float:
    started = time.perf_counter()
    page.goto(f"{server.url}/#/experiments/{experiment_id}/runs", wait_until="commit")
    page.get_by_role("link", name=seeding.NEWEST, exact=True).wait_for()
    return (time.perf_counter() - started) * 1000


PAGES = Row(
    name="pages",
    title="The page in Chromium on the same machine",
    servers=SERVERS,
    measures=(MS,),
    steps=_steps,
    measure=measure,
    prepare=_prepare,
)
