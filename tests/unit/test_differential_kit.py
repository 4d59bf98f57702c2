"""The comparison of the differential suite: it sees what differs, and not what must differ."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from kit.differential import (
    Answer,
    DifferenceError,
    Names,
    Pair,
    Request,
    Side,
    canonical,
    either,
    fast,
    slow,
)

STOCK_ID, OUR_ID = "a" * 32, "0123456789abcdef" * 2


@dataclass
class FakeTables:
    """A database that always holds these rows."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def query(self, statement: str) -> str:
        return json.dumps(self.rows)

    def execute(self, statement: str) -> None:
        """Nothing is remembered."""


def json_answer(value: Any, **changes: Any) -> Answer:
    return Answer(
        **{"status": 200, "content_type": "application/json", "body": json.dumps(value).encode(), **changes}
    )


def side(
    name: str, say: Callable[[Request], Answer], rows: dict[str, list[dict[str, Any]]] | None = None
) -> Side:
    return Side(name, "", say, FakeTables(rows or {}))


def pair_of(stock: Answer, ours: Answer, stock_rows: Any = None, our_rows: Any = None) -> Pair:
    return Pair(
        side("stock", lambda _: stock, stock_rows),
        side("ours", lambda _: ours, our_rows),
        tells=True,
        is_stack=False,
    )


def run_answer(run_id: str, **info: Any) -> dict[str, Any]:
    return {
        "run": {"info": {"run_id": run_id, "artifact_uri": f"mlflow-artifacts:/1/{run_id}/artifacts", **info}}
    }


DIFFERENCES = {
    "another value": ({"a": 1}, {"a": 2}),
    "a number as text": ({"a": 1}, {"a": "1"}),
    "a float for a whole number": ({"a": 1}, {"a": 1.0}),
    "true for 1": ({"a": 1}, {"a": True}),
    "minus zero": ({"a": 0.0}, {"a": -0.0}),
    "NaN as text": ({"a": "NaN"}, {"a": float("nan")}),
    "a field less": ({"a": 1, "b": None}, {"a": 1}),
    "an empty list more": ({}, {"tags": []}),
    "runs in another order": ({"runs": [{"a": 1}, {"a": 2}]}, {"runs": [{"a": 2}, {"a": 1}]}),
    "a tag twice": ({"tags": [{"key": "a"}]}, {"tags": [{"key": "a"}, {"key": "a"}]}),
    "a time of last year": ({"t": int(time.time() * 1000)}, {"t": 1700000000000}),
    "the time as text": ({"t": int(time.time() * 1000)}, {"t": str(int(time.time() * 1000))}),
    "a name that MLflow does not make up": ({"name": "bold-fox-12"}, {"name": "bold_fox_12"}),
    "another id": (
        run_answer(STOCK_ID),
        {"run": {"info": {"run_id": OUR_ID, "artifact_uri": "mlflow-artifacts:/1/x"}}},
    ),
    "another offset": (
        {"next_page_token": "eyJvZmZzZXQiOiAzfQ=="},
        {"next_page_token": "eyJvZmZzZXQiOiA0fQ=="},
    ),
}


