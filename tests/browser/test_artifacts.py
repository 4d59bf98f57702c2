"""Artifacts in the browser: previews, the download button, and no script of theirs runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser import seeds as logged
from browser.seeds import Seeds
from browser.watch import WatchedPage
from kit.stack import Stack

DOWNLOAD = '[data-component-id^="codegen_mlflow_app_src_experiment-tracking_components_artifactview"]'


def artifact_path(seeds: Seeds, name: str) -> str:
    return f"/#/experiments/{seeds.experiment_id}/runs/{seeds.best_run}/artifacts/evaluation/{name}"


def test_an_image_is_shown(visit: Callable[..., Page], seeds: Seeds) -> None:
    page = visit("artifact-image", artifact_path(seeds, "confusion.png"))
    image = page.get_by_alt_text("evaluation/confusion.png")
    expect(image).to_be_visible()
    expect(image).to_have_js_property("naturalWidth", 400)


def test_a_csv_file_is_shown_as_a_table(visit: Callable[..., Page], seeds: Seeds) -> None:
    page = visit("artifact-csv", artifact_path(seeds, "recall.csv"))
    for cell in ("seven", "41", "0.976"):
        expect(page.get_by_role("cell", name=cell, exact=True)).to_be_visible()


def test_an_html_file_is_shown(visit: Callable[..., Page], seeds: Seeds) -> None:
    page = visit("artifact-html", artifact_path(seeds, "report.html"))
    frame = page.frame_locator("main iframe")
    expect(frame.get_by_role("heading", name="Report on the digits")).to_be_visible()


def test_a_text_file_is_shown(visit: Callable[..., Page], seeds: Seeds) -> None:
    page = visit("artifact-text", artifact_path(seeds, "notes.txt"))
    expect(page.get_by_text(logged.TEXT.strip())).to_be_visible()


def test_a_script_inside_an_html_file_does_not_run(
    watch: Callable[..., WatchedPage], stack: Stack, seeds: Seeds
) -> None:
    watched = watch("artifact-scripted-html")
    watched.page.goto(stack.url + artifact_path(seeds, "scripted.html"), wait_until="load")
    said = watched.page.frame_locator("main iframe").locator("#said")
    expect(said).to_be_visible()
    watched.settle()
    watched.screenshot()
    expect(said).to_have_text("nothing ran")
    (problem,) = watched.problems  # the browser says why
    assert "violates the following Content Security Policy directive 'script-src 'self''" in problem


def test_a_report_runs_its_scripts_in_a_tab_apart_from_the_site(
    watch: Callable[..., WatchedPage], stack: Stack, seeds: Seeds
) -> None:
    watched = watch("artifact-report-button")
    watched.page.goto(stack.url + artifact_path(seeds, "interactive.html"), wait_until="load")
    button = watched.page.get_by_role("link", name="Open with scripts")
    expect(button).to_be_visible()
    watched.screenshot()
    with watched.page.context.expect_page() as opened:
        button.click()
    report = WatchedPage(opened.value, "artifact-report")
    expect(report.page.locator("#said")).to_have_text("a script ran at null")
    expect(report.page.locator("#asked")).to_have_text("reached nothing")
    assert report.page.evaluate("window.opener") is None
    report.screenshot()


@pytest.mark.parametrize("name", ["confusion.png", "recall.csv"])
def test_the_download_button_gives_the_same_bytes(
    visit: Callable[..., Page], seeds: Seeds, tmp_path: Path, name: str
) -> None:
    page = visit(f"artifact-download-{name}", artifact_path(seeds, name))
    with page.expect_download() as download:
        page.locator(DOWNLOAD).click()
    assert download.value.suggested_filename == name
    download.value.save_as(tmp_path / name)
    expected = {"confusion.png": seeds.image, "recall.csv": logged.CSV.encode()}
    assert (tmp_path / name).read_bytes() == expected[name]
