"""What nginx gives to the fast path and what becomes of it; both servers behind it are the test's own."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kit.door import (
    Answer,
    Door,
    assert_security_headers,
    basic,
    bcrypt_hash,
    container,
    docker,
    door,
    image_of,
    network,
    read_answer,
    send_raw,
)
from kit.echo_server import ECHO_SERVER, PYTHON_ALONE, echo
from kit.fake_fastpath import FAKE_FASTPATH
from kit.stack import Stack, poll

API = "/api/2.0/mlflow"
PASSWORD = "a good password"
LOGIN = basic("ada", PASSWORD)
WRITES = [
    *(f"runs/{name}" for name in ("create", "update", "log-metric", "log-parameter", "log-batch", "set-tag")),
    "experiments/create",
]
READS = ["runs/get", "experiments/get", "experiments/get-by-name"]
BIGGEST = 259_999
"""Bytes of a body that the fast path still gets."""


@dataclass
class Fake:
    """A door with a server of the test's own in MLflow's place, and one in the fast path's."""

    door: Door
    network: str
    fastpath: str
    """The container of the latter."""
    marks: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        does: str = "answer",
        login: str = LOGIN,
        **headers: str,
    ) -> Answer:
        """Send a request; `does` is what the fast path does with it (kit/fake_fastpath.py)."""
        lines = {"Host": f"127.0.0.1:{self.door.port}", "Authorization": login, "X-Fake": does}
        lines |= {name.replace("_", "-"): text for name, text in headers.items()}
        if body is not None:
            lines.setdefault("Content-Length", str(len(body)))
        head = "".join(f"{name}: {text}\r\n" for name, text in lines.items() if text)
        text = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode()
        return send_raw(self.door.port, text, body or b"", timeout=60)

    def mark(self, path: str) -> str:
        """Return the path with a query that no other request has."""
        return f"{API}/{path}?mark={next(self.marks)}"

    def seen_by_fastpath(self, method: str, target: str) -> int:
        """Return how often the fast path was asked so."""
        return self.facts()["seen"].get(f"{method} {target}", 0)

    def facts(self) -> dict[str, Any]:
        """Return what the fast path remembers, as soon as it is asked again."""

        def told() -> dict[str, Any]:
            found = json.loads(self.ask("GET", f"{API}/runs/get", does="facts").body)
            return found if "connections" in found else {}

        return poll(told, seconds=20, what="the fast path says what it remembers")

    def mlflow_facts(self, kind: str, target: str) -> int:
        """Return how often MLflow was asked ("seen"), or how many bytes it got ("received")."""
        answer = self.ask("GET", "/facts")
        assert answer.status == 200
        return json.loads(answer.body)[kind].get(target, 0)


