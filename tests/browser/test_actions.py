"""What a person does on the pages reaches the server."""

from __future__ import annotations

import re
from collections.abc import Callable

import mlflow
from playwright.sync_api import Page, expect

from browser.watch import PATIENCE_SECONDS
from kit.stack import Stack, poll

DEMO_EXPERIMENT = "MLflow Demo"


def test_a_run_is_renamed_on_its_page(
    visit: Callable[..., Page], stack: Stack, client: mlflow.MlflowClient, experiment_id: str
) -> None:
    run_id = client.create_run(experiment_id, run_name="first name").info.run_id
    page = visit("rename-run", f"/#/experiments/{experiment_id}/runs/{run_id}")
    expect(page.get_by_role("heading", name="first name")).to_be_visible()
    page.get_by_label("Open header dropdown menu").click()
    page.get_by_role("menuitem", name="Rename").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill("second name")
    with page.expect_request("**/runs/update") as update:
        dialog.get_by_role("button", name="Save").click()
    assert update.value.method == "POST"
    assert update.value.all_headers()["origin"] == stack.url
    expect(page.get_by_role("heading", name="second name")).to_be_visible()
    assert client.get_run(run_id).info.run_name == "second name"


def test_a_description_written_on_a_runs_page_is_kept(
    visit: Callable[..., Page], client: mlflow.MlflowClient, experiment_id: str
) -> None:
    run_id = client.create_run(experiment_id, run_name="undescribed").info.run_id
    page = visit("describe-run", f"/#/experiments/{experiment_id}/runs/{run_id}")
    page.get_by_label("Edit description").click()
    page.locator("main textarea").fill("Trained **again** on a rainy day.")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("strong", has_text="again")).to_be_visible()
    assert client.get_run(run_id).data.tags["mlflow.note.content"] == "Trained **again** on a rainy day."


def test_the_demo_starts_and_is_cleared_away(visit: Callable[..., Page], client: mlflow.MlflowClient) -> None:
    page = visit("demo", "/")
    page.get_by_role("button", name="Start Demo").click()
    page.wait_for_url(re.compile(r"#/experiments/\d+"))
    (demo,) = client.search_experiments(filter_string=f"name LIKE '{DEMO_EXPERIMENT}%'")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()

    page = visit("demo-cleared", "/#/settings/general")
    page.get_by_role("button", name="Clear all demo data").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=re.compile("Clear|Confirm|Delete")).click()

    def demo_is_gone() -> bool:
        page.wait_for_timeout(100)  # lets the browser's events in
        return demo.experiment_id not in {found.experiment_id for found in client.search_experiments()}

    poll(demo_is_gone, seconds=PATIENCE_SECONDS, what="the demo's experiment is gone", interval=0)
