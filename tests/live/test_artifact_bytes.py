"""ARTIFACT_BYTES=nginx: bytes go between clients and MinIO past MLflow, and nothing else changes."""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlflow
import pytest
import requests

from kit import stored
from kit.door import Door, door, read_answer, send, send_raw, stack_networks
from kit.people import bearer, one_of_each_role
from kit.stack import Stack, poll

MEGABYTE = 1 << 20
ROUTE = "/api/2.0/mlflow-artifacts/artifacts"
PAUSE_SECONDS = 35
"""More than MinIO's own patience of 30 s."""
LINE = re.compile(
    r'"(?P<method>[A-Z]+) (?P<path>\S.*)" (?P<status>\d{3}) .* mlflow=(?P<asked>.*) [0-9a-f]{32}$'
)
FAST, SLOW, LOOKED_UP, TAKEN = ["9000"], ["5000"], ["5000", "9000"], ["9000", "5000"]
"""The ports of MinIO and MLflow in the order in which nginx asked them for an answer."""
SMALL, LARGEST_SMALL, LARGE = 6, 256 << 10, 300_000
"""Uploads that stay in nginx's memory, and one that does not: it is looked for first."""
SIZES = ("small", "large")
MAY_DIFFER = {"Date", "Content-Length", "Transfer-Encoding", "Accept-Ranges", "Etag", "Last-Modified", "Vary"}
"""MLflow sends in chunks, without ranges; what it says of the time and digest is its temporary copy's."""
PLAIN_NAMES = (
    *("a.txt", "a.json", "a.js", "a.mjs", "a.py", "a.csv", "a.ipynb", "a.html", "a.xhtml", "a.svg"),
    *("a.svgz", "a.css", "a.png", "a.JPG", "a.webp", "a.pdf", "a.zip", "a.tgz", "a.pkl", "a.parquet"),
    *("a.wasm", "a.HTML", "MLmodel", "MLproject", "noextension", "a.unknown", "table.csv.gz", "a.tar.gz"),
    *("-x", "_y", "a..b", "a%2Ebin", "%61.bin", "two%20words.txt", "a+b=c@d.txt", "a" * 255),
)
"""As they stand in a request; MLflow and nginx take them alike."""
ODD_NAMES = (
    *(".hidden", "a.", "%20a", "a%20", "a%20.txt", "...", "%C3%A9.html", "e%CC%81.html", "%F0%9F%90%A7.txt"),
    *("x;y.svg", "a&b.html", "100%25.txt", "(a)%20[b].txt", "'q'.html", "%22q%22.html", "a%23b", "a%3Fb"),
    *("%2561.bin", "a%252Fb", "a%2Fb", "a//b", "a%5Cb", "%2e%2e%2fb", "..%2Fb", "a/%2E%2E/b", "%2e", "a%00b"),
    *("a%0Ab", "a%0D%0AX-A:%20b", "a%7Fb", "a%FFb", "__XLDIR__", "a__XLDIR__", "a" * 256, "%C3%A9" * 127),
    *("a/" * 400 + "b", "~", "^", "a|b", "<b>.html", "{c}.txt", "a,b", "a:b", "$a", "!a", "a*b"),
)
"""Those that MLflow alone decides about."""


@dataclass(frozen=True)
class Person:
    """Somebody with a token at a door."""

    url: str
    headers: dict[str, str]

    def __call__(self, method: str, path: str, **keywords: object) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            headers = {**self.headers, **keywords.pop("headers", {})}  # type: ignore[dict-item]
            return session.request(method, self.url + path, headers=headers, timeout=120, **keywords)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokens(stack: Stack) -> Iterator[dict[str, str]]:
    with one_of_each_role(stack, "bytes") as made:
        yield made


@pytest.fixture
def writer(stack: Stack, tokens: dict[str, str]) -> Person:
    return Person(stack.url, bearer(tokens["writer"]))


