"""Models: logged, registered, aliased, staged, loaded by every address, searched, deleted."""

from __future__ import annotations

import uuid
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.models.model import ModelInfo
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB

from kit.stack import Stack

pytestmark = pytest.mark.usefixtures("experiment_id")


class Doubler(mlflow.pyfunc.PythonModel):
    """A model of the user's own, with a file beside it."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        self.plus = float(Path(context.artifacts["plus"]).read_text())

    def predict(self, context: object, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        return model_input * 2 + self.plus


@pytest.fixture(scope="module")
def wine() -> tuple[pd.DataFrame, pd.DataFrame, pd.Series, pd.Series]:
    """Train and test part of scikit-learn's wine data."""
    features, cultivars = load_wine(return_X_y=True, as_frame=True)
    return train_test_split(features, cultivars, random_state=0, stratify=cultivars)


@pytest.fixture
def name() -> str:
    """The name of a registered model of the test's own."""
    return f"Wein-Modell {uuid.uuid4().hex[:8]}"


def log_small_model(smoothing: float = 1, **keywords: object) -> ModelInfo:
    """Log a classifier that is fitted in no time; `smoothing` tells one from another."""
    model = GaussianNB(var_smoothing=smoothing).fit(pd.DataFrame({"x": [-1.0, 0.5, 2.0]}), [0, 0, 1])
    return mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"], **keywords)


def smoothing_of(uri: str) -> float:
    """Return the `smoothing` of the model that an address leads to."""
    return mlflow.sklearn.load_model(uri).var_smoothing


def test_a_sklearn_model_predicts_the_same_from_every_address(
    client: mlflow.MlflowClient, wine: tuple, name: str
) -> None:
    train, test, train_labels, _ = wine
    model = GaussianNB().fit(train, train_labels)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            model, name="model", registered_model_name=name, pip_requirements=["scikit-learn"]
        )
    client.set_registered_model_alias(name, "champion", "1")
    expected = model.predict(test)
    for uri in [
        info.model_uri,
        f"runs:/{info.run_id}/model",
        f"models:/{name}/1",
        f"models:/{name}@champion",
        f"models:/{name}/latest",
    ]:
        assert np.array_equal(mlflow.sklearn.load_model(uri).predict(test), expected), uri
        assert np.array_equal(mlflow.pyfunc.load_model(uri).predict(test), expected), uri
    assert info.model_uri == f"models:/{info.model_id}"
    assert client.get_model_version(name, "1").run_id == info.run_id


def test_a_pyfunc_model_comes_back_with_its_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "plus.txt").write_text("0.5")
    info = mlflow.pyfunc.log_model(
        name="doubler",
        python_model=Doubler(),
        artifacts={"plus": str(tmp_path / "plus.txt")},
        registered_model_name=name,
        pip_requirements=["pandas"],
    )
    inputs = pd.DataFrame({"x": [1.0, -2.0]})
    for uri in [info.model_uri, f"models:/{name}/1"]:
        assert mlflow.pyfunc.load_model(uri).predict(inputs)["x"].tolist() == [2.5, -3.5]


def test_signature_and_input_example_are_kept_and_enforced(name: str) -> None:
    inputs = pd.DataFrame({"x": [-1.0, 0.5, 2.0], "y": [1.0, 2.0, 3.0]})
    model = GaussianNB().fit(inputs, [0, 0, 1])
    signature = infer_signature(inputs, model.predict(inputs))
    mlflow.sklearn.log_model(
        model,
        name="model",
        signature=signature,
        input_example=inputs[:2],
        registered_model_name=name,
        pip_requirements=["scikit-learn"],
    )
    loaded = mlflow.pyfunc.load_model(f"models:/{name}/1")
    assert loaded.metadata.signature == signature
    assert loaded.input_example.equals(inputs[:2])
    assert loaded.predict(inputs).tolist() == model.predict(inputs).tolist()
    with pytest.raises(MlflowException, match="missing inputs"):
        loaded.predict(inputs[["x"]])


