"""What the migration may change, and what it must not."""

from __future__ import annotations

import json

import pytest

from stackserver.database import pinned_revision, revision_chain
from stackserver.errors import RefusedError
from stackserver.migrate import (
    TESTED_REVISIONS,
    Content,
    Outcome,
    applicable,
    check_hop,
    compared_columns,
    differences,
    known_changes,
    model_columns,
    report,
)
from stackserver.moves import MOVES, NEW_ROWS, NOT_COMPARED

CHAIN = ("first", "second", "third", "pinned")
TESTED = {"second": "2.9.2", "pinned": "3.17.2"}


def test_a_tested_revision_may_be_migrated() -> None:
    check_hop("second", CHAIN, TESTED)


@pytest.mark.parametrize(("revision", "version"), [("first", "2.9.2"), ("third", "3.17.2")])
def test_an_untested_revision_is_refused_and_the_next_tested_version_named(
    revision: str, version: str
) -> None:
    with pytest.raises(RefusedError, match="nothing was changed") as refusal:
        check_hop(revision, CHAIN, TESTED)
    assert f"of MLflow {version} " in refusal.value.fix


def test_a_revision_that_nobody_knows_is_refused_as_newer() -> None:
    with pytest.raises(RefusedError, match="newer"):
        check_hop("fourth", CHAIN, TESTED)


def test_tested_revisions_are_in_the_chain_and_the_pinned_one_ends_it() -> None:
    assert set(TESTED_REVISIONS) <= set(revision_chain())
    assert pinned_revision() == revision_chain()[-1]
    assert TESTED_REVISIONS[pinned_revision()] == "3.17.2"


def test_the_same_content_is_no_difference() -> None:
    contents = {"runs": Content(3, "17"), "tags": Content()}
    assert differences(contents, dict(contents)) == []


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({}, "runs: 3 rows before, gone after"),
        ({"runs": Content(2, "17")}, "runs: 3 rows before, 2 after"),
        ({"runs": Content(3, "18")}, "runs: 3 rows before and after, but not the same"),
        ({"runs": Content(3, "17"), "new": Content(1, "5")}, "new: new, 1 rows, 0 expected"),
    ],
)
def test_each_kind_of_loss_names_the_table_and_the_numbers(after: dict[str, Content], words: str) -> None:
    assert differences({"runs": Content(3, "17")}, after) == [words]


def test_only_rows_that_the_migration_is_known_to_make_may_be_in_new_tables() -> None:
    new_rows = {"workspaces": 1}
    assert differences({}, {"workspaces": Content(1, "9"), "jobs": Content()}, new_rows) == []
    assert differences({}, {"workspaces": Content(0, "0")}, new_rows) != []


def test_compared_are_the_columns_that_both_schemas_have() -> None:
    existing = {
        "runs": ["run_uuid", "dropped", "name"],
        "users_own": ["b", "a"],
        "alembic_version": ["version_num"],
        "jobs": ["id", "status"],
    }
    model = {"runs": frozenset({"run_uuid", "name", "added"}), "jobs": frozenset({"id", "status"})}
    assert compared_columns(existing, model) == {
        "runs": ["name", "run_uuid"],
        "users_own": ["a", "b"],
        "alembic_version": [],
        "jobs": ["id"],
    }


def test_of_two_moves_with_one_name_the_later_that_applies_counts() -> None:
    old = applicable(MOVES, {"trace_tags", "trace_request_metadata"})
    new = applicable(
        MOVES, {"trace_tags", "trace_request_metadata", "trace_metrics", "spans", "span_metrics"}
    )
    assert applicable(MOVES, {"runs"}) == []
    assert len({move.name for move in new}) == len(new) == len({move.name for move in MOVES})
    (tokens_old,) = [move for move in old if move.name == "trace tokens"]
    (tokens_new,) = [move for move in new if move.name == "trace tokens"]
    assert "trace_metrics" not in dict(tokens_old.leaving)
    assert "trace_metrics" in dict(tokens_new.leaving)


def test_known_changes_name_tables_and_columns_of_the_installed_mlflow() -> None:
    model = model_columns()
    assert set(NEW_ROWS) <= set(model)
    assert NOT_COMPARED["jobs"] <= model["jobs"]
    for move in MOVES:
        assert move.needs | {table for table, _ in move.leaving} <= set(model)


def test_what_moved_and_what_was_cut_is_said() -> None:
    moves = applicable(MOVES, {"trace_tags", "trace_request_metadata"})
    before = {move.name: Content() for move in moves} | {"trace names": Content(4, "1")}
    cut = {move.name: 0 for move in moves} | {"trace names": 1}
    assert known_changes(moves, before, cut) == ["trace names: 4 moved, 1 cut or unreadable"]


def test_a_difference_makes_the_exit_status_1_and_the_last_line_is_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = Outcome("acf3f17fdcc7", pinned_revision(), migrated=True)
    bad = Outcome(
        "acf3f17fdcc7", pinned_revision(), migrated=True, differences=["runs: 3 rows before, 2 after"]
    )
    assert report(good) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ok"] is True
    assert report(bad) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "DIFFERENT: runs: 3 rows before, 2 after" in lines
    assert json.loads(lines[-1]) | {
        "ok": False,
        "mlflow_before": "2.9.2",
        "mlflow_after": "3.17.2",
    } == json.loads(lines[-1])
