"""runs/log-metric, runs/log-parameter, runs/set-tag and runs/log-batch."""

from __future__ import annotations

from typing import Any

import pytest

from kit.differential import Pair, Step, cases, fast, plain, slow

MS = 1700000000123
R = "<run 1>"


def metric(how: Any = fast, without: str = "", **given: Any) -> Step:
    """Return a runs/log-metric; `given` replaces fields, `without` leaves one out."""
    body = {"run_id": R, "run_uuid": R, "key": "loss", "value": 0.5, "timestamp": MS, "step": 1, **given}
    body.pop(without, None)
    return how("runs/log-metric", body)


def raw_metric(fields: str, how: Any = slow) -> Step:
    """Return a runs/log-metric with these fields after the run's id."""
    return how("runs/log-metric", ('{"run_id": "<run 1>", ' + fields + "}").encode())


def value(text: str, how: Any = fast) -> Step:
    """Return a runs/log-metric with this value, as it stands in JSON."""
    return raw_metric(f'"key": "loss", "value": {text}, "timestamp": 1700000000123, "step": 1', how)


def stamp(text: str, how: Any = slow) -> Step:
    """Return a runs/log-metric with this timestamp, as it stands in JSON."""
    return raw_metric(f'"key": "loss", "value": 1.0, "timestamp": {text}, "step": 1', how)


def step(text: str, how: Any = slow) -> Step:
    """Return a runs/log-metric with this step, as it stands in JSON."""
    return raw_metric(f'"key": "loss", "value": 1.0, "timestamp": 1700000000123, "step": {text}', how)


def param(key: Any = "p", given: Any = "v", how: Any = fast, **more: Any) -> Step:
    """Return a runs/log-parameter."""
    return how("runs/log-parameter", {"run_id": R, "run_uuid": R, "key": key, "value": given, **more})


def tag(key: Any = "t", given: Any = "v", how: Any = fast, **more: Any) -> Step:
    """Return a runs/set-tag."""
    return how("runs/set-tag", {"run_id": R, "run_uuid": R, "key": key, "value": given, **more})


def batch(how: Any = fast, **given: Any) -> Step:
    """Return a runs/log-batch."""
    return how("runs/log-batch", {"run_id": R, **given})


def point(key: str = "loss", value: Any = 0.5, timestamp: Any = MS, step: Any = 1) -> dict[str, Any]:
    """Return a metric of a batch."""
    return {"key": key, "value": value, "timestamp": timestamp, "step": step}


def pairs(*given: tuple[Any, Any]) -> list[dict[str, Any]]:
    """Return params or tags of a batch."""
    return [{"key": key, "value": value} for key, value in given]


GET = fast("runs/get", query="run_id=<run 1>")
DELETE = slow("runs/delete", {"run_id": R})

