"""Artifact bytes through nginx against MinIO itself, against nginx and MLflow, and against stock MLflow.

Usage: .venv/bin/python benchmarks/artifacts.py [--rounds 5] [--large 100]

Works on a throwaway project. The client, a second nginx (ARTIFACT_BYTES=mlflow) and stock `mlflow server`
(SQLite, two workers, the same bucket, temporary files in memory) run in containers of the stack's
images on its networks. Every round goes all ways for each size, in another order each time; an
upload is of a new name, a download of what the same way has uploaded. MinIO itself gets presigned
requests. A time is that of a whole request over a connection that stays open.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from common import parser, throwaway
from kit.door import container, docker, door, image_of, stack_networks
from kit.people import add, bearer
from kit.stack import Stack, poll

KB, MB = 1000, 1_000_000
PARALLEL = 16
WAYS = ("MinIO", "nginx", "nginx and MLflow", "stock MLflow")
CREDENTIALS = "--env=AWS_SHARED_CREDENTIALS_FILE=/secrets/mlflow/aws_credentials"
REGION = "--env=AWS_DEFAULT_REGION=us-east-1"

CLIENT = r"""
import concurrent.futures, hashlib, http.client, json, os, statistics, sys, time, urllib.parse, uuid
import boto3

given = json.load(sys.stdin)
s3 = boto3.client("s3", endpoint_url="http://minio:9000")
folder = "7/" + "ab" * 16 + "/artifacts"
connections = {}

def target(way, method, name):
    if way == "MinIO":
        call = {"GET": "get_object", "PUT": "put_object"}[method]
        parameters = {"Bucket": "mlflow", "Key": f"artifacts/{folder}/{name}"}
        url = s3.generate_presigned_url(call, Params=parameters)
        parts = urllib.parse.urlsplit(url)
        return parts.netloc, f"{parts.path}?{parts.query}", {}
    place = given["places"][way]
    path = f"/api/2.0/mlflow-artifacts/artifacts/{folder}/{name}"
    return place["host"], path, place["headers"]

def ask(way, method, name, body=None, slot=0):
    host, path, headers = target(way, method, name)
    started = time.perf_counter()
    connection = connections.get((way, slot)) or http.client.HTTPConnection(host, timeout=600)
    connections[way, slot] = connection
    connection.request(method, path, body=body, headers=headers)
    answer = connection.getresponse()
    size = 0
    while part := answer.read(1 << 20):
        size += len(part)
    if answer.status != 200 or (method == "GET" and size != given["size"]):
        raise SystemExit(f"{way} {method}: {answer.status}, {size} bytes")
    return time.perf_counter() - started

body = os.urandom(given["size"])
names = [f"{uuid.uuid4().hex}.bin" for _ in range(given["count"] * given["parallel"])]
found = {}
for method in ("PUT", "GET"):
    def one(slot, method=method):
        own = names[slot::given["parallel"]]
        return [ask(given["way"], method, name, body if method == "PUT" else None, slot) for name in own]
    started = time.perf_counter()
    if given["parallel"] == 1:
        seconds = one(0)
    else:
        with concurrent.futures.ThreadPoolExecutor(given["parallel"]) as pool:
            seconds = [each for some in pool.map(one, range(given["parallel"])) for each in some]
    elapsed = time.perf_counter() - started
    moved = len(names) * given["size"]
    found[method] = {"ms": statistics.median(seconds) * 1000, "MB/s": moved / elapsed / 1e6}
print(json.dumps(found))
"""


@contextmanager
def stock(stack: Stack) -> Iterator[str]:
    """Run `mlflow server` without this project's code, on the stack's bucket; yield the container's name."""
    options = [
        *(f"--volume={stack.project}_secrets:/secrets:ro", "--tmpfs=/tmp:uid=10003,gid=10003"),
        *("--env=PYTHONPATH=", "--env=MLFLOW_S3_ENDPOINT_URL=http://minio:9000", REGION),
        *(CREDENTIALS, "--env=MLFLOW_SERVER_ALLOWED_HOSTS=*"),
        *("--env=MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "--env=MLFLOW_DISABLE_TELEMETRY=true"),
    ]
    command = ("mlflow", "server", "--host=0.0.0.0", "--port=5000", "--workers=2")
    places = ("--backend-store-uri=sqlite:////tmp/runs.db", "--artifacts-destination=s3://mlflow/artifacts")
    name = f"stock-{uuid.uuid4().hex[:8]}"
    networks = [f"{stack.project}_default"]
    with container(
        image_of(stack, "mlflow"), *command, *places, networks=networks, alias=name, options=options
    ) as started:
        ask = (
            "import urllib.request as u; print(u.urlopen('http://127.0.0.1:5000/version', timeout=5).status)"
        )
        poll(
            lambda: "200" in docker("exec", started, "python", "-c", ask, check=False),
            seconds=120,
            what="stock MLflow answers",
        )
        yield name


@dataclass(frozen=True)
class Workload:
    """What one measurement moves: `count` files of `size` bytes on each of `parallel` connections."""

    label: str
    unit: str
    size: int
    count: int
    parallel: int = 1


def measure(stack: Stack, places: dict, way: str, workload: Workload) -> dict[str, dict[str, float]]:
    """Return the median ms of a request and MB/s of all, for PUT and GET by one way."""
    given = {"places": places, "way": way, **asdict(workload)}
    command = [
        *("docker", "run", "--rm", "--interactive", f"--network={stack.project}_default"),
        *(f"--volume={stack.project}_secrets:/secrets:ro", "--tmpfs=/tmp:uid=10003,gid=10003"),
        *(CREDENTIALS, REGION),
        *(image_of(stack, "mlflow"), "python", "-c", CLIENT),
    ]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--large", type=int, default=100, help="MB of the large file")
    arguments = arguments_of.parse_args()
    workloads = [
        Workload("1 KB", "ms", KB, 100),
        Workload("1 MB", "ms", MB, 20),
        Workload(f"{arguments.large} MB", "MB/s", arguments.large * MB, 1),
        Workload(f"{PARALLEL} at once, 1 MB", "MB/s", MB, 8, PARALLEL),
    ]
    found: dict[tuple[Workload, str, str], list[float]] = {}
    with throwaway("artifacts") as stack:
        headers = bearer(add(stack, "bench", "writer"))
        with stock(stack) as stock_name, door(stack, stack_networks(stack), ARTIFACT_BYTES="mlflow") as slow:
            places = {
                "nginx": {"host": "nginx:8080", "headers": headers},
                "nginx and MLflow": {"host": f"{slow.name}:8080", "headers": headers},
                "stock MLflow": {"host": f"{stock_name}:5000", "headers": {}},
            }
            for number in range(arguments.rounds):
                for workload in workloads:
                    for step in range(len(WAYS)):
                        way = WAYS[(number + step) % len(WAYS)]
                        for method, one in measure(stack, places, way, workload).items():
                            found.setdefault((workload, method, way), []).append(one[workload.unit])
    print("| what | " + " | ".join(WAYS) + " |\n|" + " --- |" * (len(WAYS) + 1))
    for workload in workloads:
        for method in ("PUT", "GET"):
            columns = [found[workload, method, way] for way in WAYS]
            cells = [
                f"{statistics.median(column):,.1f} [{min(column):,.1f}-{max(column):,.1f}]"
                for column in columns
            ]
            print(f"| {method} {workload.label}, {workload.unit} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
