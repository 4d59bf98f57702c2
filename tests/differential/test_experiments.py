"""experiments/create, experiments/get and experiments/get-by-name."""

from __future__ import annotations

import itertools
from typing import Any
from urllib.parse import quote

import pytest

from kit.differential import EXPERIMENT, HOT_READS, Pair, Step, cases, fast, slow

numbers = itertools.count(1)


def create(how: Any = fast, **given: Any) -> Step:
    """Return an experiments/create under a name of its own."""
    return how("experiments/create", {"name": f"made {next(numbers)}", **given})


def get(number: int = 2) -> Step:
    """Return an experiments/get of the case's n-th experiment."""
    return fast("experiments/get", query=f"experiment_id=<experiment {number}>")


def by_name(name: str, how: Any = fast) -> Step:
    """Return an experiments/get-by-name."""
    return how("experiments/get-by-name", query="experiment_name=" + quote(name, safe=""))


def tags(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    """Return tags as the API takes them."""
    return [{"key": key, "value": value} for key, value in pairs]


DELETE = slow("experiments/delete", {"experiment_id": EXPERIMENT})
ELSEWHERE = "artifacts are in the stack's bucket, nowhere else (stackserver/locations.py)"

CREATE = {
    "name alone": [create(), get()],
    "as the Python client does": [create(slow, artifact_location=None, tags=[]), get()],
    "no tags": [create(tags=[]), get()],
    "tags": [create(slow, tags=tags(("a", "1"), ("mlflow.note.content", "# A"))), get()],
    "tag without value": [create(slow, tags=[{"key": "a"}]), get()],
    "tag with empty value": [create(slow, tags=tags(("a", ""))), get()],
    "tag twice": create(slow, tags=tags(("a", "1"), ("a", "2"))),
    "tag with an odd key": create(slow, tags=tags(("a*", "1"))),
    "tag without key": create(slow, tags=[{"value": "1"}]),
    "tag of 5000": [create(slow, tags=tags(("a", "v" * 5000))), get()],
    "tag of 5001": [create(slow, tags=tags(("a", "v" * 5001))), get()],
    "tag of 20000": [create(slow, tags=tags(("a", "v" * 20000))), get()],
    "tag of 20001": create(slow, tags=tags(("a", "v" * 20001))),
    "tag key of 250": create(slow, tags=tags(("k" * 250, "v"))),
    "tag key of 251": create(slow, tags=tags(("k" * 251, "v"))),
    "tag of the experiment's kind": create(slow, tags=tags(("mlflow.experimentKind", "genai_development"))),
    "tag of trace archival, wrong": create(slow, tags=tags(("mlflow.trace.archivalRetention", "x"))),
    "tag of trace archival, right": create(
        slow, tags=tags(("mlflow.trace.archivalRetention", '{"type": "duration", "value": "30d"}'))
    ),
    "tag of a custom view": create(slow, tags=tags(("mlflow.customView.a", "x"))),
    "tags null": create(slow, tags=None),
    "tags an object": create(slow, tags={}),
    "location null": create(slow, artifact_location=None),
    "location empty": [create(slow, artifact_location=""), get()],
    "location of its own": [create(slow, artifact_location="mlflow-artifacts:/own"), get()],
    "location with a slash at its end": [create(slow, artifact_location="mlflow-artifacts:/own/"), get()],
    "location with a server": slow(
        "experiments/create",
        {"name": "a server", "artifact_location": "mlflow-artifacts://server/own"},
        refused=ELSEWHERE,
    ),
    "location in a bucket": slow(
        "experiments/create", {"name": "a bucket", "artifact_location": "s3://bucket/own"}, refused=ELSEWHERE
    ),
    "location with ..": slow(
        "experiments/create",
        {"name": "dots", "artifact_location": "mlflow-artifacts:/a/../b"},
        refused=ELSEWHERE,
    ),
    "location with a fragment": slow(
        "experiments/create",
        {"name": "fragment", "artifact_location": "mlflow-artifacts:/a#b"},
        refused=ELSEWHERE,
    ),
    "location of 2048": create(slow, artifact_location="mlflow-artifacts:/" + "a" * 2048),
    "location a number": slow(
        "experiments/create", {"name": "a number", "artifact_location": 5}, refused="it is read as a place"
    ),
    "name twice": [create(name="twice"), create(slow, name="twice")],
    "name in another case": [create(name="Case"), create(name="cASE")],
    "name of a deleted experiment": [
        create(name="deleted once"),
        slow("experiments/delete", {"experiment_id": "<experiment 2>"}),
        create(slow, name="deleted once"),
    ],
    "name empty": create(slow, name=""),
    "name null": create(slow, name=None),
    "name absent": slow("experiments/create", {}),
    "name a number": create(slow, name=5),
    "name true": create(slow, name=True),
    "name a list": create(slow, name=["a"]),
    "name blank": create(fast, name=" "),
    "name of 255": [create(fast, name="n" * 255), by_name("n" * 255)],
    "name of 256": [create(fast, name="n" * 256), by_name("n" * 256, fast)],
    "name of 257": create(slow, name="n" * 257),
    "name of 500": create(slow, name="n" * 500),
    "name of 501": create(slow, name="n" * 501),
    "name of 256 emoji": create(fast, name="🎉" * 256),
    "name with slashes": [
        create(name="/Users/ada@example.com/../a//b"),
        by_name("/Users/ada@example.com/../a//b"),
    ],
    "name with emoji": [create(name="Läufe 🎉"), by_name("Läufe 🎉")],
    "name with quotes": [create(name="a'b\"c`d\\e"), by_name("a'b\"c`d\\e")],
    "name with percent and plus": [create(name="100%+1 &=?#;"), by_name("100%+1 &=?#;")],
    "name with line ends": [create(name="a\nb\r\t"), by_name("a\nb\r\t", fast)],
    "name with NUL": create(slow, name="a\0b"),
    "name with a lone surrogate": slow("experiments/create", b'{"name": "\\ud800"}'),
    "name of the default experiment": create(slow, name="Default"),
    "unknown key": create(slow, workspace="other"),
    "camel case": create(slow, artifactLocation="mlflow-artifacts:/camel"),
    "both spellings": create(
        slow, artifactLocation="mlflow-artifacts:/a", artifact_location="mlflow-artifacts:/b"
    ),
    "name given twice": fast("experiments/create", b'{"name": "given first", "name": "given last"}'),
    "ajax twin": [
        fast("experiments/create", {"name": "ajax"}, prefix="/ajax-api/2.0/mlflow/"),
        fast("experiments/get", query="experiment_id=<experiment 2>", prefix="/ajax-api/2.0/mlflow/"),
    ],
    "default folder named by hand": create(slow, artifact_location="mlflow-artifacts:/"),
}

GET = {
    "by id": get(1),
    "the default experiment": fast("experiments/get", query="experiment_id=0"),
    "unknown": slow("experiments/get", query="experiment_id=1999999999"),
    "empty": slow("experiments/get", query="experiment_id="),
    "absent": slow("experiments/get"),
    "only another parameter": slow("experiments/get", query="a=b"),
    "with another parameter": slow("experiments/get", query="a=b&experiment_id=<experiment 1>"),
    "twice the same": slow(
        "experiments/get", query="experiment_id=<experiment 1>&experiment_id=<experiment 1>"
    ),
    "twice, first wrong": slow(
        "experiments/get", query="experiment_id=1999999999&experiment_id=<experiment 1>"
    ),
    "twice, last wrong": slow(
        "experiments/get", query="experiment_id=<experiment 1>&experiment_id=1999999999"
    ),
    "camel case": slow("experiments/get", query="experimentId=<experiment 1>"),
    "encoded": fast("experiments/get", query="experiment_id=<experiment 1, encoded>"),
    "name of the parameter encoded": slow("experiments/get", query="experiment%5Fid=<experiment 1>"),
    "blank before": slow("experiments/get", query="experiment_id=%20<experiment 1>"),
    "plus": slow("experiments/get", query="experiment_id=+<experiment 1>"),
    "zero before": slow("experiments/get", query="experiment_id=0<experiment 1>"),
    "a word": slow("experiments/get", query="experiment_id=abc"),
    "negative": slow("experiments/get", query="experiment_id=-1"),
    "a float": slow("experiments/get", query="experiment_id=1.0"),
    "beyond int32": slow("experiments/get", query="experiment_id=3000000000"),
    "beyond int64": slow("experiments/get", query="experiment_id=99999999999999999999"),
    "question mark": slow("experiments/get", query="?experiment_id=<experiment 1>"),
    "ampersands": slow("experiments/get", query="&&experiment_id=<experiment 1>&"),
    "semicolon": slow("experiments/get", query="experiment_id=<experiment 1>;a=b"),
    "in a body": slow("experiments/get", {"experiment_id": EXPERIMENT}),
    "in a body beside the query": slow(
        "experiments/get", {"experiment_id": "1"}, query="experiment_id=<experiment 1>"
    ),
    "POST": slow("experiments/get", {"experiment_id": EXPERIMENT}, method="POST"),
    "deleted": [DELETE, get(1)],
    "renamed": [slow("experiments/update", {"experiment_id": EXPERIMENT, "new_name": "renamed 2"}), get(1)],
    "tagged": [
        slow("experiments/set-experiment-tag", {"experiment_id": EXPERIMENT, "key": "b", "value": "2"}),
        slow("experiments/set-experiment-tag", {"experiment_id": EXPERIMENT, "key": "a", "value": ""}),
        get(1),
    ],
    "of the past API": slow(
        "experiments/get", query="experiment_id=<experiment 1>", prefix="/api/3.0/mlflow/"
    ),
    "with a preview prefix": slow(
        "experiments/get", query="experiment_id=<experiment 1>", prefix="/api/2.0/preview/mlflow/"
    ),
}

BY_NAME = {
    "unknown": by_name("nobody's", slow),
    "empty": by_name("", slow),
    "absent": slow("experiments/get-by-name"),
    "default": by_name("Default", fast),
    "in another case": by_name("default", slow),
    "blank after": by_name("Default ", slow),
    "wildcard": by_name("Defaul%", slow),
    "plus for a blank": [
        create(name="one two"),
        fast("experiments/get-by-name", query="experiment_name=one+two"),
    ],
    "encoded": [create(name="three"), fast("experiments/get-by-name", query="experiment_name=%74hree")],
    "broken encoding": slow("experiments/get-by-name", query="experiment_name=100%"),
    "broken UTF-8": slow("experiments/get-by-name", query="experiment_name=%ff%fe"),
    "NUL": slow("experiments/get-by-name", query="experiment_name=a%00"),
    "twice": [
        create(name="four"),
        slow("experiments/get-by-name", query="experiment_name=four&experiment_name=five"),
    ],
    "camel case": slow("experiments/get-by-name", query="experimentName=Default"),
    "in a body": slow("experiments/get-by-name", {"experiment_name": "Default"}),
    "deleted": [
        create(name="to be deleted"),
        slow("experiments/delete", {"experiment_id": "<experiment 2>"}),
        by_name("to be deleted"),
    ],
    "with tags": [create(slow, name="tagged", tags=tags(("b", "2"), ("a", "1"))), by_name("tagged")],
    "restored": [
        create(name="restored"),
        slow("experiments/delete", {"experiment_id": "<experiment 2>"}),
        slow("experiments/restore", {"experiment_id": "<experiment 2>"}),
        by_name("restored"),
    ],
    "of 600": by_name("n" * 600, slow),
}


@cases(CREATE)
def test_create(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps, run=False)


@cases(GET)
def test_get(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps, run=False)


@cases(BY_NAME)
def test_get_by_name(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps, run=False)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_other_methods_on_routes_that_read(pair: Pair, method: str) -> None:
    query = "experiment_id=<experiment 1>&experiment_name=Default&run_id=<run 1>"
    pair.play([slow(route, method=method, query=query) for route in HOT_READS])