METRICS = {
    "as the Python client does": [metric(), GET],
    "model and dataset null": metric(slow, model_id=None, dataset_name=None, dataset_digest=None),
    "model and dataset empty": metric(slow, model_id="", dataset_name="", dataset_digest=""),
    "with a dataset": metric(slow, dataset_name="d", dataset_digest="1"),
    "with an unknown model": metric(slow, model_id="m-0123"),
    "run_uuid absent": metric(without="run_uuid"),
    "run_id absent": metric(slow, without="run_id"),
    "step absent": metric(fast, without="step"),
    "timestamp absent": metric(slow, without="timestamp"),
    "value absent": metric(slow, without="value"),
    "key absent": metric(slow, without="key"),
    "twice": [metric(), metric(), GET],
    "three points of a key": [metric(step=1), metric(step=2, value=0.25), metric(step=3, value=0.125), GET],
    "an older step after a newer": [metric(step=5), metric(step=2, value=9.0), GET],
    "same step, older time": [metric(), metric(timestamp=MS - 1, value=9.0), GET],
    "same step, newer time, lower value": [metric(), metric(timestamp=MS + 1, value=0.1), GET],
    "same step and time, higher value": [metric(), metric(value=9.0), GET],
    "same step and time, lower value": [metric(), metric(value=0.1), GET],
    "negative then positive step": [
        metric(step=-3),
        metric(step=-2, value=2.0),
        metric(step=0, value=3.0),
        GET,
    ],
    "two keys": [metric(), metric(key="accuracy"), GET],
    "NaN": [value("NaN", slow), GET],
    "NaN in quotes": [value('"NaN"', slow), GET],
    "NaN after a number": [value("-1"), value("NaN", slow), GET],
    "NaN before a number": [value("NaN", slow), value("-1"), value("1"), GET],
    "NaN twice": [value("NaN", slow), value("NaN", slow), GET],
    "NaN and 0": [value("NaN", slow), value("0"), GET],
    "0 and NaN": [value("0"), value("NaN", slow), GET],
    "infinity": [value("Infinity", slow), GET],
    "infinity in quotes": [value('"Infinity"', slow), GET],
    "minus infinity": [value("-Infinity", slow), GET],
    "minus infinity in quotes": [value('"-Infinity"', slow), GET],
    "infinity and the largest": [value("Infinity", slow), value("1.7976931348623157e308", fast), GET],
    "inf": value('"inf"', slow),
    "nan": value('"nan"', slow),
    "1e400": [value("1e400", slow), GET],
    "1e308": [value("1e308"), GET],
    "-1e309": [value("-1e309", slow), GET],
    "5e-324": [value("5e-324"), GET],
    "1e-400": [value("1e-400", fast), GET],
    "minus zero": [value("-0.0"), GET],
    "minus zero, whole": [value("-0", fast), GET],
    "zero then minus zero": [value("0.0"), value("-0.0"), GET],
    "minus zero then zero": [value("-0.0"), value("0"), GET],
    "whole": [value("3"), GET],
    "2**53+1": [value("9007199254740993"), GET],
    "2**63": [value("9223372036854775808", slow), GET],
    "1e30 in digits": [value("1" + "0" * 30, fast), GET],
    "1 with 400 zeros": [value("1" + "0" * 400, slow), GET],
    "many digits": [value("0.1000000000000000055511151231257827", fast), GET],
    "exponent": [value("1E+2"), GET],
    "number in quotes": [value('"0.5"', slow), GET],
    "number in quotes with blanks": value('" 0.5 "', slow),
    "empty text": value('""', slow),
    "true": value("true", slow),
    "null": value("null", slow),
    "list": value("[1]", slow),
    "object": value("{}", slow),
}

TIMES_AND_STEPS = {
    "timestamp 0": stamp("0", fast),
    "timestamp negative": stamp("-1", slow),
    "timestamp in quotes": stamp('"1700000000123"'),
    "timestamp whole float": stamp("1700000000123.0"),
    "timestamp float": stamp("1700000000123.5", slow),
    "timestamp 1e3": stamp("1e3"),
    "timestamp int64 max": stamp("9223372036854775807", fast),
    "timestamp beyond int64": stamp("9223372036854775808", slow),
    "timestamp null": stamp("null", slow),
    "timestamp true": stamp("true", slow),
    "timestamp NaN": stamp("NaN", slow),
    "timestamp 1e400": stamp("1e400", slow),
    "timestamp empty": stamp('""', slow),
    "step 0": step("0", fast),
    "step null": step("null"),
    "step negative": step("-7", fast),
    "step beyond int32": step("4294967296", fast),
    "step int64 min": step("-9223372036854775808", fast),
    "step beyond int64": step("9223372036854775808", slow),
    "step in quotes": step('"7"'),
    "step in quotes with zero": step('"007"'),
    "step in quotes with underscore": step('"1_0"', slow),
    "step in quotes with plus": step('"+7"'),
    "step whole float": step("7.0"),
    "step float": step("7.5", slow),
    "step float in quotes": step('"7.0"'),
    "step 1e2": step("1e2"),
    "step true": step("true", slow),
    "step list": step("[]", slow),
    "step -0": step("-0", fast),
}

