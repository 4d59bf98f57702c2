"""What passes between the door and MLflow, seen by a server of the test's own in MLflow's place."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kit.door import (
    Door,
    basic,
    bcrypt_hash,
    container,
    docker,
    door,
    image_of,
    network,
    read_answer,
    send,
    send_raw,
)
from kit.echo_server import ECHO_SERVER, PYTHON_ALONE, echo
from kit.stack import Stack, poll

LOGIN = basic("ada", "a: grün password")


@dataclass(frozen=True)
class Fake:
    """A door, the stack's login service, and a server in MLflow's place, on a network of their own."""

    door: Door
    network: str

    @property
    def port(self) -> int:
        return self.door.port

    def facts(self, kind: str, path: str) -> int:
        """Return how often a path was asked for ("seen") or how many bytes it got ("received")."""
        answer = send(self.port, "GET", "/facts", Authorization=LOGIN)
        assert answer.status == 200
        return json.loads(answer.body)[kind].get(path, 0)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def head(self, method: str, path: str, *lines: str) -> bytes:
        text = "\r\n".join(
            [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: {LOGIN}", *lines]
        )
        return text.encode() + b"\r\n\r\n"


@pytest.fixture(scope="module")
def fake(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    folder: Path = tmp_path_factory.mktemp("users")
    (folder / "users").write_text(f"ada:{bcrypt_hash('a: grün password', 4)}\n")
    folder.chmod(0o755)
    (folder / "users").chmod(0o644)
    users = (f"--volume={folder}:/users:ro", "--env=USERS_FILE=/users/users", *PYTHON_ALONE)
    python = ("/usr/bin/python3", "-c", ECHO_SERVER)
    with (
        network(stack, "fake") as name,
        container(image_of(stack, "auth"), networks=[name], alias="auth", options=users),
        container(image_of(stack, "mlflow"), *python, networks=[name], alias="mlflow", options=PYTHON_ALONE),
        door(stack, [name]) as opened,
    ):
        made = Fake(opened, name)
        poll(lambda: made.facts("seen", "/facts"), seconds=30, what="the server behind the door answers")
        yield made


def test_mlflow_is_told_the_truth_and_no_password(fake: Fake) -> None:
    got = echo(
        send(
            fake.port,
            "GET",
            "/version?a=b",
            Authorization=LOGIN,
            Origin=f"http://127.0.0.1:{fake.port}",
            X_Forwarded_User="root",
            X_Forwarded_For="203.0.113.9",
            X_Forwarded_Host="evil.example",
            X_Forwarded_Proto="https",
            X_Real_IP="203.0.113.9",
            X_Request_Id="chosen by the client",
            X_Forwarded_Role="king",
            X_Forwarded_Account="another's",
            X_Stack_Door="a key",
            Forwarded="for=203.0.113.9",
            X_Custom="kept",
        )
    )
    headers = got["headers"]
    assert got["path"] == "/version?a=b"
    assert headers["host"] == headers["x-forwarded-host"] == f"127.0.0.1:{fake.port}"
    assert (headers["x-forwarded-user"], headers["x-forwarded-role"]) == ("ada", "admin")
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-for"] == headers["x-real-ip"]
    assert headers["x-custom"] == "kept"
    assert not {"authorization", "origin", "forwarded", "x-stack-door", "x-forwarded-account"} & set(headers)
    assert not {"203.0.113.9", "evil.example", "root", "chosen by the client"} & set(headers.values())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 500, 502, 503])
def test_what_mlflow_itself_answers_passes_unchanged(fake: Fake, status: int) -> None:
    answer = send(fake.port, "POST", f"/status/{status}", Authorization=LOGIN)
    assert answer.status == status
    assert json.loads(answer.body)["path"] == f"/status/{status}"


def test_server_sent_events_arrive_one_by_one(fake: Fake) -> None:
    body = b'{"stream": true}'
    with fake.connect() as connection:
        connection.sendall(fake.head("POST", "/gateway/stream", f"Content-Length: {len(body)}") + body)
        lines = connection.makefile("rb")
        assert lines.readline().startswith(b"HTTP/1.1 200")
        events = (line for line in lines if line.startswith(b"data: "))
        assert next(events) == b"data: 0\n"
        # The second is sent only now: had the door waited for the end, this would never come.
        assert send(fake.port, "GET", "/release", Authorization=LOGIN).status == 200
        assert next(events) == b"data: 1\n"


@pytest.mark.parametrize("kind", ["websocket", "h2c", "anything"])
def test_an_upgrade_is_not_passed_on(fake: Fake, kind: str) -> None:
    """It would join the client with the server: tests/security/test_framing.py."""
    answer = send(
        fake.port, "POST", "/api/2.0/mlflow/x", Authorization=LOGIN, Upgrade=kind, Connection="Upgrade"
    )
    assert not {"upgrade", "connection"} & set(echo(answer)["headers"])


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("size", [0, 100, 300_000])
def test_a_change_that_mlflow_received_and_dropped_is_not_sent_again(
    fake: Fake, method: str, size: int
) -> None:
    path = f"/drop/{method}/{size}"
    head = fake.head(method, path, f"Content-Length: {size}")
    assert send_raw(fake.port, head, b"x" * size).status == 503
    assert fake.facts("seen", path) == 1
    assert fake.facts("received", path) == size


def test_a_change_goes_to_the_other_replica_when_the_first_refuses_the_connection(
    stack: Stack, fake: Fake
) -> None:
    idle = ("/usr/bin/python3", "-c", "import signal; signal.pause()")
    sent: list[str] = []

    def went_to_the_other() -> bool:
        path = f"/api/2.0/mlflow/runs/create/{len(sent)}"
        body = os.urandom(1000)
        head = fake.head("POST", path, f"Content-Length: {len(body)}")
        got = echo(send_raw(fake.port, head, body))
        assert (got["path"], got["sha256"]) == (path, hashlib.sha256(body).hexdigest())
        sent.append(path)
        line = fake.door.log_line(f'"POST {path}" 200 ')
        return line.partition("mlflow=")[2].count(":5000") == 2

    with container(
        image_of(stack, "mlflow"), *idle, networks=[fake.network], alias="mlflow", options=PYTHON_ALONE
    ):
        while not went_to_the_other():
            assert len(sent) < 200, docker("logs", "--tail", "5", fake.door.name)
    assert {fake.facts("seen", path) for path in sent} == {1}


def test_an_upload_streams_through_while_it_is_sent(fake: Fake) -> None:
    """Nothing is gathered in the door first: it would fill its small /tmp."""
    path = "/api/2.0/mlflow-artifacts/artifacts/streamed"
    half = os.urandom(1_000_000)
    with fake.connect() as connection:
        connection.sendall(fake.head("PUT", path, f"Content-Length: {2 * len(half)}") + half)
        poll(lambda: fake.facts("received", path) >= len(half) // 2, seconds=20, what="half of it is there")
        connection.sendall(half)
        got = echo(read_answer(connection))
    assert got["bytes"] == 2 * len(half)
    assert got["sha256"] == hashlib.sha256(half + half).hexdigest()


def test_an_upload_larger_than_the_doors_memory_and_disk_passes(fake: Fake) -> None:
    """600 MB through a container with 512 MB of memory and a /tmp of 64 MB."""
    path = "/api/2.0/mlflow-artifacts/artifacts/large"
    block = b"\0" * 1_000_000
    with fake.connect() as connection:
        connection.sendall(fake.head("PUT", path, f"Content-Length: {600 * len(block)}"))
        for _ in range(600):
            connection.sendall(block)
        got = echo(read_answer(connection))
    assert got["bytes"] == 600 * len(block)


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_chunks_reach_mlflow_well_formed_however_they_came(fake: Fake, end: bytes) -> None:
    """This nginx takes a bare line feed after a chunk's size; what it passes on has none."""
    hidden = b"0" + end + end + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    data = b"b" * 10 + hidden
    body = b"%x" % len(data) + end + data + end + b"0" + end + end
    answer = send_raw(fake.port, fake.head("POST", "/v1/traces", "Transfer-Encoding: chunked") + body)
    assert echo(answer)["sha256"] == hashlib.sha256(data).hexdigest()
    assert fake.facts("seen", "/smuggled") == 0


def test_the_log_has_the_path_without_its_query_and_never_a_header(fake: Fake) -> None:
    send(fake.port, "GET", "/log-test?token=hush", Authorization=LOGIN, X_Api_Key="hush", Cookie="hush")
    assert " ada [" in fake.door.log_line('"GET /log-test" 200 ')
    log = fake.door.log()
    assert not [word for word in ("hush", LOGIN, LOGIN.split()[1], "grün") if word in log]
