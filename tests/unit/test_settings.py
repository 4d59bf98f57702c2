"""The server's settings: what is accepted, rewritten and refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackserver.errors import RefusedError
from stackserver.settings import (
    CONNECTIONS_RESERVED,
    PERMISSIONS,
    normalise_database_uri,
    parse_bytes,
    read_server_settings,
    read_settings,
)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_every_postgresql_scheme_becomes_the_one_with_the_driver(scheme: str) -> None:
    assert normalise_database_uri(f"{scheme}://me@db.example.com:5433/runs?sslmode=require") == (
        "postgresql+psycopg2://me@db.example.com:5433/runs?sslmode=require"
    )


@pytest.mark.parametrize(
    "uri", ["sqlite:///mlflow.db", "mysql://a@b/c", "postgresql+asyncpg://a@b/c", "nonsense"]
)
def test_another_database_is_refused_with_the_scheme_to_write(uri: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        normalise_database_uri(uri)
    assert "postgresql+psycopg2://" in refusal.value.fix


def test_a_password_in_the_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(RefusedError) as refusal:
        normalise_database_uri("postgresql://me:hunter2@db/runs")
    assert "config/secrets/database_password" in refusal.value.fix
    assert "hunter2" not in str(refusal.value) + refusal.value.fix


def test_empty_values_mean_the_defaults() -> None:
    assert read_settings({"MLFLOW_WORKERS": "", "DATABASE_URI": ""}) == read_settings({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_WORKERS", "two"),
        ("MLFLOW_WORKERS", "0"),
        ("MLFLOW_THREADS", "-1"),
        ("MLFLOW_TMP_LIMIT", "much"),
        ("MLFLOW_GATEWAY", "yes"),
        ("FASTPATH_CONNECTIONS", "1"),
        ("FASTPATH_CONNECTIONS", "65"),
        ("AUTHORIZATION", "none"),
        ("AUTHORIZATION", "RBAC"),
        ("RBAC_DEFAULT_PERMISSION", "read"),
        ("RBAC_DEFAULT_PERMISSION", "DENY"),
    ],
)
def test_a_malformed_value_is_refused_with_its_name(name: str, value: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        read_settings({name: value})
    assert name in str(refusal.value)


def test_connections_that_do_not_fit_are_refused_with_the_number_that_would() -> None:
    with pytest.raises(RefusedError) as refusal:
        read_settings({"MLFLOW_WORKERS": "4", "POSTGRES_MAX_CONNECTIONS": "100"})
    needed = int(refusal.value.fix.split("POSTGRES_MAX_CONNECTIONS=")[1].split()[0])
    accepted = read_settings({"MLFLOW_WORKERS": "4", "POSTGRES_MAX_CONNECTIONS": str(needed)})
    assert accepted.connections_needed == needed


@pytest.mark.parametrize("connections", [2, 3, 8, 64])
def test_the_fast_path_gets_its_connections_planned_for_and_shares_them_out(connections: int) -> None:
    without = read_settings({"AUTHORIZATION": "rbac", "MLFLOW_WORKERS": "1"})
    assert without.fast_connections == 0  # MLflow alone decides then
    settings = read_settings({"FASTPATH_CONNECTIONS": str(connections), "MLFLOW_WORKERS": "1"})
    assert settings.fast_write_connections + settings.fast_read_connections == connections
    assert min(settings.fast_write_connections, settings.fast_read_connections) > 0
    mlflows = settings.max_replicas * settings.workers * settings.connections_per_worker
    assert settings.connections_needed == mlflows + connections + CONNECTIONS_RESERVED


def test_permissions_are_decided_by_the_door_alone_unless_said() -> None:
    assert not read_settings({}).rbac
    assert read_settings({"AUTHORIZATION": "rbac"}).rbac
    assert read_settings({}).default_permission == "READ"


def test_permissions_have_a_database_beside_the_records() -> None:
    assert read_settings({}).permissions_uri == "postgresql+psycopg2://mlflow@postgres/mlflow_auth"
    own = read_settings({"DATABASE_URI": "postgresql://me%40server@db:5433/my%20runs?sslmode=require"})
    assert own.permissions_uri == ("postgresql+psycopg2://me%40server@db:5433/my%20runs_auth?sslmode=require")
    assert own.permissions_owner == ("me@server", "my runs_auth")


def test_the_server_reaches_the_stacks_own_database_by_its_socket() -> None:
    own = read_server_settings({"DATABASE_URI": "postgresql://mlflow@postgres/mlflow"})
    assert own == read_server_settings({})
    assert own.database_uri == "postgresql+psycopg2://mlflow@/mlflow?host=/run/postgresql"
    assert own.permissions_uri == "postgresql+psycopg2://mlflow@/mlflow_auth?host=/run/postgresql"
    assert own.permissions_owner == ("mlflow", "mlflow_auth")
    other = {"DATABASE_URI": "postgresql://mlflow@db/mlflow"}
    assert read_server_settings(other) == read_settings(other)


def test_permissions_take_a_connection_more_for_each_thread() -> None:
    roles, rbac = read_settings({}), read_settings({"AUTHORIZATION": "rbac"})
    assert rbac.connections_per_worker - roles.connections_per_worker == rbac.threads
    assert rbac.record_connections == roles.record_connections == roles.connections_per_worker
    assert rbac.connections_needed <= rbac.max_connections  # the defaults fit


def test_the_default_permission_is_one_that_mlflow_knows() -> None:
    from mlflow.server.auth.permissions import ALL_PERMISSIONS

    assert set(PERMISSIONS) == set(ALL_PERMISSIONS) - {"DENY"}


@given(
    workers=st.integers(1, 8), threads=st.integers(1, 64), replicas=st.integers(1, 8), fast=st.integers(2, 64)
)
def test_accepted_settings_never_plan_more_connections_than_postgres_has(
    workers: int, threads: int, replicas: int, fast: int
) -> None:
    environment = {
        "FASTPATH_CONNECTIONS": str(fast),
        "MLFLOW_WORKERS": str(workers),
        "MLFLOW_THREADS": str(threads),
        "MLFLOW_MAX_REPLICAS": str(replicas),
    }
    try:
        settings = read_settings(environment)
    except RefusedError:
        return
    planned = replicas * workers * settings.connections_per_worker + fast + CONNECTIONS_RESERVED
    assert planned <= settings.max_connections


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("512", 512), ("1k", 1024), ("20G", 20 << 30), ("2gb", 2 << 30)]
)
def test_sizes_are_read_in_binary_units(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected
