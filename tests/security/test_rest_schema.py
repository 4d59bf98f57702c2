"""Random requests to every route of the REST API: no 500 where plain MLflow gives none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from kit import fuzz, rest_schema
from kit.stack import ROOT, Stack

STOCK = ROOT / "tests/data/stock/errors.json"
"""How many of these requests plain MLflow 3.17.2 answers 500; tests/data/stock/make.py writes it."""


@pytest.fixture(scope="module")
def expendable(stack: Stack, make_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """A stack of its own: the requests delete what they like."""
    made = make_stack("fuzz")
    made.image_tag = stack.image_tag
    made.verb("up", "--no-build")
    yield made
    made.compose("down", "--volumes")


@pytest.mark.parametrize(
    "examples", [fuzz.EXAMPLES[0], pytest.param(fuzz.EXAMPLES[1], marks=pytest.mark.long)]
)
def test_no_random_request_is_an_error_that_plain_mlflow_does_not_have(
    expendable: Stack, examples: int, figures: dict[str, str]
) -> None:
    document = rest_schema.document()
    operations = sum(len(methods) for methods in document["paths"].values())
    assert operations > 200
    found = fuzz.server_errors(document, expendable.url, expendable.session(), examples)
    known = json.loads(STOCK.read_text())[str(examples)]
    new = {name: said for name, said in found.items() if len(said) > known.get(name, 0)}
    figures["random requests"] = (
        f"{operations} routes, {examples} each: {sum(map(len, found.values()))} answered 500,"
        f" {sum(known.values())} by plain MLflow"
    )
    assert new == {}
