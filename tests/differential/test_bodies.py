"""What is not quite a JSON object with a Content-Type: the same odd bodies on all routes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kit.differential import EXPERIMENT, HOT_WRITES, PREFIX, Pair, Step, fast, slow

R = "<run 1>"
GOOD: dict[str, dict[str, Any]] = {
    "runs/create": {"experiment_id": EXPERIMENT, "user_id": "ada", "start_time": 5, "run_name": "made"},
    "runs/update": {"run_id": R, "status": "FINISHED", "end_time": 9},
    "runs/log-metric": {"run_id": R, "key": "m", "value": 0.5, "timestamp": 7, "step": 1},
    "runs/log-parameter": {"run_id": R, "key": "p", "value": "v"},
    "runs/log-batch": {"run_id": R, "tags": [{"key": "b", "value": "v"}]},
    "runs/set-tag": {"run_id": R, "key": "t", "value": "v"},
    "runs/search": {"experiment_ids": [EXPERIMENT], "max_results": 5},
    "experiments/create": {"name": "from a body"},
}
assert set(GOOD) == set(HOT_WRITES)


def text_of(route: str) -> str:
    """Return a right body; an experiment's name is used only once."""
    return json.dumps(GOOD[route])


BODIES: dict[str, tuple[Any, Any]] = {
    "empty": (slow, lambda _: b""),
    "null": (slow, lambda _: b"null"),
    "true": (slow, lambda _: b"true"),
    "number": (slow, lambda _: b"5"),
    "NaN": (slow, lambda _: b"NaN"),
    "empty array": (slow, lambda _: b"[]"),
    "array with the object": (slow, lambda text: f"[{text}]".encode()),
    "empty object": (slow, lambda _: b"{}"),
    "empty text": (slow, lambda _: b'""'),
    "text that is no JSON": (slow, lambda _: b'"a"'),
    "invalid UTF-8": (slow, lambda text: text.encode()[:-1] + b', "x": "\xff"}'),
    "invalid UTF-8 in a key": (slow, lambda text: text.encode()[:-1] + b', "\xc3": 1}'),
    "UTF-8 of a surrogate": (slow, lambda text: text.encode()[:-1] + b', "x": "\xed\xa0\x80"}'),
    "cut off": (slow, lambda text: text.encode()[:-1]),
    "one brace more": (slow, lambda text: text.encode() + b"}"),
    "a word after it": (slow, lambda text: text.encode() + b" x"),
    "a second object": (slow, lambda text: text.encode() + b"{}"),
    "a comma too many": (slow, lambda text: text.encode()[:-1] + b",}"),
    "single quotes": (slow, lambda text: text.replace('"', "'").encode()),
    "a comment": (slow, lambda text: b"/* a */" + text.encode()),
    "a control character": (slow, lambda text: text.encode()[:-1] + b', "x": "\n"}'),
    "NUL after it": (slow, lambda text: text.encode() + b"\0"),
    "blanks around it": (fast, lambda text: b" \r\n\t" + text.encode() + b" \r\n\t"),
    "a wide blank before": (slow, lambda text: b"\xc2\xa0" + text.encode()),
    "a form feed before": (slow, lambda text: b"\x0c" + text.encode()),
    "deep in an unknown key": (
        slow,
        lambda text: text.encode()[:-1] + b', "x": ' + b"[" * 200 + b"]" * 200 + b"}",
    ),
    "very deep in an unknown key": (
        slow,
        lambda text: text.encode()[:-1] + b', "x": ' + b"[" * 20000 + b"]" * 20000 + b"}",
    ),
    "a huge number in an unknown key": (
        slow,
        lambda text: text.encode()[:-1] + b', "x": ' + b"9" * 5000 + b"}",
    ),
    "NaN in an unknown key": (slow, lambda text: text.encode()[:-1] + b', "x": NaN}'),
    "a wrong escape": (slow, lambda text: text.encode()[:-1] + b', "x": "\\x41"}'),
    "a number with a zero before": (slow, lambda text: text.encode()[:-1] + b', "x": 01}'),
    "a number with a point only": (slow, lambda text: text.encode()[:-1] + b', "x": 1.}'),
    "an empty key": (slow, lambda text: text.encode()[:-1] + b', "": 1}'),
}
ONCE: dict[str, tuple[Any, Any]] = {
    "with a BOM": (slow, lambda text: b"\xef\xbb\xbf" + text.encode()),
    "as UTF-16": (slow, lambda text: text.encode("utf-16")),
    "as UTF-16 without BOM": (slow, lambda text: text.encode("utf-16-le")),
    "as UTF-32": (slow, lambda text: text.encode("utf-32")),
    "JSON in a JSON text": (slow, lambda text: ('"' + text.replace('"', '\\"') + '"').encode()),
    "JSON in a JSON text in one": (slow, lambda _: b'"\\"5\\""'),
}
"""Those that are JSON to Python, and may do something."""

