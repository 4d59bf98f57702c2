"""The door with settings: a public address, proxies in front of it, and values that make no sense."""

from __future__ import annotations

import datetime
import ipaddress
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kit.door import (
    HARDENING,
    Door,
    assert_security_headers,
    container,
    docker,
    door,
    image_of,
    send,
    stack_networks,
)
from kit.stack import Stack, free_port, poll

SEARCH = "/api/2.0/mlflow/runs/search"
PUBLIC_URL = "https://mlflow.example.com"


@pytest.fixture(scope="module")
def public(stack: Stack) -> Iterator[Door]:
    """A door that knows the address under which people reach it."""
    with door(stack, stack_networks(stack), PUBLIC_URL=f"{PUBLIC_URL}/") as opened:
        yield opened


def search(stack: Stack, port: int, **headers: str) -> int:
    """Search runs with a right login; return the status."""
    body = '{"experiment_ids": ["0"]}'
    answer = requests.post(
        f"http://127.0.0.1:{port}{SEARCH}",
        data=body,
        headers={
            "Authorization": stack.authorization,
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
        timeout=30,
    )
    return answer.status_code


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "mlflow.example.com.evil.example",
        "evil-mlflow.example.com",
        "mlflowxexample.com",
        "mlflow.example.com:8443",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
    ],
)
def test_another_host_name_is_refused_where_a_public_address_is_set(
    stack: Stack, public: Door, host: str
) -> None:
    for path in ("/", SEARCH, "/static-files/no-such.js", "/health/"):
        answer = send(public.port, "GET", path, Host=host, Authorization=stack.authorization)
        assert (path, answer.status) == (path, 421)
        assert_security_headers(answer.headers)
    assert send(public.port, "GET", "/", Host=host).status == 401  # strangers learn nothing
    assert send(public.port, "GET", "/health", Host=host).status == 200  # a load balancer's probe


@pytest.mark.parametrize("host", ["mlflow.example.com", "MLflow.Example.COM"])
def test_the_public_host_name_passes(stack: Stack, public: Door, host: str) -> None:
    assert search(stack, public.port, Host=host) == 200
    assert search(stack, public.port, Host=host, Origin=PUBLIC_URL) == 200
    for origin in ("https://evil.example", "https://mlflow.example.com.evil.example", "null"):
        assert search(stack, public.port, Host=host, Origin=origin) == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:{port}", "localhost:{port}", "[::1]:1"])