@pytest.mark.parametrize(("stock", "ours"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_a_difference_in_a_body_is_seen(stock: Any, ours: Any) -> None:
    with pytest.raises(DifferenceError):
        pair_of(json_answer(stock), json_answer(ours)).send(either("runs/create", {}))


def test_a_difference_in_status_or_content_type_is_seen() -> None:
    for changes in (
        {"status": 201},
        {"content_type": "application/json; charset=utf-8"},
        {"content_type": None},
    ):
        with pytest.raises(DifferenceError):
            pair_of(json_answer({}), json_answer({}, **changes)).send(either("runs/create", {}))


def test_what_must_differ_is_equal() -> None:
    now = int(time.time() * 1000)
    stock = run_answer(STOCK_ID, start_time=now - 3, run_name="bold-fox-12")
    ours = run_answer(OUR_ID, start_time=now, run_name="rare-owl-0")
    stock["run"]["tags"] = [{"key": "a"}, {"key": "b"}]
    ours["run"]["tags"] = [{"key": "b"}, {"key": "a"}]
    said = pair_of(json_answer(stock), json_answer(ours)).send(either("runs/create", {}))
    assert said["run"]["info"]["run_id"] == "<run 1>"


def test_a_key_that_stands_twice_is_seen() -> None:
    twice = Answer(200, "application/json", b'{"a": 1, "a": 1}')
    with pytest.raises(AssertionError, match="twice"):
        pair_of(json_answer({"a": 1}), twice).send(either("runs/create", {}))


def test_each_side_gets_its_own_ids() -> None:
    asked: list[Request] = []

    def say(run_id: str) -> Callable[[Request], Answer]:
        def answer(request: Request) -> Answer:
            asked.append(request)
            return json_answer(run_answer(run_id))

        return answer

    pair = Pair(side("stock", say(STOCK_ID)), side("ours", say(OUR_ID)), tells=False, is_stack=False)
    pair.send(either("runs/create", {}))
    pair.send(either("runs/set-tag", {"run_id": "<run 1>"}, query="a=<run 1, encoded>"))
    # Both are asked at the same time.
    of_ours, of_stock = sorted(asked[2:], key=lambda request: request.body or b"")
    assert [json.loads(request.body) for request in (of_stock, of_ours)] == [
        {"run_id": STOCK_ID},
        {"run_id": OUR_ID},
    ]
    assert of_stock.target.endswith("?a=" + "%61" * 32)


def test_who_must_answer_is_checked() -> None:
    plain, by_fast = json_answer({}), json_answer({}, fast=True)
    pair_of(plain, by_fast).send(fast("runs/create", {}))
    pair_of(plain, plain).send(slow("runs/create", {}))
    for step, answer in ((fast, plain), (slow, by_fast)):
        with pytest.raises(DifferenceError, match="must be answered"):
            pair_of(plain, answer).send(step("runs/create", {}))


def test_the_fast_path_gives_only_plain_successes() -> None:
    error = json_answer({}, status=400)
    with pytest.raises(DifferenceError, match="answered 400"):
        pair_of(error, json_answer({}, status=400, fast=True)).send(either("runs/create", {}))


@pytest.mark.parametrize(
    "ours",
    [
        {"tags": [{"key": "a", "value": "1"}, {"key": "b", "value": ""}]},
        {"tags": [{"key": "a", "value": None}]},
        {"tags": []},
        {"tags": [{"key": "a", "value": "1"}], "runs": [{"run_uuid": OUR_ID}]},
    ],
)
def test_a_difference_in_rows_is_seen(ours: dict[str, Any]) -> None:
    same = {"tags": [{"key": "a", "value": "1"}], "runs": []}
    pair_of(json_answer({}), json_answer({}), same, same).compare_tables()
    with pytest.raises(DifferenceError):
        pair_of(json_answer({}), json_answer({}), same, ours).compare_tables()


def test_the_order_of_rows_does_not_count() -> None:
    rows = [{"key": "a"}, {"key": "b"}]
    pair = pair_of(json_answer({}), json_answer({}), {"tags": rows}, {"tags": rows[::-1]})
    pair.compare_tables()


def test_a_refused_request_goes_to_the_stack_alone() -> None:
    def not_asked(_: Request) -> Answer:
        raise AssertionError("stock was asked")

    step = either("experiments/create", {}, refused="for a reason")
    refusing = side("ours", lambda _: json_answer({}, status=400))
    Pair(side("stock", not_asked), refusing, tells=True, is_stack=True).send(step)
    doing = side("ours", lambda _: json_answer({}))
    with pytest.raises(DifferenceError, match="for a reason"):
        Pair(side("stock", not_asked), doing, tells=True, is_stack=True).send(step)


def test_a_message_of_the_database_is_equal_but_for_ids_that_nobody_got() -> None:
    def told(run_id: str, where: str) -> str:
        message = (
            f"(psycopg2.errors.X) invalid\nLINE 1: {where}\n     ^\n[SQL: INSERT] [parameters: {run_id!r}]"
        )
        return canonical(json_answer({"message": message}, status=400), Names())

    assert told(STOCK_ID, "...x") == told(OUR_ID, "...zzz")
    assert told(STOCK_ID, "...x") != told("abc", "...x")