KEYS = {
    "slashes": "a/b/c",
    "dots": "a.b.c",
    "blank inside": "a b",
    "blank before": " a",
    "blank after": "a ",
    "colon": "a:b",
    "dash": "-a-",
    "underscore": "__a__",
    "..": "..",
    "../a": "../a",
    "a/..": "a/..",
    "a/../b": "a/../b",
    "..a": "..a",
    ".a": ".a",
    ".": ".",
    "./a": "./a",
    "slash before": "/a",
    "slash after": "a/",
    "two slashes": "a//b",
    "slash": "/",
    "umlaut": "größe",
    "greek": "λ",
    "digits of others": "٣",
    "emoji": "🎉",
    "combining": "e\u0301",
    "percent": "a%b",
    "at": "a@b",
    "brackets": "a[0]",
    "comma": "a,b",
    "quote": "a'b",
    "line end after": "a\n",
    "line end inside": "a\nb",
    "tab": "a\tb",
    "250": "k" * 250,
    "251": "k" * 251,
    "250 umlauts": "ü" * 250,
    "251 umlauts": "ü" * 251,
    "empty": "",
    "blank": " ",
    "wide blank": "a\u00a0b",
    "zero width": "a\u200bb",
}
HANDED_OVER = {"line end after", "line end inside"}
"""MLflow takes the first: "$" also matches before a last line end."""

PARAMS = {
    "as the Python client does": [param(), GET],
    "empty value": [param(given=""), GET],
    "value absent": [slow("runs/log-parameter", {"run_id": R, "key": "p"}), GET],
    "value null": [param(given=None, how=slow), GET],
    "value a number": param(given=1, how=slow),
    "value a float": param(given=0.5, how=slow),
    "value true": param(given=True, how=slow),
    "value a list": param(given=["a"], how=slow),
    "key absent": slow("runs/log-parameter", {"run_id": R, "value": "v"}),
    "key null": param(key=None, how=slow),
    "key a number": param(key=1, how=slow),
    "run_uuid only": slow("runs/log-parameter", {"run_uuid": R, "key": "p", "value": "v"}),
    "run_id only": fast("runs/log-parameter", {"run_id": R, "key": "p", "value": "v"}),
    "run_id empty and run_uuid": slow(
        "runs/log-parameter", {"run_id": "", "run_uuid": R, "key": "p", "value": "v"}
    ),
    "run_id null and run_uuid": slow(
        "runs/log-parameter", {"run_id": None, "run_uuid": R, "key": "p", "value": "v"}
    ),
    "run_id and another run_uuid": slow(
        "runs/log-parameter", {"run_id": R, "run_uuid": "0" * 32, "key": "p", "value": "v"}
    ),
    "run_id and a null run_uuid": slow(
        "runs/log-parameter", {"run_id": R, "run_uuid": None, "key": "p", "value": "v"}
    ),
    "run_id and a number as run_uuid": slow(
        "runs/log-parameter", {"run_id": R, "run_uuid": 5, "key": "p", "value": "v"}
    ),
    "unknown key": param(how=slow, more="x"),
    "twice the same": [param(), param(how=fast), GET],
    "twice, another value": [param(), param(given="w", how=slow), GET],
    "twice, another case": [param(), param(given="V", how=slow)],
    "empty, then a value": [param(given=""), param(how=slow)],
    "keys that differ in case": [param(), param(key="P", given="w"), GET],
    "value of 6000": [param(given="v" * 6000, how=fast), GET],
    "value of 6001": [param(given="v" * 6001, how=slow), GET],
    "value of 5999": [param(given="v" * 5999, how=fast), GET],
    "value of 6000 emoji": [param(given="🎉" * 6000, how=fast), GET],
    "value of 6001 emoji": [param(given="🎉" * 6001, how=slow), GET],
    "value of 3001 emoji": [param(given="🎉" * 3001, how=fast), GET],
    "value of 8001": [param(given="v" * 8001, how=slow), GET],
    "the same cut value twice": [
        param(given="v" * 6001, how=slow),
        param(given="v" * 6002, how=slow),
        GET,
    ],
    "value with NUL": slow("runs/log-parameter", b'{"run_id": "<run 1>", "key": "p", "value": "a\\u0000"}'),
    "value with a lone surrogate": slow(
        "runs/log-parameter", b'{"run_id": "<run 1>", "key": "p", "value": "\\ud800"}'
    ),
    "value with a half pair": slow(
        "runs/log-parameter", b'{"run_id": "<run 1>", "key": "p", "value": "\\ud83c\\u0041"}'
    ),
    "value with line ends": [param(given="a\r\nb\u2028c"), GET],
    "value with control characters": [param(given="".join(map(chr, range(1, 32)))), GET],
    "value with JSON": [param(given='{"a": ["b"]}'), GET],
    "value with markup": [param(given="<b>&amp;</b>"), GET],
    "ajax twin": fast(
        "runs/log-parameter", {"run_id": R, "key": "p", "value": "v"}, prefix="/ajax-api/2.0/mlflow/"
    ),
}

