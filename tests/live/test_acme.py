"""TLS_MODE=acme against a real ACME server (pebble), which asks the door over plain HTTP as any would."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kit.door import basic, docker, read_answer, send
from kit.stack import ROOT, Stack, free_port, poll

NAME = "mlflow.example.com"
OVERLAYS = ("docker-compose.yml", "compose/acme.yml", "tests/pebble/compose.yml")
PEBBLE = {
    "listenAddress": "0.0.0.0:14000",
    "managementListenAddress": "0.0.0.0:15000",
    "certificate": "/pebble/cert.pem",
    "privateKey": "/pebble/key.pem",
    "httpPort": 8080,  # nginx's own, behind ACME_HTTP_PORT
    "tlsPort": 443,
    "retryAfter": {"authz": 1, "order": 1},
    "profiles": {"default": {"description": "90 days", "validityPeriod": 7776000}},
}
CLIENT = f"""
import socket
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more: real("127.0.0.1" if host == "{NAME}" else host, *more)
import mlflow
client = mlflow.MlflowClient()
run = client.create_run("0").info
client.log_text(run.run_id, "by TLS", "a.txt")
print(mlflow.artifacts.load_text(f"runs:/{{run.run_id}}/a.txt"))
"""


def own_authority(folder: Path, *names: str) -> None:
    """Put cert.pem, which is its own authority, and key.pem of a server into a folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


@dataclass
class Acme:
    """A stack with TLS_MODE=acme, the server that it asks, and what its first start said."""

    stack: Stack
    folder: Path
    http_port: int
    pebble_port: int
    first: subprocess.CompletedProcess
    first_served: str

    @property
    def trust(self) -> Path:
        return self.folder / "config/tls/ca.pem"

    def served(self) -> str:
        """The certificate that the door shows now."""
        return ssl.get_server_certificate(("127.0.0.1", self.stack.port)).strip()

    def connect(self) -> ssl.SSLSocket:
        """Connect as a client does that trusts the authority, and nobody else."""
        raw = socket.create_connection(("127.0.0.1", self.stack.port), timeout=30)
        return ssl.create_default_context(cafile=self.trust).wrap_socket(raw, server_hostname=NAME)

    def orders(self) -> int:
        """How many certificates pebble was asked for."""
        log = docker("logs", self.stack.container("pebble"))
        return len(re.findall(r"Added order ", log))

    def status(self) -> dict[str, object]:
        return json.loads(self.stack.verb("status", "--json", check=False).stdout)["certificate"]


@pytest.fixture(scope="module")
def acme(
    stack: Stack, make_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Acme]:
    folder: Path = tmp_path_factory.mktemp("acme")
    folder.chmod(0o755)
    for name in ("config/tls", "config/secrets", "pebble"):
        (folder / name).mkdir(parents=True)
    own_authority(folder / "pebble", "acme.example.com", "localhost")
    (folder / "pebble/key.pem").chmod(0o644)
    (folder / "pebble/config.json").write_text(json.dumps({"pebble": PEBBLE}))
    http_port, pebble_port = free_port(), free_port()
    own = make_stack(
        "acme",
        TLS_MODE="acme",
        COMPOSE_FILE=":".join(str(ROOT / name) for name in OVERLAYS),
        CONFIG_FOLDER=str(folder / "config"),
        ACME_SERVER="https://acme.example.com:14000/dir",
        ACME_HTTP_PORT=str(http_port),
        PEBBLE_PORT=str(pebble_port),
        PEBBLE_FOLDER=str(folder / "pebble"),
    )
    own.extra["PUBLIC_URL"] = f"https://{NAME}:{own.port}"
    own.image_tag = stack.image_tag
    # Nobody has said yet whom to trust: the server is asked, and not believed.
    first = own.verb("up", check=False, timeout=1800)
    made = Acme(own, folder, http_port, pebble_port, first, "")
    made.first_served = made.served()
    directory = (folder / "pebble/cert.pem").read_text()
    answer = requests.get(
        f"https://localhost:{pebble_port}/roots/0", verify=str(folder / "pebble/cert.pem"), timeout=20
    )
    made.trust.write_text(directory + answer.text)
    own.verb("up", "--no-build")
    poll(lambda: made.served() != made.first_served, seconds=60, what="the door shows the certificate")
    yield made
    own.verb("down", "--volumes", "--yes")


@pytest.mark.long
def test_while_the_server_is_not_believed_up_says_why_and_the_stack_is_there(acme: Acme) -> None:
    assert acme.first.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in acme.first.stderr
    assert "acme.example.com into config/tls/ca.pem, then ./stack up" in acme.first.stderr
    assert f"MLflow is ready:  https://{NAME}:{acme.stack.port}" in acme.first.stdout
    shown = x509.load_pem_x509_certificate(acme.first_served.encode())
    assert shown.subject.rfc4514_string() == "CN=mlflow-stack"


def test_the_door_shows_a_certificate_that_the_server_vouches_for(acme: Acme) -> None:
    with acme.connect() as connection:  # checks the chain, the name and the time
        assert connection.getpeercert()["subjectAltName"] == (("DNS", NAME),)
        request = f"GET /version HTTP/1.1\r\nHost: {NAME}\r\n\r\n"
        connection.sendall(request.encode())
        answer = read_answer(connection)
    assert answer.status == 401
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert acme.status()["problem"] == ""
    said = acme.stack.verb("certificate").stdout
    assert said.startswith(f"certificate for {NAME} by ")


