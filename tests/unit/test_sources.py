"""Model versions whose source is in a run: MLflow's verdict, without reading all of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from mlflow.server import app, handlers
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from kit.mlflow_tables import mlflow_tables
from stackserver.sources import read_less_of_source_runs

API = "/api/2.0/mlflow"


@pytest.fixture(scope="module")
def stores() -> Iterator[tuple[SqlAlchemyStore, RegistryStore]]:
    with mlflow_tables() as address:
        uri = address.replace("postgresql://", "postgresql+psycopg2://")
        yield SqlAlchemyStore(uri, "mlflow-artifacts:/"), RegistryStore(uri)


@pytest.fixture
def run(stores: tuple[SqlAlchemyStore, RegistryStore], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run, behind MLflow's own handlers and the registered model `m`."""
    tracking, registry = stores
    monkeypatch.setattr(handlers, "_get_tracking_store", lambda *_: tracking)
    monkeypatch.setattr(handlers, "_get_model_registry_store", lambda *_: registry)
    monkeypatch.setattr(handlers, "_get_source_run", handlers._get_source_run)  # put back at the end
    if not registry.search_registered_models():
        registry.create_registered_model("m")
    return tracking.create_run("0", "u", 1, [], "r").info


def version_of(source: str, run_id: str) -> tuple[int, Any]:
    body = {"name": "m", "source": source, "run_id": run_id}
    answer = app.test_client().post(f"{API}/model-versions/create", json=body)
    return answer.status_code, answer.get_json()


def test_only_the_runs_row_is_read(stores: tuple[SqlAlchemyStore, RegistryStore], run: Any) -> None:
    read_less_of_source_runs()
    asked: list[str] = []
    sqlalchemy.event.listen(stores[0].engine, "before_cursor_execute", lambda *words: asked.append(words[2]))
    status, answer = version_of(f"{run.artifact_uri}/model", run.run_id)
    assert (status, answer["model_version"]["run_id"]) == (200, run.run_id)
    assert sum("FROM runs" in each for each in asked) == 1
    assert not any(table in each for each in asked for table in ("latest_metrics", "inputs", "params"))


@pytest.mark.parametrize(
    ("source", "run_id"),
    [
        ("{folder}/model", "0" * 32),
        ("{folder}x/model", "{run_id}"),
        ("mlflow-artifacts:/0/other/artifacts/model", "{run_id}"),
        ("{folder}/../../model", "{run_id}"),
    ],
    ids=["no such run", "a folder beside it", "another run's", "a way out"],
)
def test_verdicts_are_mlflows(run: Any, source: str, run_id: str) -> None:
    given = [text.format(folder=run.artifact_uri, run_id=run.run_id) for text in (source, run_id)]
    theirs = version_of(*given)
    assert theirs[0] == 400
    read_less_of_source_runs()
    assert version_of(*given) == theirs
