"""Every page of the interface opens, shows what was logged, and raises no error."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Error, Page, expect

from browser import seeds as logged
from browser.seeds import Seeds
from kit.stack import Stack

Visit = Callable[..., Page]


def test_a_browser_without_credentials_is_asked_for_them(browser: Browser, stack: Stack) -> None:
    with browser.new_context() as context:
        answer = context.request.get(stack.url)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Basic realm="MLflow", charset="UTF-8"'
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):  # nobody fills in its dialog
            context.new_page().goto(stack.url, wait_until="load")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_home_page_lists_experiments(visit: Visit, seeds: Seeds, host: str) -> None:
    page = visit(f"home-{host}", "/", host=host)
    expect(page.get_by_role("heading", name="Welcome to MLflow")).to_be_visible()
    expect(page.get_by_role("link", name=logged.EXPERIMENT)).to_be_visible()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_run_list_names_every_run(visit: Visit, seeds: Seeds, host: str) -> None:
    page = visit(f"runs-{host}", f"/#/experiments/{seeds.experiment_id}/runs", host=host)
    for name in seeds.runs:
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    expect(page.get_by_text(f"{len(seeds.runs)} matching runs")).to_be_visible()


def test_the_experiments_page_lists_experiments(visit: Visit, seeds: Seeds) -> None:
    page = visit("experiments", "/#/experiments")
    for name in (logged.EXPERIMENT, logged.TRACED_EXPERIMENT):
        expect(page.get_by_role("link", name=name)).to_be_visible()


def test_the_run_list_draws_a_line_per_run_in_every_chart(visit: Visit, seeds: Seeds) -> None:
    page = visit(
        "run-charts",
        f"/#/experiments/{seeds.experiment_id}/runs?compareRunsMode=CHART&workflowType=machine_learning",
    )
    charts = page.locator(".js-plotly-plot")
    expect(charts).to_have_count(3)
    for number in range(3):
        lines = charts.nth(number).locator("g.trace")
        expect(lines).to_have_count(2 * len(seeds.runs))  # the line, and its dots
        expect(lines.first).to_be_visible()


def test_a_run_shows_its_metrics_parameters_and_model(visit: Visit, seeds: Seeds) -> None:
    page = visit("run", f"/#/experiments/{seeds.experiment_id}/runs/{seeds.best_run}")
    expect(page.get_by_role("heading", name=logged.BEST)).to_be_visible()
    expect(page.get_by_role("link", name="test_accuracy")).to_be_visible()
    expect(page.get_by_text("learning_rate", exact=True)).to_be_visible()
    expect(page.get_by_text("candidate")).to_be_visible()
    expect(page.get_by_role("link", name=logged.MODEL).first).to_be_visible()


def test_a_runs_metric_charts_are_drawn(visit: Visit, seeds: Seeds) -> None:
    page = visit("run-metrics", f"/#/experiments/{seeds.experiment_id}/runs/{seeds.best_run}/model-metrics")
    charts = page.locator(".js-plotly-plot")
    expect(charts).to_have_count(3)
    for number in range(3):
        expect(charts.nth(number).locator("path.point")).to_have_count(logged.EPOCHS)


def test_a_registered_model_shows_its_version_and_alias(visit: Visit, seeds: Seeds) -> None:
    page = visit("registered-model", f"/#/models/{logged.MODEL}")
    expect(page.get_by_role("link", name="Version 1")).to_be_visible()
    expect(page.get_by_text(logged.ALIAS)).to_be_visible()


def test_a_model_version_names_its_run_and_model(visit: Visit, seeds: Seeds) -> None:
    page = visit("model-version", f"/#/models/{logged.MODEL}/versions/1")
    expect(page.get_by_role("heading", name="Version 1")).to_be_visible()
    expect(page.get_by_text(logged.ALIAS)).to_be_visible()
    expect(page.get_by_role("link", name=logged.BEST, exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="classifier", exact=True)).to_be_visible()


def test_the_models_page_finds_a_registered_model(visit: Visit, seeds: Seeds) -> None:
    page = visit("models", f"/#/models?searchQuery={logged.MODEL}")
    expect(page.get_by_role("link", name=logged.MODEL)).to_be_visible()


def test_a_logged_model_shows_its_mlmodel_file(visit: Visit, seeds: Seeds) -> None:
    page = visit("logged-model", f"/#/experiments/{seeds.experiment_id}/models/{seeds.model_id}")
    expect(page.get_by_role("heading", name="classifier")).to_be_visible()
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_text("MLmodel", exact=True).click()
    expect(page.get_by_text(re.compile(f"model_id: {seeds.model_id}"))).to_be_visible()


def test_the_traces_page_lists_a_trace(visit: Visit, seeds: Seeds) -> None:
    page = visit("traces", f"/#/experiments/{seeds.traced_experiment_id}/traces")
    expect(page.get_by_text("Which digit is in picture 41?")).to_be_visible()
    expect(page.get_by_text("1 of 1")).to_be_visible()


def test_a_trace_shows_its_spans_and_its_answer(visit: Visit, seeds: Seeds) -> None:
    page = visit(
        "trace", f"/#/experiments/{seeds.traced_experiment_id}/traces?selectedEvaluationId={seeds.trace_id}"
    )
    for span in ("explain a digit", "look at the picture", "find the digit"):
        expect(page.get_by_text(span, exact=True).first).to_be_visible()
    expect(page.get_by_text("It is a 7: a bar and a slanted stroke.", exact=True)).to_be_visible()


def test_the_prompts_page_lists_a_prompt(visit: Visit, seeds: Seeds) -> None:
    page = visit("prompts", "/#/prompts")
    page.get_by_placeholder("Search prompts by name").fill(logged.PROMPT)
    expect(page.get_by_role("link", name=logged.PROMPT)).to_be_visible()


def test_a_prompt_shows_its_text(visit: Visit, seeds: Seeds) -> None:
    page = visit("prompt", f"/#/prompts/{logged.PROMPT}")
    expect(page.get_by_text("Viewing version 1")).to_be_visible()
    expect(page.get_by_text(logged.PROMPT_TEXT)).to_be_visible()