def test_names_of_the_machine_itself_work_beside_the_public_one(
    stack: Stack, public: Door, host: str
) -> None:
    host = host.format(port=public.port)
    assert search(stack, public.port, Host=host) == 200
    assert search(stack, public.port, Host=host, Origin=f"http://{host}") == 200
    assert search(stack, public.port, Host=host, Origin="https://evil.example") == 403


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"PUBLIC_URL": "mlflow.example.com"}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "ftp://mlflow.example.com"}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "https://"}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "https://mlflow.example.com/team"}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "https://user@mlflow.example.com"}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "https://mlflow.example.com:https"}, "PUBLIC_URL"),
        ({"PUBLIC_URL": 'https://a";}'}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "https://a\nhttps://b"}, "PUBLIC_URL"),
        ({"PUBLIC_URL": "https://a.example https://b.example"}, "PUBLIC_URL"),
        ({"TRUSTED_PROXIES": "proxy.example.com"}, "TRUSTED_PROXIES"),
        ({"TRUSTED_PROXIES": "10.0.0.1;"}, "TRUSTED_PROXIES"),
        ({"TRUSTED_PROXIES": "10.0.0.0/33"}, "TRUSTED_PROXIES"),
        ({"TRUSTED_PROXIES": "10.0.0.1,300.1.1.1"}, "TRUSTED_PROXIES"),
        ({"TRUSTED_PROXIES": "*"}, "TRUSTED_PROXIES"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_a_setting_that_makes_no_sense_is_refused_with_the_way_to_mend_it(
    stack: Stack, settings: dict[str, str], setting: str
) -> None:
    options = (*HARDENING, *(f"--env={key}={value}" for key, value in settings.items()))
    with container(image_of(stack, "nginx"), networks=stack_networks(stack), options=options) as name:

        def ended() -> bool:
            return stack.inspect(name)["State"]["Status"] == "exited"

        poll(ended, seconds=30, what="the container ended")
        assert stack.inspect(name)["State"]["ExitCode"] == 78
        lines = docker("logs", name).splitlines()
    (refused,) = [number for number, line in enumerate(lines) if line.startswith("REFUSED: ")]
    assert any(line.startswith("fix: ") and setting in line for line in lines[refused:])


@pytest.mark.parametrize(
    "settings",
    [
        {"PUBLIC_URL": "https://[2001:db8::1]:8443", "TRUSTED_PROXIES": "::1, fd00::/8,10.0.0.0/8"},
        {"PUBLIC_URL": "http://10.1.2.3:8080/", "TRUSTED_PROXIES": " 10.0.0.1 "},
        {"PUBLIC_URL": "", "TRUSTED_PROXIES": ""},
    ],
    ids=str,
)
def test_settings_that_make_sense_are_accepted(stack: Stack, settings: dict[str, str]) -> None:
    with door(stack, stack_networks(stack), **settings) as opened:
        assert search(stack, opened.port, Host="localhost") == 200


@dataclass(frozen=True)
class Proxied:
    """An outer nginx that ends TLS, in front of a door that trusts it and one that does not."""

    trusting: Door
    trusting_url: str
    wary: Door
    wary_url: str
    certificate: str


def write_certificate(folder: Path) -> None:
    """Write a self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test of the stack")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


OUTER_NGINX = """
pid /tmp/outer.pid;
error_log stderr warn;
events {}
http {
    access_log off;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    ssl_certificate /conf/certificate.pem;
    ssl_certificate_key /conf/key.pem;
    resolver 127.0.0.11 valid=1s ipv6=off;
    client_max_body_size 0;
    add_header X-Seen-Client $remote_addr always;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    server { listen 8443 ssl; set $door trusting; location / { proxy_pass http://$door:8080; } }
    server { listen 8444 ssl; set $door wary; location / { proxy_pass http://$door:8080; } }
}
"""


@pytest.fixture(scope="module")
def proxied(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("outer")
    write_certificate(folder)
    (folder / "outer.conf").write_text(OUTER_NGINX)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    outside, inside = stack_networks(stack)
    trusting_port, wary_port = free_port(), free_port()
    options = (
        *(*HARDENING, f"--volume={folder}:/conf:ro"),
        *(f"--publish=127.0.0.1:{trusting_port}:8443", f"--publish=127.0.0.1:{wary_port}:8444"),
    )
    command = ("nginx", "-c", "/conf/outer.conf", "-g", "daemon off;")
    with container(image_of(stack, "nginx"), *command, networks=[outside], options=options) as outer:
        address = docker(
            "inspect", outer, "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        ).strip()
        with (
            door(stack, (outside, inside), alias="trusting", TRUSTED_PROXIES=address) as trusting,
            door(stack, (outside, inside), alias="wary") as wary,
        ):
            made = Proxied(
                trusting=trusting,
                trusting_url=f"https://127.0.0.1:{trusting_port}",
                wary=wary,
                wary_url=f"https://127.0.0.1:{wary_port}",
                certificate=str(folder / "certificate.pem"),
            )

            def answers() -> bool:
                urls = (made.trusting_url, made.wary_url)
                return all(
                    requests.get(url, verify=made.certificate, timeout=10).status_code == 401 for url in urls
                )

            poll(answers, seconds=30, what="the outer nginx answers")
            yield made


def proxied_search(stack: Stack, proxied: Proxied, url: str, **headers: str) -> int:
    """Search runs through the outer nginx with a right login; return the status."""
    return requests.post(
        url + SEARCH,
        json={"experiment_ids": ["0"]},
        headers={"Authorization": stack.authorization, **headers},
        verify=proxied.certificate,
        timeout=30,
    ).status_code


def test_a_browser_behind_a_trusted_proxy_that_ends_tls_comes_in(stack: Stack, proxied: Proxied) -> None:
    url = proxied.trusting_url
    assert proxied_search(stack, proxied, url, Origin=url) == 200
    for origin in (url.replace("https", "http"), "https://evil.example", "null"):
        assert proxied_search(stack, proxied, url, Origin=origin) == 403


def test_a_proxy_that_nobody_named_is_not_believed(stack: Stack, proxied: Proxied) -> None:
    """The door sees plain HTTP, so the browser's https origin is another site's to it."""
    assert proxied_search(stack, proxied, proxied.wary_url) == 200
    assert proxied_search(stack, proxied, proxied.wary_url, Origin=proxied.wary_url) == 403


def test_the_log_names_the_client_behind_a_trusted_proxy_and_the_proxy_itself_otherwise(
    stack: Stack, proxied: Proxied
) -> None:
    seen = {}
    for url, opened in ((proxied.trusting_url, proxied.trusting), (proxied.wary_url, proxied.wary)):
        path = f"/no-such/{uuid.uuid4().hex}"
        answer = requests.get(
            url + path,
            headers={"Authorization": stack.authorization, "X-Forwarded-For": "203.0.113.9"},
            verify=proxied.certificate,
            timeout=30,
        )
        assert answer.status_code == 404
        seen[opened.name] = opened.log_line(path).split()[0], answer.headers["X-Seen-Client"]
    address, client = seen[proxied.trusting.name]
    assert address == client  # what the proxy saw, not what the client claimed
    address, client = seen[proxied.wary.name]
    assert address not in {client, "203.0.113.9"}


def test_only_the_proxys_own_address_is_believed(stack: Stack, proxied: Proxied) -> None:
    """A client that comes straight to the door which trusts a proxy, and claims to be one."""
    headers = {"X_Forwarded_Host": "evil.example", "X_Forwarded_Proto": "https"}
    assert search(stack, proxied.trusting.port, Origin="https://evil.example", **headers) == 403


def test_the_real_client_logs_through_tls(
    stack: Stack, proxied: Proxied, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", proxied.certificate)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxied.trusting_url)
    client = mlflow.MlflowClient(tracking_uri=proxied.trusting_url)
    run_id = client.create_run("0").info.run_id
    client.log_metric(run_id, "loss", 0.125)
    content = os.urandom(3_000_000)
    (tmp_path / "blob.bin").write_bytes(content)
    client.log_artifact(run_id, str(tmp_path / "blob.bin"))
    assert client.get_run(run_id).data.metrics == {"loss": 0.125}
    local = client.download_artifacts(run_id, "blob.bin", str(tmp_path))
    assert Path(local).read_bytes() == content


def in_door(opened: Door, script: str) -> str:
    return docker("exec", opened.name, "sh", "-c", script).strip()


def test_the_audit_log_follows_the_day_and_stops_no_request_where_it_cannot_be_written(stack: Stack) -> None:
    link, folder = "/tmp/nginx/access.jsonl", "/audit/nginx"
    ask_in = {"Authorization": stack.authorization}
    today = f"{folder}/access-$(date -u +%F).jsonl"

    def is_written(path: str) -> bool:
        assert send(opened.port, "GET", "/version", **ask_in).status == 200
        return in_door(opened, f"readlink {link}") == in_door(opened, f"echo {path}")

    def has_lines(path: str) -> bool:
        return is_written(path) and int(in_door(opened, f"wc -l <{path}")) > 0

    with door(stack, stack_networks(stack)) as opened:
        poll(lambda: has_lines(today), seconds=20, what="requests are in today's file")
        # As if it had been started on another day.
        old = f"{folder}/access-2001-02-03.jsonl"
        in_door(opened, f"ln -sfn {old} {link} && rm {today} && nginx -s reopen -c /opt/nginx/nginx.conf")
        poll(lambda: has_lines(today), seconds=30, what="the next day has its file")
        in_door(opened, f"rm {today} && chmod 500 {folder}")
        poll(lambda: is_written("/dev/null"), seconds=30, what="requests go on without the log")
        assert "the audit log misses requests" in opened.log()
        in_door(opened, f"chmod 700 {folder}")
        poll(lambda: has_lines(today), seconds=30, what="it is written again")