@pytest.fixture
def reader(stack: Stack, tokens: dict[str, str]) -> Person:
    return Person(stack.url, bearer(tokens["reader"]))


@pytest.fixture(scope="module")
def mlflows_door(stack: Stack) -> Iterator[Door]:
    """A second nginx before the same stack, with ARTIFACT_BYTES=mlflow."""
    with door(stack, stack_networks(stack), ARTIFACT_BYTES="mlflow") as opened:
        yield opened


@pytest.fixture
def folder(experiment_id: str) -> str:
    """The path of a run's artifacts on the raw route."""
    with mlflow.start_run() as run:
        return f"{ROUTE}/{run.info.artifact_uri.removeprefix('mlflow-artifacts:/')}"


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def unique(ending: str = ".bin") -> str:
    return f"u{uuid.uuid4().hex}{ending}"


def asked_for(stack: Stack, words: str, number: int = 1) -> list[tuple[str, int, list[str]]]:
    """Wait for the lines of the door's log that hold `words`; return method, status, and whom it asked.

    In the order of these: the lines of nginx's workers come from a buffer each.
    """

    def lines() -> list[tuple[str, int, list[str]]]:
        said = stack.compose("logs", "--no-log-prefix", "--tail", "2000", "nginx").stdout
        found = [LINE.search(line) for line in said.splitlines() if words in line]
        read = [
            (one["method"], int(one["status"]), re.findall(r":(\d+)", one["asked"])) for one in found if one
        ]
        return sorted(read) if len(read) >= number else []

    return poll(lines, seconds=30, what=f"{number} lines with {words} in the log")


@pytest.mark.parametrize("size", [0, 1000, 10 * MEGABYTE], ids=["0 bytes", "1 KB", "10 MB"])
def test_a_file_goes_and_comes_past_mlflow(
    stack: Stack, writer: Person, reader: Person, folder: str, size: int
) -> None:
    name = unique()
    put = writer("PUT", f"{folder}/{name}", data=content(size), headers={"Content-Length": str(size)})
    assert (put.status_code, put.content) == (200, b"")
    got = reader("GET", f"{folder}/{name}")
    assert (got.status_code, got.headers["Content-Length"]) == (200, str(size))
    assert hashlib.sha256(got.content).digest() == hashlib.sha256(content(size)).digest()
    ajax = reader("GET", f"{folder}/{name}".replace("/api/", "/ajax-api/", 1))
    assert ajax.content == got.content
    assert asked_for(stack, name, 3) == [("GET", 200, FAST), ("GET", 200, FAST), ("PUT", 200, FAST)]


def test_mlflows_own_client_goes_past_mlflow(stack: Stack, experiment_id: str) -> None:
    with mlflow.start_run() as run:
        mlflow.log_text("hello", (name := unique(".txt")))
        assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}") == "hello"
    transfers = [line for line in asked_for(stack, f"/{name}", 2) if line[2]]
    assert all((method, 200, FAST) in transfers for method in ("PUT", "GET"))


def served_by_mlflow(stack: Stack) -> float:
    """Return how many requests about artifacts MLflow has answered."""
    lines = stack.verb("metrics").stdout.splitlines()
    wanted = 'stack_http_requests_total{family="mlflow-artifacts"'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))


