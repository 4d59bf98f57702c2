"""Every route of MLflow in every spelling: nobody gets through whom the table of rights does not name.

The proof is the door's own log: it has a line for each request, and none of those lines names a
server behind the door.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime

import mlflow
import pytest
import requests

from kit.people import bearer
from kit.rights import right
from kit.routes import SPELLINGS, spellings
from kit.stack import Stack, poll
from kit.wire import Wire
from stackops.users import ROLES

LOG_LINE = re.compile(r'^\S+ (?P<user>\S*) \[.*" \d{3} .* mlflow=(?P<server>.*) [0-9a-f]{32}$')
OPEN_TO_STRANGERS = "/health"
CLOSED = re.compile(r"/health$|/ajax-api/3\.0/mlflow/assistant/")
"""Open to strangers, or closed to everybody."""
Unchanged = Callable[[], AbstractContextManager[None]]


def spelled(stack: Stack, tried: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield (method, target) for each route in each spelling."""
    for method, path in sorted(tried):
        # HEAD and OPTIONS come with every route: test_strangers tries them.
        if path not in {"/", OPEN_TO_STRANGERS} and method not in {"HEAD", "OPTIONS"}:
            for target in spellings(path, f"127.0.0.1:{stack.port}"):
                yield method, target


def passed_on(stack: Stack, since: datetime, user: str, number: int) -> list[str]:
    """Wait until the door has logged `number` requests, and return those of a user that it passed on.

    What was refused before the login counts as nobody's.
    """

    def lines() -> list[re.Match[str]]:
        said = stack.compose("logs", "--no-log-prefix", "--since", since.isoformat(), "nginx").stdout
        found = [LOG_LINE.match(line) for line in said.splitlines()]
        own = [line for line in found if line and line["user"] in {user, "", "-"}]
        return own if len(own) >= number else []

    all_lines = poll(lines, seconds=60, what=f"{number} lines of {user} in the log")
    return [line[0] for line in all_lines if line["server"] != "-"]


Walk = Callable[[Iterable[tuple[str, str]], dict[str, str], str], None]


@pytest.fixture
def walk(
    stack: Stack,
    nothing_changes: Unchanged,
    figures: dict[str, str],
) -> Walk:
    """Return a function that tries routes in all spellings and asserts that none gets through."""

    def walked(tried: Iterable[tuple[str, str]], headers: dict[str, str], user: str) -> None:
        pairs = list(spelled(stack, tried))
        refusals = {400, 403} if headers else {400, 401}
        through = []
        started = datetime.now(UTC)
        with nothing_changes(), Wire(stack.port) as wire:
            for method, target in pairs:
                status = wire.ask(method, target, headers).status
                if status not in refusals:
                    through.append((method, target, status))
        figures[f"routes in all spellings, {user or 'strangers'}"] = (
            f"{len(pairs) // SPELLINGS} routes, {wire.asked} requests, {len(through)} got through"
        )
        assert through == []
        assert passed_on(stack, started, user, wire.asked) == []

    return walked


def test_no_spelling_of_any_route_opens_to_a_stranger(
    walk: Walk, server_routes: frozenset[tuple[str, str]]
) -> None:
    walk(server_routes, {}, "")


@pytest.mark.parametrize("role", ROLES[:-1])
def test_no_spelling_of_any_route_opens_to_a_role_below(
    walk: Walk, tokens: dict[str, str], server_routes: frozenset[tuple[str, str]], role: str
) -> None:
    above = {route for route in server_routes if ROLES.index(role) < ROLES.index(right(*route) or ROLES[-1])}
    walk(above, bearer(tokens[role]), f"attack-{role}")


def test_those_spellings_do_pass_for_whom_the_table_names(stack: Stack, tokens: dict[str, str]) -> None:
    """Else the walks above would show a door that refuses everything."""
    path = "/api/2.0/mlflow/experiments/search"
    started = datetime.now(UTC)
    json = {**bearer(tokens["reader"]), "Content-Type": "application/json"}
    with Wire(stack.port) as wire:
        found = [
            wire.ask("POST", target, json, b'{"max_results": 1}').status
            for target in spellings(path, f"127.0.0.1:{stack.port}")
        ]
    assert found.count(200) >= 5
    assert len(passed_on(stack, started, "attack-reader", len(found))) >= found.count(200)


