"""What the fast path reads of a filter or an order is what MLflow reads."""

from __future__ import annotations

import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils.search_utils import SearchUtils
from sqlparse import keywords

from stackfast.outcomes import NotMineError
from stackfast.searching import Arguments, clauses, order

WORDS = sorted(
    {
        spelled
        for name in dir(keywords)
        if name.startswith("KEYWORDS")
        for word in getattr(keywords, name)
        for spelled in (word, word.lower())
        if word.isidentifier()
    }
    | {"mlflow", "parentRunId", "_", "a1"}
)
KEYS = ("{}", "mlflow.{}", "{}.a", "mlflow.{}.a", "{}.{}")


@pytest.mark.parametrize("shape", KEYS)
def test_a_key_without_quotes_is_read_as_by_mlflow_whatever_the_word(shape: str) -> None:
    taken = 0
    for word in WORDS:
        key = shape.replace("{}", word)
        for written in (f"tags.{key} = 'x'", f"params.{key} LIKE '%' AND metrics.{key} > 0.5"):
            try:
                mine = [(each.kind.replace("param", "parameter"), each.key) for each in clauses(written)]
            except NotMineError:
                continue
            taken += 1
            found = SearchUtils.parse_search_filter(written)
            assert mine == [(each["type"], each["key"]) for each in found], written
    assert taken > len(WORDS)


@pytest.mark.parametrize("shape", KEYS)
def test_a_key_that_is_ordered_by_is_read_as_by_mlflow_whatever_the_word(shape: str) -> None:
    taken = 0
    for word in WORDS:
        key = shape.replace("{}", word)
        for written in (f"params.{key}", f"params.{key} DESC"):
            arguments = Arguments()
            try:
                order([written], arguments)
            except NotMineError:
                continue
            taken += 1
            assert SearchUtils.parse_order_by_for_search_runs(written)[:2] == (
                "parameter",
                arguments.values[0],
            )
            assert arguments.values == [key]
    assert taken > len(WORDS)


@pytest.mark.parametrize("written", ["tags.a. = 'x'", "tags..a = 'x'", "tags.a..b = 'x'", "tags.a.1 = 'x'"])
def test_an_odd_key_is_left_to_mlflow(written: str) -> None:
    with pytest.raises(NotMineError):
        clauses(written)


def test_what_mlflow_refuses_of_these_is_not_taken() -> None:
    for written in ("tags.mlflow.from = 'x'", "tags.case.a = 'x'"):
        with pytest.raises(MlflowException):
            SearchUtils.parse_search_filter(written)
        with pytest.raises(NotMineError):
            clauses(written)
