"""The same requests to the stack and to stock MLflow, and whether answers and tables are the same.

What must differ is made equal first: the ids of runs and experiments become `<run 1>`, `<experiment 2>`
by order of creation, times of the case itself `<now>`, a name that MLflow makes up `<generated name>`.
Requests name ids in the same way.
"""

from __future__ import annotations

import base64
import difflib
import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import pytest

Result = TypeVar("Result")
PREFIX = "/api/2.0/mlflow/"
HOT_READS = ("runs/get", "experiments/get", "experiments/get-by-name")
HOT_WRITES = (
    "runs/create",
    "runs/update",
    "runs/log-metric",
    "runs/log-parameter",
    "runs/log-batch",
    "runs/set-tag",
    "runs/search",
    "experiments/create",
)
HOT = frozenset(
    f"/{api}/2.0/mlflow/{route}" for api in ("api", "ajax-api") for route in HOT_READS + HOT_WRITES
)
"""The paths that the fast path answers, or hands to MLflow."""

EXPERIMENT, RUN = "<experiment 1>", "<run 1>"
"""What Pair.play makes for each case."""
START = 1700000000000
"""When that run began, in milliseconds."""

IDLE_SECONDS = 2.0
"""A connection that rested for longer is opened anew: uvicorn closes one after 5 s, maybe just now."""
NOT_MINE = 418


@dataclass(frozen=True)
class Request:
    """A request as it goes over the wire; `target` is path and query."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None

    def __str__(self) -> str:
        shown = f"{self.method} {self.target}"
        if self.headers:
            shown += f" {dict(self.headers)}"
        return shown if self.body is None else f"{shown}\n{self.body[:1000]!r}"


@dataclass(frozen=True)
class Answer:
    """What is compared of an answer, and by whom it came: `fast`, or the fast path's `reason` for not."""

    status: int
    content_type: str | None
    body: bytes
    fast: bool = False
    reason: str | None = None


class PlainConnection(http.client.HTTPConnection):
    """HTTP that sends targets as they are, also bytes beyond ASCII."""

    def _encode_request(self, request: str) -> bytes:
        return request.encode("latin-1")