def test_neither_python_nor_its_disk_sees_a_plain_transfer(
    stack: Stack, writer: Person, reader: Person, folder: str
) -> None:
    newest = "find /var/tmp/mlflow -printf '%T@ %p\\n' | sort | tail -n 1"
    writer("PUT", f"{folder}/é.bin", data=b"an odd name").raise_for_status()
    before = served_by_mlflow(stack), stack.compose("exec", "-T", "mlflow", "sh", "-c", newest).stdout
    assert before[0] > 0
    name = unique()
    writer("PUT", f"{folder}/{name}", data=content(10 * MEGABYTE)).raise_for_status()
    assert reader("GET", f"{folder}/{name}").content == content(10 * MEGABYTE)
    assert reader("HEAD", f"{folder}/{name}").status_code == 200
    after = served_by_mlflow(stack), stack.compose("exec", "-T", "mlflow", "sh", "-c", newest).stdout
    assert after == before
    writer("PUT", f"{folder}/é2.bin", data=b"an odd name").raise_for_status()
    assert served_by_mlflow(stack) == before[0] + 1  # it would have been seen


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"Range": "bytes=0-3"}, slice(0, 4)),
        ({"Range": "bytes=990-"}, slice(990, None)),
        ({"Range": "bytes=-5"}, slice(-5, None)),
        ({"Range": "bytes=0-3,7-9"}, None),
        ({"Range": "lines=0-3"}, None),
        ({"Range": "bytes=0-3", "If-Range": '"another"'}, None),
        ({"If-None-Match": "*"}, None),
        ({"If-Modified-Since": "Wed, 01 Jan 2100 00:00:00 GMT"}, None),
        ({"If-Match": '"another"'}, None),
        ({"If-Unmodified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"}, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_one_range_is_sent_and_no_condition_is_looked_at(
    writer: Person, reader: Person, folder: str, asked: dict[str, str], part: slice | None
) -> None:
    writer("PUT", f"{folder}/a.bin", data=content(1000)).raise_for_status()
    got = reader("GET", f"{folder}/a.bin", headers=asked)
    expected = (206, content(1000)[part]) if part else (200, content(1000))
    assert (got.status_code, got.content) == expected
    assert got.headers["Accept-Ranges"] == "bytes"
    assert ("Content-Range" in got.headers) == (part is not None)
    assert not {"ETag", "Last-Modified"} & set(got.headers)


def test_a_range_past_the_end_is_416_and_tells_nothing_of_the_storage(
    writer: Person, reader: Person, folder: str
) -> None:
    writer("PUT", f"{folder}/a.bin", data=b"short").raise_for_status()
    got = reader("GET", f"{folder}/a.bin", headers={"Range": "bytes=10-20"})
    assert got.status_code == 416
    assert got.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert "mlflow/artifacts" not in got.text
    assert "minio" not in str(got.headers).lower()


def test_a_head_is_that_of_the_get(writer: Person, reader: Person, folder: str) -> None:
    writer("PUT", f"{folder}/a.html", data=b"<p>").raise_for_status()
    head, got = reader("HEAD", f"{folder}/a.html"), reader("GET", f"{folder}/a.html")
    assert (head.status_code, head.content) == (200, b"")
    for answer in (head, got):
        answer.headers.pop("Date")
    assert head.headers == got.headers


def described(answer: requests.Response) -> tuple[int, dict[str, str], bytes]:
    headers = {
        name.title(): value for name, value in answer.headers.items() if name.title() not in MAY_DIFFER
    }
    return answer.status_code, headers, answer.content


def raw(
    port: int, person: Person, method: str, path: str, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """Ask for a path as it stands and describe the answer."""
    length = [f"Content-Length: {len(body)}"] if method == "PUT" else []
    answer = send_raw(port, head_of(method, path, person, *length) + body)
    kept = {name.title(): value for name, value in answer.headers.items() if name.title() not in MAY_DIFFER}
    return answer.status, kept, answer.body


def test_answers_are_those_of_mlflow_for_75_names(
    stack: Stack, mlflows_door: Door, writer: Person, reader: Person, folder: str
) -> None:
    names = PLAIN_NAMES + ODD_NAMES
    assert len(set(names)) >= 75
    different = {}
    for number, name in enumerate(names):
        body = f"<p>{number}</p>".encode()
        fast, slow = (f"{folder}/{side}{number}/{name}" for side in "ab")
        found = {
            "put": (
                raw(stack.port, writer, "PUT", fast, body),
                raw(mlflows_door.port, writer, "PUT", slow, body),
            ),
            # What the one has stored, the other reads, and both say the same.
            "get": (raw(stack.port, reader, "GET", fast), raw(mlflows_door.port, reader, "GET", fast)),
            "get of mlflow's": (
                raw(stack.port, reader, "GET", slow),
                raw(mlflows_door.port, reader, "GET", slow),
            ),
        }
        plain = [text.replace(b"/b%d/" % number, b"/a%d/" % number) for _, _, text in found["put"]]
        alike = [one[:2] == other[:2] for one, other in found.values()]
        alike += [plain[0] == plain[1], *(found[way][0][2] == found[way][1][2] for way in list(found)[1:])]
        if not all(alike) or (name in PLAIN_NAMES and found["get"][0][2] != body):
            different[name] = found
    assert different == {}

    def are_fast() -> bool:
        fast_lines = [line for line in asked_for(stack, folder) if line[2][-1:] == ["9000"]]
        return len(fast_lines) >= 3 * len(PLAIN_NAMES)  # an upload and two downloads of each

    poll(are_fast, seconds=30, what="the lines of all transfers in the log")


def test_what_is_stored_beside_the_bytes_is_what_mlflow_stores(
    stack: Stack, mlflows_door: Door, writer: Person, folder: str
) -> None:
    names = ("a.csv.gz", "a.html", "noextension", "a.parquet")
    for side, person in (("fast", writer), ("slow", Person(mlflows_door.url, writer.headers))):
        for name in names:
            person("PUT", f"{folder}/{side}/{name}", data=b"x").raise_for_status()
    script = """
import boto3, json, sys
client = boto3.client("s3", endpoint_url="http://minio:9000")
for key in json.load(sys.stdin):
    found = client.head_object(Bucket="mlflow", Key=key)
    print(json.dumps([found["ContentType"], found.get("ContentEncoding"), found["Metadata"]]))
"""
    keys = [
        f"artifacts/{folder.removeprefix(ROUTE + '/')}/{side}/{name}"
        for name in names
        for side in ("fast", "slow")
    ]
    said = stack.compose("exec", "-T", "mlflow", "python", "-c", script, given=json.dumps(keys)).stdout
    lines = [json.loads(line) for line in said.splitlines()]
    assert lines[::2] == lines[1::2]
    assert lines[0][1] == "gzip"


def test_what_is_not_there_is_answered_as_ever(
    mlflows_door: Door, writer: Person, reader: Person, folder: str
) -> None:
    writer("PUT", f"{folder}/sub/a.txt", data=b"x").raise_for_status()
    slow = Person(mlflows_door.url, reader.headers)
    for path, status in ((f"{folder}/none.txt", 404), (f"{folder}/sub", 400), (f"{folder}/sub/a.txt/b", 404)):
        assert described(reader("GET", path)) == described(slow("GET", path)), path
        assert reader("GET", path).status_code == status, path


@pytest.mark.parametrize(
    ("size", "asked"), [(SMALL, TAKEN), (LARGEST_SMALL, TAKEN), (LARGEST_SMALL + 1, SLOW), (LARGE, SLOW)]
)
def test_an_artifact_that_is_written_over_goes_through_mlflow_to_the_audit_log(
    stack: Stack, writer: Person, folder: str, size: int, asked: list[str]
) -> None:
    name = unique(".txt")
    for text in ("1" * size, "2" * size):
        assert writer("PUT", f"{folder}/{name}", data=text).status_code == 200
    assert writer("GET", f"{folder}/{name}").text == "2" * size
    done = [("GET", 200, FAST), ("PUT", 200, FAST), ("PUT", 200, asked)]
    assert asked_for(stack, name, 3) == sorted(done)
    assert overwrites(stack, name) == ["bytes-writer"]


@pytest.mark.parametrize("size", [100_000, LARGEST_SMALL])
def test_no_answer_of_the_storage_is_lost_when_small_artifacts_are_written_over(
    writer: Person, folder: str, size: int
) -> None:
    """It refuses without reading the body: a connection that then breaks would be a 503."""
    name = unique()
    assert writer("PUT", f"{folder}/{name}", data=content(size)).status_code == 200
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: writer("PUT", f"{folder}/{name}", data=content(size)), range(40)))
    assert Counter(answer.status_code for answer in answers) == {200: 40}