@pytest.mark.parametrize("role", ROLES[:-1])
def test_a_role_reads_what_it_may_and_hears_which_role_the_rest_takes(
    stack: Stack, tokens: dict[str, str], server_routes: frozenset[tuple[str, str]], role: str
) -> None:
    session = requests.Session()
    session.trust_env = False
    session.headers.update(bearer(tokens[role]))
    wrong = {}
    for method, path in sorted(server_routes):
        needed = right(method, path) or ROLES[-1]
        below = ROLES.index(role) < ROLES.index(needed)
        if CLOSED.match(path) or not (below or method in {"GET", "HEAD"}):
            continue
        answer = session.request(method, stack.url + path, timeout=30, allow_redirects=False)
        refused = answer.status_code == 403 and (
            method == "HEAD" or f"this needs the role {needed}" in answer.text
        )
        if refused != below:
            wrong[method, path] = (answer.status_code, answer.text[:200])
    assert wrong == {}


RUN_ENDS = (
    "",
    "/",
    "//",
    "/%3f",
    "/;",
    "/%253b",
    "/%253f",
    "/%252f",
    "/%0a",
    "/%250a",
    "/%2520",
    "/%23",
    "/%2523",
)


@pytest.mark.parametrize("api", ["api", "ajax-api"])
def test_a_writer_cannot_delete_a_whole_run_of_artifacts_however_it_is_spelled(
    stack: Stack, tokens: dict[str, str], api: str
) -> None:
    """MLflow decodes the path again and drops some characters at its end."""
    with mlflow.start_run() as run:
        mlflow.log_text("stays", "folder/a.txt")
    root = f"/{api}/2.0/mlflow-artifacts/artifacts"
    path = run.info.artifact_uri.removeprefix("mlflow-artifacts:").removesuffix("/artifacts")
    file = f"{root}{path}/artifacts/folder/a.txt"
    targets = [f"{root}{path}{end}" for end in RUN_ENDS]
    targets += [f"{root}{path.replace('/', separator)}" for separator in ("/%2520", "/%252f")]
    targets += [f"{root}/file:{path[1:]}%3fx/y/z", f"{root}/%20file:{path[1:]}%3fx/y/z"]
    with Wire(stack.port) as wire:
        for target in targets:
            assert wire.ask("DELETE", target, bearer(tokens["writer"])).status in {400, 403}, target
            assert wire.ask("GET", file, bearer(tokens["reader"])).status == 200, target
        own = file.removesuffix("/a.txt")
        assert wire.ask("DELETE", own, bearer(tokens["writer"])).status == 200
        assert wire.ask("GET", file, bearer(tokens["reader"])).status == 404


OVERRIDES = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-Method", "Method")
MOVES = ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Path", "X-Forwarded-Prefix", "X-Script-Name")


def test_no_header_and_no_field_makes_another_method_of_a_request(
    stack: Stack, tokens: dict[str, str], nothing_changes: Unchanged
) -> None:
    """Reading what may be deleted by the same path, with every word for "in truth a DELETE"."""
    client = mlflow.MlflowClient()
    name = f"override-{uuid.uuid4().hex[:8]}"
    with mlflow.start_run() as run:
        mlflow.log_text("stays", "a.txt")
    client.create_registered_model(name)
    client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
    client.set_registered_model_alias(name, "champion", "1")
    artifact = "/api/2.0/mlflow-artifacts/artifacts/" + run.info.artifact_uri.removeprefix(
        "mlflow-artifacts:/"
    )
    alias = f"/api/2.0/mlflow/registered-models/alias?name={name}&alias=champion"
    targets = {alias: "approver", f"{artifact}/a.txt": "writer"}
    reader = {**bearer(tokens["reader"]), "Content-Type": "application/json"}
    with nothing_changes(), Wire(stack.port) as wire:
        for target in targets:
            for method in ("DELETE", "PUT", "POST", "PATCH"):
                for header in OVERRIDES:
                    assert wire.ask("GET", target, {**reader, header: method}).status == 200
                field = ("&" if "?" in target else "?") + f"_method={method}&method={method}"
                assert wire.ask("GET", target + field, reader).status == 200
                body = f'{{"_method": "{method}", "name": "{name}", "alias": "champion"}}'.encode()
                wire.ask("GET", target, reader, body)
                wire.ask(
                    "GET",
                    target,
                    {**reader, "Content-Type": "application/x-www-form-urlencoded"},
                    b"_method=DELETE",
                )
    with Wire(stack.port) as wire:
        for target, role in targets.items():
            headers = {**bearer(tokens[role]), "Content-Type": "application/json"}
            body = f'{{"name": "{name}", "alias": "champion"}}'.encode() if "?" in target else b""
            assert wire.ask("DELETE", target, headers, body).status == 200
            assert wire.ask("GET", target, reader).status in {400, 404}


