"""A throwaway stack of its own project, port, image tag and settings file."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import requests

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_PROGRESS = re.compile(r"^ (Container|Network|Volume) .*\n", re.MULTILINE)
Result = TypeVar("Result")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def poll(check: Callable[[], Result], *, seconds: float, what: str, interval: float = 0.2) -> Result:
    """Call `check` until it returns something true, and return that.

    An assertion or connection error counts as "not yet". Raise AssertionError with the last
    state seen after `seconds`.
    """
    deadline = time.monotonic() + seconds
    last: Any = None
    while True:
        try:
            last = check()
            if last:
                return last
        except (AssertionError, OSError, requests.RequestException) as error:
            last = repr(error)
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s; last seen: {last}")
        time.sleep(interval)


@dataclass
class Stack:
    """A stack that a test drives by ./stack and Docker Compose, and talks to through nginx."""

    project: str
    port: int
    settings_file: Path
    image_tag: str
    extra: dict[str, str] = field(default_factory=dict)
    handed_out: set[str] = field(default_factory=set, repr=False)
    """Passwords and tokens that tests gave to users: no log may hold one."""
    _password: str | None = field(default=None, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of ./stack and Compose: this stack and no other, no user's .env."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")},
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_ENV_FILES": str(self.settings_file),
            "HTTP_PORT": str(self.port),
            "IMAGE_TAG": self.image_tag,
            **self.extra,
        }

    @property
    def url(self) -> str:
        """The address of the stack, as a user's MLFLOW_TRACKING_URI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def password(self) -> str:
        """The admin's password, asked once from ./stack password."""
        if self._password is None:
            self._password = self.verb("password").stdout.strip()
        return self._password

    def forget_password(self) -> None:
        """Ask again next time."""
        self._password = None

    @property
    def client_environment(self) -> dict[str, str]:
        """What a client's process needs to log in."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    @contextmanager
    def logged_in(self) -> Iterator[None]:
        """Make this stack the one that MLflow's client of this process talks to."""
        import mlflow

        saved = {name: os.environ.get(name) for name in self.client_environment}
        os.environ.update(self.client_environment)
        mlflow.set_tracking_uri(self.url)
        try:
            yield
        finally:
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            mlflow.set_tracking_uri(saved["MLFLOW_TRACKING_URI"])

    @property
    def authorization(self) -> str:
        """The value of a right Authorization header."""
        return "Basic " + base64.b64encode(f"admin:{self.password}".encode()).decode()

    def verb(
        self, *words: str, check: bool = True, timeout: float = 900, **extra: str
    ) -> subprocess.CompletedProcess:
        """Run ./stack WORDS… without a terminal. `extra` is added to the environment."""
        return self._run([str(ROOT / "stack"), *words], check=check, timeout=timeout, extra=extra)

    def compose(
        self, *words: str, check: bool = True, timeout: float = 300, given: str = "", **extra: str
    ) -> subprocess.CompletedProcess:
        """Run docker compose WORDS… with `given` on its standard input."""
        command = ["docker", "compose", *words]
        return self._run(command, check=check, timeout=timeout, extra=extra, given=given)

    def _run(
        self, command: list[str], *, check: bool, timeout: float, extra: dict[str, str], given: str = ""
    ) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, **extra},
            input=given,
            capture_output=True,
            text=True,
            errors="replace",  # logs hold what attackers send
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            said = COMPOSE_PROGRESS.sub("", done.stderr)
            raise AssertionError(
                f"{command} ended with {done.returncode}\n{done.stdout[-3000:]}\n{said[-3000:]}"
            )
        return done

    def sets(self) -> list[dict[str, Any]]:
        """The backup sets, oldest first."""
        return json.loads(self.verb("backup", "list", "--json").stdout)

    @contextmanager
    def protected(self, *arguments: str) -> Iterator[None]:
        """Start this stack (`arguments` go to `./stack up`), wait for its first set, log in; remove it."""
        try:
            self.verb("up", *arguments)
            poll(self.sets, seconds=120, what="the first set is made by itself")
            with self.logged_in():
                yield
        finally:
            self.compose("down", "--volumes", check=False)

    def session(self) -> requests.Session:
        """Return a logged-in HTTP session."""
        session = requests.Session()
        session.trust_env = False  # no ~/.netrc
        session.auth = ("admin", self.password)
        return session

    def get(self, path: str, **keywords: Any) -> requests.Response:
        """GET a path, logged in."""
        return self.session().get(self.url + path, timeout=keywords.pop("timeout", 30), **keywords)

    def post(self, path: str, **keywords: Any) -> requests.Response:
        """POST to a path, logged in."""
        return self.session().post(self.url + path, timeout=keywords.pop("timeout", 30), **keywords)

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers."""
        return self.compose("ps", "--all", "--quiet", service).stdout.split()

    def container(self, service: str) -> str:
        """Return the id of a service's one container."""
        (container,) = self.containers(service)
        return container

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what docker inspect says of a container."""
        text = subprocess.run(
            ["docker", "inspect", container], capture_output=True, text=True, check=True
        ).stdout
        return json.loads(text)[0]

    def kill(self, service: str) -> None:
        """kill -9 the container's first process from the host.

        `docker kill` would not do: it switches the restart policy off.
        """
        self.kill_container(self.container(service))

    def kill_container(self, container: str) -> None:
        """kill -9 one container's first process from the host."""
        pid = self.inspect(container)["State"]["Pid"]
        assert pid > 1
        os.kill(pid, signal.SIGKILL)

    def is_ready(self) -> bool:
        """Return whether /health says OK."""
        return requests.get(f"{self.url}/health", timeout=10).status_code == 200

    def wait_ready(self, seconds: float = 90) -> None:
        """Wait until /health says OK."""
        poll(self.is_ready, seconds=seconds, what="/health is 200")

    def wait_not_ready(self, seconds: float = 60) -> None:
        """Wait until /health says that something is away."""
        poll(lambda: not self.is_ready(), seconds=seconds, what="/health says that something is away")

    def psql(self, statement: str, database: str = "mlflow") -> str:
        """Run SQL as the superuser inside the postgres container; return its output."""
        return self.compose(
            "exec",
            "-T",
            "postgres",
            "psql",
            "-h",
            "/run/postgresql",
            "-U",
            "postgres",
            "-d",
            database,
            "-Atqc",
            statement,
        ).stdout.strip()

    def psql_script(self, script: str) -> None:
        """Run a script of SQL as the superuser, in one transaction; it may be long."""
        psql = ("psql", "-h", "/run/postgresql", "-U", "postgres", "-d", "mlflow", "-q")
        options = ("--single-transaction", "--set=ON_ERROR_STOP=1", "--output=/dev/null")
        self.compose("exec", "-T", "postgres", *psql, *options, given=script)

    def remove(self) -> None:
        """Remove containers, volumes, networks, this tag's images and what ./stack remembered."""
        for path in (ROOT / ".stack").glob(f"{self.project}.*"):
            path.unlink()
        self.compose("down", "--volumes", "--remove-orphans", "--rmi", "all", check=False)
