"""Requests that are too large in some way: refused, or answered by MLflow; the server stays as it was."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from kit.door import Answer
from kit.people import bearer
from kit.stack import Stack
from kit.wire import Wire, answers_in, conversation

SEARCH = "/api/2.0/mlflow/experiments/search"
MLFLOWS_OWN = range(400, 501)
"""A 4xx, or stock MLflow's 500 for what it did not expect; never the door's 502 to 504."""
SERVICES = ("nginx", "auth", "mlflow", "fastpath")
MEGABYTE = 1 << 20


def processes(stack: Stack) -> dict[str, object]:
    """Return what changes when a process of the door or the server dies or is killed."""
    found: dict[str, object] = {}
    for service in SERVICES:
        container = stack.container(service)
        facts = stack.inspect(container)
        text = subprocess.run(
            ["docker", "top", container, "-o", "pid,args"], capture_output=True, text=True, check=True
        ).stdout
        workers = {line.split()[0] for line in text.splitlines() if "gunicorn" in line or "worker" in line}
        found[service] = (
            facts["State"]["StartedAt"],
            facts["State"]["OOMKilled"],
            facts["RestartCount"],
            workers,
        )
    return found


@pytest.fixture(autouse=True)
def still_the_same(stack: Stack) -> Iterator[None]:
    """After each attack the processes are those from before, and the stack works."""
    before = processes(stack)
    yield
    assert processes(stack) == before
    stack.wait_ready()


def ask(stack: Stack, lines: dict[str, str], target: str = "/version") -> Answer:
    with Wire(stack.port) as wire:
        return wire.ask("GET", target, {"Authorization": stack.authorization, **lines})


def test_a_header_of_20_kilobytes_passes_and_one_of_80_is_refused(stack: Stack) -> None:
    assert ask(stack, {"X-Long": "x" * 20_000}).status == 200
    assert ask(stack, {"X-Long": "x" * 80_000}).status == 400
    assert ask(stack, {f"X-Long-{number}": "x" * 20_000 for number in range(4)}).status == 200
    assert ask(stack, {f"X-Long-{number}": "x" * 60_000 for number in range(20)}).status == 400


def test_a_login_of_80_kilobytes_is_refused_and_one_of_20_does_not_open(stack: Stack) -> None:
    for scheme in ("Basic", "Bearer", "Digest"):
        assert ask(stack, {"Authorization": f"{scheme} {'QUFB' * 5_000}"}).status in {400, 401}
        assert ask(stack, {"Authorization": f"{scheme} {'QUFB' * 20_000}"}).status == 400


def test_an_address_of_9000_bytes_reaches_mlflow(stack: Stack) -> None:
    answer = ask(stack, {}, f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={'n' * 9000}")
    assert answer.status == 404
    assert json.loads(answer.body)["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    assert ask(stack, {}, "/" + "n" * 9000).status == 404
    assert ask(stack, {}, "/" + "n/" * 4500).status == 404
    assert (
        ask(stack, {}, "/version?" + "&".join(f"a{number}={number}" for number in range(5000))).status == 200
    )


@pytest.mark.parametrize("count", [5000, 50_000])
def test_thousands_of_headers_are_answered_or_refused(stack: Stack, count: int) -> None:
    lines = {f"X-{number}": "y" for number in range(count)}
    assert ask(stack, lines).status in ({200, 400, 431} if count < 10_000 else {400, 431})
    assert ask(stack, {**lines, "Authorization": "Basic QUFB"}).status in {400, 401, 431}


def test_a_thousand_cookies_and_ranges_are_answered(stack: Stack) -> None:
    assert ask(stack, {"Cookie": "; ".join(f"c{n}={n}" for n in range(1000))}).status == 200
    ranges = "bytes=" + ",".join(f"{n}-{n}" for n in range(2000))
    assert ask(stack, {"Range": ranges}, "/stack-ui/page.js").status in {200, 206, 416}
    assert ask(stack, {"Accept-Encoding": ",".join(["gzip;q=0.1"] * 2000)}).status == 200


def post(stack: Stack, tokens: dict[str, str], target: str, body: bytes) -> Answer:
    with Wire(stack.port) as wire:
        headers = {**bearer(tokens["writer"]), "Content-Type": "application/json"}
        return wire.ask("POST", target, headers, body)


JSON_TARGETS = (SEARCH, "/api/2.0/mlflow/experiments/create", "/graphql", "/v1/traces")


def json_of(size: int) -> bytes:
    """Return a JSON object of so many bytes."""
    return b'{"name": "' + b"x" * (size - 12) + b'"}'


@pytest.mark.parametrize("target", JSON_TARGETS)
def test_a_body_of_100_megabytes_for_a_json_route_is_answered(
    stack: Stack, tokens: dict[str, str], target: str
) -> None:
    assert post(stack, tokens, target, json_of(100 * MEGABYTE)).status in MLFLOWS_OWN


@pytest.mark.parametrize("target", JSON_TARGETS)
def test_a_larger_body_is_refused_with_a_message(stack: Stack, tokens: dict[str, str], target: str) -> None:
    headers = {**bearer(tokens["writer"]), "Content-Type": "application/json"}
    too_much = 100 * MEGABYTE + 1
    for lines in ({"Content-Length": str(too_much)}, {"Transfer-Encoding": "chunked"}):
        with Wire(stack.port) as wire:
            body = (
                b""
                if "Content-Length" in lines
                else b"%x\r\n" % too_much + b"x" * too_much + b"\r\n0\r\n\r\n"
            )
            answer = wire.ask("POST", target, {**headers, **lines}, body)
        assert answer.status == 413
        assert "artifacts may have any size" in json.loads(answer.body)["message"]


def test_many_large_bodies_at_once_do_not_end_the_server(stack: Stack, tokens: dict[str, str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    body = json_of(100 * MEGABYTE)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(stack, tokens, SEARCH, body).status, range(8)))
    assert set(answers) <= set(MLFLOWS_OWN), answers


DEEP = 100_000
NESTED = {
    "lists": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "lists without an end": b"[" * DEEP,
    "lists in a field": b'{"experiment_ids": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "strings in strings": json.dumps(json.dumps(json.dumps(json.dumps("x" * 1000)))).encode(),
    "a number of many digits": b'{"max_results": ' + b"9" * 100_000 + b"}",
    "a number with a large exponent": b'{"max_results": 1e999999999}',
    "many fields": b"{" + b",".join(b'"f%d":1' % number for number in range(100_000)) + b"}",
    "the same field": b"{" + b",".join([b'"name":"x"'] * 100_000) + b"}",
}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize(
    "target", [SEARCH, "/api/2.0/mlflow/experiments/create", "/api/2.0/mlflow/runs/log-batch"]
)
def test_json_of_an_odd_build_is_answered(
    stack: Stack, tokens: dict[str, str], target: str, kind: str
) -> None:
    answer = post(stack, tokens, target, NESTED[kind])
    assert answer.status in MLFLOWS_OWN, (answer.status, answer.body[:300])


def test_a_filter_of_great_depth_is_answered(stack: Stack, tokens: dict[str, str]) -> None:
    for text in ("(" * 5000 + ")" * 5000, " AND ".join(["metrics.m > 1"] * 2000), "params.`" + "p" * 9000):
        body = json.dumps({"experiment_ids": ["0"], "filter": text}).encode()
        answer = post(stack, tokens, "/api/2.0/mlflow/runs/search", body)
        assert answer.status in MLFLOWS_OWN, (text[:20], answer.status, answer.body[:300])


def test_a_query_of_graphql_that_multiplies_itself_is_answered(stack: Stack, tokens: dict[str, str]) -> None:
    many = " ".join(
        f'a{number}: mlflowGetExperiment(input: {{experimentId: "0"}}) {{ experiment {{ name }} }}'
        for number in range(500)
    )
    deep = "{ a " * 5000 + "}" * 5000
    for query in (f"query {{ {many} }}", deep, "fragment f on Query { ...f } query { ...f }"):
        answer = post(stack, tokens, "/graphql", json.dumps({"query": query}).encode())
        assert answer.status in {200, *MLFLOWS_OWN}, (query[:40], answer.status, answer.body[:300])


def test_a_body_that_never_ends_in_its_head_is_refused(stack: Stack) -> None:
    """A head that goes on and on is ended by its size, not by its end."""
    endless = b"GET /version HTTP/1.1\r\nHost: a\r\n" + b"X-A: " + b"y" * 2_000_000
    assert [answer.status for answer in answers_in(conversation(stack.port, endless))] in ([400], [])