def head_of(method: str, path: str, person: Person, *lines: str) -> bytes:
    own = [f"{name}: {value}" for name, value in person.headers.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *own, *lines]).encode() + b"\r\n\r\n"


def begun(stack: Stack, person: Person, path: str, size: int) -> socket.socket:
    """Begin an upload; return its connection when nginx asks for the body (if large: it has looked)."""
    connection = socket.create_connection(("127.0.0.1", stack.port), timeout=60)
    connection.sendall(head_of("PUT", path, person, f"Content-Length: {size}", "Expect: 100-continue"))
    assert b" 100 " in connection.recv(100)
    return connection


def overwrites(stack: Stack, name: str) -> list[str]:
    """Return the names of the users who wrote over an artifact, as the audit log has them."""
    told = stack.verb("audit", "--json", "--since", "1h", "--words", name).stdout
    lines = [json.loads(line) for line in told.splitlines()]
    assert {line["event"] for line in lines} <= {"overwrite"}
    return [line["user"] for line in lines]


def test_of_two_uploads_of_a_new_name_one_is_first_and_the_other_writes_over_it_or_comes_again(
    stack: Stack, writer: Person, reader: Person, folder: str
) -> None:
    path = f"{folder}/{(name := unique('.txt'))}"
    texts = b"1" * LARGE, b"2" * LARGE
    with begun(stack, writer, path, LARGE) as connection, ThreadPoolExecutor(1) as pool:
        other = pool.submit(writer, "PUT", path, data=texts[1])
        time.sleep(0.5)  # whom the storage has heard of last waits for the other
        connection.sendall(texts[0])
        first, second = read_answer(connection), other.result()
    stored_text, repeated = texts[::-1] if second.status_code == 200 else texts
    assert {first.status, second.status_code} in ({200}, {200, 503})
    overwritten = [first.status, second.status_code].count(200) - 1
    for status, headers, body in (
        (first.status, first.headers, first.body),
        (second.status_code, second.headers, second.content),
    ):
        if status == 503:
            assert headers["Retry-After"]
            assert b"TEMPORARILY_UNAVAILABLE" in body
    assert reader("GET", path).content == stored_text
    assert overwrites(stack, name) == ["bytes-writer"] * overwritten
    assert writer("PUT", path, data=repeated).status_code == 200
    assert reader("GET", path).content == repeated
    assert overwrites(stack, name) == ["bytes-writer"] * (overwritten + 1)


