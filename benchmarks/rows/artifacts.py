"""Files of 1 KB to 2 GB, uploaded and downloaded, one after the other and 16 at once."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import uuid
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

from figures import Measure, Measured
from peers import BUCKET, Peers
from rows.row import BENCHMARKS, Bench, Options, Row, Spent

MEASURES = (Measure("MB/s", "more"), Measure("p50, ms", "less"))
KB, MB = 1000, 1_000_000
FOLDER = "0/" + "ab" * 16 + "/artifacts/bench"
"""Where a run of the experiment Default keeps its files. No server looks whether there is such a run."""


@dataclass(frozen=True)
class Step:
    """How many files of how many bytes go over each of so many connections."""

    what: str
    size: int
    count: int
    connections: int = 1


def _steps(options: Options) -> list[Any]:
    if options.quick:
        return [Step("1 KB", KB, 5), Step("16 at once of 1 MB", MB, 1, 16)]
    steps = [
        Step("1 KB", KB, 200),
        Step("1 MB", MB, 30),
        Step("10 MB", 10 * MB, 6),
        Step("100 MB", 100 * MB, 2),
        Step("16 at once of 1 MB", MB, 8, 16),
    ]
    return [*steps, Step("2 GB", 2000 * MB, 1)] if options.long else steps


def measure(bench: Bench, name: str, step: Step) -> dict[str, Measured]:
    """Upload new files and download them."""
    names = [[f"{uuid.uuid4().hex}.bin" for _ in range(step.count)] for _ in range(step.connections)]
    given = {"size": step.size, **_requests(bench.peers, name, names)}
    transfers = 2 * step.count * step.connections
    with Spent(bench.peers.groups(name, "minio")) as spent:
        done = subprocess.run(
            [sys.executable, str(BENCHMARKS / "transfers.py")],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{name}, {step.what}: {done.stderr[-1000:]}")
    moved = step.size * step.count * step.connections
    cpu_ms = spent.per_request_ms(transfers)
    return {
        f"{method.upper()} {step.what}": Measured(
            {
                "MB/s": moved / MB / found["elapsed"],
                "p50, ms": statistics.median(found["seconds"]) * 1000,
            },
            cpu_ms,  # of both directions together
        )
        for method, found in json.loads(done.stdout).items()
    }


def _requests(peers: Peers, name: str, names: list[list[str]]) -> dict[str, Any]:
    """Return the addresses to put and to get, and the headers of each request."""
    if name == "minio":
        s3 = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{peers.minio_port}",
            region_name="us-east-1",
            aws_access_key_id=peers.minio_user,
            aws_secret_access_key=peers.minio_password,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )
        calls = {"put": "put_object", "get": "get_object"}
        signed = {
            method: [
                [
                    s3.generate_presigned_url(
                        call, Params={"Bucket": BUCKET, "Key": f"artifacts/{FOLDER}/{one}"}, ExpiresIn=3600
                    )
                    for one in some
                ]
                for some in names
            ]
            for method, call in calls.items()
        }
        return {**signed, "headers": {}}
    server = peers.servers[name]
    base = f"{server.url}/api/2.0/mlflow-artifacts/artifacts/{FOLDER}"
    addresses = [[f"{base}/{one}" for one in some] for some in names]
    headers = {"Authorization": server.authorization} if server.authorization else {}
    return {"put": addresses, "get": addresses, "headers": headers}


ARTIFACTS = Row(
    name="artifacts",
    title="Files of artifacts, over kept connections",
    servers=("ours", "stock", "stockuv", "minio"),
    measures=MEASURES,
    steps=_steps,
    measure=measure,
)
