"""What the fast path takes for plain: exactly what MLflow takes as it is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from stackfast import gate, settings
from stackfast.database import password
from stackfast.outcomes import NotMineError
from stackfast.requests import (
    Request,
    experiment_id_of,
    int64_of,
    is_plain_key,
    json_object,
    query_fields,
    run_id_of,
    text_of,
)
from stackfast.searching import INDEXED, Arguments, begins_with_metric, clauses, condition, lookups, order
from stackserver import indexes
from stackserver.errors import RefusedError

RUN = "0123456789abcdef0123456789abcdef"
JSON = {b"content-type": b"application/json"}


def request(body: object = None, query: bytes = b"", **headers: bytes) -> Request:
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given_headers = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return Request(b"POST", b"/x", query, (JSON if body is not None else {}) | given_headers, raw)


@given(st.text(alphabet="ab/.: -_é\n\t`", max_size=6) | st.text(max_size=4))
def test_a_plain_key_is_one_that_mlflow_takes(key: str) -> None:
    if is_plain_key(key):
        validation._validate_metric_name(key)
        validation._validate_tag_name(key)


@pytest.mark.parametrize("key", ["a", "a/b", "a.b", "a b", "a:b", "-", "é", "x" * 250])
def test_ordinary_keys_are_plain(key: str) -> None:
    assert is_plain_key(key)


@pytest.mark.parametrize("key", ["", ".", "..", "/a", "a/", "a//b", "a/./b", "a\n", "a\0", "a#", "x" * 251])
def test_other_keys_are_not(key: str) -> None:
    assert not is_plain_key(key)


def test_a_key_that_mlflow_refuses_is_refused_by_its_own_words() -> None:
    with pytest.raises(MlflowException):
        validation._validate_metric_name("a//b")


def test_fields_that_nobody_knows_and_odd_bodies_are_mlflows() -> None:
    known = frozenset({"a"})
    assert json_object(request({"a": 1}), known) == {"a": 1}
    assert json_object(request({"a": 1}, content_type=b"application/json; charset=utf-8"), known) == {"a": 1}
    for odd in (
        request({"a": 1, "b": 2}),
        request([1]),
        request("text"),
        request(b""),
        request(b"{"),
        request(b'{"a": NaN}'),
        request(b'\xef\xbb\xbf{"a": 1}'),
        request(b'{"a": "\xff"}'),
        request(b'{"a": "\\ud800"}'),
        request({"a": 1}, query=b"a=1"),
        request({"a": 1}, content_type=b"Application/JSON"),
        request({"a": 1}, content_type=b"application/json,application/json"),
        request({"a": 1}, content_encoding=b"gzip"),
        request({"a": 1}, x_mlflow_workspace=b"w"),
        request({"a": 1}, expect=b"100-continue"),
    ):
        with pytest.raises(NotMineError):
            json_object(odd, known)


def test_queries_are_read_as_flask_reads_them_or_not_at_all() -> None:
    known = frozenset({"a", "b"})
    assert query_fields(request(query=b"a=x+y%20%C3%A9&b=%2B"), known) == {"a": "x y é", "b": "+"}
    for odd in (b"", b"a", b"a=1&a=1", b"c=1", b"a=%ff", b"a=1&&b=2", b"a=\xc3\xa9"):
        with pytest.raises(NotMineError):
            query_fields(request(query=odd), known)
    with pytest.raises(NotMineError):
        query_fields(Request(b"GET", b"/x", b"a=1", {}, b"body"), known)


def test_ids() -> None:
    assert run_id_of({"run_id": RUN}) == run_id_of({"run_id": RUN, "run_uuid": RUN}) == RUN
    for odd in (
        {},
        {"run_uuid": RUN},
        {"run_id": RUN, "run_uuid": "x"},
        {"run_id": RUN.upper()},
        {"run_id": 5},
    ):
        with pytest.raises(NotMineError):
            run_id_of(odd)
    assert [experiment_id_of(each) for each in ("0", "7", "2147483647")] == [0, 7, 2**31 - 1]
    for odd_id in ("", "07", "-1", " 1", "1.0", "2147483648", "٣", 1, None):
        with pytest.raises(NotMineError):
            experiment_id_of(odd_id)


def test_numbers_and_texts() -> None:
    assert int64_of(2**63 - 1) == 2**63 - 1
    for odd in (2**63, True, 1.0, "1", None):
        with pytest.raises(NotMineError):
            int64_of(odd)
    with pytest.raises(NotMineError):
        int64_of(-1, 0)
    assert text_of("é" * 5, 5) == "é" * 5
    for text in ("123456", "a\0", 1, None):
        with pytest.raises(NotMineError):
            text_of(text, 5)


def test_filters_and_orders_become_sql_with_arguments_only() -> None:
    arguments = Arguments()
    wanted = clauses("metrics.a > 1.5 AND params.`b c` = 'x' AND attributes.status != 'FAILED'")
    found = [condition(clause, arguments) for clause in wanted]
    assert len(found) == 3
    assert arguments.values == [1.5, "a", "x", "b c", "FAILED"]
    assert '"left"(value, 64) = $3::text)' in found[1]
    joins, ordering = order(["metrics.a DESC", "attributes.end_time"], arguments)
    assert "latest_metrics AS o1" in joins
    assert ordering.endswith("run.end_time, run.start_time DESC, run.run_uuid")


def test_values_are_compared_as_their_indexes_have_them() -> None:
    assert indexes.VALUE_LENGTH == INDEXED
    for kind in ("params", "tags"):
        assert f'"left"(value, {INDEXED})' in indexes.INDEXES[f"stack_{kind}_by_value"]
    arguments = Arguments()
    (clause,) = clauses(f"tags.a = '{'x' * 65}'")
    long = condition(clause, arguments)
    assert '"left"(value, 64) = $1::text AND value = $2::text' in long
    assert arguments.values[:2] == ["x" * 64, "x" * 65]
    ((statement, values),) = lookups([clause])
    assert '"left"(value, 64) >= $2::text AND "left"(value, 64) <= $2::text' in statement
    assert values == ["a", "x" * 64]
    (other,) = clauses("tags.a != 'x'")
    assert "AND value != $1::text" in condition(other, Arguments())


def test_texts_are_looked_up_before_numbers_and_what_no_index_knows_is_not() -> None:
    wanted = clauses(
        "metrics.a > 1 and metrics.b != 1 and tags.c LIKE 'x%' and status = 'x' and params.d = 'x'"
    )
    assert [values[0] for _, values in lookups(wanted)] == ["d", "a"]


def test_an_order_by_a_metric_may_ask_for_the_runs_that_have_it() -> None:
    arguments = Arguments()
    joins, ordering = order(["metrics.a DESC", "params.b"], arguments, measured=True)
    assert joins.startswith("JOIN latest_metrics AS o1 ")
    assert "AND NOT o1.is_nan LEFT JOIN params AS o2" in joins
    assert ordering.startswith("o1.value DESC, CASE WHEN (o2.value IS NULL) ")
    assert arguments.values == ["a", "b"]


@pytest.mark.parametrize(
    ("orders", "begins"),
    [
        ([], False),
        (["metrics.a"], True),
        (["metric.`a b` DESC"], True),
        (["params.a", "metrics.a"], False),
        (["start_time DESC"], False),
        (["metrics.a UP"], False),
    ],
)
def test_what_begins_with_a_metric(orders: list[str], begins: bool) -> None:
    assert begins_with_metric(orders) is begins


@pytest.mark.parametrize(
    "text",
    [
        "metrics.a>1",
        "metrics.a > 'x'",
        "params.a = 1",
        "params.a = 'it''s'",
        "params.a = 'x' OR params.a = 'y'",
        "params.a = 'x' And params.b = 'y'",
        "dataset.name = 'x'",
        "attributes.nonsense = 'x'",
        "status = 'x'; DROP TABLE runs",
        "params.a IS NULL",
        "metrics.a > 1e5",
        "metrics.a LIKE 'x'",
        "attributes.start_time > 1.5",
        "attributes.run_id IN ()",
        "model.a = 'x'",
        "params.` a` = 'x'",
        " params.a = 'x'",
        "order = 'x'",
        "metrics.values > 1",
        "params.from = 'x'",
        "params.created = 'x'",
        "metrics.Created > 1",
        "tags.`run name` = 'x'",
    ],
)
def test_filters_that_are_not_certainly_the_same_are_mlflows(text: str) -> None:
    with pytest.raises(NotMineError):
        clauses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "metrics.a UP",
        "metrics.a DESC, metrics.b",
        "dataset.name",
        "a.b.c",
        "metrics.created",
        "params.`Run Name`",
    ],
)
def test_orders_that_are_not_certainly_the_same_are_mlflows(text: str) -> None:
    with pytest.raises(NotMineError):
        order([text], Arguments())


def test_the_same_order_twice_is_mlflows_error() -> None:
    with pytest.raises(NotMineError):
        order(["metrics.a", "metric.`a` DESC"], Arguments())


def test_passwords_are_read_as_libpq_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "pgpass"
    file.write_text("# a comment\nother:*:*:*:no\n*:5432:mlflow:mlflow:a\\:b\\\\c\n*:*:*:*:rest\n")
    assert password(file, "host", 5432, "mlflow", "mlflow") == "a:b\\c"
    assert password(file, "host", 5433, "mlflow", "mlflow") == "rest"
    assert password(file, "other", 1, "x", "y") == "no"
    file.write_text("a:1:b:c:d\n")
    assert password(file, "host", 1, "b", "c") is None


class Connection:
    def __init__(self, *revisions: str) -> None:
        self._rows = [(revision,) for revision in revisions]

    async def fetch(self, _: str) -> list[tuple[str]]:
        return self._rows


def test_nothing_is_answered_on_a_schema_or_mlflow_that_was_not_proven() -> None:
    found = gate.Gate()
    asyncio.run(found.check(Connection(gate.PROVEN_REVISION)))
    assert found.open
    for rows in ((), ("other",), (gate.PROVEN_REVISION, "other")):
        with pytest.raises(NotMineError):
            asyncio.run(found.check(Connection(*rows)))
        assert not found.open
    assert gate.unproven_mlflow() == ""
    assert "9.9" in gate.unproven_mlflow("9.9")


def test_the_proven_schema_is_that_of_the_pinned_mlflow() -> None:
    from stackserver.database import pinned_revision

    assert pinned_revision() == gate.PROVEN_REVISION


def test_settings() -> None:
    found = settings.read_fast_settings({})
    assert found.database_uri.endswith("?host=/run/postgresql")
    assert found.writes
    assert (found.connections, found.searches, found.off_because) == (6, 2, "")
    assert settings.read_fast_settings({"FASTPATH": "off"}).off_because
    assert settings.read_fast_settings({"AUTHORIZATION": "rbac"}).off_because
    assert not settings.read_fast_settings({"BACKUP_SYNCHRONOUS": "on"}).writes
    other = settings.read_fast_settings({"DATABASE_URI": "postgresql://me@db/records"})
    assert other.database_uri == "postgresql+psycopg2://me@db/records"
    for odd in ({"FASTPATH": "yes"}, {"FASTPATH_CONNECTIONS": "1"}, {"FASTPATH_CONNECTIONS": "x"}):
        with pytest.raises(RefusedError):
            settings.read_fast_settings(odd)
