"""TLS at the door: one port, modern protocols, certificates that change under open connections."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests

from kit.door import Door, assert_security_headers, docker, door, send, stack_networks
from kit.stack import ROOT, Stack, poll
from stackops import tls

CLIENT = """
import mlflow
client = mlflow.MlflowClient()
run = client.create_run("0").info
client.log_metric(run.run_id, "x", 1.0)
client.log_text(run.run_id, "by TLS", "a.txt")
print(mlflow.artifacts.load_text(f"runs:/{run.run_id}/a.txt"))
"""


@dataclass
class Secure:
    """A door with TLS, and the folder of its certificate."""

    door: Door
    folder: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.door.port}"

    @property
    def trust(self) -> str:
        """The certificate, which is its own authority."""
        return str(self.folder / "cert.pem")

    def connect(self, **limits: ssl.TLSVersion) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=self.trust)
        context.set_alpn_protocols(["h2", "http/1.1"])
        for name, value in limits.items():
            setattr(context, name, value)
        raw = socket.create_connection(("127.0.0.1", self.door.port), timeout=20)
        return context.wrap_socket(raw, server_hostname="127.0.0.1")


def put_certificate(folder: Path) -> None:
    made = tls.files("self-signed", folder, folder, "")
    for name, text in made.items():
        path = folder / Path(name).name
        new = path.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o644)
        new.replace(path)


@pytest.fixture(scope="module")
def secure(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder: Path = tmp_path_factory.mktemp("tls")
    folder.chmod(0o755)
    put_certificate(folder)
    settings = {"TLS_MODE": "files", "PUBLIC_URL": "https://mlflow.example.com"}
    mount = (f"--volume={folder}:/secrets/nginx:ro",)
    with door(stack, stack_networks(stack), more=mount, **settings) as opened:
        yield Secure(opened, folder)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("path", ["/", "/health", "/api/2.0/mlflow/runs/search?a=1%202", "//x/../y"])
def test_plain_http_on_the_port_is_shown_the_way(secure: Secure, method: str, path: str) -> None:
    answer = send(secure.door.port, method, path)
    assert answer.status == 308
    assert answer.headers["Location"] == f"https://127.0.0.1:{secure.door.port}{path}"


def test_strangers_are_strangers_by_tls_too(secure: Secure) -> None:
    answer = requests.get(f"{secure.url}/version", verify=secure.trust, timeout=20)
    assert answer.status_code == 401
    assert_security_headers(answer.headers)
    assert requests.get(f"{secure.url}/health", verify=secure.trust, timeout=20).text == "OK\n"


def test_http_2_is_spoken_and_old_protocols_are_not(secure: Secure) -> None:
    with secure.connect() as connection:
        assert connection.selected_alpn_protocol() == "h2"
        assert connection.version() == "TLSv1.3"
    with secure.connect(maximum_version=ssl.TLSVersion.TLSv1_2) as connection:
        assert connection.version() == "TLSv1.2"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        secure.connect(minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)


@pytest.mark.parametrize(("size", "status"), [(0, 200), (3_000_000, 413)])
def test_a_body_of_unknown_length_that_a_get_brings_by_http_2_is_not_kept(
    stack: Stack, secure: Secure, size: int, status: int
) -> None:
    address = "https://127.0.0.1:8080/api/2.0/mlflow/experiments/get?experiment_id=0"
    body = f"head -c {size} /dev/zero |" if size else ""
    more = "--data-binary @- --header Content-Length:" if size else ""
    ask = (
        f"{body} curl --http2 --insecure --silent --output /dev/null"
        " --write-out '%{http_version} %{http_code}' --request GET"
        f' --header "Authorization: $AUTHORIZATION" {more} "{address}"'
    )
    login = f"--env=AUTHORIZATION={stack.authorization}"
    assert docker("exec", login, secure.door.name, "sh", "-c", ask) == f"2 {status}"


@pytest.mark.parametrize("declared", [1000, 300_000], ids=["small", "large"])
def test_an_upload_by_http_2_that_is_shorter_than_it_said_is_refused_at_once(
    stack: Stack, secure: Secure, declared: int
) -> None:
    artifact = f"/api/2.0/mlflow-artifacts/artifacts/0/{uuid.uuid4().hex}/artifacts/a.txt"
    ask = (
        "printf short | curl --http2 --insecure --silent --output /dev/null --max-time 15"
        " --write-out '%{http_version} %{http_code}' --upload-file -"
        f' --header "Authorization: $AUTHORIZATION" --header "Content-Length: {declared}"'
        f' "https://127.0.0.1:8080{artifact}"'
    )
    login = f"--env=AUTHORIZATION={stack.authorization}"
    answer = docker("exec", login, secure.door.name, "sh", "-c", ask, check=False)
    assert answer == "2 400"


def test_mlflows_client_works_through_tls(stack: Stack, secure: Secure) -> None:
    environment = {
        **os.environ,
        **stack.client_environment,
        "MLFLOW_TRACKING_URI": secure.url,
        "MLFLOW_TRACKING_SERVER_CERT_PATH": secure.trust,
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["by TLS"], done.stderr[-2000:]


def test_browsers_are_told_to_stay_with_tls(stack: Stack, secure: Secure) -> None:
    answer = requests.get(
        f"{secure.url}/version",
        headers={"Authorization": stack.authorization, "Origin": "https://mlflow.example.com"},
        verify=secure.trust,
        timeout=20,
    )
    assert (answer.status_code, answer.headers["Strict-Transport-Security"]) == (200, "max-age=31536000")
    assert "Strict-Transport-Security" not in stack.get("/version").headers


def test_a_changed_certificate_is_taken_up_and_a_request_under_way_goes_on(
    stack: Stack, secure: Secure
) -> None:
    client = mlflow.MlflowClient()
    run = client.create_run("0").info
    old = ssl.create_default_context(cafile=secure.trust)
    raw = socket.create_connection(("127.0.0.1", secure.door.port), timeout=20)
    path = f"/api/2.0/mlflow-artifacts/artifacts/0/{run.run_id}/artifacts/slow.txt"
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {stack.authorization}\r\n"
        "Content-Length: 10\r\n\r\n"
    )
    with old.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        connection.sendall(head.encode() + b"12345")
        put_certificate(secure.folder)

        def is_served() -> bool:
            served = ssl.get_server_certificate(("127.0.0.1", secure.door.port))
            return served.strip() == Path(secure.trust).read_text().strip()

        poll(is_served, seconds=40, what="the new certificate is served")
        connection.sendall(b"67890")
        assert b" 200 " in connection.recv(4096).partition(b"\r\n")[0]
    assert mlflow.artifacts.load_text(f"runs:/{run.run_id}/slow.txt") == "1234567890"


@pytest.fixture(scope="module")
def waiting(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """A door with TLS_MODE=acme that has no certificate of an ACME server yet."""
    folder: Path = tmp_path_factory.mktemp("acme")
    for name in ("secrets", "acme/challenges/.well-known/acme-challenge"):
        (folder / name).mkdir(parents=True)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    put_certificate(folder / "secrets")
    (folder / "acme/challenges/.well-known/acme-challenge/a-Token_1").write_text("a-Token_1.answer")
    (folder / "acme/challenges/.well-known/acme-challenge/link").symlink_to("/secrets/nginx/key.pem")
    (folder / "acme/challenges/folder").symlink_to("/secrets/nginx")
    mounts = (f"--volume={folder}/secrets:/secrets/nginx:ro", f"--volume={folder}/acme:/acme:ro")
    settings = {"TLS_MODE": "acme", "PUBLIC_URL": "https://mlflow.example.com:8443"}
    with door(stack, stack_networks(stack), more=mounts, **settings) as opened:
        yield Secure(opened, folder)


def test_the_answer_to_a_challenge_is_given_over_plain_http(waiting: Secure) -> None:
    answer = send(
        waiting.door.port, "GET", "/.well-known/acme-challenge/a-Token_1", Host="mlflow.example.com"
    )
    assert (answer.status, answer.body) == (200, b"a-Token_1.answer")
    assert_security_headers(answer.headers)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/other", "/acme/door.pem"),
        *("/.well-known/acme-challenge/../../door.pem", "/.well-known/acme-challenge/%2e%2e/x"),
    ],
)
def test_who_asks_for_anything_else_is_sent_to_the_public_address(waiting: Secure, path: str) -> None:
    answer = send(waiting.door.port, "GET", path, Host="mlflow.example.com")
    assert (answer.status, answer.headers["Location"]) == (308, f"https://mlflow.example.com:8443{path}")
    elsewhere = send(waiting.door.port, "GET", path, Host=f"127.0.0.1:{waiting.door.port}")
    assert elsewhere.headers["Location"] == f"https://127.0.0.1:{waiting.door.port}{path}"


@pytest.mark.parametrize("path", ["/.well-known/acme-challenge/link", "/folder/key.pem"])
def test_a_link_among_the_challenges_leads_nowhere(waiting: Secure, path: str) -> None:
    answer = send(waiting.door.port, "GET", path, Host="mlflow.example.com")
    assert answer.status != 200
    assert b"PRIVATE" not in answer.body


def test_challenges_are_no_way_in_by_tls(waiting: Secure) -> None:
    url = f"{waiting.url}/.well-known/acme-challenge/a-Token_1"
    answer = requests.get(url, verify=str(waiting.folder / "secrets/cert.pem"), timeout=20)
    assert answer.status_code == 401


def test_the_acme_servers_certificate_takes_the_place_of_the_stacks_own(waiting: Secure) -> None:
    def served() -> str:
        return ssl.get_server_certificate(("127.0.0.1", waiting.door.port)).strip()

    assert served() == (waiting.folder / "secrets/cert.pem").read_text().strip()
    put_certificate(waiting.folder / "secrets")  # another one, which comes in one file
    text = "".join((waiting.folder / "secrets" / file).read_text() for file in ("cert.pem", "key.pem"))
    put_certificate(waiting.folder / "secrets")
    new = waiting.folder / "acme/door.new"
    new.write_text(text)
    new.chmod(0o644)
    new.replace(waiting.folder / "acme/door.pem")
    poll(lambda: served() in text, seconds=40, what="the ACME server's certificate is shown")


def test_a_whole_stack_with_a_certificate_of_its_own(stack: Stack, make_stack: Callable[..., Stack]) -> None:
    own = make_stack("tls", TLS_MODE="self-signed")
    own.image_tag = stack.image_tag
    own.verb("up", "--no-build")
    url = own.verb("url").stdout.strip()
    assert url == f"https://127.0.0.1:{own.port}"
    script = f'eval "$(./stack env)"; exec {sys.executable} -c "$1"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", CLIENT],
        cwd=ROOT,
        env=own.environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["by TLS"], done.stderr[-2000:]
    served = ssl.get_server_certificate(("127.0.0.1", own.port))
    own.verb("up", "--no-build")
    assert ssl.get_server_certificate(("127.0.0.1", own.port)) == served
    own.verb("down", "--volumes", "--yes")
