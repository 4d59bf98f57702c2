"""A server that answers MLflow's client at once, with the same words each time: what the client itself costs.

Usage: .venv/bin/python benchmarks/canned.py; it prints the port that it listens on, and ends when
its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

RUN_ID = "0123456789abcdef0123456789abcdef"
_INFO = {
    "run_id": RUN_ID,
    "run_uuid": RUN_ID,
    "run_name": "selective-shark-41",
    "experiment_id": "1",
    "user_id": "trainer",
    "status": "RUNNING",
    "start_time": 1_763_800_000_000,
    "artifact_uri": f"mlflow-artifacts:/1/{RUN_ID}/artifacts",
    "lifecycle_stage": "active",
}
_RUN = {"run": {"info": _INFO, "data": {"tags": [{"key": "mlflow.runName", "value": "selective-shark-41"}]}}}
_VERSION = {
    "name": "model",
    "version": "1",
    "creation_timestamp": 1_763_800_000_000,
    "last_updated_timestamp": 1_763_800_000_000,
    "current_stage": "None",
    "source": f"mlflow-artifacts:/1/{RUN_ID}/artifacts/model",
    "run_id": RUN_ID,
    "status": "READY",
}
ANSWERS: dict[str, dict[str, Any]] = {
    "experiments/create": {"experiment_id": "1"},
    "runs/create": _RUN,
    "runs/get": _RUN,
    "runs/update": {"run_info": _INFO | {"status": "FINISHED"}},
    "runs/log-parameter": {},
    "runs/log-metric": {},
    "runs/log-batch": {},
    "runs/set-tag": {},
    "registered-models/create": {"registered_model": {"name": "model"}},
    "model-versions/create": {"model_version": _VERSION},
    "model-versions/get": {"model_version": _VERSION},
    "bench.bin": {},
    "server-info": {"store_type": "SqlStore", "workspaces_enabled": False},
}
"""What is answered, by the end of the path; anything else is a 404."""


def answer(path: str) -> bytes:
    """Return the whole answer to a request for a path."""
    route = "/".join(path.partition("?")[0].split("/")[-2:])
    found = ANSWERS.get(route, ANSWERS.get(route.rpartition("/")[2]))
    body = json.dumps(found if found is not None else {"error_code": "ENDPOINT_NOT_FOUND"}).encode()
    status = b"200 OK" if found is not None else b"404 Not Found"
    return b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


class Connection(asyncio.Protocol):
    """A kept connection: each request is read to its end and answered."""

    def __init__(self) -> None:
        self.given = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer every request that is there as a whole."""
        self.given += data
        while (end := self.given.find(b"\r\n\r\n")) >= 0:
            head = self.given[:end].decode("latin-1").split("\r\n")
            lengths = [line[15:] for line in head[1:] if line[:15].lower() == "content-length:"]
            size = end + 4 + (int(lengths[0]) if lengths else 0)
            if len(self.given) < size:
                return
            self.given = self.given[size:]
            self.transport.write(answer(head[0].split(" ")[1]))


async def serve() -> None:
    """Listen on a free port of 127.0.0.1 until the standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
