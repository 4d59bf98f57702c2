"""After all cases: the whole of what they wrote, and what the fast path counted. Runs last (by its name)."""

from __future__ import annotations

from kit.differential import Pair


def test_all_that_was_written_is_the_same(pair: Pair) -> None:
    """Also what a case did to another one's rows."""
    pair.compare_tables(of_all=True)


def test_the_fast_path_answered_and_met_nothing_unexpected(
    pair: Pair, metrics_of: dict[str, float], against: str
) -> None:
    if against == "stock":  # tries the suite itself: two stock servers, and nothing that counts
        assert metrics_of == {}
        return
    assert metrics_of["mlflow_fastpath_unexpected_total"] == 0
    assert metrics_of["mlflow_fastpath_requests_total"] >= pair.answered["fast"]
    assert metrics_of["mlflow_fastpath_on"] == 1
