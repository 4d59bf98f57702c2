"""Features that are off on this server do not show.

Every page that the other tests visit is searched for them. Here: pages where MLflow itself
would show them, and that the search would then find them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from playwright.sync_api import Page, expect

from browser.seeds import Seeds
from browser.watch import FEATURES_OFF, PATIENCE_SECONDS, WatchedPage
from kit.stack import Stack, poll

ASSISTANT = {"Assistant panel", "Assistant's name"}


@dataclass(frozen=True)
class Place:
    """A page, a text on it, and the features that MLflow's own page would show there."""

    name: str
    path: str
    text: str
    features: set[str]


PLACES = [
    Place("home", "/", "Welcome to MLflow", {*ASSISTANT, "telemetry banner"}),
    Place(
        "settings",
        "/#/settings/general",
        "Theme preference",
        {*ASSISTANT, "telemetry switch", "LLM connections"},
    ),
    Place(
        "evaluation-runs",
        "/#/experiments/{seeds.traced_experiment_id}/evaluation-runs",
        "Evaluate and improve the quality",
        {*ASSISTANT, "Assistant tab", "Evaluate traces button"},
    ),
    Place(
        "run-traces",
        "/#/experiments/{seeds.experiment_id}/runs/{seeds.best_run}/traces",
        "No traces found",
        {*ASSISTANT, "Analyze button of a run"},
    ),
    Place(
        "trace",
        "/#/experiments/{seeds.traced_experiment_id}/traces?selectedEvaluationId={seeds.trace_id}",
        "It is a 7: a bar and a slanted stroke.",
        {*ASSISTANT, "Analyze button of a trace"},
    ),
    Place(
        "trace-actions",
        "/#/experiments/{seeds.traced_experiment_id}/traces",
        "Which digit is in picture 41?",
        {*ASSISTANT, "Run scorers item"},
    ),
]


def arrive(page: Page, place: Place) -> None:
    """Wait for the page's text; open the menu of a chosen trace where that is the place."""
    expect(page.get_by_text(place.text).first).to_be_visible()
    if place.name == "trace-actions":
        page.get_by_role("checkbox").nth(1).click()
        page.get_by_role("button", name="Actions").click()
        expect(page.get_by_role("menuitem", name="Edit tags")).to_be_visible()


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_a_page_shows_nothing_of_features_that_are_off(
    visit: Callable[..., Page], seeds: Seeds, place: Place
) -> None:
    page = visit(f"off-{place.name}", place.path.format(seeds=seeds))
    arrive(page, place)  # `visit` searches the page when the test is over


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_the_search_finds_the_features_on_mlflows_own_page(
    watch: Callable[..., WatchedPage], stack: Stack, seeds: Seeds, place: Place
) -> None:
    watched = watch(f"plain-{place.name}")
    watched.page.route("**/stack-ui/*", lambda route: route.fulfill(status=200, body=""))
    watched.page.goto(stack.url + place.path.format(seeds=seeds), wait_until="load")
    arrive(watched.page, place)

    def all_shown() -> bool:
        watched.page.wait_for_timeout(100)  # lets the browser's events in
        assert set(watched.features_shown()) == place.features
        return True

    poll(all_shown, seconds=PATIENCE_SECONDS, what=f"features shown on {place.name}", interval=0)


def test_every_feature_has_a_place() -> None:
    assert set().union(*(place.features for place in PLACES)) == set(FEATURES_OFF)
