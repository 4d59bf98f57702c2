"""The restore drill: the newest set, restored inside this container, compared and used.

Nothing of the running stack is touched: a cluster in the backup volume on a socket of its
own, MLflow's server on a loopback port, artifacts from a tree of hard links.
"""

from __future__ import annotations

import os
import shutil
import socket as sockets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stackops import cluster, objects, postgres, restore, sets
from stackops.errors import FailedError
from stackops.settings import Settings

SERVER_TIMEOUT_SECONDS = 120
MODELS_LOADED = 5
MOST_EXPERIMENTS = 50_000  # of one answer by MLflow


def run(settings: Settings, set_id: str | None = None) -> dict[str, Any]:
    """Restore a set (the newest one), compare and use it, and return what was found.

    Raise FailedError with a line per problem: a table that differs, an object that the
    database names and that is missing, a page with a wrong checksum, a model that does not
    load.
    """
    started = time.time()
    manifest = sets.choose(settings, set_id, None)
    work = settings.backups / "drill"
    shutil.rmtree(work, ignore_errors=True)
    try:
        facts, problems = _restore_and_use(settings, manifest, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    facts["set"] = manifest.id
    facts["age_seconds"] = round((datetime.now(UTC) - manifest.moment).total_seconds())
    facts["seconds"] = round(time.time() - started, 1)
    if problems:
        raise DrillError(manifest.id, problems, facts)
    return facts


class DrillError(FailedError):
    """The drill found problems; `facts` are kept with the result."""

    def __init__(self, set_id: str, problems: list[str], facts: dict[str, Any]) -> None:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        super().__init__(
            f"the restore drill of {set_id} found:\n" + "\n".join(shown), "docs/backup.md, when a drill fails"
        )
        self.facts = facts


def _restore_and_use(
    settings: Settings, manifest: sets.Manifest, work: Path
) -> tuple[dict[str, Any], list[str]]:
    folder = work / "17"
    cluster.lay_out(settings, manifest, folder, restore.target_of(settings, manifest, manifest.id, None))
    objects.lay_out(settings, manifest.objects_moment, work / "objects")
    expected = objects.read_inventory(sets.folder(settings, manifest.id) / sets.INVENTORY)
    problems = [
        f"object {key}: missing or of another size in the backup"
        for key, stored in expected.items()
        if not (work / "objects" / key).is_file() or (work / "objects" / key).stat().st_size != stored.bytes
    ]
    with cluster.running(settings, folder) as socket:
        with closing(cluster.connect(socket)) as connection:
            tables = postgres.digests(connection)
            problems += postgres.compare_digests(manifest.reference["tables"], tables)
            missing = restore.damage(connection, set(expected), objects.PREFIX)
            aliases = _aliases(connection)
            experiments = _experiments(connection)
        problems += missing
        with _server(socket, work / "objects" / objects.PREFIX) as url:
            loaded = [_load(url, name, alias, problems) for name, alias in aliases[:MODELS_LOADED]]
            _answers(url, experiments, problems)
    cluster.check_pages(folder)
    facts = {
        "tables": len(tables),
        "rows": sum(table["rows"] for table in tables.values()),
        "objects": len(expected),
        "missing_objects": len(missing),
        "models_loaded": sum(loaded),
    }
    return facts, problems


def _aliases(connection: Any) -> list[tuple[str, str]]:
    """Return (registered model, alias) of models, not of prompts."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, alias FROM registered_model_aliases AS a"
            " WHERE NOT EXISTS (SELECT 1 FROM registered_model_tags AS tag"
            "  WHERE tag.name = a.name AND tag.key = 'mlflow.prompt.is_prompt') ORDER BY 1, 2"
        )
        return cursor.fetchall()


def _experiments(connection: Any) -> int:
    """Return how many experiments MLflow's server shows: it makes the one of id 0 where that is missing.

    In the set of a stack that nobody has used yet it is.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FILTER (WHERE experiment_id <> 0) + 1 FROM experiments")
        return cursor.fetchone()[0]


@contextmanager
def _server(socket: Path, artifacts: Path) -> Iterator[str]:
    """Run MLflow's own server on the restored data; yield its address."""
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = socket / "mlflow.log"
    artifacts.mkdir(parents=True, exist_ok=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server"),
                *("--backend-store-uri", f"postgresql+psycopg2://mlflow@/mlflow?host={socket}"),
                *("--artifacts-destination", artifacts.as_uri()),
                *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            ],
            stdout=file,
            stderr=file,
            env={**environment, "MLFLOW_DISABLE_TELEMETRY": "true", "HOME": str(socket)},
            cwd=socket,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process, log)
        yield url
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SERVER_TIMEOUT_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310  our own loopback address
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
                raise FailedError(
                    f"MLflow does not start on the restored data: {error}; " + "; ".join(said),
                    "docs/backup.md, when a drill fails",
                ) from error
            time.sleep(0.2)


def _load(url: str, name: str, alias: str, problems: list[str]) -> bool:
    """Load a registered model by alias as a client would: every file arrives, MLmodel describes it."""
    import mlflow

    mlflow.set_tracking_uri(url)
    mlflow.set_registry_uri(url)
    try:
        folder = mlflow.artifacts.download_artifacts(f"models:/{name}@{alias}")
        mlflow.models.Model.load(folder)
        shutil.rmtree(folder, ignore_errors=True)
    except Exception as error:  # noqa: BLE001  whatever it is, it is the result
        problems.append(f"model {name}@{alias} does not load: {error}")
        return False
    return True


def _answers(url: str, expected: int, problems: list[str]) -> None:
    """The server must show every experiment."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    client = MlflowClient(tracking_uri=url, registry_uri=url)
    experiments = client.search_experiments(view_type=ViewType.ALL, max_results=MOST_EXPERIMENTS)
    if len(experiments) != min(expected, MOST_EXPERIMENTS):
        problems.append(f"the server shows {len(experiments)} experiments of {expected}")
