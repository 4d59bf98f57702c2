"""Who comes in, and what is refused before MLflow sees it."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter

import pytest

from kit.door import assert_security_headers, send, send_raw
from kit.stack import Stack, poll

EVERY_KIND = [
    "/",
    "/api/2.0/mlflow/experiments/search",
    "/ajax-api/2.0/mlflow/runs/search",
    "/api/2.0/mlflow-artifacts/artifacts/x",
    "/get-artifact?path=x&run_uuid=y",
    "/graphql",
    "/gateway/chat/invocations",
    "/v1/traces",
    "/static-files/no-such.js",
    "/stack-ui/page.js",
    "/stack/ready",
    "/metrics",
    "/version",
    "/unavailable.html",
    "/_login",
    "/_ready",
    "/no/such/path",
    "/health/",
    "/health|",
]
WITH_ORIGIN = [
    "/",
    "/api/2.0/mlflow/runs/search",
    "/ajax-api/2.0/mlflow/runs/search",
    "/graphql",
    "/gateway/chat/invocations",
    "/v1/traces",
    "/static-files/no-such.js",
    "/get-artifact",
]
FOREIGN_ORIGINS = [
    "https://evil.example",
    "null",
    "http://127.0.0.1",
    "http://127.0.0.1:1",
    "https://127.0.0.1:{port}",
    "http://127.0.0.1:{port}.evil.example",
    "http://evil.example http://127.0.0.1:{port}",
]
SPOOFED = {
    "X_Forwarded_User": "admin",
    "X_User": "admin",
    "X_Forwarded_For": "127.0.0.1",
    "X_Real_IP": "127.0.0.1",
    "X_Forwarded_Host": "evil.example",
    "X_Forwarded_Proto": "https",
    "Forwarded": "for=127.0.0.1;host=evil.example;proto=https",
}


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", EVERY_KIND)
def test_strangers_are_asked_to_log_in_on_every_path(stack: Stack, path: str, method: str) -> None:
    answer = send(stack.port, method, path)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="MLflow", charset="UTF-8"'
    assert_security_headers(answer.headers)


@pytest.mark.parametrize(
    "authorization", ["Basic", "Basic !", "Bearer x", "Basic OnB3", "Negotiate", "basic |"]
)
def test_what_is_no_login_is_refused_like_none(stack: Stack, authorization: str) -> None:
    answer = send(stack.port, "GET", "/version", Authorization=authorization)
    assert answer.status == 401
    assert "WWW-Authenticate" in answer.headers


@pytest.mark.parametrize("authorization", [None, "Basic YWRtaW46d3Jvbmc="])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_strangers_upload_is_refused_before_its_body(
    stack: Stack, authorization: str | None, expect: str
) -> None:
    login = f"Authorization: {authorization}\r\n" if authorization else ""
    head = (
        f"PUT /api/2.0/mlflow-artifacts/artifacts/{uuid.uuid4().hex} HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{stack.port}\r\nContent-Length: {50 * 2**20}\r\n{login}{expect}\r\n"
    )
    answer = send_raw(stack.port, head.encode())  # not one byte of the body is ever sent
    assert answer.status == 401


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", WITH_ORIGIN)
def test_pages_of_other_sites_are_refused_even_with_the_right_login(
    stack: Stack, path: str, method: str, origin: str
) -> None:
    origin = origin.format(port=stack.port)
    answer = send(stack.port, method, path, Authorization=stack.authorization, Origin=origin)
    assert answer.status == 403
    assert b"another site" in answer.body
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert_security_headers(answer.headers)


def test_the_servers_own_page_passes_the_check_of_origin(stack: Stack) -> None:
    for host in (f"127.0.0.1:{stack.port}", f"localhost:{stack.port}"):
        for path in ("/api/2.0/mlflow/runs/search", "/ajax-api/2.0/mlflow/runs/search"):
            answer = stack.post(
                path, json={"experiment_ids": ["0"]}, headers={"Host": host, "Origin": f"http://{host}"}
            )
            assert answer.status_code == 200, (host, path, answer.text)
            assert_security_headers(answer.headers)


def test_headers_of_a_proxy_let_nobody_in(stack: Stack) -> None:
    for path in ("/", "/version", "/stack/ready"):
        assert send(stack.port, "GET", path, **SPOOFED).status == 401


@pytest.mark.parametrize(
    ("origin", "claims"),
    [
        ("https://evil.example", {"X_Forwarded_Host": "evil.example", "X_Forwarded_Proto": "https"}),
        ("http://evil.example", {"X_Forwarded_Host": "evil.example"}),
        ("https://127.0.0.1:{port}", {"X_Forwarded_Proto": "https"}),
        ("http://evil.example", {"Forwarded": "host=evil.example;proto=http"}),
    ],
)
def test_a_foreign_origin_does_not_become_ours_by_the_headers_of_a_proxy(
    stack: Stack, origin: str, claims: dict[str, str]
) -> None:
    headers = {"Authorization": stack.authorization, "Origin": origin.format(port=stack.port), **claims}
    assert send(stack.port, "POST", "/api/2.0/mlflow/runs/search", **headers).status == 403


def log_lines(stack: Stack, path: str, number: int) -> list[str]:
    """Wait until nginx has logged so many lines that hold a path, and return them."""

    def find() -> list[str]:
        log = stack.compose("logs", "--no-log-prefix", "nginx").stdout.splitlines()
        lines = [line for line in log if path in line]
        return lines if len(lines) >= number else []

    return poll(find, seconds=10, what=f"{number} lines of {path} in the log")


def test_the_log_names_the_real_address_whatever_the_client_claims(stack: Stack) -> None:
    honest, claimed = f"/no-such/{uuid.uuid4().hex}", f"/no-such/{uuid.uuid4().hex}"
    spoofed = {**SPOOFED, "X_Forwarded_For": "203.0.113.9", "X_Real_IP": "203.0.113.9"}
    send(stack.port, "GET", honest, Authorization=stack.authorization)
    send(stack.port, "GET", claimed, Authorization=stack.authorization, **spoofed)
    (first,), (second,) = log_lines(stack, honest, 1), log_lines(stack, claimed, 1)
    assert first.split("[")[0] == second.split("[")[0]  # the address and the user
    assert " admin " in first


def test_the_log_has_one_line_for_a_request_that_was_refused(stack: Stack) -> None:
    path = f"/{uuid.uuid4().hex}"
    assert send(stack.port, "GET", path).status == 401
    assert send_raw(stack.port, f"GET {path} HTTP/1.1\r\n\r\n".encode()).status == 400
    lines = log_lines(stack, path, 2)  # of two workers, in any order
    pattern = re.compile(rf'[0-9a-f.:]+ - \[.*\] "GET {path}" (\d+) ')
    assert sorted(pattern.search(line)[1] for line in lines) == ["400", "401"]


def test_security_headers_stand_on_every_kind_of_answer(stack: Stack) -> None:
    answers = {
        path: stack.get(path)
        for path in (
            "/",
            "/version",
            "/stack-ui/page.js",
            "/metrics",
            "/no-such",
            "/static-files/no-such.js",
        )
    }
    for path, answer in answers.items():
        assert_security_headers(answer.headers), path
    assert [answer.status_code for answer in answers.values()] == [200, 200, 200, 404, 404, 404]
    for answer in (send(stack.port, "GET", "/health"), send(stack.port, "GET", "/")):
        assert_security_headers(answer.headers)


@pytest.mark.parametrize("path", ["/static-files/static/js/", "/static-files/static/", "/stack-ui/"])
def test_a_folder_of_files_is_not_listed_and_not_mistaken_for_a_wrong_password(
    stack: Stack, path: str
) -> None:
    answer = stack.get(path)
    assert answer.status_code == 404
    assert "password" not in answer.text
    assert "Retry-After" not in answer.headers
    assert_security_headers(answer.headers)


@pytest.mark.parametrize(
    ("lines", "statuses"),
    [
        ("Host: a\r\nX-Space : 1\r\n", {400}),
        ("Host: a\r\nX-Nul: \0\r\n", {400}),
        ("", {400}),
        ("Host: a\r\nHost: a\r\n", {400}),
        ("Host: a b\r\n", {400}),
        ("Host: a\r\nX-Long: " + "x" * 70_000 + "\r\n", {400, 431}),
        ("Host: a\r\nAuthorization: Basic YTpi\r\n", {400}),  # beside the right one
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_a_malformed_request_is_refused(stack: Stack, lines: str, statuses: set[int]) -> None:
    head = f"POST /api/2.0/mlflow/experiments/search HTTP/1.1\r\n{lines}"
    answer = send_raw(stack.port, f"{head}Authorization: {stack.authorization}\r\n\r\n".encode())
    assert answer.status in statuses


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/%00", 400),
        ("/..", 400),
        ("/a/%2e%2e/%2e%2e/b", 400),
        ("/" + "x" * 70_000, 414),
        ("x", 400),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_malformed_path_is_refused(stack: Stack, target: str, status: int) -> None:
    assert send(stack.port, "GET", target, Authorization=stack.authorization).status == status


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
def test_methods_of_proxies_are_refused(stack: Stack, method: str) -> None:
    assert send(stack.port, method, "/version", Authorization=stack.authorization).status in {400, 405}


def test_a_line_of_60_kilobytes_reaches_mlflow(stack: Stack) -> None:
    name = "n" * 60_000
    answer = stack.get(f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}")
    assert answer.status_code == 404
    assert answer.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"


def test_a_body_of_60_megabytes_reaches_mlflow(stack: Stack) -> None:
    body = json.dumps({"max_results": 1, "page_token": "", "filter": "", "padding": "x" * 60_000_000})
    answer = stack.post(
        "/api/2.0/mlflow/experiments/search",
        data=body,
        headers={"Content-Type": "application/json"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text[:500]
    assert len(answer.json()["experiments"]) == 1


def test_the_pages_files_come_compressed_and_those_with_a_hash_for_ever(stack: Stack) -> None:
    page = stack.get("/").text
    paths = [
        path.lstrip("/") for path in re.findall(r'(?:src|href)="(/?static-files/[^"]+\.(?:js|css))"', page)
    ]
    assert [path for path in paths if re.search(r"/main\.[0-9a-f]{8,}\.js$", path)]
    assert [path for path in paths if re.search(r"/main\.[0-9a-f]{8,}\.css$", path)]
    transferred: Counter[str] = Counter()
    for path in paths:
        plain = stack.get(f"/{path}", headers={"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in plain.headers
        for accepted, encoding in (("gzip", "gzip"), ("gzip, deflate, br, zstd", "br")):
            answer = stack.get(f"/{path}", headers={"Accept-Encoding": accepted})
            assert answer.status_code == 200
            assert answer.headers["Content-Encoding"] == encoding
            assert answer.headers["Vary"] == "Accept-Encoding"
            assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
            assert_security_headers(answer.headers)
            transferred[encoding] += int(answer.headers["Content-Length"])
            if encoding == "gzip":  # requests unpacks it; brotli is what the browser tests get
                assert answer.content == plain.content
    # of 5.3 MB
    assert transferred["gzip"] < 1_600_000
    assert transferred["br"] < 1_200_000


def test_a_file_that_is_missing_is_not_remembered_for_ever(stack: Stack) -> None:
    answer = stack.get("/static-files/static/js/main.0123abcd.js")
    assert answer.status_code == 404
    assert "immutable" not in answer.headers.get("Cache-Control", "")
    assert "max-age" not in answer.headers.get("Cache-Control", "")
