"""MLflow's page in Chromium: its first load, then the runs, charts and models that it is opened for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import seeding
from client_calls import route
from figures import Measure, Measured
from peers import Server, experiment_of
from rows.row import Bench, Options, Row

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

SERVERS = ("ours", "stock", "stockuv")
MS = Measure("ms", "less")
PATIENCE_MS = 120_000
SETTLED_MS = 1000
"""After what is waited for is there: calls that the page still waits for then are listed too."""


@dataclass(frozen=True)
class Step:
    """A page: its address after the `#`, and how to see that it is there."""

    what: str
    needs: int | str | None
    """What must be in the database: see seeding.script."""
    address: str
    is_there: Callable[[Page], Any]


FIRST_LOAD = Step(
    "first load of the page, nothing in the browser's cache",
    None,
    "",
    lambda page: page.get_by_role("heading", name="Welcome to MLflow"),
)


def _steps(options: Options) -> list[Any]:
    runs = [
        Step(
            f"an experiment of {size:,} runs",
            size,
            "experiments/{experiment}/runs",
            lambda page: page.get_by_role("link", name=seeding.NEWEST, exact=True),
        )
        for size in (10, *options.sizes)
    ]
    charts = Step(
        f"charts of {seeding.CHART_RUNS} runs with {seeding.CHART_POINTS:,} points",
        seeding.CHARTS,
        "experiments/{experiment}/runs?compareRunsMode=CHART&workflowType=machine_learning",
        lambda page: page.locator(".js-plotly-plot g.trace").first,
    )
    run = Step(
        f"a run's chart of {seeding.CHART_POINTS:,} points",
        seeding.CHARTS,
        "experiments/{experiment}/runs/{run}/model-metrics",
        lambda page: page.locator(".js-plotly-plot g.trace").first,
    )
    models = Step(
        "1,000 registered models",
        seeding.MODELS,
        "models",
        lambda page: page.get_by_role("link", name=f"{seeding.MODEL}-", exact=False).first,
    )
    return [FIRST_LOAD, *runs, charts, run, models]


def _prepare(bench: Bench) -> None:
    needed = dict.fromkeys(step.needs for step in _steps(bench.options) if step.needs)
    bench.seed(SERVERS, list(needed))


def measure(bench: Bench, name: str, step: Step) -> dict[str, Measured]:
    """Open the page in a new profile, and time it. Raise RuntimeError if what is waited for does not come.

    All but the first load: with the page's files in the cache, from the address until it is there.
    """
    if step.needs and not seeding.takes_part(name, step.needs):
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
            first = _opened(context.new_page(), server, FIRST_LOAD, "")
            if step is FIRST_LOAD:
                return {step.what: first}
            return {step.what: _opened(context.new_page(), server, step, _address(bench, server, step))}
        except Error as error:
            raise RuntimeError(f"{name}: {error}") from error
        finally:
            chromium.close()


def _address(bench: Bench, server: Server, step: Step) -> str:
    if "{" not in step.address:
        return f"#/{step.address}"
    name = seeding.experiment_name(step.needs) if isinstance(step.needs, int) else str(step.needs)
    experiment = experiment_of(bench.peers, server, name)
    return f"#/{step.address}".format(experiment=experiment, run=seeding.chart_run(1))


def _opened(page: Page, server: Server, step: Step, address: str) -> Measured:
    ended: list[Request] = []

    def take(request: Request) -> None:  # Playwright 1.65 does not take a list's own append
        ended.append(request)

    page.on("requestfinished", take)
    started = time.perf_counter()
    page.goto(f"{server.url}/{address}", wait_until="commit")
    step.is_there(page).wait_for()
    ms = (time.perf_counter() - started) * 1000
    page.wait_for_timeout(SETTLED_MS)
    return Measured(
        {MS.name: ms}, calls=[_call(one) for one in ended if one.resource_type in {"fetch", "xhr"}]
    )


def _call(request: Request) -> dict[str, Any]:
    """Return a call as the tables list it; the time is from the request sent to the answer's first byte."""
    timing = request.timing
    answer = request.response()
    return {
        "method": request.method,
        "route": route(request.url),
        "ms": round(timing["responseStart"] - timing["requestStart"], 2),
        "status": answer.status if answer else 0,
    }


PAGES = Row(
    name="pages",
    title="The page in Chromium on the same machine",
    servers=SERVERS,
    measures=(MS,),
    steps=_steps,
    measure=measure,
    prepare=_prepare,
    lists_calls=True,
)
