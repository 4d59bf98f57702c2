"""runs/create."""

from __future__ import annotations

from typing import Any

from kit.differential import EXPERIMENT, Pair, Step, cases, fast, slow

MS = 1700000000123


def create(how: Any = fast, without: str = "", **given: Any) -> Step:
    """Return a runs/create of the case's experiment; `given` replaces fields, `without` leaves one out."""
    body = {"experiment_id": EXPERIMENT, "user_id": "ada", "start_time": MS, "run_name": "made", **given}
    body.pop(without, None)
    return how("runs/create", body)


def raw(text: str, how: Any = slow) -> Step:
    """Return a runs/create with this body."""
    return how("runs/create", text.encode())


def tags(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    """Return tags as the API takes them."""
    return [{"key": key, "value": value} for key, value in pairs]


PLAIN = {
    "as the Python client does": create(
        user_id="unknown",
        tags=tags(
            ("mlflow.user", "ada"), ("mlflow.source.name", "train.py"), ("mlflow.source.type", "LOCAL")
        ),
    ),
    "no tags": create(tags=[]),
    "tags absent": create(),
    "three tags": create(tags=tags(("a", "1"), ("b", "2"), ("a.b/c d", "3"))),
    "user id": create(user_id="grace"),
    "empty user id": create(user_id=""),
    "unicode name": create(run_name="Läufe ✓ 🎉"),
    "unicode tag": create(tags=tags(("k", "Größe 🎉"))),
    "start time 0": create(start_time=0),
    "parent": create(tags=tags(("mlflow.parentRunId", "<run 1>"))),
    "note": create(tags=tags(("mlflow.note.content", "# Title\n\n*text*"))),
    "then get": [create(tags=tags(("k", "v"))), fast("runs/get", query="run_id=<run 2>")],
    "twice the same": [create(), create()],
    "ajax twin": fast(
        "runs/create",
        {"experiment_id": EXPERIMENT, "user_id": "ada", "start_time": MS, "run_name": "ajax"},
        prefix="/ajax-api/2.0/mlflow/",
    ),
}

NAMES = {
    "name absent": create(without="run_name"),
    "name empty": create(run_name=""),
    "name by tag only": create(without="run_name", tags=tags(("mlflow.runName", "by tag"))),
    "name and the same by tag": create(tags=tags(("mlflow.runName", "made"))),
    "name and another by tag": create(slow, tags=tags(("mlflow.runName", "other"))),
    "name empty and by tag": create(run_name="", tags=tags(("mlflow.runName", "by tag"))),
    "name and empty by tag": create(slow, tags=tags(("mlflow.runName", ""))),
    "no name and empty by tag": create(slow, without="run_name", tags=tags(("mlflow.runName", ""))),
    "name tag twice, same": create(slow, tags=tags(("mlflow.runName", "made"), ("mlflow.runName", "made"))),
    "name tag twice, other": create(slow, tags=tags(("mlflow.runName", "made"), ("mlflow.runName", "b"))),
    "name of 250": create(run_name="n" * 250),
    "name of 251": create(slow, run_name="n" * 251),
    "name of 8000": create(slow, run_name="n" * 8000),
    "name of 8001": create(slow, run_name="n" * 8001),
    "name of 250 emoji": create(run_name="🎉" * 250),
    "name blank": create(run_name=" "),
    "name with slashes and dots": create(run_name="../a//b/."),
    "name with line end": create(run_name="a\nb\t"),
    "name with quotes and backslash": create(run_name="a'b\"c\\d`e"),
}

FIELDS = {
    "experiment absent": create(slow, without="experiment_id"),
    "experiment empty": create(slow, experiment_id=""),
    "experiment null": create(slow, experiment_id=None),
    "experiment 0": create(fast, experiment_id="0"),
    "experiment as number": raw('{"experiment_id": <experiment 1>, "start_time": 1}'),
    "experiment unknown": create(slow, experiment_id="1999999999"),
    "experiment beyond int32": create(slow, experiment_id="3000000000"),
    "experiment beyond int64": create(slow, experiment_id="99999999999999999999"),
    "experiment negative": create(slow, experiment_id="-1"),
    "experiment with blank": create(slow, experiment_id=" <experiment 1>"),
    "experiment with blank after": create(slow, experiment_id="<experiment 1> "),
    "experiment with plus": create(slow, experiment_id="+<experiment 1>"),
    "experiment with leading zero": create(slow, experiment_id="0<experiment 1>"),
    "experiment with underscore": create(slow, experiment_id="7_000_000"),  # one that neither side has
    "experiment in other digits": create(slow, experiment_id="٧٠٠٠٠٠"),  # nor this one
    "experiment a word": create(slow, experiment_id="abc"),
    "experiment a float": create(slow, experiment_id="1.0"),
    "experiment a list": create(slow, experiment_id=["<experiment 1>"]),
    "experiment true": create(slow, experiment_id=True),
    "start time absent": create(fast, without="start_time"),
    "start time null": create(slow, start_time=None),
    "start time as string": create(slow, start_time="1700000000123"),
    "start time as string with blank": create(slow, start_time=" 1700000000123"),
    "start time empty string": create(slow, start_time=""),
    "start time a word": create(slow, start_time="now"),
    "start time a whole float": create(slow, start_time=1700000000123.0),
    "start time a broken float": create(slow, start_time=1700000000123.5),
    "start time 1e3": raw('{"experiment_id": "<experiment 1>", "start_time": 1e3, "run_name": "a"}', slow),
    "start time 1e3 as string": create(slow, start_time="1e3"),
    "start time 1e400": raw('{"experiment_id": "<experiment 1>", "start_time": 1e400, "run_name": "a"}'),
    "start time NaN": create(slow, start_time=float("nan")),
    "start time true": create(slow, start_time=True),
    "start time negative": create(fast, start_time=-5),
    "start time -0": raw('{"experiment_id": "<experiment 1>", "start_time": -0, "run_name": "a"}', fast),
    "start time int64 max": create(fast, start_time=9223372036854775807),
    "start time int64 max as string": create(slow, start_time="9223372036854775807"),
    "start time beyond int64": create(slow, start_time=9223372036854775808),
    "start time beyond int64 as string": create(slow, start_time="9223372036854775808"),
    "start time int64 min": create(fast, start_time=-9223372036854775808),
    "start time a list": create(slow, start_time=[1]),
    "start time an object": create(slow, start_time={}),
    "user absent": create(fast, without="user_id"),
    "user null": create(slow, user_id=None),
    "user a number": create(slow, user_id=7),
    "user of 256": create(user_id="u" * 256),
    "user of 257": create(slow, user_id="u" * 257),
    "name null": create(slow, run_name=None),
    "name a number": create(slow, run_name=7),
    "name a list": create(slow, run_name=["a"]),
    "tags null": create(slow, tags=None),
    "tags an object": create(slow, tags={"key": "a", "value": "b"}),
    "tags a string": create(slow, tags="a"),
    "tag null": create(slow, tags=[None]),
    "tag a string": create(slow, tags=["a"]),
    "tag empty object": create(slow, tags=[{}]),
    "tag without key": create(slow, tags=[{"value": "a"}]),
    "tag without value": create(slow, tags=[{"key": "a"}]),
    "tag with null value": create(slow, tags=tags(("a", None))),
    "tag with empty value": create(fast, tags=tags(("a", ""))),
    "tag with empty key": create(slow, tags=tags(("", "a"))),
    "tag with number value": create(slow, tags=tags(("a", 1))),
    "tag with number key": create(slow, tags=tags((1, "a"))),
    "tag with bool value": create(slow, tags=tags(("a", False))),
    "tag with another key": create(slow, tags=[{"key": "a", "value": "b", "more": 1}]),
    "tag twice, same": create(slow, tags=tags(("a", "1"), ("a", "1"))),
    "tag twice, other": create(slow, tags=tags(("a", "1"), ("a", "2"))),
    "tag of 250": create(fast, tags=tags(("k" * 250, "v"))),
    "tag of 251": create(slow, tags=tags(("k" * 251, "v"))),
    "tag value of 5000": create(tags=tags(("k", "v" * 5000))),
    "tag value of 8000": create(fast, tags=tags(("k", "v" * 8000))),
    "tag value of 8001": create(slow, tags=tags(("k", "v" * 8001))),
    "tag value of 8000 emoji": create(fast, tags=tags(("k", "🎉" * 8000))),
    "tag with odd characters": create(fast, tags=tags(("a*b?", "v"))),
    "tag with ..": create(fast, tags=tags(("../a", "v"))),
    "101 tags": create(fast, tags=tags(*((f"k{number}", "v") for number in range(101)))),
    "unknown key": create(slow, lifecycle="x"),
    "unknown key with an object": create(slow, more={"a": [1]}),
}

SPELLINGS = {
    "camel case": slow("runs/create", {"experimentId": EXPERIMENT, "startTime": MS, "runName": "camel"}),
    "both spellings, same": slow(
        "runs/create", {"experiment_id": EXPERIMENT, "experimentId": EXPERIMENT, "start_time": 1}
    ),
    "both spellings of the name": create(slow, runName="made"),
    "camel case of the user": create(slow, userId="ada"),
    "upper case": slow("runs/create", {"EXPERIMENT_ID": EXPERIMENT}),
    "extra run_uuid": create(slow, run_uuid="x"),
    "key twice, same": raw(
        '{"experiment_id": "<experiment 1>", "experiment_id": "<experiment 1>", "run_name": "a"}', fast
    ),
    "key twice, first wrong": raw(
        '{"experiment_id": "1", "experiment_id": "<experiment 1>", "run_name": "a"}', fast
    ),
    "key twice, last wrong": raw('{"experiment_id": "<experiment 1>", "experiment_id": "1999999999"}'),
    "key twice, last null": raw(
        '{"experiment_id": "<experiment 1>", "run_name": "a", "run_name": null}', slow
    ),
    "escaped key": raw('{"experiment\\u005fid": "<experiment 1>", "run_name": "a", "start_time": 1}', fast),
    "NUL in the name": raw('{"experiment_id": "<experiment 1>", "run_name": "a\\u0000b"}'),
    "NUL in a tag": raw('{"experiment_id": "<experiment 1>", "tags": [{"key": "a", "value": "\\u0000"}]}'),
    "lone surrogate in the name": raw('{"experiment_id": "<experiment 1>", "run_name": "a\\ud800b"}'),
    "lone low surrogate in a tag": raw(
        '{"experiment_id": "<experiment 1>", "run_name": "a", "tags": [{"key": "a", "value": "\\udc00"}]}'
    ),
    "surrogate pair": raw(
        '{"experiment_id": "<experiment 1>", "run_name": "a\\ud83c\\udf89", "start_time": 1, "user_id": ""}',
        fast,
    ),
    "control characters": raw(
        '{"experiment_id": "<experiment 1>", "run_name": "\\u0001\\u2028", "start_time": 1, "user_id": ""}',
        fast,
    ),
}

STATES = {
    "deleted experiment": [
        slow("experiments/delete", {"experiment_id": EXPERIMENT}),
        create(slow),
    ],
    "restored experiment": [
        slow("experiments/delete", {"experiment_id": EXPERIMENT}),
        create(slow),
        slow("experiments/restore", {"experiment_id": EXPERIMENT}),
        create(),
    ],
    "experiment with a location of its own": [
        slow("experiments/create", {"name": "located", "artifact_location": "mlflow-artifacts:/elsewhere"}),
        create(experiment_id="<experiment 2>"),
    ],
    "experiment with a location that ends with a slash": [
        slow("experiments/create", {"name": "slash", "artifact_location": "mlflow-artifacts:/there/"}),
        create(slow, experiment_id="<experiment 2>"),
    ],
    "experiment with a location with a query": [
        slow(
            "experiments/create",
            {"name": "query", "artifact_location": "mlflow-artifacts:/there?a=b#c"},
            refused="it could not be told from another place",
        ),
    ],
    "experiment with a foreign location": [
        slow(
            "experiments/create",
            {"name": "foreign", "artifact_location": "s3://elsewhere/folder"},
            refused="artifacts are in the stack's bucket, nowhere else (stackserver/locations.py)",
        ),
    ],
    "renamed experiment": [
        slow("experiments/update", {"experiment_id": EXPERIMENT, "new_name": "renamed"}),
        create(),
    ],
}


@cases(PLAIN)
def test_a_plain_run_is_made(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@cases(NAMES)
def test_names_of_runs(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@cases(FIELDS)
def test_odd_fields(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@cases(SPELLINGS)
def test_spellings(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@cases(STATES)
def test_states_of_the_experiment(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)