TAGS = {
    "as the Python client does": [tag(), GET],
    "overwritten": [tag(), tag(given="w"), GET],
    "the same twice": [tag(), tag(), GET],
    "empty value": [tag(given=""), GET],
    "value absent": [slow("runs/set-tag", {"run_id": R, "key": "t"}), GET],
    "value null": [tag(given=None, how=slow), GET],
    "value a number": tag(given=1, how=slow),
    "value true": tag(given=True, how=slow),
    "value of 8000": [tag(given="v" * 8000, how=fast), GET],
    "value of 7999": [tag(given="v" * 7999, how=fast), GET],
    "value of 8001": [tag(given="v" * 8001, how=slow), GET],
    "value of 8000 emoji": [tag(given="🎉" * 8000, how=fast), GET],
    "value of 8001 emoji": [tag(given="🎉" * 8001, how=slow), GET],
    "value of 4001 emoji": [tag(given="🎉" * 4001, how=fast), GET],
    "value of 2001 three-byte characters": [tag(given="€" * 2001, how=fast), GET],
    "renames the run": [tag("mlflow.runName", "renamed", slow), GET],
    "renames to nothing": [tag("mlflow.runName", "", slow), GET],
    "renames to null": [tag("mlflow.runName", None, slow), GET],
    "renames to the same": [tag("mlflow.runName", "first", slow), GET],
    "renames to 8001": [tag("mlflow.runName", "n" * 8001, slow), GET],
    "renames to 251": [tag("mlflow.runName", "n" * 251, slow), GET],
    "name tag in other case": [tag("mlflow.runname", "x"), GET],
    "note": [tag("mlflow.note.content", "# A\n\n$x$"), GET],
    "parent": [tag("mlflow.parentRunId", R), GET],
    "user": [tag("mlflow.user", "ada"), GET],
    "source name": [tag("mlflow.source.name", "/home/ada/train.py"), GET],
    "source git commit": [tag("mlflow.source.git.commit", "0" * 40), GET],
    "logged model history": [tag("mlflow.log-model.history", "[]", fast), GET],
    "run_uuid only": slow("runs/set-tag", {"run_uuid": R, "key": "t", "value": "v"}),
    "run_id only": fast("runs/set-tag", {"run_id": R, "key": "t", "value": "v"}),
    "camel case": slow("runs/set-tag", {"runId": R, "key": "t", "value": "v"}),
    "camel case and snake case": slow("runs/set-tag", {"run_id": R, "runId": R, "key": "t", "value": "v"}),
    "camel runUuid": slow("runs/set-tag", {"runUuid": R, "key": "t", "value": "v"}),
    "value with NUL": slow("runs/set-tag", b'{"run_id": "<run 1>", "key": "t", "value": "a\\u0000"}'),
    "value with a lone surrogate": slow(
        "runs/set-tag", b'{"run_id": "<run 1>", "key": "t", "value": "\\udfff"}'
    ),
    "key with NUL": slow("runs/set-tag", b'{"run_id": "<run 1>", "key": "t\\u0000", "value": "v"}'),
    "unknown key": tag(how=slow, more=1),
}

RUNS = {
    "unknown": "0123456789abcdef0123456789abcdef",
    "empty": "",
    "upper case": "<RUN 1>",
    "blank before": " <run 1>",
    "blank after": "<run 1> ",
    "line end after": "<run 1>\n",
    "one more": "<run 1>0",
    "with dashes": "01234567-89ab-cdef-0123-456789abcdef",
    "slash": "<run 1>/a",
    "wildcard": "%",
    "number": 7,
    "null": None,
    "list": ["<run 1>"],
    "emoji": "🎉",
    "of 300": "a" * 300,
}

