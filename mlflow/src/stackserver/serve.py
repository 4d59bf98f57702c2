"""Start the tracking server: give MLflow its settings, then become gunicorn.

MLflow reads underscore variables that `mlflow server` would set (server/__init__.py of
3.17.2); they are internal, so the version is pinned and the live tests cover each effect.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

from stackserver.errors import RefusedError, exit_refused
from stackserver.settings import Settings, read_server_settings

SECRETS = Path("/secrets/mlflow")
TMP_ROOT = Path("/var/tmp/mlflow")
STALE_TMP_SECONDS = 86_400
PROMETHEUS_FOLDER = Path("/tmp/prometheus")
AUTH_SETTINGS = Path("/tmp/mlflow-auth.ini")
POOL_KEPT = 8
"""Connections that a pool keeps open; more are closed when they are given back."""


def mlflow_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables through which MLflow gets the stack's settings."""
    pool_kept = min(POOL_KEPT, settings.record_connections)
    return {
        "_MLFLOW_SERVER_FILE_STORE": settings.database_uri,
        "_MLFLOW_SERVER_REGISTRY_STORE": settings.database_uri,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": settings.artifact_destination,
        "MLFLOW_SERVER_ALLOWED_HOSTS": "*",  # nginx owns the check of Host
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nothing here would run the jobs
        "MLFLOW_ENABLE_AI_GATEWAY": _flag(settings.gateway),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(pool_kept),
        "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": str(settings.record_connections - pool_kept),
        "MLFLOW_SQLALCHEMYSTORE_POOL_RECYCLE": "3600",
    }


def auth_environment() -> dict[str, str]:
    """Return the variables of MLflow's auth app: it protects FastAPI's routes too, and makes no admin."""
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(AUTH_SETTINGS),
        "_MLFLOW_SGI_NAME": "uvicorn",
        "_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED": "true",
    }


def auth_settings(settings: Settings) -> str:
    """Return the settings file of MLflow's auth app (mlflow/server/auth/config.py)."""
    database_uri = settings.permissions_uri.replace("%", "%%")  # configparser's own sign
    return (
        "[mlflow]\n"
        f"database_uri = {database_uri}\n"
        f"default_permission = {settings.default_permission}\n"
        "authorization_function = stackserver.identity:authenticate\n"
    )


def _flag(value: bool) -> str:
    return "true" if value else "false"


def clear_tmp(root: Path, replica: str, now: float) -> Path:
    """Return this replica's empty temporary folder; drop folders of replicas long gone."""
    for folder in root.iterdir():
        if folder.name == replica or now - folder.stat().st_mtime > STALE_TMP_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
    own = root / replica
    own.mkdir(mode=0o700, exist_ok=True)
    return own


def gunicorn_arguments(settings: Settings) -> list[str]:
    """Return gunicorn's command line.

    The worker class keeps MLflow's FastAPI routes and streams uploads; preloading shares
    the workers' memory. No recycling by --max-requests: it would cut long transfers.
    """
    return [
        "gunicorn",
        "--worker-class=stackserver.worker.StackWorker",
        f"--workers={settings.workers}",
        "--bind=0.0.0.0:5000",
        "--preload",
        "--no-control-socket",
        "--worker-tmp-dir=/dev/shm",
        "--timeout=120",
        "--graceful-timeout=120",
        "--backlog=1024",
        "--log-level=warning",
        "stackserver.app:app",
    ]


def main() -> None:
    """Replace this process by gunicorn, or exit with 78 and say what mends it."""
    try:
        settings = read_server_settings()
    except RefusedError as refusal:
        exit_refused(refusal)
    os.environ.update(mlflow_environment(settings))
    os.environ["TMPDIR"] = str(clear_tmp(TMP_ROOT, socket.gethostname(), time.time()))
    shutil.rmtree(PROMETHEUS_FOLDER, ignore_errors=True)
    PROMETHEUS_FOLDER.mkdir(parents=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(PROMETHEUS_FOLDER)
    # MLflow takes these two from the environment only.
    os.environ["MLFLOW_CRYPTO_KEK_PASSPHRASE"] = (SECRETS / "kek_passphrase").read_text()
    os.environ["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"] = (SECRETS / "webhook_key").read_text()
    if settings.rbac:
        AUTH_SETTINGS.write_text(auth_settings(settings))
        os.environ.update(auth_environment())
        os.environ["MLFLOW_FLASK_SERVER_SECRET_KEY"] = (SECRETS / "flask_key").read_text()
    arguments = gunicorn_arguments(settings)
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main()