def test_a_small_upload_during_another_of_the_same_name_is_as_if_one_came_first(
    stack: Stack, writer: Person, reader: Person, folder: str
) -> None:
    path = f"{folder}/{(name := unique('.txt'))}"
    with begun(stack, writer, path, SMALL) as connection:
        assert writer("PUT", path, data=b"2" * SMALL).status_code == 200
        connection.sendall(b"1" * SMALL)
        assert read_answer(connection).status == 200
    assert reader("GET", path).content == b"1" * SMALL
    assert overwrites(stack, name) == ["bytes-writer"]


@pytest.mark.parametrize(("size", "may_be"), [(SMALL, {200}), (LARGE, {200, 503})], ids=SIZES)
def test_of_uploads_of_a_name_at_once_each_that_writes_over_another_is_in_the_audit_log(
    stack: Stack, writer: Person, folder: str, size: int, may_be: set[int]
) -> None:
    seen: Counter[int] = Counter()
    for _ in range(10):
        path = f"{folder}/{(name := unique('.txt'))}"
        texts = [str(number) * size for number in range(8)]
        with ThreadPoolExecutor(len(texts)) as pool:
            answers = list(pool.map(lambda text, to=path: writer("PUT", to, data=text), texts))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) <= may_be
        stored_texts = {text for text, status in zip(texts, statuses, strict=True) if status == 200}
        assert writer("GET", path).text in stored_texts
        assert len(overwrites(stack, name)) == len(stored_texts) - 1
        assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 503)
        seen.update(statuses)
    assert seen[200] >= 10