@pytest.fixture(scope="module")
def fake(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    folder: Path = tmp_path_factory.mktemp("users")
    hashed = bcrypt_hash(PASSWORD, 4)
    (folder / "users").write_text(f"ada:{hashed}\nrita:{hashed}:reader\n")
    folder.chmod(0o755)
    (folder / "users").chmod(0o644)
    sockets: Path = tmp_path_factory.mktemp("sockets")
    sockets.chmod(0o777)
    users = (f"--volume={folder}:/users:ro", "--env=USERS_FILE=/users/users", *PYTHON_ALONE)
    mlflow = ("/usr/bin/python3", "-c", ECHO_SERVER)
    fastpath = ("/usr/bin/python3", "-c", FAKE_FASTPATH, "/run/fastpath/fast.sock")
    its_socket = f"--volume={sockets}:/run/fastpath"
    with (
        network(stack, "fake-fastpath") as name,
        container(image_of(stack, "auth"), networks=[name], alias="auth", options=users),
        container(image_of(stack, "mlflow"), *mlflow, networks=[name], alias="mlflow", options=PYTHON_ALONE),
        container(
            image_of(stack, "auth"), *fastpath, networks=[name], options=(its_socket, *PYTHON_ALONE)
        ) as fast,
        door(stack, [name], more=(f"{its_socket}:ro",)) as opened,
    ):
        made = Fake(opened, name, fast)
        poll(lambda: made.mlflow_facts("seen", "/facts"), seconds=30, what="MLflow's place is taken")
        poll(lambda: answered_fast(made), seconds=30, what="the fast path's place is taken")
        yield made


def answered_fast(fake: Fake) -> bool:
    return fake.ask("POST", f"{API}/runs/create", b"{}").headers.get("X-Answered-By") == "fastpath"


@pytest.mark.parametrize("prefix", ["/api", "/ajax-api"])
def test_each_fast_route_is_answered_by_the_fast_path_and_by_it_alone(fake: Fake, prefix: str) -> None:
    for method, names in (("POST", [*WRITES, "runs/search"]), ("GET", READS)):
        for name in names:
            target = fake.mark(name).replace("/api", prefix, 1)
            answer = fake.ask(method, target, b"{}" if method == "POST" else None)
            assert (answer.status, answer.headers.get("X-Answered-By")) == (200, "fastpath"), target
            assert_security_headers(answer.headers)
            assert fake.mlflow_facts("seen", target) == 0


def test_the_log_says_who_answered(fake: Fake) -> None:
    path = "/ajax-api/2.0/mlflow/runs/update"
    fake.ask("POST", path, b"{}")
    assert " mlflow=fastpath " in fake.door.log_line(f'"POST {path}" 200 ')
    path = "/ajax-api/2.0/mlflow/runs/set-tag"
    fake.ask("POST", path, b"{}", does="pass", X_Status="404")
    line = fake.door.log_line(f'"POST {path}" 404 ')
    assert line.partition(" mlflow=")[2].partition(" ")[0].endswith(":5000")
    assert " ada [" in line


def test_the_fast_path_is_told_who_asks_and_when_and_no_password(fake: Fake) -> None:
    before = time.time()
    answer = fake.ask(
        "POST",
        f"{API}/runs/create",
        b"{}",
        X_T="1",
        X_Forwarded_User="root",
        X_Request_Id="chosen by the client",
        Origin=f"http://127.0.0.1:{fake.door.port}",
        Upgrade="h2c",
        Content_Type="application/json",
    )
    headers = json.loads(answer.body)["headers"]
    assert before - 1 <= float(headers["x-t"]) <= time.time() + 1
    assert headers["x-forwarded-user"] == "ada"
    assert headers["content-type"] == "application/json"
    assert headers["host"] == f"127.0.0.1:{fake.door.port}"
    assert not {"authorization", "origin", "upgrade", "connection"} & set(headers)
    assert "chosen by the client" not in headers.values()


def test_connections_to_the_fast_path_stay_open(fake: Fake) -> None:
    before = fake.facts()["connections"]
    for _ in range(40):
        assert answered_fast(fake)
    # One for each worker process of nginx that had none.
    assert fake.facts()["connections"] - before <= (os.cpu_count() or 1)


@pytest.mark.parametrize("name", [*WRITES, "runs/search"])
@pytest.mark.parametrize("size", [0, 2, BIGGEST])
def test_what_is_not_the_fast_paths_reaches_mlflow_as_if_it_were_not_there(
    fake: Fake, name: str, size: int
) -> None:
    body = os.urandom(size)
    headers = {"X_T": "7", "X_Custom": "kept", "Accept": "*/*", "Accept_Encoding": "gzip", "Expect": ""}
    target = fake.mark(name) + "&a=%20b%2Fc"
    got = echo(fake.ask("POST", target, body, does="pass", **headers))
    assert fake.seen_by_fastpath("POST", target) == 1
    assert fake.mlflow_facts("seen", target) == 1
    plain = echo(fake.ask("POST", fake.mark("runs/delete"), body, does="pass", **headers))
    for one in (got, plain):
        assert len(one["headers"].pop("x-request-id")) == 32
    assert got["headers"] == plain["headers"]
    assert (got["path"], got["sha256"]) == (target, hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize("name", READS)
def test_a_reading_call_that_is_not_the_fast_paths_reaches_mlflow(fake: Fake, name: str) -> None:
    target = fake.mark(name)
    answer = fake.ask("GET", target, does="pass")
    assert echo(answer)["path"] == target
    assert "X-Answered-By" not in answer.headers


@pytest.mark.parametrize(
    ("method", "name", "size", "headers"),
    [
        ("POST", "runs/log-batch", BIGGEST + 1, {}),
        ("POST", "runs/log-batch", 3_000_000, {}),
        ("POST", "runs/log-batch", 5, {"Content_Length": "00000005"}),
        ("POST", "runs/get", 2, {}),
        ("GET", "runs/get", 2, {}),
        ("GET", "runs/search", None, {}),
        ("HEAD", "runs/get", None, {}),
        ("PUT", "runs/create", 2, {}),
        ("DELETE", "runs/create", 2, {}),
        ("PATCH", "runs/create", 2, {}),
        ("POST", "runs/create/", 2, {}),
        ("POST", "runs/create%0A", 2, {}),
        ("POST", "runs/delete", 2, {}),
        ("POST", "registered-models/create", 2, {}),
    ],
)
def test_the_fast_path_is_not_asked_about_anything_else(
    fake: Fake, method: str, name: str, size: int | None, headers: dict[str, str]
) -> None:
    body = None if size is None else os.urandom(size)
    target = fake.mark(name)
    answer = fake.ask(method, target, body, **headers)
    if method == "HEAD":
        assert answer.status == 501  # no method of that server, and so its own word
    else:
        got = echo(answer)
        assert (got["method"], got["path"]) == (method, target)
        assert got["sha256"] == hashlib.sha256(body or b"").hexdigest()
    assert fake.seen_by_fastpath(method, target) == 0


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def test_a_chunked_body_and_one_without_a_length_go_to_mlflow(fake: Fake) -> None:
    head = f"Host: 127.0.0.1\r\nAuthorization: {LOGIN}\r\n"
    for method, name in (("POST", "runs/log-batch"), ("GET", "runs/get")):
        target = fake.mark(name)
        text = f"{method} {target} HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode()
        got = echo(send_raw(fake.door.port, text, chunked(b"a" * 10, b"b" * 300_000)))
        assert got["sha256"] == hashlib.sha256(b"a" * 10 + b"b" * 300_000).hexdigest()
        assert fake.seen_by_fastpath(method, target) == 0
    target = fake.mark("runs/log-batch")
    got = echo(send_raw(fake.door.port, f"POST {target} HTTP/1.1\r\n{head}\r\n".encode()))
    assert got["bytes"] == fake.seen_by_fastpath("POST", target) == 0


def test_a_large_body_streams_to_mlflow_and_is_not_gathered_in_the_door(fake: Fake) -> None:
    target = fake.mark("runs/log-batch")
    half = os.urandom(1_000_000)
    head = f"Host: 127.0.0.1\r\nAuthorization: {LOGIN}\r\nContent-Length: {2 * len(half)}\r\n"
    with socket.create_connection(("127.0.0.1", fake.door.port), timeout=20) as connection:
        connection.sendall(f"POST {target} HTTP/1.1\r\n{head}\r\n".encode() + half)
        poll(
            lambda: fake.mlflow_facts("received", target) >= len(half) // 2,
            seconds=20,
            what="half of it is there",
        )
        connection.sendall(half)
        got = echo(read_answer(connection))
    assert got["sha256"] == hashlib.sha256(half + half).hexdigest()


@pytest.mark.parametrize(
    ("name", "does"),
    [*((name, "unknown") for name in WRITES), ("runs/create", "drop"), ("runs/update", "drop")],
)
def test_a_change_that_may_have_been_made_is_not_made_again(fake: Fake, name: str, does: str) -> None:
    recovers(fake)
    target = fake.mark(name)
    answer = fake.ask("POST", target, b"{}" * 1000, does=does)
    assert answer.status == 503
    assert answer.headers["Content-Type"] == "application/json"
    assert "not known" in json.loads(answer.body)["message"]
    assert int(answer.headers["Retry-After"]) > 0
    assert_security_headers(answer.headers)
    assert fake.seen_by_fastpath("POST", target) == 1
    assert fake.mlflow_facts("seen", target) == 0


def test_mlflows_own_client_is_left_to_its_longer_schedule(fake: Fake) -> None:
    recovers(fake)
    agent = "mlflow-python-client/3.17.2"
    answer = fake.ask("POST", f"{API}/runs/create", b"{}", does="unknown", User_Agent=agent)
    assert (answer.status, answer.headers.get("Retry-After")) == (503, None)


@pytest.mark.parametrize(
    ("method", "name", "does"),
    [
        *(("GET", name, "drop") for name in READS),
        ("POST", "runs/search", "drop"),
        ("POST", "runs/search", "unknown"),
        ("GET", "runs/get", "unknown"),
        ("GET", "runs/get", "hang"),  # 5 s; a search 20 s
    ],
)
def test_what_only_reads_is_asked_of_mlflow_when_the_fast_path_fails(
    fake: Fake, method: str, name: str, does: str
) -> None:
    recovers(fake)
    target = fake.mark(name)
    body = b"{}" if method == "POST" else None
    assert echo(fake.ask(method, target, body, does=does))["path"] == target
    assert fake.seen_by_fastpath(method, target) == 1


def recovers(fake: Fake) -> None:
    """After three failures the fast path is left out for some seconds."""
    poll(lambda: answered_fast(fake), seconds=20, what="the fast path answers again")


def test_a_fast_path_that_hangs_is_left_out_after_three_failures(fake: Fake) -> None:
    recovers(fake)
    targets = [fake.mark("runs/get") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda target: fake.ask("GET", target, does="hang"), targets))
    assert [echo(answer)["path"] for answer in answers] == targets
    later = [fake.mark("runs/create") for _ in range(5)]
    assert [echo(fake.ask("POST", target, b"{}"))["path"] for target in later] == later
    recovers(fake)
    assert [fake.seen_by_fastpath("POST", target) for target in later] == [0] * 5


def test_without_the_fast_path_everything_goes_to_mlflow_and_back_when_it_returns(fake: Fake) -> None:
    for _ in range(2):
        docker("kill", fake.fastpath)
        for name in WRITES:
            target = fake.mark(name)
            body = os.urandom(1000)
            got = echo(fake.ask("POST", target, body))
            assert (got["path"], got["sha256"]) == (target, hashlib.sha256(body).hexdigest())
        assert echo(fake.ask("GET", fake.mark("runs/get")))["method"] == "GET"
        docker("start", fake.fastpath)
        recovers(fake)


def test_the_login_is_checked_before_the_fast_path_and_on_every_way_around_it(fake: Fake) -> None:
    wrong = basic("ada", "a wrong password")
    for size in (2, 3_000_000):
        for login, status in ((wrong, 401), ("", 401), (basic("rita", PASSWORD), 403)):
            target = fake.mark("runs/create")
            head = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Fake: pass\r\nContent-Length: {size}\r\n"
            credentials = f"Authorization: {login}\r\n" if login else ""
            answer = send_raw(fake.door.port, f"{head}{credentials}\r\n".encode())  # no body is waited for
            assert answer.status == status
            assert_security_headers(answer.headers)
            if status == 401:
                assert "WWW-Authenticate" in answer.headers
            else:
                assert json.loads(answer.body)["error_code"] == "PERMISSION_DENIED"
            assert fake.seen_by_fastpath("POST", target) == fake.mlflow_facts("seen", target) == 0


def test_a_reader_gets_what_only_reads_from_the_fast_path(fake: Fake) -> None:
    login = basic("rita", PASSWORD)
    for method, name in (("POST", "runs/search"), *(("GET", name) for name in READS)):
        body = b"{}" if method == "POST" else None
        answer = fake.ask(method, f"{API}/{name}", body, login=login)
        assert (answer.status, answer.headers.get("X-Answered-By")) == (200, "fastpath")


def test_another_sites_page_and_a_body_that_is_too_large_are_refused(fake: Fake) -> None:
    target = fake.mark("runs/create")
    refused = fake.ask("POST", target, b"{}", Origin="https://evil.example")
    assert refused.status == 403
    assert b"page of another site" in refused.body
    head = f"Host: 127.0.0.1\r\nAuthorization: {LOGIN}\r\nContent-Length: {101 << 20}\r\n"
    too_large = send_raw(fake.door.port, f"POST {target} HTTP/1.1\r\n{head}\r\n".encode())
    assert too_large.status == 413
    assert b"100 MB" in too_large.body
    assert fake.seen_by_fastpath("POST", target) == fake.mlflow_facts("seen", target) == 0


def test_mlflows_own_errors_pass_unchanged_through_the_hand_over(fake: Fake) -> None:
    target = fake.mark("runs/create")
    answer = fake.ask("POST", target, b"{}", does="pass", X_Status="404")
    assert answer.status == 404
    assert json.loads(answer.body)["path"] == target


def test_when_mlflow_is_away_too_clients_are_told_to_come_again(fake: Fake) -> None:
    mlflow = docker("ps", "--quiet", "--filter", f"network={fake.network}").split()
    away = [
        one for one in mlflow if "mlflow" in docker("inspect", "--format", "{{json .NetworkSettings}}", one)
    ]
    assert len(away) == 1, mlflow
    docker("stop", "--time", "1", away[0])
    try:
        answer = fake.ask("POST", f"{API}/runs/create", b"{}", does="pass")
        assert answer.status == 503
        assert "MLflow is starting" in answer.body.decode()
        assert int(answer.headers["Retry-After"]) > 0
        assert_security_headers(answer.headers)
        assert answered_fast(fake)  # it needs no MLflow
    finally:
        docker("start", away[0])
        poll(lambda: fake.mlflow_facts("seen", "/facts"), seconds=30, what="MLflow is back")