CONTENT_TYPES: dict[str, tuple[Any, str | None]] = {
    "with charset": (fast, "application/json; charset=utf-8"),
    "with upper charset": (slow, "application/json; charset=UTF-8"),
    "without blank": (slow, "application/json;charset=utf-8"),
    "upper case": (slow, "Application/JSON"),
    "other charset": (slow, "application/json; charset=latin-1"),
    "parameter": (slow, "application/json; a=b"),
    # Not with a blank behind: nginx leaves it out, as it is no part of the value (RFC 9110, 5.5).
    "blank before": (fast, " application/json"),
    "text": (slow, "text/plain"),
    "form": (slow, "application/x-www-form-urlencoded"),
    "multipart": (slow, "multipart/form-data; boundary=a"),
    "of a kind of JSON": (slow, "application/vnd.api+json"),
    "longer": (slow, "application/jsonx"),
    "two": (slow, "application/json, text/plain"),
    "empty": (slow, ""),
    "none": (slow, None),
}


def play_bodies(pair: Pair, table: dict[str, tuple[Any, Any]], name: str) -> None:
    """Send one kind of odd body to all routes."""
    how, make = table[name]
    steps = [
        how(route, make(text_of(route).replace("from a body", f"{name} {pair.cases}"))) for route in GOOD
    ]
    pair.play([*steps, fast("runs/get", query="run_id=<run 1>")])


@pytest.mark.parametrize("name", BODIES)
def test_odd_bodies(pair: Pair, name: str) -> None:
    play_bodies(pair, BODIES, name)


@pytest.mark.parametrize("name", ONCE)
def test_bodies_that_python_understands(pair: Pair, name: str) -> None:
    play_bodies(pair, ONCE, name)


@pytest.mark.parametrize("name", CONTENT_TYPES)
def test_content_types(pair: Pair, name: str) -> None:
    how, content_type = CONTENT_TYPES[name]
    headers = {"Content-Type": content_type}
    steps: list[Step] = []
    for route, good in GOOD.items():
        body = {**good, "name": f"{name} {pair.cases}"} if route == "experiments/create" else good
        steps.append(how(route, body, headers=headers))
    pair.play(steps)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_other_methods_on_routes_that_write(pair: Pair, method: str) -> None:
    steps = [slow(route, body, method=method) for route, good in GOOD.items() for body in (None, good)]
    pair.play(steps)


def test_a_query_on_routes_that_write(pair: Pair) -> None:
    good = {**GOOD, "experiments/create": {"name": "beside a query"}}
    pair.play([slow(route, body, query="run_id=0&a=b&experiment_id=1") for route, body in good.items()])


def test_only_a_query_on_routes_that_write(pair: Pair) -> None:
    query = "run_id=<run 1>&key=a&value=1&timestamp=1&status=FINISHED&name=query"
    pair.play([slow(route, b"", query=query) for route in GOOD])


@pytest.mark.parametrize(
    "name", ["slash at the end", "upper case", "encoded", "encoded slash", "other version"]
)
def test_other_paths(pair: Pair, name: str) -> None:
    change = {
        "slash at the end": lambda route: route + "/",
        "upper case": lambda route: route.upper(),
        "encoded": lambda route: route.replace("e", "%65"),
        "encoded slash": lambda route: route.replace("/", "%2F"),
        "other version": lambda route: route,
    }[name]
    prefix = "/api/3.0/mlflow/" if name == "other version" else PREFIX
    # One has no "e".
    untouched = name == "encoded"
    pair.play(
        [
            (fast if untouched and change(route) == route else slow)(change(route), good, prefix=prefix)
            for route, good in GOOD.items()
        ]
    )