def test_who_asks_for_an_artifact_that_is_being_uploaded_hears_soon_to_come_again(
    stack: Stack, writer: Person, reader: Person, folder: str
) -> None:
    """MinIO lets them wait for the end of the upload, which the uploader may put off."""
    name = unique()
    run_id = folder.split("/")[-2]
    with begun(stack, writer, f"{folder}/{name}", 5 * MEGABYTE) as connection:
        connection.sendall(content(2 * MEGABYTE))
        ways = (f"/get-artifact?run_uuid={run_id}&path={name}", f"{folder}/{name}")
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda way: reader("GET", way), ways * 2))
        assert [answer.status_code for answer in answers] == [503] * 4
    assert reader("GET", f"{folder}/{name}").status_code == 404


def test_an_upload_that_breaks_off_leaves_nothing(
    stack: Stack, writer: Person, reader: Person, folder: str
) -> None:
    name = unique()
    with begun(stack, writer, f"{folder}/{name}", 5 * MEGABYTE) as connection:
        connection.sendall(content(2 * MEGABYTE))
    (line,) = asked_for(stack, name)
    assert line[1] in {400, 499}  # nginx's words for it, in the middle of a body and before
    assert reader("GET", f"{folder}/{name}").status_code == 404
    assert stored.objects(stack, f"artifacts/{folder.removeprefix(ROUTE + '/')}") == {}
    assert writer("PUT", f"{folder}/{name}", data=b"whole").status_code == 200
    assert reader("GET", f"{folder}/{name}").content == b"whole"


@pytest.mark.long
def test_transfers_that_pause_are_not_cut(stack: Stack, writer: Person, reader: Person, folder: str) -> None:
    size = 40 * MEGABYTE  # more than all buffers on the way hold
    writer("PUT", f"{folder}/down.bin", data=content(size)).raise_for_status()

    def upload() -> bytes:
        with begun(stack, writer, f"{folder}/up.bin", size) as connection:
            connection.sendall(content(size)[: 3 * MEGABYTE])
            time.sleep(PAUSE_SECONDS)  # this is what is tried
            connection.sendall(content(size)[3 * MEGABYTE :])
            assert read_answer(connection).status == 200
        return reader("GET", f"{folder}/up.bin").content

    def download() -> bytes:
        with socket.create_connection(("127.0.0.1", stack.port), timeout=60) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.sendall(head_of("GET", f"{folder}/down.bin", reader))
            connection.recv(1000, socket.MSG_PEEK)
            time.sleep(PAUSE_SECONDS)
            return read_answer(connection).body

    with ThreadPoolExecutor(2) as pool:
        for transfer in (pool.submit(upload), pool.submit(download)):
            assert hashlib.sha256(transfer.result()).digest() == hashlib.sha256(content(size)).digest()