def test_clients_are_told_whom_to_trust_and_work(acme: Acme) -> None:
    script = f'eval "$(./stack env)"; exec {sys.executable} -c "$1"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", CLIENT],
        cwd=ROOT,
        env=acme.stack.environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["by TLS"], done.stderr[-2000:]


@pytest.mark.long
def test_a_second_up_asks_the_server_for_nothing(acme: Acme) -> None:
    orders = acme.orders()
    assert orders > 0
    acme.stack.verb("up", "--no-build")
    acme.stack.compose("restart", "acme")
    poll(lambda: "healthy" in health(acme), seconds=60, what="the service acme is healthy again")
    acme.stack.verb("up", "--no-build")
    assert acme.orders() == orders


def health(acme: Acme) -> str:
    return acme.stack.inspect(acme.stack.container("acme"))["State"]["Health"]["Status"]


def test_a_renewal_drops_no_request_that_is_under_way(acme: Acme) -> None:
    before = acme.served()
    authorization = basic("admin", acme.stack.password)
    host = f"Host: {NAME}:{acme.stack.port}\r\nAuthorization: {authorization}\r\n"
    run = f"POST /api/2.0/mlflow/runs/create HTTP/1.1\r\n{host}Content-Type: application/json\r\n"
    body = json.dumps({"experiment_id": "0"})
    with acme.connect() as uploading:
        uploading.sendall(f"{run}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        run_id = json.loads(read_answer(uploading).body)["run"]["info"]["run_id"]
        path = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_id}/artifacts/slow.txt"
        uploading.sendall(f"PUT {path} HTTP/1.1\r\n{host}Content-Length: 10\r\n\r\n12345".encode())
        said = acme.stack.verb("certificate", "--renew").stdout
        assert said.startswith(f"certificate for {NAME} by ")
        poll(lambda: acme.served() != before, seconds=60, what="the renewed certificate is shown")
        uploading.sendall(b"67890")
        assert read_answer(uploading, "PUT").status == 200
    with acme.connect() as fresh:
        fresh.sendall(f"GET {path} HTTP/1.1\r\n{host}\r\n".encode())
        assert read_answer(fresh).body == b"1234567890"


@pytest.mark.long
def test_a_server_that_is_away_leaves_the_certificate_and_a_warning(acme: Acme) -> None:
    before = acme.served()
    network, pebble = f"{acme.stack.project}_outside", acme.stack.container("pebble")
    docker("network", "disconnect", network, pebble)
    try:
        failed = acme.stack.verb("certificate", "--renew", check=False)
        assert failed.returncode == 1
        assert "acme.example.com" in failed.stderr
        assert "fix: " in failed.stderr
        assert acme.served() == before
        assert acme.status()["problem"] != ""
        status = acme.stack.verb("status", check=False)
        assert status.returncode == 1
        assert "error: certificate: " in status.stderr
        assert f"certificate for {NAME} by " in status.stdout
        assert "stack_certificate_ok 0.0" in acme.stack.verb("metrics").stdout
        # Nothing is due: the stack starts, and there is no more to warn of.
        assert acme.stack.verb("up", "--no-build").returncode == 0
    finally:
        docker("network", "connect", "--alias", "acme.example.com", network, pebble)
    acme.stack.verb("certificate", "--renew")
    assert acme.status()["problem"] == ""
    metrics = acme.stack.verb("metrics").stdout
    assert "stack_certificate_ok 1.0" in metrics
    assert re.search(r"^stack_certificate_end_timestamp_seconds 1\.\d+e\+09$", metrics, re.MULTILINE)


@pytest.mark.parametrize("path", ["/", "/health", "/.well-known/acme-challenge/x", "/api/2.0/mlflow?a=1"])
def test_whoever_else_comes_to_the_servers_port_is_shown_the_way(acme: Acme, path: str) -> None:
    answer = send(acme.http_port, "GET", path, Host=NAME)
    assert (answer.status, answer.headers["Location"]) == (308, f"https://{NAME}:{acme.stack.port}{path}")


def test_the_service_has_no_privilege_no_secret_and_no_way_to_the_others(acme: Acme) -> None:
    facts = acme.stack.inspect(acme.stack.container("acme"))
    host = facts["HostConfig"]
    assert facts["Config"]["User"] == "10008:10004"
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["CapAdd"]) == (True, ["ALL"], None)
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert list(facts["NetworkSettings"]["Networks"]) == [f"{acme.stack.project}_outside"]
    assert [mount["Destination"] for mount in facts["Mounts"]] == ["/acme"]


@pytest.mark.parametrize(
    ("service", "readable"),
    [("nginx", {"door.pem", "certificate.json"}), ("backup", {"certificate.json"})],
)
def test_the_others_read_of_its_volume_what_they_need_and_write_nothing(
    acme: Acme, service: str, readable: set[str]
) -> None:
    script = (
        'for file in /acme/door.pem /acme/state/certificate.json; do head -c 1 "$file" >/dev/null 2>&1 &&'
        ' basename "$file"; done; ls /acme/certbot >/dev/null 2>&1 && echo certbot;'
        " touch /acme/x 2>/dev/null && echo written; true"
    )
    found = acme.stack.compose("exec", "-T", service, "sh", "-c", script).stdout.split()
    assert set(found) == readable