def test_versions_count_up_and_an_alias_points_where_it_was_set_last(
    client: mlflow.MlflowClient, name: str
) -> None:
    models = [log_small_model(smoothing, registered_model_name=name) for smoothing in (1, 2, 3)]
    assert {version.version for version in client.search_model_versions(f"name = '{name}'")} == {
        "1",
        "2",
        "3",
    }
    client.set_registered_model_alias(name, "champion", "2")
    client.set_registered_model_alias(name, "champion", "3")
    client.set_registered_model_alias(name, "challenger", "1")
    assert client.get_registered_model(name).aliases == {"champion": "3", "challenger": "1"}
    by_alias = client.get_model_version_by_alias(name, "champion")
    assert (by_alias.version, by_alias.source) == ("3", models[2].model_uri)
    assert smoothing_of(f"models:/{name}@champion") == 3

    client.delete_registered_model_alias(name, "champion")
    with pytest.raises(MlflowException, match="champion"):
        client.get_model_version_by_alias(name, "champion")


def test_a_version_that_goes_to_production_archives_the_one_before(
    client: mlflow.MlflowClient, name: str
) -> None:
    for smoothing in (1, 2, 3):
        log_small_model(smoothing, registered_model_name=name)
    client.transition_model_version_stage(name, "1", "Production")
    client.transition_model_version_stage(name, "3", "Staging")
    client.transition_model_version_stage(name, "2", "Production", archive_existing_versions=True)
    stages = {
        version.version: version.current_stage for version in client.search_model_versions(f"name = '{name}'")
    }
    assert stages == {"1": "Archived", "2": "Production", "3": "Staging"}
    assert smoothing_of(f"models:/{name}/Production") == 2
    with pytest.raises(MlflowException) as refusal:
        client.transition_model_version_stage(name, "2", "Cellar")
    assert refusal.value.error_code == "INVALID_PARAMETER_VALUE"


def test_tags_and_descriptions_of_models_and_versions_are_kept(
    client: mlflow.MlflowClient, name: str
) -> None:
    log_small_model(registered_model_name=name)
    client.update_registered_model(name, description="Erkennt Weine – v1")
    client.set_registered_model_tag(name, "team", "Keller")
    client.update_model_version(name, "1", description="first try")
    client.set_model_version_tag(name, "1", "validated", "no")
    client.set_model_version_tag(name, "1", "validated", "yes")
    client.set_model_version_tag(name, "1", "gone", "soon")
    client.delete_model_version_tag(name, "1", "gone")
    model, version = client.get_registered_model(name), client.get_model_version(name, "1")
    assert (model.description, model.tags) == ("Erkennt Weine – v1", {"team": "Keller"})
    assert (version.description, version.tags) == ("first try", {"validated": "yes"})


def test_a_run_s_model_can_be_registered_later(client: mlflow.MlflowClient, name: str) -> None:
    with mlflow.start_run():
        info = log_small_model(4)
    version = mlflow.register_model(f"runs:/{info.run_id}/model", name)
    assert (version.version, version.run_id, version.status) == ("1", info.run_id, "READY")
    assert smoothing_of(f"models:/{name}/1") == 4


def test_a_deleted_version_is_gone_and_the_next_number_is_new(client: mlflow.MlflowClient, name: str) -> None:
    models = [log_small_model(smoothing, registered_model_name=name) for smoothing in (1, 2)]
    client.delete_model_version(name, "1")
    with pytest.raises(MlflowException) as missing:
        client.get_model_version(name, "1")
    assert missing.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    with pytest.raises(MlflowException):
        mlflow.sklearn.load_model(f"models:/{name}/1")
    assert smoothing_of(f"models:/{name}/2") == 2
    assert mlflow.register_model(models[0].model_uri, name).version == "3"


def test_a_registered_model_is_renamed_and_deleted(client: mlflow.MlflowClient, name: str) -> None:
    log_small_model(registered_model_name=name)
    client.rename_registered_model(name, f"{name} neu")
    assert smoothing_of(f"models:/{name} neu/1") == 1
    client.delete_registered_model(f"{name} neu")
    assert client.search_registered_models(f"name LIKE '{name}%'") == []
    assert client.search_model_versions(f"name = '{name} neu'") == []


