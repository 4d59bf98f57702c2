"""Malformed framing: no bytes of a request's body ever become a request of their own.

Each attack hides a request that would make an experiment. It carries the admin's login, so that
the door would pass it on; the server behind the door would run it even without.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from kit.stack import Stack
from kit.wire import answers_in, conversation

CREATE = "/api/2.0/mlflow/experiments/create"
SEARCH = "/api/2.0/mlflow/experiments/search"
UPLOAD = "/api/2.0/mlflow-artifacts/artifacts/framing.txt"
PAST_MLFLOW = f"/api/2.0/mlflow-artifacts/artifacts/0/{'ab' * 16}/artifacts/framing-"
"""Where nginx itself writes a name that is not there."""
Hidden = Callable[[str], bytes]


@pytest.fixture
def hidden(stack: Stack) -> Hidden:
    """Return a function that returns the request to be hidden, for an experiment of this name."""

    def request(name: str) -> bytes:
        body = f'{{"name": "{name}"}}'
        return (
            f"POST {CREATE} HTTP/1.1\r\nHost: 127.0.0.1:{stack.port}\r\n"
            f"Authorization: {stack.authorization}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    return request


@pytest.fixture
def outer(tokens: dict[str, str]) -> Callable[[str], tuple[str, str]]:
    """Return a function that returns the target of the outer request of a user, and its login."""

    def request(who: str) -> tuple[str, str]:
        role = who.split(maxsplit=1)[0]
        login = f"Authorization: Bearer {tokens[role]}\r\n" if role in tokens else ""
        targets = {"writer": UPLOAD, "writer past MLflow": PAST_MLFLOW + uuid.uuid4().hex}
        return targets.get(who, SEARCH), login

    return request


def made(stack: Stack, prefix: str) -> list[str]:
    """Return the experiments whose name begins like this."""
    return stack.psql(f"SELECT name FROM experiments WHERE name LIKE '{prefix}%' ORDER BY 1").split("\n")


def chunked(
    data: bytes, *, size: str | None = None, end: bytes = b"\r\n", last: bytes = b"0\r\n\r\n"
) -> bytes:
    """Return one chunk and the end."""
    return (size or f"{len(data):x}").encode() + end + data + end + last


# (lines of the outer request's head, its body as a function of the hidden request, whether this
# framing is right: then it is one request with a body, and any answer but the hidden one's will do)
RIGHT, WRONG = True, False
FRAMINGS: dict[str, tuple[str, Callable[[bytes], bytes], bool]] = {
    "a body that looks like a request": ("Content-Length: {length}", lambda inner: inner, RIGHT),
    "chunks that look like a request": ("Transfer-Encoding: chunked", chunked, RIGHT),
    "the same, in another case": ("tRANSFER-eNCODING: Chunked", chunked, RIGHT),
    "chunk extension": (
        "Transfer-Encoding: chunked",
        lambda inner: chunked(inner, size=f"{len(inner):x};a=b"),
        RIGHT,
    ),
    "long chunk extension": (
        "Transfer-Encoding: chunked",
        lambda inner: chunked(inner, size=f"{len(inner):x};" + "a" * 9000),
        RIGHT,
    ),
    "leading zeros": (
        "Transfer-Encoding: chunked",
        lambda inner: chunked(inner, size=f"{len(inner):020x}"),
        RIGHT,
    ),
    "bare line feeds": (
        "Transfer-Encoding: chunked",
        lambda inner: chunked(inner, end=b"\n", last=b"0\n\n"),
        RIGHT,
    ),
    "trailer": (
        "Transfer-Encoding: chunked\r\nTrailer: Content-Length",
        lambda inner: chunked(inner, last=b"0\r\nContent-Length: 0\r\n\r\n"),
        RIGHT,
    ),
    "CL.TE": (
        "Content-Length: {length}\r\nTransfer-Encoding: chunked",
        lambda inner: b"0\r\n\r\n" + inner,
        WRONG,
    ),
    "TE.CL": ("Transfer-Encoding: chunked\r\nContent-Length: 4", chunked, WRONG),
    "TE.TE": ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", chunked, WRONG),
    "TE twice": ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", chunked, WRONG),
    "TE list": ("Transfer-Encoding: identity, chunked", chunked, WRONG),
    "TE gzip": ("Transfer-Encoding: gzip, chunked", chunked, WRONG),
    "TE unknown": ("Transfer-Encoding: xchunked", chunked, WRONG),
    "TE quoted": ('Transfer-Encoding: "chunked"', chunked, WRONG),
    "TE with a tab": ("Transfer-Encoding:\tchunked\r\nContent-Length: 0", lambda inner: inner, WRONG),
    "TE after a vertical tab": ("Transfer-Encoding: \vchunked", chunked, WRONG),
    "TE with a blank before the colon": ("Transfer-Encoding : chunked", chunked, WRONG),
    "TE on a folded line": ("Transfer-Encoding:\r\n chunked", chunked, WRONG),
    "TE of HTTP/1.0": ("Transfer-Encoding: chunked", chunked, WRONG),
    "CL twice": ("Content-Length: {length}\r\nContent-Length: 0", lambda inner: inner, WRONG),
    "CL twice, the same": (
        "Content-Length: {length}\r\nContent-Length: {length}",
        lambda inner: inner,
        WRONG,
    ),
    "CL list": ("Content-Length: {length}, 0", lambda inner: inner, WRONG),
    "CL plus": ("Content-Length: +{length}", lambda inner: inner, WRONG),
    "CL minus": ("Content-Length: -{length}", lambda inner: inner, WRONG),
    "CL hexadecimal": ("Content-Length: 0x{length}", lambda inner: inner, WRONG),
    "CL with an underscore": ("Content-Length: 1_0", lambda inner: inner, WRONG),
    "CL too large for 64 bits": ("Content-Length: 18446744073709551616", lambda inner: inner, WRONG),
    "CL empty": ("Content-Length:", lambda inner: inner, WRONG),
    "CL with a blank before the colon": ("Content-Length : {length}", lambda inner: inner, WRONG),
    "chunk of no number": ("Transfer-Encoding: chunked", lambda inner: chunked(inner, size="xyz"), WRONG),
    "chunk of a negative size": (
        "Transfer-Encoding: chunked",
        lambda inner: chunked(inner, size="-1"),
        WRONG,
    ),
    "chunk of 0x": ("Transfer-Encoding: chunked", lambda inner: chunked(inner, size="0x10"), WRONG),
    "chunk too large for 64 bits": (
        "Transfer-Encoding: chunked",
        lambda inner: chunked(inner, size="f" * 17),
        WRONG,
    ),
    "chunk shorter than it is": ("Transfer-Encoding: chunked", lambda inner: chunked(inner, size="3"), WRONG),
    "carriage return alone after a chunk's size": (
        "Transfer-Encoding: chunked",
        lambda inner: chunked(inner, end=b"\r"),
        WRONG,
    ),
}
VERSION = {"TE of HTTP/1.0": "HTTP/1.0"}


def attack(stack: Stack, outer: tuple[str, str], kind: str, inner: bytes) -> bytes:
    """Return the outer request (target, login) with the inner one hidden in it."""
    target, login = outer
    lines, body, _ = FRAMINGS[kind]
    method = "PUT" if target.startswith((UPLOAD, PAST_MLFLOW)) else "POST"
    head = (
        f"{method} {target} {VERSION.get(kind, 'HTTP/1.1')}\r\nHost: 127.0.0.1:{stack.port}\r\n"
        f"{login}Content-Type: application/json\r\n{lines.format(length=len(inner))}\r\n\r\n"
    )
    return head.encode("latin-1") + body(inner)


def ending(stack: Stack) -> bytes:
    """Return a request that is refused and ends the connection."""
    return f"GET /version HTTP/1.1\r\nHost: 127.0.0.1:{stack.port}\r\nConnection: close\r\n\r\n".encode()


def test_the_hidden_request_would_work_in_the_open(stack: Stack, hidden: Hidden) -> None:
    name = f"open-{uuid.uuid4().hex}"
    plain = attack(stack, (SEARCH, ""), "a body that looks like a request", b"{}")
    answers = answers_in(conversation(stack.port, plain + hidden(name) + ending(stack)))
    assert [answer.status for answer in answers] == [401, 200, 401]
    assert made(stack, name) == [name]


@pytest.mark.parametrize("who", ["stranger", "reader", "writer", "writer past MLflow"])
def test_no_hidden_request_is_run(
    stack: Stack, outer: Callable[[str], tuple[str, str]], hidden: Hidden, who: str
) -> None:
    mark = f"hidden-{uuid.uuid4().hex}"
    # A stranger may hear of the missing login first.
    refused = {400, 501, 401} if who == "stranger" else {400, 501}
    first = {"stranger": {401}, "reader": {200, 400}}.get(who, {200})
    wrong = {}
    for number, (kind, (_, _, is_right)) in enumerate(FRAMINGS.items()):
        sent = attack(stack, outer(who), kind, hidden(f"{mark}-{number}")) + ending(stack)
        statuses = [answer.status for answer in answers_in(conversation(stack.port, sent))]
        if is_right:  # one request with a body, whatever it holds; then the one at the end
            fits = statuses[0] in first and statuses[1:] in ([401], [])
        else:  # nothing is read after what was wrong, unless as a request without a login
            fits = statuses[0] in refused and set(statuses[1:]) <= {400, 401}
        if not fits:
            wrong[kind] = statuses
    assert wrong == {}
    assert made(stack, mark) == [""]


PIECES = {
    "a carriage return in a header": "X-A: b\rTransfer-Encoding: chunked",
    "a line feed in a header": "X-A: b\nTransfer-Encoding: chunked",
    "a zero byte": "X-A: b\0Transfer-Encoding: chunked",
    "a header without a name": ": Transfer-Encoding",
    "a header without a colon": "Transfer-Encoding chunked",
    "a folded line": "X-A: b\r\n Transfer-Encoding: chunked",
    "control characters": "X-A: \x01\x02\x1b\x7f",
    "an underscore": "Transfer_Encoding: chunked",
    "bytes that are no UTF-8": "X-A: \xff\xfe\x80",
    "two hosts": "Host: other.example",
    "a line that begins with a blank": " X-A: b",
    "an expectation": "Expect: 100-continue",
    "an unknown expectation": "Expect: anything",
}
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13"
UPGRADES = {
    "an upgrade to HTTP/2": "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings",
    "an upgrade to a websocket": f"Upgrade: websocket\r\nConnection: Upgrade\r\n{KEY}",
    "an upgrade to nothing known": "Upgrade: anything\r\nConnection: Upgrade",
}
"""They would join the client with the server behind the door (nginx/proxy.inc)."""
TARGETS = (SEARCH, "/graphql", "/v1/traces", "/gateway/x", UPLOAD, PAST_MLFLOW, "/version")


@pytest.mark.parametrize("parts", ["at once", "in two"])
@pytest.mark.parametrize("target", TARGETS)
def test_no_odd_header_opens_a_second_request(
    stack: Stack, tokens: dict[str, str], hidden: Hidden, target: str, parts: str
) -> None:
    """In two: the body is sent when the head has reached the server behind the door."""
    mark = f"piece-{uuid.uuid4().hex}"
    method = {"/version": "GET", UPLOAD: "PUT", PAST_MLFLOW: "PUT"}.get(target, "POST")
    login = f"Authorization: Bearer {tokens['writer']}"
    wrong = {}
    # An upgrade won only where head and body came apart: each of them is tried again and again.
    for number, (piece, line) in enumerate([*PIECES.items(), *UPGRADES.items()] + [*UPGRADES.items()] * 9):
        inner = hidden(f"{mark}-{number}")
        expect = "Expect: 100-continue\r\n" if parts == "in two" else ""
        own = target + (uuid.uuid4().hex if target == PAST_MLFLOW else "")
        head = (
            f"{method} {own} HTTP/1.1\r\nHost: 127.0.0.1:{stack.port}\r\n{login}\r\n{line}\r\n{expect}"
            f"Content-Type: application/json\r\nContent-Length: {len(inner)}\r\n\r\n"
        )
        rest = inner + ending(stack)
        answers = answers_in(conversation(stack.port, head.encode("latin-1"), rest, wait=bool(expect)))
        if not (1 <= len(answers) <= 2 and {101, 426}.isdisjoint(answer.status for answer in answers)):
            wrong[piece] = [answer.status for answer in answers]
        if any(b"experiment_id" in answer.body for answer in answers):
            wrong[piece] = [answer.body for answer in answers]
    assert wrong == {}
    assert made(stack, mark) == [""]


def test_what_follows_a_refused_upload_is_not_taken_for_its_body_and_not_the_other_way_round(
    stack: Stack, hidden: Hidden
) -> None:
    """A stranger's upload is refused before its body; the body that comes all the same is thrown away."""
    inside, after = f"inside-{uuid.uuid4().hex}", f"after-{uuid.uuid4().hex}"
    body = hidden(inside)
    head = f"PUT {UPLOAD} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    answers = answers_in(conversation(stack.port, head + body + hidden(after) + ending(stack)))
    assert [answer.status for answer in answers] == [401, 200, 401]
    assert (made(stack, inside), made(stack, after)) == ([""], [after])


