"""The servers of a comparison: a throwaway stack, and others on its PostgreSQL and MinIO.

This stack is asked through nginx with a login, as its users do; the others directly and without
one, as they are after `pip install`. All at published ports of 127.0.0.1.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

import pgbench
import processes
import seeding
from common import throwaway
from kit.door import basic, docker
from kit.people import add
from kit.stack import ROOT, Stack, free_port, poll

USER = "bench"
BUCKET = "mlflow"
OURS = ("nginx", "auth", "fastpath", "mlflow")
"""The services between a client and the stores. Those that the Compose file does not have are left out."""
PAUSED = {"ours": ("nginx", "auth", "fastpath")}
"""What of a server stops while others are measured; of others all."""
DATABASES: dict[str, str] = {
    "ours": "mlflow",
    "stock": "stock",
    "stockuv": "stockuv",
    "fasttrack": "fasttrack",
}
"""The database of each server."""
PEERS = ("stock", "stockuv", "fasttrack")
MADE_IMAGES = ("bench-fasttrack", "bench-load")


@dataclass(frozen=True)
class Server:
    """A server that is measured."""

    name: str
    port: int
    user: str = ""
    password: str = ""

    @property
    def url(self) -> str:
        """Its address, as MLFLOW_TRACKING_URI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def authorization(self) -> str:
        """The value of the Authorization header; empty where there is no login."""
        return basic(self.user, self.password) if self.user else ""

    @property
    def database(self) -> str:
        """Its database in the stack's PostgreSQL."""
        return DATABASES[self.name]

    @property
    def tables(self) -> seeding.Tables:
        """Whose tables it has."""
        return "fasttrack" if self.name == "fasttrack" else "mlflow"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a process with MLflow's client needs besides its own environment.

        Without the two switches the client would be sent to MinIO itself by the stock server (presigned
        addresses), under the name that MinIO has inside: nobody outside can reach it.
        """
        login = {"MLFLOW_TRACKING_USERNAME": self.user, "MLFLOW_TRACKING_PASSWORD": self.password}
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
            "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **(login if self.user else {}),
        }

    def session(self) -> requests.Session:
        """Return a session that is logged in, where there is a login."""
        session = requests.Session()
        session.trust_env = False  # no ~/.netrc
        if self.user:
            session.auth = (self.user, self.password)
        return session


@dataclass(frozen=True)
class Peers:
    """A throwaway stack and the servers beside it."""

    stack: Stack
    servers: dict[str, Server]
    minio_port: int
    minio_user: str
    minio_password: str
    """MinIO at http://127.0.0.1:PORT, with the key that MLflow has: it may use the bucket `mlflow` only."""

    def groups(self, name: str, *stores: str) -> dict[str, list[int]]:
        """Return the first process of each container that works for a server, and of Docker's proxies.

        `stores` are services of the stack that work for it too: postgres, minio.
        """
        server = self.servers.get(name)
        services = OURS if name == "ours" else (name,) if server else ()
        there = set(self.stack.compose("config", "--services").stdout.split())
        wanted = [service for service in (*services, *stores) if service in there]
        found = {service: self._first_processes(service) for service in wanted}
        if server:
            found["docker-proxy"] = processes.proxies_of(server.port)
        return found

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Pause the servers that are not measured: one of MLflow's takes a tenth of a core when nobody asks.

        This stack's own MLflow stays: its watchdog would take the pause for an illness.
        """
        services = [part for other in self.servers if other != name for part in PAUSED.get(other, (other,))]
        containers = [one for service in services for one in self.stack.containers(service)]
        try:
            for container in containers:
                docker("pause", container, check=False)  # one that has ended cannot be paused
            yield
        finally:
            for container in containers:
                docker("unpause", container, check=False)

    def _first_processes(self, service: str) -> list[int]:
        return [self.stack.inspect(one)["State"]["Pid"] for one in self.stack.containers(service)]


@contextmanager
def running(name: str, wanted: Sequence[str] = PEERS, *, limit: bool = True) -> Iterator[Peers]:
    """Start a throwaway stack with the other servers beside it, and remove all of it.

    `wanted` are those of stock, stockuv and fasttrack that are needed. With `limit`, pgbench's
    database is made too. Takes about a minute once the images are there.
    """
    ports = {server: free_port() for server in PEERS}
    minio_port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        more = {
            "COMPOSE_FILE": "docker-compose.yml:benchmarks/compose.yml",
            "BENCH_HBA": str(_hba(Path(folder))),
            "BENCH_MINIO_PORT": str(minio_port),
            **{f"BENCH_{server.upper()}_PORT": str(port) for server, port in ports.items()},
        }
        try:
            with throwaway(name, **more) as stack:
                yield _started(stack, ports, minio_port, wanted, limit)
        finally:
            remove_images()


def _started(
    stack: Stack, ports: dict[str, int], minio_port: int, wanted: Sequence[str], limit: bool
) -> Peers:
    _start(stack, wanted)
    servers = {"ours": Server("ours", stack.port, USER, add(stack, USER, "writer"))}
    servers |= {server: Server(server, ports[server]) for server in wanted}
    for server in servers.values():
        _wait(server)
    if limit:
        pgbench.make_database(stack)
    keys = stack.compose("exec", "-T", "mlflow", "cat", "/secrets/mlflow/aws_credentials").stdout
    _, user, password = [line.partition("=")[2].strip() for line in keys.strip().splitlines()]
    return Peers(stack, servers, minio_port, user, password)


def _hba(folder: Path) -> Path:
    """Return the stack's own file of who may connect, with the databases of the others besides."""
    own = (ROOT / "postgres" / "pg_hba.conf").read_text().rstrip("\n")
    databases = ",".join(DATABASES[server] for server in PEERS)
    path = folder / "pg_hba.conf"
    path.write_text(f"{own}\nhost  {databases}  mlflow  samenet  scram-sha-256\n")
    folder.chmod(0o755)  # PostgreSQL's user reads it
    path.chmod(0o644)
    return path