def test_strangers_and_readers_write_nothing_and_strangers_read_nothing(
    stack: Stack, writer: Person, reader: Person, folder: str
) -> None:
    writer("PUT", f"{folder}/a.txt", data=b"secret").raise_for_status()
    before = stored.objects(stack, f"artifacts/{folder.removeprefix(ROUTE + '/')}")
    stranger = Person(stack.url, {})
    for method in ("GET", "HEAD", "PUT"):
        answer = stranger(method, f"{folder}/a.txt", data=b"x" if method == "PUT" else None)
        assert answer.status_code == 401
        assert "secret" not in answer.text
    for name in ("a.txt", "new.txt"):
        refused = reader("PUT", f"{folder}/{name}", data=b"x")
        assert (refused.status_code, refused.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert stored.objects(stack, f"artifacts/{folder.removeprefix(ROUTE + '/')}") == before


def test_headers_for_the_storage_or_for_mlflow_end_at_the_door(
    stack: Stack, writer: Person, reader: Person, folder: str
) -> None:
    writer("PUT", f"{folder}/source.txt", data=b"another's").raise_for_status()
    key = f"artifacts/{folder.removeprefix(ROUTE + '/')}"
    odd = [
        {"X-Amz-Copy-Source": f"/mlflow/{key}/source.txt"},
        {"X-Amz-Meta-A": "b", "X-Amz-Acl": "public-read", "X-Amz-Storage-Class": "STANDARD_IA"},
        {"X-Amz-Object-Lock-Mode": "COMPLIANCE", "X-Amz-Tagging": "a=b"},
        {"X-Amz-Date": "20200101T000000Z", "X-Amz-Content-Sha256": "0" * 64, "Content-MD5": "AAAA"},
        {"X-Artifact-Bytes": "look"},
        {"X-Artifact-Bytes": "nginx"},
        {"X-Accel-Redirect": "@artifact_handed_over", "X-Artifact-Path": "1/2"},
        {"If-None-Match": "*", "If-Match": '"a"'},
        {"Content-Encoding": "aws-chunked", "X-Amz-Decoded-Content-Length": "1"},
    ]
    for number, headers in enumerate(odd):
        path = f"{folder}/{number}.txt"
        assert writer("PUT", path, data=b"mine", headers=headers).status_code == 200, headers
        for asked in ({}, headers):
            got = reader("GET", path, headers=asked)
            assert (got.status_code, got.content) == (200, b"mine"), headers
            assert not [name for name in got.headers if name.lower().startswith(("x-amz", "x-minio", "x-a"))]
    assert len(stored.objects(stack, key)) == len(odd) + 1


@pytest.mark.parametrize(
    "path",
    [
        *("/_artifact_there", "/_artifact_allowed", "/@artifact_read", "/%40artifact_read", "@artifact_read"),
        *(
            "/@artifact_write",
            "/@artifact_handed_over",
            "/mlflow/artifacts/",
            "/opt/nginx/artifacts/routes.conf",
        ),
    ],
)
def test_no_client_reaches_what_nginx_keeps_for_itself(stack: Stack, path: str) -> None:
    for method in ("GET", "PUT"):
        answer = send(stack.port, method, path, Authorization=stack.authorization)
        assert answer.status in {400, 404, 405}, (method, answer.status)
        assert b"Signature" not in answer.body
        assert b"Bucket" not in answer.body


def test_downloads_of_the_page_are_looked_up_by_mlflow_and_sent_by_nginx(
    stack: Stack, mlflows_door: Door, reader: Person, experiment_id: str
) -> None:
    name, text = unique(".html"), "<p>" + "ü" * 200_000
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        mlflow.log_text(text, f"m/{name}")
    model = f"bytes-{uuid.uuid4().hex[:8]}"
    client.create_registered_model(model)
    version = client.create_model_version(model, f"{run.info.artifact_uri}/m", run.info.run_id).version
    logged = client.create_logged_model(experiment_id)
    client.log_model_artifacts(logged.model_id, _folder_with(name, text))
    slow = Person(mlflows_door.url, reader.headers)
    ways = [
        f"/get-artifact?run_uuid={run.info.run_id}&path=m/{name}",
        f"/model-versions/get-artifact?name={model}&version={version}&path={name}",
        f"/ajax-api/2.0/mlflow/logged-models/{logged.model_id}/artifacts/files?artifact_file_path={name}",
    ]
    for way in ways:
        got, part = reader("GET", way), reader("GET", way, headers={"Range": "bytes=0-2"})
        assert described(got) == described(slow("GET", way)), way
        assert got.content.decode() == text
        assert (part.status_code, part.content) == (206, b"<p>")
        head = reader("HEAD", way)
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(got.content)))
        missing = way.replace(name, "none.html")
        assert described(reader("GET", missing)) == described(slow("GET", missing))
    for path in ("/get-artifact", "/model-versions/get-artifact", "/artifacts/files"):
        assert LOOKED_UP in [line[2] for line in asked_for(stack, f'{path}" 206')], path


