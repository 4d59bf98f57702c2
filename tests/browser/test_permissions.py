"""AUTHORIZATION=rbac: MLflow's pages of users, roles and permissions, on a stack of the module's own."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from browser.conftest import SIZE
from browser.watch import PATIENCE_SECONDS, WatchedPage
from kit.people import add, bearer
from kit.stack import Stack

API = "/api/2.0/mlflow"
WITHOUT_WORKSPACES = re.compile(r"503.*/mlflow/workspaces\)?$")
"""MLflow's form asks for workspaces, and its server answers 503 where they are off; the form goes on."""
HIDDEN = ("admin.users.create_button", "admin.users.bulk_delete_button", "admin.users.select_row")


@dataclass(frozen=True)
class People:
    """The stack, and tokens of an alice who has an experiment, and a bob who has none."""

    stack: Stack
    tokens: dict[str, str]
    experiment: str
    experiment_id: str

    def logs(self, name: str) -> int:
        """Let a person make a run in alice's experiment; return the status."""
        return requests.post(
            f"{self.stack.url}{API}/runs/create",
            headers=bearer(self.tokens[name]),
            json={"experiment_id": self.experiment_id},
            timeout=30,
        ).status_code


@pytest.fixture(scope="module")
def people(stack: Stack, make_stack: Callable[..., Stack]) -> Iterator[People]:
    own = make_stack("pages", AUTHORIZATION="rbac")
    own.verb("up", "--no-build")
    tokens = {name: add(own, name, "writer") for name in ("alice", "bob")}
    experiment = f"alice's {uuid.uuid4().hex[:8]}"
    made = requests.post(
        f"{own.url}{API}/experiments/create",
        headers=bearer(tokens["alice"]),
        json={"name": experiment},
        timeout=30,
    )
    found = People(own, {**tokens, "admin": own.password}, experiment, made.json()["experiment_id"])
    assert (found.logs("alice"), found.logs("bob")) == (200, 403)
    yield found
    own.compose("down", "--volumes")


@pytest.fixture
def visit_as(people: People, browser: Browser) -> Iterator[Callable[[str, str, str], Page]]:
    """Return a function that opens an address as a person; at the end no page may have raised an error.

    The browser starts after the stack: a network that comes up is an error to its requests.
    """
    visited: list[WatchedPage] = []

    def visit(name: str, person: str, path: str) -> Page:
        credentials = {"username": person, "password": people.tokens[person]}
        context = browser.new_context(http_credentials=credentials, viewport=SIZE)
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        watched = WatchedPage(context.new_page(), name)
        visited.append(watched)
        watched.page.goto(people.stack.url + path, wait_until="load")
        return watched.page

    yield visit
    for watched in visited:
        watched.settle()
        watched.screenshot()
        watched.page.context.close()
    problems = [
        each for watched in visited for each in watched.problems if not WITHOUT_WORKSPACES.search(each)
    ]
    assert problems == []


Visit = Callable[[str, str, str], Page]


def test_an_admin_finds_the_users_and_grants_one_a_permission(visit_as: Visit, people: People) -> None:
    page = visit_as("rbac-users", "admin", "/")
    page.locator("aside").get_by_text("admin", exact=True).click()
    page.get_by_role("menuitem", name="Manage").click()
    for name in ("admin", "alice", "bob"):
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    for component in HIDDEN:  # they are there, and nobody sees them
        expect(page.locator(f"[data-component-id='{component}']").first).to_be_attached()
        expect(page.locator(f"[data-component-id='{component}']").first).to_be_hidden()

    page.get_by_role("link", name="bob", exact=True).click()
    page.get_by_role("button", name="Edit access").click()
    dialog = page.get_by_role("dialog")
    switch = dialog.locator("[data-component-id='admin.edit_access_modal.is_admin']")
    expect(switch.first).to_be_attached()
    expect(switch.first).to_be_hidden()
    dialog.get_by_role("combobox", name="Experiment, no option selected").click()
    page.get_by_role("option", name=people.experiment).click()
    dialog.locator("#admin-direct-permission-level").click()
    page.get_by_role("option", name="EDIT").click()
    dialog.get_by_role("button", name="Add", exact=True).click()
    dialog.get_by_role("button", name="Review changes").click()
    expect(dialog.get_by_text(f"experiment:{people.experiment_id} → EDIT")).to_be_visible()
    dialog.get_by_role("button", name="Apply changes").click()
    expect(dialog).to_be_hidden()
    assert people.logs("bob") == 200


def test_an_admin_makes_a_role(visit_as: Visit, people: People) -> None:
    page = visit_as("rbac-roles", "admin", "/#/admin")
    page.get_by_role("tab", name="Roles").click()
    page.get_by_role("button", name="Create Role").click()
    dialog = page.get_by_role("dialog")
    name = f"team-{uuid.uuid4().hex[:8]}"
    dialog.locator("[data-component-id='admin.create_role_modal.name']").fill(name)
    dialog.get_by_role("button", name="Create role").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("link", name=name)).to_be_visible()


def test_a_writer_sees_the_own_permissions_and_nothing_to_manage(visit_as: Visit, people: People) -> None:
    page = visit_as("rbac-account", "alice", "/#/account")
    expect(page.get_by_text("Logged in as alice")).to_be_visible()
    page.get_by_role("tab", name="Permissions").click()
    expect(page.get_by_text("MANAGE", exact=True).first).to_be_visible()
    expect(page.get_by_role("button", name="Change password")).to_be_hidden()
    page.locator("aside").get_by_text("alice", exact=True).click()
    expect(page.get_by_role("menuitem", name="Account")).to_be_visible()
    expect(page.get_by_role("menuitem", name="Manage")).to_be_hidden()
    expect(page.get_by_role("menuitem", name="Logout")).to_be_hidden()


def test_a_writer_opens_the_pages_of_what_may_be_read(visit_as: Visit, people: People) -> None:
    page = visit_as("rbac-experiments", "alice", "/#/experiments")
    expect(page.get_by_role("link", name=people.experiment)).to_be_visible()
    page = visit_as("rbac-runs", "bob", f"/#/experiments/{people.experiment_id}/runs")
    expect(page.get_by_text("matching run")).to_be_visible()