class UnixConnection(PlainConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("127.0.0.1", timeout=60)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Wire:
    """Requests over one connection that is kept open. `always` are headers that each request gets."""

    def __init__(
        self, connect: Callable[[], http.client.HTTPConnection], always: Mapping[str, str] | None = None
    ) -> None:
        self._connection = connect()
        self._always = dict(always or {})
        self._used = 0.0

    def ask(self, request: Request) -> Answer:
        """Send a request once and return its answer. Raise OSError or http.client.HTTPException."""
        if time.monotonic() - self._used > IDLE_SECONDS:
            self._connection.close()
        connection = self._connection
        try:
            connection.putrequest(request.method, request.target, skip_accept_encoding=True)
            for name, value in (*self._always.items(), *request.headers):
                connection.putheader(name, value)
            if request.body is not None:
                connection.putheader("Content-Length", str(len(request.body)))
            connection.endheaders(request.body)
            response = connection.getresponse()
            body = response.read()
        except Exception:
            connection.close()
            raise
        self._used = time.monotonic()
        return Answer(
            response.status,
            response.getheader("Content-Type"),
            body,
            fast=response.getheader("X-Answered-By") == "fastpath",
            reason=response.getheader("X-Reason"),
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def generated_name_pattern() -> re.Pattern[str]:
    """Return what matches the run names that MLflow makes up (mlflow/utils/name_utils.py of 3.17.2)."""
    from mlflow.utils import name_utils

    predicates = "|".join(sorted(set(name_utils._GENERATOR_PREDICATES)))
    nouns = "|".join(sorted(set(name_utils._GENERATOR_NOUNS)))
    return re.compile(rf"(?:{predicates})-(?:{nouns})-(?:1000|[1-9]?\d?\d)", re.IGNORECASE)


class Names:
    """The ids that a server gave away, by order: number 1 is `<run 1>` in requests and answers."""

    def __init__(self) -> None:
        self.always: dict[str, str] = {}
        """Known before the first case, and in each."""
        self.clear()

    def clear(self) -> None:
        """Forget all: another case begins."""
        self._of_id: dict[str, str] = dict(self.always)
        self._count: dict[str, int] = {}
        self._since_ms = int(time.time() * 1000) - 1000
        self._pattern: re.Pattern[str] | None = None

    def learn(self, kind: str, identifier: str) -> None:
        """Give a new id its name."""
        if identifier in self._of_id or not identifier:
            return
        self._count[kind] = self._count.get(kind, 0) + 1
        self._of_id[identifier] = f"<{kind} {self._count[kind]}>"
        if identifier.upper() != identifier:
            self._of_id[identifier.upper()] = self._of_id[identifier].upper()
        self._pattern = None

    def name_all(self, text: str) -> str:
        """Return a text with names for ids."""
        if not self._of_id:
            return text
        if self._pattern is None:
            longest_first = sorted(self._of_id, key=len, reverse=True)
            self._pattern = re.compile("|".join(re.escape(known) for known in longest_first))
        return self._pattern.sub(lambda found: self._of_id[found[0]], text)

    def learn_from(self, target: str, answer: Answer) -> None:
        """Learn the id that an answer to a creating request names."""
        if answer.status != 200 or not CREATING.search(unquote(urlsplit(target).path)):
            return
        try:
            said = json.loads(answer.body)
        except ValueError:
            return
        if "experiment_id" in said:
            self.learn("experiment", str(said["experiment_id"]))
        elif isinstance(said.get("run"), dict):
            self.learn("run", str(said["run"].get("info", {}).get("run_id", "")))
        elif isinstance(said.get("model"), dict):
            self.learn("model", str(said["model"].get("info", {}).get("model_id", "")))

    def fill(self, text: bytes) -> bytes:
        """Return a request's text with ids for their names; `<run 1, encoded>` in percent encoding.

        A run that is not there has an id that nobody has.
        """
        for identifier, name in self._of_id.items():
            text = text.replace(name.encode(), identifier.encode())
            encoded = "".join(f"%{byte:02X}" for byte in identifier.encode())
            text = text.replace(name.encode()[:-1] + b", encoded>", encoded.encode())
        return re.sub(rb"<run \d+>", b"0" * 32, text)

    def hide(self, value: Any) -> Any:
        """Return a JSON value with names for ids, times of this case and names that were made up."""
        if isinstance(value, dict):
            return {self.hide(key): self.hide(held) for key, held in value.items()}
        if isinstance(value, list):
            return [self.hide(held) for held in value]
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if str(value) in self._of_id:
                return f"{self._of_id[str(value)]} as a number"
            return "<now> as a number" if self._is_now(value) else value
        return value

    def _hide_text(self, text: str) -> str:
        if GENERATED.fullmatch(text):
            return "<generated name>"
        if "psycopg2.errors." in text:
            # The statement, with the id of a run that was not made, and a piece of it that begins anywhere.
            text = re.sub(r"\nLINE \d+: .*\n *\^", "", text)
            text = re.sub(
                r"\b([0-9a-f]{32}|7\d{8})\b", lambda found: self._of_id.get(found[0], "<no id>"), text
            )
            text = GENERATED.sub("<generated name>", text)
        text = self.name_all(text)
        text = re.sub(
            r"(?<![\w.])\d{13}(?![\w.])", lambda n: "<now>" if self._is_now(int(n[0])) else n[0], text
        )
        # A set in a message has another order in each process, and so have parameters of a statement.
        return re.sub(r"\{'[^{}]*\}", lambda found: " ".join(sorted(found[0][1:-1].split(", "))), text)

    def _is_now(self, milliseconds: int) -> bool:
        return self._since_ms <= milliseconds <= int(time.time() * 1000) + 1000


CREATING = re.compile(r"/(runs/create|experiments/create|logged-models)$")
GENERATED = generated_name_pattern()
UNORDERED = ("tags", "params", "metrics")
"""Lists of keys and values without an order of their own: stock reads them without ORDER BY."""


def _sorted_lists(value: Any) -> Any:
    if isinstance(value, list):
        return [_sorted_lists(held) for held in value]
    if not isinstance(value, dict):
        return value
    sorted_value = {}
    for key, held in value.items():
        ordered = _sorted_lists(held)
        if key in UNORDERED and isinstance(ordered, list):
            ordered.sort(key=lambda entry: json.dumps(entry, sort_keys=True))
        if key == "next_page_token" and isinstance(ordered, str):
            ordered = {"page token": json.loads(base64.b64decode(ordered, validate=True))}
        sorted_value[key] = ordered
    return sorted_value


def _only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise AssertionError(f"an answer has a key twice: {keys}")
    return dict(pairs)


def canonical(answer: Answer, names: Names, *, sort_runs: bool = False) -> str:
    """Return what must be equal of an answer, as text. Numbers keep whether they are whole."""
    shown: Any
    if answer.content_type is not None and answer.content_type.startswith("application/json"):
        try:
            shown = names.hide(_sorted_lists(json.loads(answer.body, object_pairs_hook=_only_once)))
        except ValueError:
            shown = repr(answer.body)
        if sort_runs and isinstance(shown, dict) and isinstance(shown.get("runs"), list):
            shown["runs"].sort(key=lambda run: json.dumps(run, sort_keys=True))
    else:
        shown = names.hide(answer.body.decode("utf-8", "backslashreplace"))
    return json.dumps(
        {"status": answer.status, "content type": answer.content_type, "body": shown},
        indent=1,
        sort_keys=True,
    )


class Tables(Protocol):
    """What runs SQL in a server's database. Both keep their session, for temporary tables."""

    def query(self, statement: str) -> str:
        """Return the one value of a query, as text."""

    def execute(self, statement: str) -> None:
        """Run statements."""


NOTES = """
CREATE TEMP TABLE known_runs AS SELECT run_uuid FROM runs;
CREATE TEMP TABLE known_experiments AS SELECT experiment_id FROM experiments;
CREATE TEMP TABLE first_runs AS SELECT * FROM known_runs;
CREATE TEMP TABLE first_experiments AS SELECT * FROM known_experiments;
ALTER TABLE known_runs ADD PRIMARY KEY (run_uuid);
ALTER TABLE known_experiments ADD PRIMARY KEY (experiment_id)
"""
REMEMBER = """
INSERT INTO known_runs SELECT run_uuid FROM runs ON CONFLICT DO NOTHING;
INSERT INTO known_experiments SELECT experiment_id FROM experiments ON CONFLICT DO NOTHING
"""
OF_RUNS = ("tags", "params", "metrics", "latest_metrics")
NEW_ROWS = """
WITH new_experiments AS (
    SELECT * FROM experiments e
    WHERE NOT EXISTS (SELECT FROM {known_experiments} k WHERE k.experiment_id = e.experiment_id)
), new_runs AS (
    SELECT * FROM runs r WHERE NOT EXISTS (SELECT FROM {known_runs} k WHERE k.run_uuid = r.run_uuid)
)
SELECT json_build_object(
    'experiments', (SELECT json_agg(e) FROM new_experiments e),
    'experiment_tags', (SELECT json_agg(t) FROM experiment_tags t JOIN new_experiments USING (experiment_id)),
    'runs', (SELECT json_agg(r) FROM new_runs r),
    {of_runs}
)
""".replace(
    "{of_runs}",
    ",\n    ".join(
        f"'{table}', (SELECT json_agg(t) FROM {table} t JOIN new_runs USING (run_uuid))" for table in OF_RUNS
    ),
)
DEFAULT_TIMES = """
SELECT json_build_object(creation_time, '<default made>', last_update_time, '<default changed>')
FROM experiments WHERE experiment_id = 0
"""
START_IDS = """
SELECT setval('experiments_experiment_id_seq', greatest(nextval('experiments_experiment_id_seq'), 700000000))
"""
"""Ids of nine digits: such a number in a text is an experiment's."""


@dataclass
class Side:
    """One of the two servers. `url` is where a client reaches it, `ask` where the suite does."""

    name: str
    url: str
    ask: Callable[[Request], Answer]
    tables: Tables
    names: Names = field(default_factory=Names)
    all_names: Names = field(default_factory=Names)
    """The ids of all cases."""

    def prepare(self) -> None:
        """Let ids begin at another number, and note what is there already."""
        # MLflow makes the experiment Default when it is asked for the first time.
        assert self.ask(Request("GET", f"{PREFIX}experiments/get?experiment_id=0", (), None)).status == 200
        for names in (self.names, self.all_names):
            names.always = json.loads(self.tables.query(DEFAULT_TIMES))
            names.clear()
        self.tables.query(START_IDS)
        self.tables.execute(NOTES)

    def begin(self) -> None:
        """Forget the case before."""
        self.names.clear()
        self.tables.execute(REMEMBER)

    def learn(self, kind: str, identifier: str) -> None:
        """Give an id its name in this case, and in all."""
        self.names.learn(kind, identifier)
        self.all_names.learn(kind, identifier)

    def send(self, request: Request) -> Answer:
        """Send a request with this side's ids in it."""
        sent = replace(
            request,
            target=self.names.fill(request.target.encode("latin-1")).decode("latin-1"),
            body=None if request.body is None else self.names.fill(request.body),
        )
        answer = self.ask(sent)
        for names in (self.names, self.all_names):
            names.learn_from(sent.target, answer)
        return answer

    def rows(self, *, of_all: bool = False) -> str:
        """Return the rows of the case (or of all cases) in all tables, made comparable, one a line."""
        since = "first" if of_all else "known"
        query = NEW_ROWS.format(known_experiments=f"{since}_experiments", known_runs=f"{since}_runs")
        names = self.all_names if of_all else self.names
        found = json.loads(self.tables.query(query))
        lines = []
        for table, rows in found.items():
            shown = (json.dumps(names.hide(row), sort_keys=True) for row in rows or ())
            lines += sorted(f"{table} {row}" for row in shown)
        return "\n".join(lines)


@dataclass(frozen=True)
class Step:
    """A request of a case, and who must answer it: `fast`, `fallback`, or `success`: fast if it is 200.

    Random requests leave it open: None.

    `body` is a JSON value, or bytes that go as they are. `refused` says why the stack, other than
    stock MLflow, refuses it: there it is sent to the stack alone, which must answer 400 and do nothing.
    """

    route: str
    body: Any = None
    how: str | None = "fast"
    method: str = ""
    query: str = ""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    prefix: str = PREFIX
    sort_runs: bool = False
    refused: str = ""

    def request(self) -> Request:
        """Return it as it goes over the wire."""
        method = self.method or ("GET" if self.route in HOT_READS else "POST")
        body = self.body
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is None and method == "POST":
            body = b""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        headers.update(self.headers)
        kept = tuple((name, value) for name, value in headers.items() if value is not None)
        target = self.prefix + self.route + (f"?{self.query}" if self.query else "")
        return Request(method, target, kept, body)


def fast(route: str, body: Any = None, **more: Any) -> Step:
    """Return a request that the fast path must answer."""
    return Step(route, body, "fast", **more)


def slow(route: str, body: Any = None, **more: Any) -> Step:
    """Return a request that the fast path must hand to MLflow."""
    return Step(route, body, "fallback", **more)


def plain(route: str, body: Any = None, **more: Any) -> Step:
    """Return a request that the fast path must answer where stock MLflow takes it."""
    return Step(route, body, "success", **more)


def either(route: str, body: Any = None, **more: Any) -> Step:
    """Return a request that either may answer."""
    return Step(route, body, None, **more)


class DifferenceError(AssertionError):
    """Stock MLflow and ours are not the same."""


def check_equal(what: str, stock: str, ours: str) -> None:
    """Raise DifferenceError with the lines that differ."""
    if stock == ours:
        return
    lines = difflib.unified_diff(stock.splitlines(), ours.splitlines(), "stock", "ours", lineterm="", n=2)
    shown = "\n".join(line[:600] for line in list(lines)[:80])
    raise DifferenceError(f"{what}\n{shown}")


@dataclass
class Pair:
    """Both servers. `tells` is whether ours has a fast path at all; `is_stack` that it is the whole stack."""

    stock: Side
    ours: Side
    tells: bool
    is_stack: bool
    answered: dict[str, int] = field(default_factory=lambda: {"fast": 0, "fallback": 0})
    reasons: list[tuple[str, str | None]] = field(default_factory=list)
    cases: int = 0
    _helper: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both, stock first."""
        return self.stock, self.ours

    def both(self, do: Callable[[Side], Result]) -> tuple[Result, Result]:
        """Do something to both sides at the same time; they have nothing in common."""
        of_stock = self._helper.submit(do, self.stock)
        of_ours = do(self.ours)
        return of_stock.result(), of_ours

    def prepare(self) -> None:
        """Make both databases ready."""
        for side in self.sides:
            side.prepare()

    def begin_in(self, experiments: Mapping[str, Iterable[str]]) -> None:
        """Begin a case in experiments that are there: their ids by the side's name."""
        for side in self.sides:
            side.begin()
            for experiment_id in experiments[side.name]:
                side.learn("experiment", experiment_id)

    def begin(self, *, run: bool = True) -> None:
        """Begin a case with `<experiment 1>` and, unless it is not wanted, `<run 1>` in it."""
        self.cases += 1
        self.both(Side.begin)
        self.send(Step("experiments/create", {"name": f"case {self.cases}"}, how=None))
        if run:
            body = {"experiment_id": EXPERIMENT, "user_id": "ada", "start_time": START, "run_name": "first"}
            self.send(Step("runs/create", body, how=None))

    def send(self, step: Step) -> Any:
        """Send a request to both. Return what stock's body says, with names for ids.

        Raise DifferenceError if the answers differ, or not the right one answered.
        """
        if step.refused and self.is_stack:
            self._send_refused(step)
            return None
        request = step.request()
        of_stock, of_ours = self.both(lambda side: side.send(request))
        try:
            told = canonical(of_stock, self.stock.names, sort_runs=step.sort_runs)
            check_equal(str(request), told, canonical(of_ours, self.ours.names, sort_runs=step.sort_runs))
            self._check_who(step, request, of_ours)
        except DifferenceError as error:
            raise DifferenceError(f"{error}\nanswered by: {_who(of_ours)}") from None
        return json.loads(told)["body"]

    def _check_who(self, step: Step, request: Request, answer: Answer) -> None:
        if not self.tells:
            return
        came = "fast" if answer.fast else "fallback"
        self.answered[came] += 1
        self.reasons.append((f"{step.route} {came}", answer.reason))
        if answer.fast and answer.status != 200:
            raise DifferenceError(f"{request}: the fast path answered {answer.status}")
        wanted = step.how
        if wanted == "success":
            wanted = "fast" if answer.status == 200 else "fallback"
        if wanted is not None and came != wanted:
            raise DifferenceError(f"{request}: must be answered {wanted}, was {came}")

    def _send_refused(self, step: Step) -> None:
        before = self.ours.rows()
        answer = self.ours.send(step.request())
        if answer.status != 400 or answer.fast:
            raise DifferenceError(f"{step.refused}: {step.request()} was answered {answer}")
        check_equal(step.refused, before, self.ours.rows())

    def compare_tables(self, *, of_all: bool = False) -> None:
        """Raise DifferenceError if the rows that the case (or all of them) wrote differ."""
        check_equal("rows", *self.both(lambda side: side.rows(of_all=of_all)))

    def play(self, steps: Iterable[Step], *, run: bool = True) -> None:
        """Play one case: its experiment and run, its requests, then the comparison of all tables."""
        self.begin(run=run)
        for step in steps:
            self.send(step)
        self.compare_tables()


def _who(answer: Answer) -> str:
    return "the fast path" if answer.fast else f"MLflow ({answer.reason or 'no reason told'})"


def cases(table: Mapping[str, Any]) -> pytest.MarkDecorator:
    """Return the parametrization of a test by a table of cases: `steps` by name."""
    steps = [value if isinstance(value, (list, tuple)) else [value] for value in table.values()]
    return pytest.mark.parametrize("steps", steps, ids=list(table))
