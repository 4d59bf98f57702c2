"""The fast path's batches: who goes with whom, what a refusal does, who is sent to MLflow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest

from stackfast import batcher
from stackfast.batcher import Batcher
from stackfast.outcomes import NotMineError, UndoneError, UnknownOutcomeError


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each statement begin at once beside the others, as long as there are less than WIDTH."""
    monkeypatch.setattr(batcher, "PATIENCE_SECONDS", 0)


class Statement:
    """Writes down its lists and answers each item with itself, when it is let."""

    def __init__(self, refuse: Callable[[list[str]], Exception | None] = lambda _: None) -> None:
        self.lists: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._refuse = refuse

    async def __call__(self, items: list[str]) -> list[str | None]:
        self.lists.append(items)
        await self.gate.wait()
        error = self._refuse(items)
        if error:
            raise error
        return [None if item == "odd" else item for item in items]


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def held(statement: Statement, each: Batcher[str, str]) -> list[asyncio.Task[str]]:
    """Keep as many statements under way as there may be, each of one item."""
    statement.gate.clear()
    tasks = []
    for number in range(batcher.WIDTH):
        tasks.append(asyncio.create_task(each.submit(f"first{number}")))
        await settle()
    return tasks


async def together(statement: Statement, each: Batcher[str, str], items: Iterable[str]) -> list[object]:
    """Let items wait for one statement, run it, and return how each of them ended."""
    first = await held(statement, each)
    rest = [asyncio.create_task(each.submit(item)) for item in items]
    await settle()
    statement.gate.set()
    await asyncio.gather(*first)
    return await asyncio.gather(*rest, return_exceptions=True)


def test_one_alone_starts_at_once_and_the_rest_go_together() -> None:
    async def work() -> None:
        statement = Statement()
        each: Batcher[str, str] = Batcher(statement)
        first = await held(statement, each)
        rest = [asyncio.create_task(each.submit(item)) for item in "abc"]
        await settle()
        assert statement.lists == [["first0"], ["first1"], ["first2"]]
        statement.gate.set()
        assert await asyncio.gather(*first, *rest) == ["first0", "first1", "first2", "a", "b", "c"]
        assert statement.lists[3] == ["a", "b", "c"]

    run(work)


def test_items_with_a_common_key_never_go_together_and_keep_their_order() -> None:
    async def work() -> None:
        statement = Statement()
        each: Batcher[str, str] = Batcher(statement)
        first = await held(statement, each)
        rest = [
            asyncio.create_task(each.submit(item, frozenset({key})))
            for item, key in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"))
        ]
        await settle()
        statement.gate.set()
        await asyncio.gather(*first, *rest)
        assert statement.lists[3:] == [["a1", "b1"], ["a2"], ["a3"]]

    run(work)


def test_another_statement_begins_only_when_none_has_begun_for_some_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> None:
        monkeypatch.setattr(batcher, "PATIENCE_SECONDS", 60)
        statement = Statement()
        each: Batcher[str, str] = Batcher(statement)
        statement.gate.clear()
        items = [asyncio.create_task(each.submit(item)) for item in "abc"]
        await settle()
        assert statement.lists == [["a"]]
        monkeypatch.setattr(batcher, "PATIENCE_SECONDS", 0)
        each._look_again()
        await settle()
        assert statement.lists == [["a"], ["b", "c"]]
        statement.gate.set()
        assert await asyncio.gather(*items) == ["a", "b", "c"]

    run(work)


def test_who_waits_for_a_lock_holds_up_the_others_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        monkeypatch.setattr(batcher, "PATIENCE_SECONDS", 0.01)
        statement = Statement()
        each: Batcher[str, str] = Batcher(statement)
        statement.gate.clear()
        items = [asyncio.create_task(each.submit(item)) for item in "ab"]
        while len(statement.lists) < 2:
            await asyncio.sleep(0.01)
        statement.gate.set()
        assert await asyncio.gather(*items) == ["a", "b"]

    run(work)


def test_items_with_a_common_key_are_not_under_way_at_once() -> None:
    async def work() -> None:
        statement = Statement()
        each: Batcher[str, str] = Batcher(statement)
        statement.gate.clear()
        items = [
            asyncio.create_task(each.submit(item, frozenset({key})))
            for item, key in (("a1", "a"), ("a2", "a"), ("b1", "b"))
        ]
        await settle()
        assert statement.lists == [["a1"], ["b1"]]
        statement.gate.set()
        assert await asyncio.gather(*items) == ["a1", "a2", "b1"]
        assert statement.lists == [["a1"], ["b1"], ["a2"]]

    run(work)