def _folder_with(name: str, text: str) -> str:
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    (folder / name).write_text(text)
    return str(folder)


def test_a_report_is_what_it_was(
    stack: Stack, mlflows_door: Door, reader: Person, experiment_id: str
) -> None:
    with mlflow.start_run() as run:
        mlflow.log_text("<script>1</script>", "report.html")
    path = f"/view/runs/{run.info.run_id}/report.html"
    fast, slow = reader("GET", path), Person(mlflows_door.url, reader.headers)("GET", path)
    assert described(fast) == described(slow)
    assert "sandbox" in fast.headers["Content-Security-Policy"]
    assert "Content-Disposition" not in fast.headers


def test_one_users_transfers_leave_room_for_anothers(
    stack: Stack, writer: Person, reader: Person, folder: str
) -> None:
    writer("PUT", f"{folder}/a.bin", data=content(40 * MEGABYTE)).raise_for_status()
    request = head_of("GET", f"{folder}/a.bin", reader)
    connections = []
    try:
        for _ in range(64):
            connection = socket.create_connection(("127.0.0.1", stack.port), timeout=60)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(request)
            assert connection.recv(12) == b"HTTP/1.1 200"
            connections.append(connection)
        refused = reader("GET", f"{folder}/a.bin")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
        assert writer("GET", f"{folder}/a.bin", headers={"Range": "bytes=0-3"}).status_code == 206
        assert stack.is_ready()
    finally:
        for connection in connections:
            connection.close()
    poll(lambda: reader("HEAD", f"{folder}/a.bin").status_code == 200, seconds=30, what="there is room again")


def test_the_key_of_nginx_reads_and_writes_artifacts_and_no_more(
    stack: Stack, writer: Person, folder: str
) -> None:
    writer("PUT", f"{folder}/a.txt", data=b"x").raise_for_status()
    key = f"artifacts/{folder.removeprefix(ROUTE + '/')}/a.txt"
    show = ("run", "--rm", "--no-deps", "-T", "--entrypoint", "cat", "secrets", "/secrets/nginx/storage.json")
    script = """
import boto3, botocore, json, sys
given = json.load(sys.stdin)
s3 = boto3.client("s3", endpoint_url="http://minio:9000", aws_access_key_id=given["access_key"],
                  aws_secret_access_key=given["secret_key"])
calls = {
    "get": lambda: s3.get_object(Bucket="mlflow", Key=given["key"]),
    "put": lambda: s3.put_object(Bucket="mlflow", Key=given["key"] + ".2", Body=b"x"),
    "list": lambda: s3.list_objects_v2(Bucket="mlflow"),
    "delete": lambda: s3.delete_object(Bucket="mlflow", Key=given["key"]),
    "get beside": lambda: s3.get_object(Bucket="mlflow", Key=".stack/bucket"),
    "put beside": lambda: s3.put_object(Bucket="mlflow", Key="other/x", Body=b"x"),
    "multipart": lambda: s3.list_multipart_uploads(Bucket="mlflow"),
    "buckets": lambda: s3.create_bucket(Bucket="another"),
}
for name, call in calls.items():
    try:
        call()
        print(name)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDenied", (name, error)
"""
    given = json.dumps({**json.loads(stack.compose(*show).stdout), "key": key})
    assert stack.compose("exec", "-T", "mlflow", "python", "-c", script, given=given).stdout.split() == [
        "get",
        "put",
    ]
    mode = "stat --format '%a %u' /secrets/nginx/storage.json"
    assert stack.compose("exec", "-T", "nginx", "sh", "-c", mode).stdout.split() == ["400", "10004"]
