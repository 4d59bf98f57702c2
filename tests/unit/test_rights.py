"""The tables of rights in nginx/http.d against MLflow's own routes and the documentation."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.rights import right, rules
from kit.stack import ROOT
from stackops.users import ROLES
from stackserver.serve import auth_environment, auth_settings
from stackserver.settings import read_settings

LIST_ROUTES = """
import json
from stackserver import permissions
from stackserver.settings import read_settings
app, _ = permissions.create_app(read_settings())
import mlflow.server
routes = [[method, rule.rule] for rule in mlflow.server.app.url_map.iter_rules() for method in rule.methods]
routes += [[method.upper(), path] for path, methods in app.openapi()["paths"].items() for method in methods]
print(json.dumps(routes))
"""


@pytest.fixture(scope="module")
def routes() -> set[tuple[str, str]]:
    """(method, path) of each of MLflow's own routes; parameters are filled."""
    from mlflow.server import app as flask_app
    from mlflow.server.fastapi_app import app as fastapi_app

    found = {
        (method, rule.rule)
        for rule in flask_app.url_map.iter_rules()
        for method in rule.methods or ()
        if method != "OPTIONS"
    }
    for path, methods in fastapi_app.openapi()["paths"].items():
        found |= {(method.upper(), path) for method in methods}
    # The name of an MCP server has a slash, which comes decoded.
    found |= {(method, path.replace("{name}", "{name}/{name}")) for method, path in found}
    return {(method, re.sub(r"<[^>]+>|\{[^}]+\}", "dummy", path)) for method, path in found}


