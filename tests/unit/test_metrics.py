"""Route families: few, and never an id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackserver.metrics import route_family


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("/", "ui"),
        ("/api/2.0/mlflow/runs/create", "runs"),
        ("/ajax-api/2.0/mlflow/runs/search", "runs"),
        ("/api/3.0/mlflow/traces/tr-123", "traces"),
        ("/api/2.0/mlflow-artifacts/artifacts/1/abc/artifacts/x.bin", "mlflow-artifacts"),
        ("/v1/traces", "v1"),
        ("/graphql", "graphql"),
        ("/get-artifact", "get-artifact"),
        ("/something/else", "other"),
    ],
)
def test_a_path_belongs_to_its_family(path: str, family: str) -> None:
    assert route_family(path) == family


@given(st.from_regex(r"/api/2\.0/mlflow/[0-9a-f]{32}(/.*)?", fullmatch=True))
def test_an_id_never_becomes_a_family(path: str) -> None:
    assert route_family(path) == "other"