def _start(stack: Stack, wanted: Sequence[str]) -> None:
    for server in wanted:
        stack.psql(f'CREATE DATABASE "{DATABASES[server]}" OWNER mlflow', database="postgres")
    stack.extra["COMPOSE_PROFILES"] = "peers"  # from now on `down` removes them too
    if "fasttrack" in wanted:
        stack.compose("build", "--quiet", "fasttrack", timeout=1800)
    if wanted:
        stack.compose("up", "--detach", "--no-build", "--no-deps", *wanted)


def _wait(server: Server) -> None:
    """Wait until a server answers; a stock one makes its tables first."""
    with server.session() as session:
        url = f"{server.url}/api/2.0/mlflow/experiments/search"
        poll(
            lambda: session.post(url, json={"max_results": 1}, timeout=10).status_code == 200,
            seconds=240,
            what=f"{server.name} answers",
            interval=0.5,
        )


def load_generator(stack: Stack, folder: Path) -> Path:
    """Build benchmarks/load and return the program, put into a folder of this machine."""
    image = f"mlflow-stack/bench-load:{stack.image_tag}"
    stack.compose("--profile=peers-build", "build", "--quiet", "load", timeout=1800)
    container = docker("create", image).splitlines()[0]
    try:
        docker("cp", f"{container}:/usr/local/bin/load", str(folder / "load"))
    finally:
        docker("rm", container)
    return folder / "load"


def remove_images() -> None:
    """Remove the tags of the images that only the benchmark has; the build cache stays."""
    for image in MADE_IMAGES:
        docker("rmi", f"mlflow-stack/{image}:latest", check=False)


def post(server: Server, path: str, body: dict[str, Any], timeout: float = 60) -> dict[str, Any]:
    """POST to a server's REST API and return the answer. Raise requests.HTTPError."""
    with server.session() as session:
        answer = session.post(f"{server.url}/api/2.0/mlflow/{path}", json=body, timeout=timeout)
    answer.raise_for_status()
    return answer.json()


def experiment(server: Server, name: str) -> str:
    """Return the id of a new experiment."""
    return post(server, "experiments/create", {"name": name})["experiment_id"]


def experiment_of(peers: Peers, server: Server, name: str) -> str:
    """Return the id of an experiment that was put into a server's database."""
    return peers.stack.psql(f"SELECT experiment_id FROM experiments WHERE name = '{name}'", server.database)


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine to judge the figures."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": os.uname().release,
        "engine": docker("version", "--format", "{{.Server.Version}}").strip(),
    }
