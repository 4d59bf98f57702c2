"""Write down how many of the random requests to each route plain MLflow answers 500: errors.json.

Usage: .venv/bin/python tests/data/stock/make.py

Starts `mlflow server` with a PostgreSQL of its own, no layer of this stack and no door, sends it the
same requests as tests/security/test_rest_schema.py, and stops it; once for each number of requests.
To be run again when MLflow, hypothesis or schemathesis get another version.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pgserver
import requests

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kit import fuzz, rest_schema
from kit.stack import free_port, poll

OUT = Path(__file__).with_name("errors.json")
SETTINGS = {
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
}
"""As in mlflow/src/stackserver/serve.py."""


def errors_of_plain_mlflow(examples: int) -> dict[str, int]:
    """Return how many requests each route answered 500."""
    with tempfile.TemporaryDirectory() as folder:
        database = pgserver.get_server(Path(folder) / "database")
        port = free_port()
        uri = f"postgresql+psycopg2://postgres@/postgres?host={folder}/database"
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *(
                    "--backend-store-uri",
                    uri,
                    "--artifacts-destination",
                    f"{folder}/artifacts",
                    "--workers",
                    "2",
                ),
            ],
            env={**os.environ, **SETTINGS},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            poll(
                lambda: requests.get(f"{url}/version", timeout=5).ok,
                seconds=120,
                what="mlflow server answers",
            )
            found = fuzz.server_errors(rest_schema.document(), url, requests.Session(), examples)
        finally:
            server.terminate()
            server.wait()
            database.cleanup()
    return {name: len(said) for name, said in found.items()}


def main() -> None:
    found = {str(examples): errors_of_plain_mlflow(examples) for examples in fuzz.EXAMPLES}
    OUT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    for examples, routes in found.items():
        print(f"{len(routes)} routes of plain MLflow answer 500 to one of {examples} requests each")


if __name__ == "__main__":
    main()