@pytest.fixture(scope="module")
def rbac_routes(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """(method, path) of each route of MLflow with its auth app, which changes the process that loads it."""
    folder: Path = tmp_path_factory.mktemp("auth")
    environment = {**os.environ, **auth_environment(), "AUTHORIZATION": "rbac"}
    environment["MLFLOW_AUTH_CONFIG_PATH"] = str(folder / "auth.ini")
    environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] = "of a test"
    environment["PYTHONPATH"] = str(ROOT / "mlflow/src")
    (folder / "auth.ini").write_text(auth_settings(read_settings({"AUTHORIZATION": "rbac"})))
    command = [sys.executable, "-W", "ignore", "-c", LIST_ROUTES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {(method, path) for method, path in json.loads(done.stdout) if method != "OPTIONS"}
    found |= {(method, path.replace("{name}", "{name}/{name}")) for method, path in found}
    return {(method, re.sub(r"<[^>]+>|\{[^}]+\}", "dummy", path)) for method, path in found}


def test_every_route_of_mlflow_is_named(routes: set[tuple[str, str]]) -> None:
    assert len(routes) > 400
    unnamed = {route for route in routes if right(*route) is None}
    assert unnamed == {("GET", "/health"), ("HEAD", "/health")}  # open to strangers


def test_only_what_reads_is_for_readers(routes: set[tuple[str, str]]) -> None:
    reading = re.compile(
        r"/(search|search-datasets|get-latest-versions|presigned-download-url|batchGetInfos|metrics"
        r"|calculate-filter-correlation|ui-telemetry)$|^/graphql$"
    )
    changing = {route for route in routes if right(*route) == "reader" and route[0] not in {"GET", "HEAD"}}
    assert {route for route in changing if not reading.search(route[1])} == set()


@pytest.mark.parametrize(
    ("request_line", "needed"),
    [
        ("POST /api/2.0/mlflow/runs/create", "writer"),
        ("POST /ajax-api/2.0/mlflow/runs/search", "reader"),
        ("POST /api/2.0/mlflow/registered-models/create", "writer"),
        ("POST /api/2.0/mlflow/model-versions/create", "writer"),
        ("POST /api/2.0/mlflow/registered-models/alias", "approver"),
        ("DELETE /ajax-api/2.0/mlflow/registered-models/alias", "approver"),
        ("POST /api/2.0/mlflow/model-versions/transition-stage", "approver"),
        ("DELETE /api/2.0/mlflow/model-versions/delete", "approver"),
        ("DELETE /api/2.0/mlflow/registered-models/delete", "admin"),
        ("POST /api/2.0/mlflow/experiments/delete", "admin"),
        ("POST /api/2.0/mlflow/webhooks", "admin"),
        ("GET /api/2.0/mlflow/webhooks", "admin"),
        ("GET /ajax-api/3.0/mlflow/gateway/secrets/list", "admin"),
        ("PUT /api/2.0/mlflow-artifacts/artifacts/1/2/artifacts/a b.txt", "writer"),
        ("GET /api/2.0/mlflow-artifacts/artifacts/1/2/artifacts/registered-models/delete", "reader"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1/2/artifacts", "writer"),
        ("DELETE /ajax-api/2.0/mlflow-artifacts/artifacts/1/2/artifacts/a b/100%?.txt", "writer"),
        ("POST /v1/traces", "writer"),
        ("POST /graphql", "reader"),
        ("GET /", "reader"),
        ("POST /api/3.0/mlflow/mcp-servers/io.example/tools/aliases", "approver"),
        ("DELETE /api/3.0/mlflow/mcp-servers/io.example/tools/aliases/live", "approver"),
        ("DELETE /api/3.0/mlflow/mcp-servers/io.example/tools/versions/1", "admin"),
        ("DELETE /api/3.0/mlflow/mcp-servers/io.example/tools", "admin"),
        ("POST /api/3.0/mlflow/mcp-servers/io.example/tools/versions", "writer"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1/2", "admin"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1/2/", "admin"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1/2/?", "admin"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1/2/;", "admin"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1/2/%0a", "admin"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1/2/%2f", "admin"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1/", "admin"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1", "admin"),
        # Not named: for admins.
        ("PUT /api/2.0/mlflow/runs/search", None),
        ("POST /api/2.0/mlflow/runs/search/", None),
        ("POST /api/2.0/mlflow/runs/search.", None),
        ("POST /API/2.0/mlflow/runs/search", None),
        ("POST /api/9.0/mlflow/runs/search", None),
        ("TRACE /", None),
        ("OPTIONS /api/2.0/mlflow/runs/search", None),
        ("POST /x/api/2.0/mlflow/runs/search", None),
        ("DELETE /api/2.0/mlflow/experiments/delete", None),
    ],
)
def test_a_request_needs_its_right(request_line: str, needed: str | None) -> None:
    method, _, path = request_line.partition(" ")
    assert right(method, path) == needed


def test_each_right_is_a_role() -> None:
    assert {right for _, right in rules()} == set(ROLES)
    assert "default admin;" in (ROOT / "nginx/http.d/rights.conf").read_text()
    assert {right for _, right in rules(rbac=True)} == {"reader", "writer", "admin"}
    assert "default $needed_right;" in (ROOT / "nginx/http.d/rights-rbac.conf").read_text()


def test_with_rbac_every_route_is_named_and_nothing_more_is_for_approvers(
    rbac_routes: set[tuple[str, str]], routes: set[tuple[str, str]]
) -> None:
    own = rbac_routes - routes
    assert len(own) > 60
    unnamed = {route for route in rbac_routes if right(*route, rbac=True) is None}
    assert unnamed == {("GET", "/health"), ("HEAD", "/health")}
    assert {right(*route, rbac=True) for route in rbac_routes} == {None, "reader", "writer", "admin"}


def test_with_rbac_readers_still_only_read_and_the_platform_is_still_for_admins(
    rbac_routes: set[tuple[str, str]],
) -> None:
    for method, path in rbac_routes:
        now, before = (right(method, path, rbac=rbac) or "admin" for rbac in (True, False))
        if now != before and method not in {"GET", "HEAD"}:
            assert (now, before) in {("writer", "approver"), ("writer", "admin")}, (method, path)
            assert re.search(
                r"/(registered-models|model-versions|mcp-servers|experiments|mlflow-artifacts|roles"
                r"|users/permissions)/",
                path,
            ), path


@pytest.mark.parametrize(
    ("request_line", "needed"),
    [
        ("POST /api/2.0/mlflow/registered-models/alias", "writer"),
        ("DELETE /api/2.0/mlflow/registered-models/delete", "writer"),
        ("POST /ajax-api/2.0/mlflow/registered-models/rename", "writer"),
        ("DELETE /api/2.0/mlflow/model-versions/delete", "writer"),
        ("POST /api/2.0/mlflow/experiments/delete", "writer"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1/2", "writer"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1", "writer"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts", "admin"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/", "admin"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/somewhere", "admin"),
        ("DELETE /api/2.0/mlflow-artifacts/artifacts/1x/2", "admin"),
        ("GET /ajax-api/2.0/mlflow/users/current", "reader"),
        ("GET /ajax-api/3.0/mlflow/users/current/permissions", "reader"),
        ("GET /api/3.0/mlflow/roles/list", "reader"),
        ("POST /ajax-api/3.0/mlflow/roles/create", "writer"),
        ("POST /ajax-api/3.0/mlflow/users/permissions/grant", "writer"),
        ("POST /api/2.0/mlflow/users/create", "admin"),
        ("POST /api/2.0/mlflow/users/create-ui", "admin"),
        ("PATCH /ajax-api/2.0/mlflow/users/update-password", "admin"),
        ("DELETE /ajax-api/2.0/mlflow/users/delete", "admin"),
        ("GET /signup", "admin"),
        ("POST /api/2.0/mlflow/webhooks", "admin"),
        ("GET /ajax-api/3.0/mlflow/gateway/secrets/list", "admin"),
        ("POST /api/3.0/mlflow/workspaces", "admin"),
        ("POST /api/2.0/mlflow/runs/create", "writer"),
        ("POST /api/2.0/mlflow/runs/search", "reader"),
    ],
)
def test_with_rbac_a_request_needs_its_right(request_line: str, needed: str) -> None:
    method, _, path = request_line.partition(" ")
    assert (right(method, path, rbac=True) or "admin") == needed


def test_the_documentation_says_the_same() -> None:
    text = (ROOT / "docs/access.md").read_text()
    rows = re.findall(r"^\| (reader|writer|approver|admin) \|.*\| (`.*`) \|$", text, re.MULTILINE)
    assert [role for role, _ in rows] == list(ROLES)
    for role, examples in rows:
        for request_line in re.findall(r"`([^`]+)`", examples):
            method, _, path = request_line.partition(" ")
            assert right(method, path) == role, request_line