def test_a_statement_has_a_largest_weight() -> None:
    async def work() -> None:
        statement = Statement()
        each: Batcher[str, str] = Batcher(statement)
        first = await held(statement, each)
        rest = [asyncio.create_task(each.submit(item, weight=batcher.WEIGHT - 1)) for item in "abc"]
        await settle()
        statement.gate.set()
        await asyncio.gather(*first, *rest)
        assert statement.lists[3:] == [["a"], ["b"], ["c"]]

    run(work)


def test_what_is_not_plain_harms_no_other() -> None:
    async def work() -> None:
        statement = Statement(lambda items: UndoneError("23514") if "bad" in items else None)
        each: Batcher[str, str] = Batcher(statement)
        a, bad, odd, b = await together(statement, each, ("a", "bad", "odd", "b"))
        assert (a, b) == ("a", "b")
        assert isinstance(bad, NotMineError)
        assert bad.reason == "refused by the database"
        assert isinstance(odd, NotMineError)

    run(work)


@pytest.mark.parametrize("state", ["22012", "40P01"], ids=["race", "deadlock"])
def test_what_met_anothers_writing_goes_once_more_by_itself(state: str) -> None:
    async def work() -> None:
        def refuse(items: list[str]) -> Exception | None:
            """The list always, "a" the first time, "b" every time."""
            met = len(items) > 1 or items == ["b"] or (items == ["a"] and statement.lists.count(["a"]) == 1)
            return UndoneError(state) if met else None

        statement = Statement(refuse)
        each: Batcher[str, str] = Batcher(statement)
        a, b, c = await together(statement, each, "abc")
        assert (a, c) == ("a", "c")
        assert isinstance(b, NotMineError)
        assert statement.lists[3:] == [["a", "b", "c"], ["a"], ["a"], ["b"], ["b"], ["c"]]

    run(work)


def test_after_two_waits_for_locks_the_rest_goes_to_mlflow() -> None:
    async def work() -> None:
        statement = Statement(lambda _: UndoneError("55P03"))
        each: Batcher[str, str] = Batcher(statement)
        first = await held(statement, each)
        rest = [asyncio.create_task(each.submit(item)) for item in "abcd"]
        await settle()
        statement.gate.set()
        found = await asyncio.gather(*first, *rest, return_exceptions=True)
        assert [error.reason for error in found if isinstance(error, NotMineError)] == ["lock"] * 7
        assert statement.lists[3:] == [["a", "b", "c", "d"], ["a"], ["b"]]

    run(work)


def test_an_unknown_outcome_is_everybodys_and_nothing_is_tried_again() -> None:
    async def work() -> None:
        statement = Statement(lambda items: UnknownOutcomeError("gone") if "a" in items else None)
        each: Batcher[str, str] = Batcher(statement)
        found = await together(statement, each, "abc")
        assert [type(error) for error in found] == [UnknownOutcomeError] * 3
        assert statement.lists[3:] == [["a", "b", "c"]]
        assert await each.submit("d") == "d"

    run(work)


def test_whoever_waits_too_long_for_a_statement_to_begin_goes_to_mlflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batcher, "LATE_SECONDS", 0.5)

    async def work() -> None:
        statement = Statement()
        each: Batcher[str, str] = Batcher(statement)
        first = await held(statement, each)
        with pytest.raises(NotMineError, match="late"):
            await each.submit("a")
        statement.gate.set()
        await asyncio.gather(*first)
        assert ["a"] not in statement.lists

    run(work)


def test_a_caller_that_gave_up_is_not_executed_while_it_waits() -> None:
    async def work() -> None:
        statement = Statement()
        each: Batcher[str, str] = Batcher(statement)
        first = await held(statement, each)
        gone = asyncio.create_task(each.submit("gone"))
        await settle()
        gone.cancel()
        await settle()
        statement.gate.set()
        await asyncio.gather(*first)
        assert await each.submit("b") == "b"
        assert statement.lists[3:] == [["b"]]

    run(work)
