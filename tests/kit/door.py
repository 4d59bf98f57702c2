"""What the tests of the door share: raw requests, users, and containers beside the stack's own."""

from __future__ import annotations

import base64
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse

import bcrypt
import requests

from kit.stack import Stack, free_port, poll

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
}
HARDENING = (
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--init"),
    *("--memory=512m", "--pids-limit=50", "--tmpfs=/tmp:uid=10004,gid=10004,size=64m"),
    "--tmpfs=/audit/nginx:uid=10004,gid=10004,size=64m",
)
"""How Compose runs nginx, as options of docker run."""

_SET_USER = """
import os, pathlib, sys
path = pathlib.Path("/secrets/auth/accounts")
name, password_hash = sys.argv[1], sys.argv[2]
lines = [line for line in path.read_text().splitlines() if not line.startswith(name + ":")]
if password_hash:
    lines.append(f"{name}:{password_hash}")
temporary = path.with_name(".users.test")
temporary.write_text("\\n".join(lines) + "\\n")
temporary.chmod(0o400)
os.chown(temporary, 10006, 10006)
temporary.replace(path)
"""


def docker(*words: str, check: bool = True) -> str:
    """Run docker WORDS… and return what it printed, on stdout and stderr."""
    done = subprocess.run(
        ["docker", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",  # logs hold what attackers send
        timeout=120,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"docker {words} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout + done.stderr


@contextmanager
def disconnected(network: str, container: str, alias: str) -> Iterator[None]:
    """Take a container off a network for a while; packets to it go nowhere."""
    docker("network", "disconnect", network, container)
    try:
        yield
    finally:
        docker("network", "connect", "--alias", alias, network, container)


def basic(name: str, password: str) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def bcrypt_hash(password: str, cost: int = 10) -> str:
    """Return a bcrypt hash as the stack makes them."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


def set_user(stack: Stack, name: str, password: str | None) -> None:
    """Give a user of the stack a password; None takes the user out."""
    if password:
        stack.handed_out |= {password, basic(name, password).split()[1]}
    stack.compose(
        *("run", "--rm", "--no-deps", "-T", "--entrypoint", "python3", "secrets", "-c", _SET_USER),
        *(name, bcrypt_hash(password) if password else ""),
    )


@contextmanager
def user(stack: Stack, name: str) -> Iterator[requests.auth.HTTPBasicAuth]:
    """Add a user to the stack for the time of a test; yield name and password, for requests."""
    password = uuid.uuid4().hex
    set_user(stack, name, password)
    try:
        yield requests.auth.HTTPBasicAuth(name, password)
    finally:
        set_user(stack, name, None)


@dataclass(frozen=True)
class Answer:
    """An answer to a raw request."""

    status: int
    headers: HTTPMessage
    body: bytes


def read_answer(connection: socket.socket, method: str = "GET") -> Answer:
    """Read one answer from a connection that stays open."""
    response = HTTPResponse(connection, method=method)
    response.begin()
    return Answer(response.status, response.headers, response.read())


def send_raw(port: int, *parts: bytes, timeout: float = 20) -> Answer:
    """Send bytes to 127.0.0.1 as they are and return the first answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        for part in parts:
            connection.sendall(part)
        return read_answer(connection, parts[0].partition(b" ")[0].decode())


def send(port: int, method: str, path: str, **headers: str) -> Answer:
    """Send a request with no other headers than Host and those given (`_` stands for `-`).

    Unlike requests, this adds no Accept, no credentials and no content type.
    """
    lines = {"Host": f"127.0.0.1:{port}", **{name.replace("_", "-"): text for name, text in headers.items()}}
    if method not in {"GET", "HEAD"}:
        lines.setdefault("Content-Length", "0")
    head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
    return send_raw(port, f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())


def assert_security_headers(headers: Mapping[str, str]) -> None:
    """Assert that an answer's headers hold each security header once."""
    for name, value in SECURITY_HEADERS.items():
        assert headers.get(name) == value, name  # requests would join two by a comma
    assert "script-src 'self';" in headers.get("Content-Security-Policy", "")
    assert "unsafe-eval" not in headers["Content-Security-Policy"]
    assert headers.get("Server") == "nginx"  # and no version


@contextmanager
def container(
    image: str, *command: str, networks: Sequence[str], alias: str = "", options: Sequence[str] = ()
) -> Iterator[str]:
    """Run a container on networks and yield its name, which the others there resolve."""
    name = f"{networks[0]}-{uuid.uuid4().hex[:8]}"
    first, *others = networks
    aliases = ["--network-alias", alias] if alias else []
    docker("create", "--name", name, "--network", first, *aliases, *options, image, *command)
    try:
        for network_name in others:
            docker("network", "connect", network_name, name)
        docker("start", name)
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


@contextmanager
def network(stack: Stack, purpose: str) -> Iterator[str]:
    """Make a network for the time of a test and yield its name."""
    name = f"{stack.project}-{purpose}"
    docker("network", "create", name)
    try:
        yield name
    finally:
        docker("network", "rm", name)


@dataclass(frozen=True)
class Door:
    """A second nginx, as a test sees it."""

    name: str
    port: int

    @property
    def url(self) -> str:
        """Its address on this machine."""
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Return all that it has logged."""
        return docker("logs", self.name)

    def log_line(self, words: str) -> str:
        """Wait for the access log line that holds `words`, and return it."""

        def find() -> str:
            return next((line for line in self.log().splitlines() if words in line), "")

        return poll(find, seconds=10, what=f"a log line with {words}")


def image_of(stack: Stack, service: str) -> str:
    """Return the image that the stack runs a service from."""
    return f"mlflow-stack/{service}:{stack.image_tag}"


def stack_networks(stack: Stack) -> tuple[str, str]:
    """Return the networks of the stack's own nginx."""
    return f"{stack.project}_door", f"{stack.project}_default"


@contextmanager
def door(
    stack: Stack, networks: Sequence[str], alias: str = "", more: Sequence[str] = (), **settings: str
) -> Iterator[Door]:
    """Run a second nginx of the stack's image with settings of its own; yield it when it answers.

    `more` are options of docker run.
    """
    port = free_port()
    environment = [f"--env={name}={value}" for name, value in settings.items()]
    options = (*HARDENING, *environment, *more, f"--publish=127.0.0.1:{port}:8080")
    with container(image_of(stack, "nginx"), networks=networks, alias=alias, options=options) as name:
        opened = Door(name, port)

        def closed_to_strangers() -> bool:
            return send(port, "GET", "/").status in {401, 308}  # 308: by TLS only

        try:
            poll(closed_to_strangers, seconds=30, what="the second nginx answers")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{opened.log()[-2000:]}") from error
        yield opened
