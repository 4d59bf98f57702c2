"""The row `pages` of ./stack bench on a real page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from kit.stack import Stack
from peers import Server
from rows import pages
from rows.row import Bench, Options


def test_a_page_is_timed_and_its_calls_are_listed(stack: Stack) -> None:
    servers = {"ours": Server("ours", stack.port, "admin", stack.password)}
    bench = Bench(SimpleNamespace(servers=servers), Options(), Path("load"), set())
    (found,) = pages.measure(bench, "ours", pages.FIRST_LOAD).values()
    assert found.values["ms"] > 0
    assert {call["status"] for call in found.calls} == {200}
    assert any(call["route"].startswith("/ajax-api/") and call["ms"] > 0 for call in found.calls)
