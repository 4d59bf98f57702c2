"""What the pages show: a small study of scikit-learn's digits, logged through the stack."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param, RunTag
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from sklearn.model_selection import train_test_split

EXPERIMENT = "digits classifier"
TRACED_EXPERIMENT = "digits explainer"
MODEL = "digits-classifier"
ALIAS = "champion"
PROMPT = "explain-digit"
PROMPT_TEXT = "Explain in one sentence why this picture shows a {{digit}}."
LEARNING_RATES = {"crawling": 3e-4, "slow": 1e-3, "steady": 1e-2, "quick": 1e-1, "hasty": 3.0}
COLORS = {
    "crawling": "#e7298a",
    "slow": "#d95f02",
    "steady": "#7570b3",
    "quick": "#1b9e77",
    "hasty": "#a6761d",
}
BEST = "quick"
EPOCHS = 30
CSV = "digit,support,recall\nseven,41,0.976\n"
HTML = "<!doctype html><title>Report</title><h1>Report on the digits</h1><p>No surprises.</p>\n"
SCRIPTED_HTML = (
    "<!doctype html><title>Scripted</title><p id='said'>nothing ran</p>"
    "<script>document.getElementById('said').textContent = 'a script ran'</script>\n"
)
REPORT = """<!doctype html><title>Interactive</title><p id='said'>nothing ran</p><p id='asked'></p>
<script>
  document.title = 'a script ran';
  const say = (where, text) => { document.getElementById(where).textContent = text; };
  say('said', document.title + ' at ' + window.origin);
  fetch('/version').then(() => say('asked', 'reached the server'), () => say('asked', 'reached nothing'));
</script>
"""
TEXT = "The ninth digit is the hard one.\n"


@dataclass(frozen=True)
class Seeds:
    """Ids and bytes of what was logged."""

    experiment_id: str
    runs: dict[str, str]
    image: bytes
    model_id: str
    traced_experiment_id: str
    trace_id: str

    @property
    def best_run(self) -> str:
        """The id of the run that has the artifacts and the model."""
        return self.runs[BEST]


def log_seeds(client: mlflow.MlflowClient, folder: Path) -> Seeds:
    """Log everything once. `folder` is an empty one for files on their way."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.3, random_state=0)

    experiment_id = client.create_experiment(EXPERIMENT)
    runs, models = {}, {}
    for name in LEARNING_RATES:
        runs[name], models[name] = _train(client, experiment_id, name, parts)

    image = _confusion_image(parts[3], models[BEST].predict(parts[1]))
    _log_files(client, runs[BEST], folder, image)
    mlflow.set_experiment(experiment_id=experiment_id)
    with mlflow.start_run(run_id=runs[BEST]):
        logged = mlflow.sklearn.log_model(
            models[BEST],
            name="classifier",
            registered_model_name=MODEL,
            step=EPOCHS - 1,
            pip_requirements=["scikit-learn"],
        )
    client.set_registered_model_alias(MODEL, ALIAS, "1")

    traced_experiment_id = client.create_experiment(TRACED_EXPERIMENT)
    mlflow.set_experiment(experiment_id=traced_experiment_id)
    trace_id = _trace()
    mlflow.genai.register_prompt(name=PROMPT, template=PROMPT_TEXT, commit_message="First wording")
    return Seeds(experiment_id, runs, image, logged.model_id, traced_experiment_id, trace_id)


def _train(
    client: mlflow.MlflowClient, experiment_id: str, name: str, parts: list
) -> tuple[str, SGDClassifier]:
    """Train one model and log its history; return the run's id and the model."""
    train_images, test_images, train_labels, test_labels = parts
    rate = LEARNING_RATES[name]
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=rate, random_state=0)
    run_id = client.create_run(experiment_id, run_name=name).info.run_id
    metrics = []
    for epoch in range(EPOCHS):
        model.partial_fit(train_images, train_labels, classes=range(10))
        for metric, value in (
            ("train_loss", log_loss(train_labels, model.predict_proba(train_images))),
            ("test_loss", log_loss(test_labels, model.predict_proba(test_images))),
            ("test_accuracy", accuracy_score(test_labels, model.predict(test_images))),
        ):
            metrics.append(Metric(metric, float(value), timestamp=int(time.time() * 1000), step=epoch))
    client.log_batch(
        run_id,
        metrics=metrics,
        params=[Param("learning_rate", str(rate)), Param("epochs", str(EPOCHS)), Param("loss", "log_loss")],
        tags=[RunTag("stage", "candidate"), RunTag("mlflow.runColor", COLORS[name])],
    )
    client.set_terminated(run_id)
    return run_id, model


def _confusion_image(truth: list[int], predicted: list[int]) -> bytes:
    """Return a PNG of the confusion matrix."""
    figure = Figure(figsize=(4, 4))
    axes = figure.subplots()
    axes.imshow(confusion_matrix(truth, predicted), cmap="Blues")
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _log_files(client: mlflow.MlflowClient, run_id: str, folder: Path, image: bytes) -> None:
    (folder / "confusion.png").write_bytes(image)
    (folder / "recall.csv").write_text(CSV)
    (folder / "report.html").write_text(HTML)
    (folder / "scripted.html").write_text(SCRIPTED_HTML)
    (folder / "interactive.html").write_text(REPORT)
    (folder / "notes.txt").write_text(TEXT)
    client.log_artifacts(run_id, str(folder), "evaluation")


def _trace() -> str:
    """Log a trace of three spans to the active experiment; return its id."""

    @mlflow.trace(name="look at the picture", span_type="TOOL")
    def look(picture: str) -> str:
        return f"{picture}: a bar on top and a slanted stroke"

    @mlflow.trace(name="find the digit", span_type="CHAIN")
    def find(features: str) -> int:
        return 7

    @mlflow.trace(name="explain a digit", span_type="AGENT")
    def explain(question: str) -> str:
        digit = find(look("picture 41"))
        return f"It is a {digit}: a bar and a slanted stroke."

    explain("Which digit is in picture 41?")
    mlflow.flush_trace_async_logging()
    return mlflow.get_last_active_trace_id()
