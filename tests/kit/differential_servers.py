"""What the differential suite starts on the host: PostgreSQL, stock MLflow, and the fast path by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pgserver
import psycopg2
import sqlalchemy

from kit.differential import HOT, NOT_MINE, Answer, PlainConnection, Request, UnixConnection, Wire
from kit.stack import ROOT, Stack, free_port, poll

START_SECONDS = 120
LARGEST_FAST_BODY = 256 << 10
"""Bytes: nginx hands a larger body to MLflow without asking the fast path."""
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
PSQL = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "mlflow", "-AtqX", "-v", "ON_ERROR_STOP=1")
END_MARK = "end of the answer"


class HostTables:
    """SQL in a database of this host."""

    def __init__(self, uri: str) -> None:
        self._connection = psycopg2.connect(uri)
        self._connection.autocommit = True

    def query(self, statement: str) -> str:
        """Return the one value of a query, as text."""
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT ({statement.strip()})::text")
            return cursor.fetchone()[0]

    def execute(self, statement: str) -> None:
        """Run statements."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement)

    def close(self) -> None:
        """End the session."""
        self._connection.close()


class StackTables:
    """SQL in the stack's database, by one psql that stays: starting one takes half a second."""

    def __init__(self, stack: Stack) -> None:
        self._psql = subprocess.Popen(
            ["docker", "compose", "exec", "-T", "postgres", *PSQL],
            cwd=ROOT,
            env=stack.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def query(self, statement: str) -> str:
        """Return the one value of a query, as text."""
        psql = self._psql
        psql.stdin.write(f"{statement.strip()};\n\\echo {END_MARK}\n")
        psql.stdin.flush()
        lines = []
        for line in psql.stdout:
            if line.rstrip("\n") == END_MARK:
                return "".join(lines).strip("\n")
            lines.append(line)
        raise AssertionError(f"psql ended at {statement[:500]}\n{''.join(lines)[-500:]}")

    def execute(self, statement: str) -> None:
        """Run statements."""
        self.query(statement)

    def close(self) -> None:
        """End the session."""
        self._psql.stdin.close()
        self._psql.wait(timeout=30)


@contextmanager
def postgres() -> Iterator[Callable[[str], str]]:
    """Start PostgreSQL; give a function that makes a database with MLflow's tables and returns its URI.

    The stack's text order (C.UTF-8) decides how a search by a parameter is sorted.
    """
    from mlflow.store.db.utils import _initialize_tables

    server = pgserver.get_server(tempfile.mkdtemp(prefix="pg"))
    uri = server.get_uri()
    first = psycopg2.connect(uri)
    first.autocommit = True
    with first.cursor() as cursor:
        cursor.execute("ALTER SYSTEM SET fsync = off")  # nothing here outlives the suite
        cursor.execute("SELECT pg_reload_conf()")
        cursor.execute("CREATE DATABASE mlflow TEMPLATE template0 LOCALE 'C.UTF-8' ENCODING 'UTF8'")
    engine = sqlalchemy.create_engine(_of_database(uri, "mlflow").replace("://", "+psycopg2://", 1))
    _initialize_tables(engine)
    engine.dispose()

    def make(name: str) -> str:
        with first.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE mlflow")
        return _of_database(uri, name)

    try:
        yield make
    finally:
        first.close()
        server.cleanup()


def _of_database(uri: str, name: str) -> str:
    return uri.replace("postgres:@", "postgres@", 1).replace("/postgres?", f"/{name}?", 1)


@contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """Run a command in a process group of its own, and end the group."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait(timeout=20)


@contextmanager
def mlflow_server(database_uri: str, folder: Path) -> Iterator[str]:
    """Start plain MLflow on a database; give its URL when it is there."""
    folder.mkdir()
    # MLflow asks its login application at each search where Flask-WTF happens to be installed.
    (folder / "flask_wtf.py").write_text('raise ImportError("plain MLflow comes without Flask-WTF")\n')
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", database_uri.replace("://", "+psycopg2://", 1), "--workers", "1"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    command += ["--default-artifact-root", "mlflow-artifacts:/"]
    environment = {**MLFLOW_ENVIRONMENT, "PYTHONPATH": str(folder)}
    with process(command, environment, folder / "log") as started:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url + "/health", started, folder / "log")
        yield url


def _wait_for(url: str, started: subprocess.Popen, log: Path) -> None:
    def is_there() -> bool:
        if started.poll() is not None:
            raise RuntimeError(f"it ended with {started.returncode}\n{log.read_text()[-3000:]}")
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status in {200, 204}

    poll(is_there, seconds=START_SECONDS, what=url)


@dataclass(frozen=True)
class Fastpath:
    """A running fast path: its socket, and the address of its metrics."""

    socket: str
    metrics_url: str

    def metrics(self) -> str:
        """Return its metrics in Prometheus' text form."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:
            return answer.read().decode()


@contextmanager
def fastpath(database_uri: str, folder: Path) -> Iterator[Fastpath]:
    """Start the fast path of this checkout (or of FASTPATH_SOURCE, by FASTPATH_PYTHON) on a database."""
    folder.mkdir()
    port = free_port()
    source = Path(os.environ.get("FASTPATH_SOURCE", ROOT / "fastpath" / "src"))
    environment = {
        "PYTHONPATH": f"{source}:{source.parents[1] / 'mlflow' / 'src'}",
        "DATABASE_URI": database_uri.replace("://", "+psycopg2://", 1),
        "FASTPATH_SOCKET": str(folder / "fast.sock"),
        "FASTPATH_PORT": str(port),
        "AUDIT_FOLDER": str(folder / "audit"),
    }
    (folder / "audit").mkdir()
    command = [os.environ.get("FASTPATH_PYTHON", sys.executable), "-m", "stackfast"]
    with process(command, environment, folder / "log") as started:
        _wait_for(f"http://127.0.0.1:{port}/healthy", started, folder / "log")
        yield Fastpath(str(folder / "fast.sock"), f"http://127.0.0.1:{port}/metrics")


class Door:
    """nginx's part: a hot route goes to the fast path, and to MLflow if that says it is not its own."""

    def __init__(self, socket_path: str, mlflow_url: str) -> None:
        self._fast = Wire(lambda: UnixConnection(socket_path))
        self._mlflow = tcp_wire(mlflow_url)

    def ask(self, request: Request) -> Answer:
        """Answer a request. Raise AssertionError if the fast path does not know what it did."""
        reason = None
        path = unquote(urlsplit(request.target).path)
        if path in HOT and len(request.body or b"") <= LARGEST_FAST_BODY:
            stamped = replace(request, headers=(*request.headers, ("X-T", f"{time.time():.3f}")))
            answer = self._fast.ask(stamped)
            if answer.status == 503:
                raise AssertionError(f"{request}: the fast path does not know what it did")
            if answer.status != NOT_MINE:
                return answer
            reason = answer.reason
        return replace(self._mlflow.ask(request), fast=False, reason=reason)

    def close(self) -> None:
        """Close both connections."""
        self._fast.close()
        self._mlflow.close()


def tcp_wire(url: str, always: dict[str, str] | None = None) -> Wire:
    """Return a connection to a server of 127.0.0.1."""
    port = urlsplit(url).port
    return Wire(lambda: PlainConnection("127.0.0.1", port, timeout=60), always)


@contextmanager
def door_for_clients(make_door: Callable[[], Door]) -> Iterator[str]:
    """Serve a Door to real clients; give its URL."""
    passed = ("content-type", "accept", "user-agent")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.door = make_door()

        def finish(self) -> None:
            self.door.close()
            super().finish()

        def do_GET(self) -> None:
            length = self.headers.get("Content-Length")
            body = None if length is None else self.rfile.read(int(length))
            headers = tuple((name, value) for name, value in self.headers.items() if name.lower() in passed)
            answer = self.door.ask(Request(self.command, self.path, headers, body))
            self.send_response(answer.status)
            if answer.content_type:
                self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