BATCHES = {
    "as the Python client does": [
        batch(metrics=[point(), point("b")], params=pairs(("p", "1"), ("q", "2")), tags=pairs(("t", "x"))),
        GET,
    ],
    "empty lists": batch(slow, metrics=[], params=[], tags=[]),
    "only the run": batch(slow),
    "null lists": batch(slow, metrics=None, params=None, tags=None),
    "only metrics": [batch(metrics=[point(step=number, value=number / 8) for number in range(20)]), GET],
    "only params": [batch(params=pairs(("p", "1"), ("q", ""))), GET],
    "only tags": [batch(tags=pairs(("t", "1"), ("u", ""))), GET],
    "run_uuid only": slow("runs/log-batch", {"run_uuid": R, "tags": pairs(("t", "1"))}),
    "with run_uuid": batch(slow, run_uuid=R, tags=pairs(("t", "1"))),
    "metrics an object": batch(slow, metrics=point()),
    "metrics a string": batch(slow, metrics="a"),
    "metric null": batch(slow, metrics=[None]),
    "metric a list": batch(slow, metrics=[[]]),
    "metric empty": batch(slow, metrics=[{}]),
    "metric without key": batch(slow, metrics=[{"value": 1, "timestamp": 1, "step": 1}]),
    "metric with an empty key": batch(slow, metrics=[point("")]),
    "metric without value": batch(slow, metrics=[{"key": "a", "timestamp": 1, "step": 1}]),
    "metric without timestamp": batch(slow, metrics=[{"key": "a", "value": 1, "step": 1}]),
    "metric without step": [batch(fast, metrics=[{"key": "a", "value": 1, "timestamp": 1}]), GET],
    "metric with step null": batch(slow, metrics=[point(step=None)]),
    "metric with null value": batch(slow, metrics=[point(value=None)]),
    "metric with NaN": [batch(slow, metrics=[point(value=float("nan")), point("b")]), GET],
    "metric NaN twice": [batch(slow, metrics=[point(value=float("nan")), point(value=float("nan"))]), GET],
    "metric NaN and 0": [batch(slow, metrics=[point(value=float("nan")), point(value=0)]), GET],
    "metric with NaN in quotes": [batch(slow, metrics=[point(value="NaN")]), GET],
    "metric with infinity": [
        batch(slow, metrics=[point(value=float("inf")), point(value=float("-inf"), step=2)]),
        GET,
    ],
    "metric with infinity twice": [
        batch(slow, metrics=[point(value=float("inf")), point(value=1.7976931348623157e308)]),
        GET,
    ],
    "metric with the time as text": batch(slow, metrics=[point(timestamp=str(MS))]),
    "metric with the step as text": batch(slow, metrics=[point(step="4")]),
    "metric with the value as text": batch(slow, metrics=[point(value="0.25")]),
    "metric with a float step": batch(slow, metrics=[point(step=1.5)]),
    "metric with a whole float step": batch(slow, metrics=[point(step=2.0)]),
    "metric with a negative time": batch(slow, metrics=[point(timestamp=-1)]),
    "metric with a value true": batch(slow, metrics=[point(value=True)]),
    "metric with model and dataset null": batch(
        slow, metrics=[{**point(), "model_id": None, "dataset_name": None, "dataset_digest": None}]
    ),
    "metric with model and dataset empty": batch(
        slow, metrics=[{**point(), "model_id": "", "dataset_name": "", "dataset_digest": ""}]
    ),
    "metric with a dataset": batch(slow, metrics=[{**point(), "dataset_name": "d", "dataset_digest": "1"}]),
    "metric with an unknown model": batch(slow, metrics=[{**point(), "model_id": "m-unknown"}]),
    "metrics with the run's id": [  # mlflow.log_metrics
        batch(metrics=[{**point(), "run_id": R}, {**point("b"), "run_id": R}]),
        GET,
    ],
    "metric with and without the run's id": [batch(metrics=[{**point(), "run_id": R}, point()]), GET],
    "metric with a run id of its own": batch(slow, metrics=[{**point(), "run_id": "0" * 32}]),
    "metric with an empty run id": batch(slow, metrics=[{**point(), "run_id": ""}]),
    "metric with run id null": batch(slow, metrics=[{**point(), "run_id": None}]),
    "metric with another key": batch(slow, metrics=[{**point(), "more": 1}]),
    "metric twice": [batch(metrics=[point(), point()]), GET],
    "metric 0 and minus 0": [batch(fast, metrics=[point(value=0.0), point(value=-0.0)]), GET],
    "metric with two values": [batch(metrics=[point(value=1), point(value=3), point(value=2)]), GET],
    "metric steps backwards": [batch(metrics=[point(step=number) for number in (5, 4, 9, -1, 8)]), GET],
    "metric older than what is there": [batch(metrics=[point(step=9)]), batch(metrics=[point(step=3)]), GET],
    "metric partly there": [batch(metrics=[point()]), batch(metrics=[point(), point(step=2)]), GET],
    "metric all there": [batch(metrics=[point()]), batch(metrics=[point()]), GET],
    "1000 metrics": batch(metrics=[point(f"m{number % 10}", step=number) for number in range(1000)]),
    "1000 keys": batch(metrics=[point(f"m{number}") for number in range(1000)]),
    "1001 metrics": batch(slow, metrics=[point(step=number) for number in range(1001)]),
    "100 params": batch(params=pairs(*((f"p{number}", str(number)) for number in range(100)))),
    "101 params": batch(slow, params=pairs(*((f"p{number}", "v") for number in range(101)))),
    "100 tags": batch(tags=pairs(*((f"t{number}", str(number)) for number in range(100)))),
    "101 tags": batch(slow, tags=pairs(*((f"t{number}", "v") for number in range(101)))),
    "1000 in all": batch(
        metrics=[point(step=number) for number in range(800)],
        params=pairs(*((f"p{number}", "v") for number in range(100))),
        tags=pairs(*((f"t{number}", "v") for number in range(100))),
    ),
    "1001 in all": batch(
        slow,
        metrics=[point(step=number) for number in range(801)],
        params=pairs(*((f"p{number}", "v") for number in range(100))),
        tags=pairs(*((f"t{number}", "v") for number in range(100))),
    ),
    "param twice, same": batch(slow, params=pairs(("p", "1"), ("p", "1"))),
    "param twice, other": batch(slow, params=pairs(("p", "1"), ("p", "2"))),
    "param there, same": [
        batch(params=pairs(("p", "1"))),
        batch(fast, params=pairs(("p", "1"), ("q", "2"))),
        GET,
    ],
    "param there, other": [
        batch(params=pairs(("p", "1"))),
        batch(slow, params=pairs(("p", "2"), ("q", "2"))),
        GET,
    ],
    "param there, other, with a metric": [
        batch(params=pairs(("p", "1"))),
        batch(slow, params=pairs(("p", "2")), metrics=[point()], tags=pairs(("t", "1"))),
        GET,
    ],
    "param of 6000": batch(fast, params=pairs(("p", "v" * 6000))),
    "param of 6001": [batch(slow, params=pairs(("p", "v" * 6001))), GET],
    "param of 6001 twice": [
        batch(slow, params=pairs(("p", "v" * 6001))),
        batch(slow, params=pairs(("p", "v" * 6005))),
        GET,
    ],
    "param without value": [batch(slow, params=[{"key": "p"}]), GET],
    "param with null value": [batch(slow, params=pairs(("p", None))), GET],
    "param with number value": batch(slow, params=pairs(("p", 1))),
    "param without key": batch(slow, params=[{"value": "1"}]),
    "param with an empty key": batch(slow, params=pairs(("", "1"))),
    "param null": batch(slow, params=[None]),
    "tag twice, same": [batch(fast, tags=pairs(("t", "1"), ("t", "1"))), GET],
    "tag twice, other": [batch(fast, tags=pairs(("t", "1"), ("t", "2"))), GET],
    "tag overwritten": [
        batch(tags=pairs(("t", "1"), ("u", "1"))),
        batch(tags=pairs(("u", "2"), ("w", "2"))),
        GET,
    ],
    "tag there, twice": [
        batch(tags=pairs(("t", "1"))),
        batch(fast, tags=pairs(("t", "2"), ("t", "3"))),
        GET,
    ],
    "tag of 8001": [batch(slow, tags=pairs(("t", "v" * 8001))), GET],
    "tag without value": [batch(slow, tags=[{"key": "t"}]), GET],
    "tag without key": batch(slow, tags=[{"value": "t"}]),
    "tag renames the run": [batch(slow, tags=pairs(("mlflow.runName", "renamed"), ("t", "1"))), GET],
    "tag renames the run twice": [
        batch(slow, tags=pairs(("mlflow.runName", "b"), ("mlflow.runName", "c"))),
        GET,
    ],
    "tag renames the run to nothing": [batch(slow, tags=pairs(("mlflow.runName", ""))), GET],
    "a wrong metric after right params": [
        batch(slow, params=pairs(("p", "1")), metrics=[point("a//b")], tags=pairs(("t", "1"))),
        GET,
    ],
    "a wrong tag after right metrics": [
        batch(slow, params=pairs(("p", "1")), metrics=[point()], tags=pairs(("../t", "1"))),
        GET,
    ],
    "a NUL in a tag after right metrics": [
        batch(slow, params=pairs(("p", "1")), metrics=[point()], tags=pairs(("t", "a\0"))),
        GET,
    ],
    "unknown key": batch(slow, tags=pairs(("t", "1")), more=[1]),
    "camel case": slow("runs/log-batch", {"runId": R, "tags": pairs(("t", "1"))}),
    "list of tags twice": fast(
        "runs/log-batch",
        b'{"run_id": "<run 1>", "tags": [{"key": "a", "value": "1"}], "tags": [{"key": "b", "value": "2"}]}',
    ),
    "ajax twin": fast(
        "runs/log-batch", {"run_id": R, "tags": pairs(("t", "1"))}, prefix="/ajax-api/2.0/mlflow/"
    ),
    "body over 256 kB": batch(slow, params=pairs(*((f"p{number}", "v" * 3000) for number in range(100)))),
}