def test_an_answer_on_a_shared_connection_is_never_another_users(
    stack: Stack, tokens: dict[str, str]
) -> None:
    """As a proxy in front would do: two users, one connection, their requests one behind the other."""
    reader = f"GET /version HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {tokens['reader']}\r\n\r\n".encode()
    writer = (
        f"POST /api/2.0/mlflow/experiments/delete HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"
        f"Authorization: Bearer {tokens['writer']}\r\n\r\n"
    ).encode()
    answers = answers_in(conversation(stack.port, (reader + writer) * 20 + ending(stack)))
    assert [answer.status for answer in answers] == [200, 403] * 20 + [401]
    assert all(b"attack-writer has the role" in answer.body for answer in answers[1:-1:2])


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /version\r\n\r\n",  # HTTP/0.9
        b"GET /version HTTP/0.9\r\n\r\n",
        b"GET /version HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /version HTTP/9.9\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the hello of TLS
        b"\r\n\r\n\r\n GET /version HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /version  HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET\t/version HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /vers\0ion HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /vers\xffion HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"G\0T /version HTTP/1.1\r\nHost: a\r\n\r\n",
        b"get /version HTTP/1.1\r\nHost: a\r\n\r\n",
        b"* /version HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"\0" * 100_000,
    ],
    ids=lambda sent: repr(sent[:40]),
)
def test_what_is_no_request_gets_nothing_of_mlflow(stack: Stack, sent: bytes) -> None:
    received = conversation(stack.port, sent)
    assert b"3.17.2" not in received
    assert not received.startswith(b"HTTP/1.1 2")
