"""What a client sees while MLflow or the login service is away, and that it recovers by itself."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import mlflow
import pytest

from kit.door import Answer, assert_security_headers, docker, send
from kit.stack import Stack, poll

METHODS = ("GET", "POST", "PUT", "DELETE")
API_PATHS = [
    "/api/2.0/mlflow/experiments/search",
    "/ajax-api/2.0/mlflow/runs/search",
    "/graphql",
    "/v1/traces",
]


def is_well(stack: Stack, service: str) -> bool:
    """Return whether Docker's own check of a service says healthy."""
    return stack.inspect(stack.container(service))["State"]["Health"]["Status"] == "healthy"


def wait_well(stack: Stack) -> None:
    """Wait until the whole stack is as other tests expect it."""
    stack.wait_ready()
    for service in ("mlflow", "fastpath", "auth", "nginx"):
        poll(lambda service=service: is_well(stack, service), seconds=60, what=f"{service} is healthy")


@dataclass
class Outage:
    """What clients were answered while MLflow was stopped, and the run that one was logging."""

    run_id: str
    health: Answer
    page: Answer
    stranger: Answer
    own_file: Answer
    mlflow_client: Answer
    api: dict[tuple[str, str], Answer]


@pytest.fixture(scope="module")
def outage(stack: Stack) -> Outage:
    """Stop MLflow, ask for everything, and start it again while a client is logging."""
    client = mlflow.MlflowClient(tracking_uri=stack.url)
    run_id = client.create_run("0").info.run_id

    def ask(method: str, path: str, **headers: str) -> Answer:
        return send(stack.port, method, path, Authorization=stack.authorization, **headers)

    stack.compose("stop", "mlflow")
    try:
        routes = list(product(METHODS, API_PATHS))
        with ThreadPoolExecutor(8) as pool:  # nginx looks for MLflow for 3 s
            answers = pool.map(lambda route: ask(*route), routes)
            api = dict(zip(routes, answers, strict=True))
        seen = Outage(
            run_id=run_id,
            health=send(stack.port, "GET", "/health"),
            page=ask("GET", "/", Accept="text/html,application/xhtml+xml"),
            stranger=send(stack.port, "GET", "/"),
            own_file=ask("GET", "/stack-ui/page.js"),
            mlflow_client=ask("GET", API_PATHS[0], User_Agent="mlflow-python-client/3.17.2"),
            api=api,
        )
        back = threading.Timer(1, stack.compose, ("start", "mlflow"))
        back.start()
        try:
            client.log_metric(run_id, "loss", 0.25, step=7)
        finally:
            back.join()
    finally:
        stack.compose("start", "mlflow")
        wait_well(stack)
    return seen


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_open_to_load_balancers(stack: Stack, method: str) -> None:
    answer = send(stack.port, method, "/health")
    assert answer.status == 200
    assert answer.body == (b"OK\n" if method == "GET" else b"")
    assert "WWW-Authenticate" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_health_is_open_for_reading_only(stack: Stack, method: str) -> None:
    answer = send(stack.port, method, "/health")
    assert answer.status == 401
    assert "WWW-Authenticate" in answer.headers


def test_health_is_not_ok_while_mlflow_is_frozen(stack: Stack) -> None:
    frozen = stack.container("mlflow")
    docker("pause", frozen)
    try:
        answer = send(stack.port, "GET", "/health")
    finally:
        docker("unpause", frozen)
    assert answer.status == 503
    wait_well(stack)


def test_clients_hear_503_and_when_to_try_again_while_mlflow_is_away(outage: Outage) -> None:
    assert outage.api
    for asked, answer in outage.api.items():
        assert (*asked, answer.status) == (*asked, 503)
        assert answer.headers["Content-Type"] == "application/json"
        assert b'"error_code": "TEMPORARILY_UNAVAILABLE"' in answer.body
        assert int(answer.headers["Retry-After"]) > 0
        assert_security_headers(answer.headers)


def test_a_browser_sees_a_page_that_tries_again_while_mlflow_is_away(outage: Outage) -> None:
    assert outage.page.status == 503
    assert outage.page.headers["Content-Type"].startswith("text/html")
    assert b"MLflow is starting" in outage.page.body
    assert not re.findall(rb"(?:src|href)=|<script", outage.page.body)  # needs nothing else
    assert int(outage.page.headers["Retry-After"]) > 0
    assert_security_headers(outage.page.headers)
    assert outage.own_file.status == 200


def test_mlflows_own_client_is_left_to_its_longer_schedule(outage: Outage) -> None:
    """With Retry-After it gives up after seven times that, else after four minutes."""
    assert outage.mlflow_client.status == 503
    assert "Retry-After" not in outage.mlflow_client.headers


def test_load_balancers_and_strangers_hear_the_right_thing_while_mlflow_is_away(outage: Outage) -> None:
    assert outage.health.status == 503
    assert_security_headers(outage.health.headers)
    assert outage.stranger.status == 401


def test_a_client_that_logs_while_mlflow_is_away_goes_on_when_it_is_back(
    outage: Outage, client: mlflow.MlflowClient
) -> None:
    points = client.get_metric_history(outage.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(7, 0.25)]


@pytest.mark.parametrize("service", ["auth", "nginx"])
def test_requests_recover_by_themselves_when_a_part_of_the_door_is_killed(
    stack: Stack, client: mlflow.MlflowClient, experiment_id: str, service: str
) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    before = stack.inspect(stack.container(service))["RestartCount"]
    stack.kill(service)
    poll(
        lambda: stack.inspect(stack.container(service))["RestartCount"] == before + 1,
        seconds=30,
        what=f"{service} was started again",
    )
    client.log_metric(run_id, "loss", 0.5)  # its own retries are all that it needs
    assert client.get_run(run_id).data.metrics == {"loss": 0.5}
    wait_well(stack)


def test_a_login_is_not_waved_through_while_the_login_service_is_away(stack: Stack) -> None:
    stack.compose("stop", "auth")
    try:
        poll(  # a login that was verified a moment ago is remembered for two seconds
            lambda: send(stack.port, "GET", "/version", Authorization=stack.authorization).status == 503,
            seconds=15,
            what="the right login hears 503",
        )
        wrong = send(stack.port, "GET", "/version", Authorization="Basic YWRtaW46d3Jvbmc=")
        assert wrong.status == 503
        assert int(wrong.headers["Retry-After"]) > 0
        assert send(stack.port, "GET", "/version").status == 401
        assert send(stack.port, "GET", "/health").status == 200
    finally:
        stack.compose("start", "auth")
    poll(lambda: stack.get("/version").status_code == 200, seconds=60, what="logins work again")
    wait_well(stack)