LOG = {
    "metric": lambda run, how: how(
        "runs/log-metric", {"run_id": run, "key": "k", "value": 1, "timestamp": 1}
    ),
    "param": lambda run, how: how("runs/log-parameter", {"run_id": run, "key": "k", "value": "1"}),
    "tag": lambda run, how: how("runs/set-tag", {"run_id": run, "key": "k", "value": "1"}),
    "batch": lambda run, how: how("runs/log-batch", {"run_id": run, "tags": [{"key": "k", "value": "1"}]}),
    "update": lambda run, how: how("runs/update", {"run_id": run, "status": "FAILED"}),
}


@cases(METRICS)
def test_metrics(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@cases(TIMES_AND_STEPS)
def test_times_and_steps(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@pytest.mark.parametrize("name", KEYS)
def test_keys(pair: Pair, name: str) -> None:
    """One key in all places: MLflow takes the same keys everywhere, if not for the same reason."""
    key = KEYS[name]
    how = slow if name in HANDED_OVER else plain
    pair.play(
        [
            metric(how, key=key),
            param(key=key, how=how),
            tag(key=key, how=how),
            batch(how, metrics=[point("before"), point(key)]),
            batch(how, params=pairs((f"{key}2", "v"))),
            batch(how, tags=pairs((f"{key}2", "v"))),
            GET,
        ]
    )


@cases(PARAMS)
def test_params(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@cases(TAGS)
def test_tags(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@cases(BATCHES)
def test_batches(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())
def test_runs_that_are_none(pair: Pair, run: Any) -> None:
    pair.play([log(run, slow) for log in LOG.values()])


def test_a_deleted_run_takes_nothing_and_a_restored_one_does(pair: Pair) -> None:
    restore = slow("runs/restore", {"run_id": R})
    logs = [log(R, slow) for log in LOG.values()]
    pair.play([DELETE, *logs, GET, restore, *(log(R, fast) for log in LOG.values()), GET])


def test_a_run_of_a_deleted_experiment_takes_nothing(pair: Pair) -> None:
    delete = slow("experiments/delete", {"experiment_id": "<experiment 1>"})
    pair.play([delete, *(log(R, slow) for log in LOG.values()), GET])
