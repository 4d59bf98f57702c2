"""Every route that the server itself knows is closed without a right password."""

from __future__ import annotations

import re

import pytest
import requests

from kit.stack import Stack

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
WRONG_LOGIN = "Basic YWRtaW46d3Jvbmc="  # admin:wrong; always the same: repeats are not counted
OWN_PATHS = (  # of the door and of the stack, not of MLflow
    "/",
    "/metrics",
    "/nothing/here",
    "/stack/ready",
    "/stack/metrics",
    "/stack-ui/page.js",
    "/static-files/static/js/main.js",
    "/_login",
    "/_ready",
    "/unavailable.json",
)
CLOSED_FOR_ALL = re.compile(
    r"/metrics|/stack/.*|/_login|/_ready|/unavailable\.json|/ajax-api/3\.0/mlflow/assistant/.*"
)
FIXED_ANSWERS = ("/ajax-api/3.0/mlflow/assistant/config", "/ajax-api/3.0/mlflow/assistant/providers")


@pytest.fixture(scope="module")
def paths(server_routes: frozenset[tuple[str, str]]) -> list[str]:
    """Every path of the server, the door and the stack."""
    return sorted({path for _, path in server_routes}.union(OWN_PATHS))


@pytest.fixture(scope="module")
def stranger() -> requests.Session:
    """A session without credentials."""
    session = requests.Session()
    session.trust_env = False
    return session


def statuses(
    session: requests.Session, stack: Stack, paths: list[str], headers: dict[str, str]
) -> dict[tuple[str, str], int]:
    """Return the status of each method on each path."""
    return {
        (method, path): session.request(
            method, stack.url + path, headers=headers, timeout=30, allow_redirects=False
        ).status_code
        for path in paths
        for method in METHODS
    }


def test_the_server_lists_its_routes(paths: list[str]) -> None:
    assert len(paths) >= 300
    assert {
        "/api/2.0/mlflow/runs/create",
        "/graphql",
        "/get-artifact",
        "/v1/traces",
        "/api/2.0/mlflow-artifacts/artifacts/dummy",
        "/ajax-api/3.0/mlflow/assistant/message",
        "/version",
    } <= set(paths)


def test_without_credentials_only_get_and_head_of_health_are_open(
    stack: Stack, stranger: requests.Session, paths: list[str]
) -> None:
    answers = statuses(stranger, stack, paths, {})
    open_routes = {route: status for route, status in answers.items() if status != 401}
    assert open_routes == {("GET", "/health"): 200, ("HEAD", "/health"): 200}


def test_with_a_wrong_password_only_get_and_head_of_health_are_open(
    stack: Stack, stranger: requests.Session, paths: list[str]
) -> None:
    answers = statuses(stranger, stack, paths, {"Authorization": WRONG_LOGIN})
    assert answers.pop(("GET", "/health")) == 200
    assert answers.pop(("HEAD", "/health")) == 200
    # What is closed to everybody may say so before the password is checked.
    unlike_401 = {route: status for route, status in answers.items() if status != 401}
    unexpected = {
        (method, path): status
        for (method, path), status in unlike_401.items()
        if not (status == 404 and CLOSED_FOR_ALL.fullmatch(path))
        and not (status == 405 and path == "/health")
    }
    assert unexpected == {}


@pytest.mark.parametrize(
    "authorization",
    ["Bearer abc", "Basic", "Basic !!!", "Basic YWRtaW4=", "Basic Og==", "Digest username=admin", "null"],
)
def test_an_authorization_that_is_no_basic_login_is_refused(
    stack: Stack, stranger: requests.Session, authorization: str
) -> None:
    for path in ["/", "/api/2.0/mlflow/experiments/search", "/v1/traces", "/get-artifact", "/graphql"]:
        answer = stranger.post(stack.url + path, headers={"Authorization": authorization}, timeout=30)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-User": "admin"},
        {"X-User": "admin"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Original-URL": "/health"},
        {"X-HTTP-Method-Override": "GET"},
        {"Host": "localhost"},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_no_header_takes_the_place_of_a_login(
    stack: Stack, stranger: requests.Session, headers: dict[str, str]
) -> None:
    assert stranger.get(f"{stack.url}/version", headers=headers, timeout=30).status_code == 401


def test_what_is_closed_for_all_is_a_404_for_the_admin_too(stack: Stack, paths: list[str]) -> None:
    closed = [path for path in paths if CLOSED_FOR_ALL.fullmatch(path) and path not in FIXED_ANSWERS]
    assert {"/metrics", "/stack/ready", "/stack/metrics"} <= set(closed)
    assert len([path for path in closed if "/assistant/" in path]) >= 5
    answers = statuses(stack.session(), stack, closed, {})
    assert {route: status for route, status in answers.items() if status != 404} == {}


@pytest.mark.parametrize("path", FIXED_ANSWERS)
def test_the_page_learns_that_there_is_no_assistant(stack: Stack, path: str) -> None:
    answer = stack.get(path)
    assert answer.status_code == 200
    assert not answer.json()["providers"]
    assert stack.post(path, json={}).status_code == 405


def test_the_admin_gets_in(stack: Stack) -> None:
    assert stack.get("/version").text == "3.17.2"
    assert stack.post("/api/2.0/mlflow/experiments/search", json={"max_results": 1}).status_code == 200
