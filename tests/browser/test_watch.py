"""The watch over a page notices what it is there for."""

from __future__ import annotations

from collections.abc import Callable

from browser.watch import PATIENCE_SECONDS, WatchedPage
from kit.stack import Stack, poll


def test_a_page_under_watch_reports_each_kind_of_problem(
    watch: Callable[..., WatchedPage], stack: Stack
) -> None:
    watched = watch("watch")
    watched.page.goto(stack.url, wait_until="load")
    watched.page.evaluate(
        """() => {
            console.error("a word to the console");
            setTimeout(() => { throw new Error("nobody catches this"); });
            fetch("/metrics");
            fetch("https://mlflow.invalid/telemetry").catch(() => {});
        }"""
    )
    expected = [
        "console: a word to the console",
        "page error: nobody catches this",
        f"404: GET {stack.url}/metrics",
        "console: Connecting to 'https://mlflow.invalid/telemetry' violates",
    ]

    def all_noticed() -> bool:
        watched.page.wait_for_timeout(100)  # lets the browser's events in
        for start in expected:
            assert any(problem.startswith(start) for problem in watched.problems), watched.problems
        return True

    poll(all_noticed, seconds=PATIENCE_SECONDS, what="problems noticed", interval=0)