def test_registered_models_and_versions_are_found(client: mlflow.MlflowClient, name: str) -> None:
    with mlflow.start_run():
        info = log_small_model()
    names = [f"{name} {letter}" for letter in "abc"]
    for each in names:
        mlflow.register_model(info.model_uri, each, tags={"grape": each[-1]})
    client.set_registered_model_tag(names[1], "team", "red")

    def found(filter_string: str, **keywords: object) -> list[str]:
        return [model.name for model in client.search_registered_models(filter_string, **keywords)]

    assert found(f"name LIKE '{name}%'", order_by=["name DESC"]) == names[::-1]
    assert found(f"name ILIKE '{name.upper()}%' and tags.team = 'red'") == [names[1]]
    first = client.search_registered_models(f"name LIKE '{name}%'", max_results=2)
    second = client.search_registered_models(f"name LIKE '{name}%'", max_results=2, page_token=first.token)
    assert [model.name for model in [*first, *second]] == names
    versions = client.search_model_versions(f"run_id = '{info.run_id}' and tags.grape = 'c'")
    assert [(version.name, version.version) for version in versions] == [(names[2], "1")]


def test_logged_models_are_found_by_metric_param_and_name(
    client: mlflow.MlflowClient, experiment_id: str
) -> None:
    ids = {}
    for depth, accuracy in [(2, 0.6), (4, 0.9), (8, 0.8)]:
        with mlflow.start_run():
            info = log_small_model(params={"depth": depth}, tags={"parity": "even"})
            mlflow.log_metric("accuracy", accuracy, model_id=info.model_id)
            ids[depth] = info.model_id

    def found(filter_string: str, **keywords: object) -> list[str]:
        models = mlflow.search_logged_models([experiment_id], filter_string, output_format="list", **keywords)
        return [model.model_id for model in models]

    best_first = [{"field_name": "metrics.accuracy", "ascending": False}]
    assert found("metrics.accuracy > 0.7", order_by=best_first) == [ids[4], ids[8]]
    assert found("params.depth = '2'") == [ids[2]]
    assert set(found("name = 'model' and tags.parity = 'even'")) == set(ids.values())
    client.delete_logged_model(ids[2])
    assert set(found("name = 'model'")) == {ids[4], ids[8]}


def test_an_unknown_model_is_mlflows_own_404(stack: Stack, name: str) -> None:
    answer = stack.get("/api/2.0/mlflow/registered-models/get", params={"name": name})
    assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


@pytest.fixture
def autolog() -> object:
    """scikit-learn's autologging, switched off again afterwards."""
    mlflow.sklearn.autolog(silent=True)
    yield
    mlflow.sklearn.autolog(disable=True)


def test_the_best_of_five_autologged_fits_replaces_the_model_in_production(
    client: mlflow.MlflowClient, experiment_id: str, wine: tuple, name: str, autolog: object
) -> None:
    train, test, train_labels, test_labels = wine
    client.create_registered_model(name)
    for smoothing in [1e-9, 1e-6, 1e-3, 1e-1, 10.0]:
        with mlflow.start_run(run_name=f"smoothing {smoothing}"):
            model = GaussianNB(var_smoothing=smoothing).fit(train, train_labels)
            mlflow.log_metric("test_accuracy", model.score(test, test_labels))

    runs = client.search_runs([experiment_id], order_by=["metrics.test_accuracy DESC"])
    assert {run.data.params["var_smoothing"] for run in runs} == {"1e-09", "1e-06", "0.001", "0.1", "10.0"}
    assert len(runs) == 5
    for run in runs:
        assert {"training_score", "training_accuracy_score", "training_log_loss"} <= set(run.data.metrics)
        assert "estimator.html" in [file.path for file in client.list_artifacts(run.info.run_id)]
    best, worst = runs[0], runs[-1]
    assert best.data.metrics["test_accuracy"] > worst.data.metrics["test_accuracy"]

    old = mlflow.register_model(f"runs:/{worst.info.run_id}/model", name)
    client.transition_model_version_stage(name, old.version, "Production")
    new = mlflow.register_model(f"runs:/{best.info.run_id}/model", name)
    client.transition_model_version_stage(name, new.version, "Production", archive_existing_versions=True)
    client.set_registered_model_alias(name, "champion", new.version)

    assert client.get_model_version(name, old.version).current_stage == "Archived"
    champion = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    accuracy = float(np.mean(champion.predict(test) == test_labels))
    assert accuracy == pytest.approx(best.data.metrics["test_accuracy"])
    assert champion.metadata.signature is not None
    assert champion.metadata.run_id == best.info.run_id
