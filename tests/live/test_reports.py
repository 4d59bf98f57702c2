"""What somebody logged is no page and no script of this site; a report runs apart from it."""

from __future__ import annotations

import mlflow
import pytest
import requests

from kit.stack import Stack

PAGE = "<!doctype html><script src=part.js></script>"
FILES = {
    "report.html": PAGE,
    "picture.svg": "<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
    "page.xhtml": "<html xmlns='http://www.w3.org/1999/xhtml'/>",
    "part.js": "document.title = 'ran'",
    "part.mjs": "export default 1",
    "folder with space/100% & more.html": PAGE,
}
SCRIPT_TYPES = ("javascript", "ecmascript", "livescript")


@pytest.fixture(scope="module")
def run(stack: Stack) -> mlflow.entities.Run:
    client = mlflow.MlflowClient()
    made = client.create_run(client.create_experiment("reports"))
    for name, text in FILES.items():
        client.log_text(made.info.run_id, text, name)
    return made


@pytest.fixture(scope="module")
def model(stack: Stack, run: mlflow.entities.Run) -> mlflow.entities.LoggedModel:
    mlflow.set_experiment(experiment_id=run.info.experiment_id)
    made = mlflow.initialize_logged_model("reported")
    location = made.artifact_location.removeprefix("mlflow-artifacts:/")
    answer = stack.session().put(
        f"{stack.url}/api/2.0/mlflow-artifacts/artifacts/{location}/report.html", data=PAGE, timeout=30
    )
    answer.raise_for_status()
    return made


def policies(answer: requests.Response) -> list[str]:
    """The policies of an answer's Content-Security-Policy headers (requests joins them by a comma)."""
    return [policy.strip() for policy in answer.headers["Content-Security-Policy"].split(", ")]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("route", ["get-artifact", "mlflow-artifacts"])
def test_an_artifact_is_a_download_and_never_a_script(
    stack: Stack, run: mlflow.entities.Run, route: str, name: str
) -> None:
    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    if route == "get-artifact":
        answer = stack.get("/get-artifact", params={"run_uuid": run_id, "path": name})
    else:
        path = requests.utils.quote(f"{experiment_id}/{run_id}/artifacts/{name}")
        answer = stack.get(f"/api/2.0/mlflow-artifacts/artifacts/{path}")
    assert (answer.status_code, answer.text) == (200, FILES[name])
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not [kind for kind in SCRIPT_TYPES if kind in answer.headers["Content-Type"]]
    assert "sandbox" in policies(answer)


@pytest.mark.parametrize("name", FILES)
def test_a_report_is_shown_apart_from_the_site(stack: Stack, run: mlflow.entities.Run, name: str) -> None:
    answer = stack.get(f"/view/runs/{run.info.run_id}/{requests.utils.quote(name)}")
    assert (answer.status_code, answer.text) == (200, FILES[name])
    assert "Content-Disposition" not in answer.headers
    (policy,) = policies(answer)
    assert policy.startswith("sandbox allow-scripts ")
    assert "allow-same-origin" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_models_report_is_shown_too(stack: Stack, model: mlflow.entities.LoggedModel) -> None:
    answer = stack.get(f"/view/models/{model.model_id}/report.html")
    assert (answer.status_code, answer.text) == (200, PAGE)
    assert policies(answer)[0].startswith("sandbox allow-scripts ")


@pytest.mark.parametrize("path", ["missing.html", "..%2f..%2fx", "%2e%2e/x", "a%00b"])
def test_what_is_not_there_is_refused(stack: Stack, run: mlflow.entities.Run, path: str) -> None:
    answer = stack.get(f"/view/runs/{run.info.run_id}/{path}")
    assert answer.status_code in {400, 404}
    assert stack.get(f"/view/{path}").status_code in {400, 404}


def test_strangers_see_no_report(stack: Stack, run: mlflow.entities.Run) -> None:
    assert requests.get(f"{stack.url}/view/runs/{run.info.run_id}/report.html", timeout=30).status_code == 401