def test_no_header_makes_another_path_of_a_request(
    stack: Stack, tokens: dict[str, str], nothing_changes: Unchanged
) -> None:
    experiment = mlflow.create_experiment(f"moved-{uuid.uuid4().hex[:8]}")
    delete = "/api/2.0/mlflow/experiments/delete"
    body = f'{{"experiment_id": "{experiment}", "experiment_ids": ["{experiment}"]}}'.encode()
    reader = {**bearer(tokens["reader"]), "Content-Type": "application/json"}
    with nothing_changes(), Wire(stack.port) as wire:
        for header in MOVES:
            for value in (delete, delete.removesuffix("/delete"), f"http://127.0.0.1:{stack.port}{delete}"):
                answer = wire.ask("POST", "/api/2.0/mlflow/runs/search", {**reader, header: value}, body)
                assert answer.status == 200
                assert (
                    wire.ask("POST", delete, {**reader, header: "/api/2.0/mlflow/runs/search"}, body).status
                    == 403
                )


SPOOFED = {
    **dict.fromkeys(("X-Needed-Right", "X-Missing-Right"), "reader"),
    **dict.fromkeys(("X-Role", "X-User", "X-Forwarded-User", "X_Forwarded_User", "Remote-User"), "admin"),
    "X-Forwarded-Role": "admin",
    "X-Real-IP": "192.0.2.1",
}


def test_identity_headers_of_the_client_mean_nothing(stack: Stack, tokens: dict[str, str]) -> None:
    answer = requests.post(
        f"{stack.url}/api/2.0/mlflow/experiments/delete",
        headers={**bearer(tokens["writer"]), **SPOOFED},
        json={"experiment_id": "0"},
        timeout=30,
    )
    assert answer.status_code == 403
    assert answer.json()["error_code"] == "PERMISSION_DENIED"
    assert "WWW-Authenticate" not in answer.headers
    with Wire(stack.port) as wire:
        assert wire.ask("GET", "/version", SPOOFED).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        SPOOFED,
        {"Connection": "close, X-Forwarded-User, X-Real-IP, X-Request-Id"},
        {"Connection": "X-Forwarded-User", "X-Forwarded-User": "admin"},
        {"TE": "trailers", "Trailer": "X-Forwarded-User"},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_the_audit_names_the_user_whatever_the_headers_claim(
    stack: Stack, tokens: dict[str, str], headers: dict[str, str]
) -> None:
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    body = f'{{"run_id": "{run_id}"}}'.encode()
    own = {**bearer(tokens["writer"]), "Content-Type": "application/json", **headers}
    with Wire(stack.port) as wire:
        assert wire.ask("POST", "/api/2.0/mlflow/runs/delete", own, body).status == 200

    def told() -> list[str]:  # a line is written after the answer
        return stack.verb("audit", "--json", "--since", "1h", "--words", run_id).stdout.splitlines()

    (line,) = map(json.loads, poll(told, seconds=30, what="the line of the audit"))
    assert (line["user"], line["event"]) == ("attack-writer", "POST /runs/delete")
    assert line["address"] not in {"", "192.0.2.1"}
    assert line["request"]
