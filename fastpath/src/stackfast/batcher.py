"""Natural batching: while a statement is under way, what comes meanwhile waits and goes as one.

Nobody waits for company: alone, a request's statement starts at once. Each is answered only
after the commit of the statement that it was part of.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from stackfast.outcomes import NotMineError, UndoneError

WIDTH, PATIENCE_SECONDS = 3, 0.025
"""Statements of one kind under way at once; but the next begins beside others only when none has begun for
so long: one that waits for a lock holds up the others no longer, and in all other cases one with more in it
costs less than two (measured: 1.16 times the runs/s of 50 clients)."""
ITEMS, WEIGHT = 256, 4000
"""What one statement takes at most: requests, and rows of all of them."""
LATE_SECONDS = 2.0
"""Who has waited this long for a statement to begin goes to MLflow: nothing was done for it."""
LOCKS_BORNE = 2
"""So many requests of a failed batch may each wait for a lock; then the rest of it goes to MLflow."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    item: Item
    keys: frozenset[Hashable]
    weight: int
    since: float
    answer: asyncio.Future[Answer] = field(repr=False)


class Batcher(Generic[Item, Answer]):
    """Runs `statement` on lists of items; it returns an answer for each, None for "not mine".

    Items with a common key never go in one list, nor are two of them under way at once: three updates of
    a run and an insertion that belongs to it can be a deadlock of PostgreSQL's (each update follows the
    row's versions with the lock on an older one in its hand). If PostgreSQL refuses a list, each of it
    goes alone, so that one bad request harms no other.
    """

    def __init__(self, statement: Callable[[list[Item]], Awaitable[list[Answer | None]]]) -> None:
        self._statement = statement
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._under_way = 0
        self._begun = 0.0
        """When the last statement did."""
        self._next_look: asyncio.TimerHandle | None = None
        self._keys: set[Hashable] = set()
        """Of all that is under way."""
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item, keys: frozenset[Hashable] = frozenset(), weight: int = 1) -> Answer:
        """Return the answer for an item. Raise NotMineError or UnknownOutcomeError."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(item, keys, weight, loop.time(), loop.create_future())
        self._queue.append(waiting)
        self._start()
        if self._queue and self._timer is None:
            self._timer = loop.call_later(1.0, self._send_late_away)
        return await waiting.answer

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue and self._may_begin(loop.time()):
            batch = self._next()
            if not batch:
                return
            self._under_way += 1
            self._begun = loop.time()
            task = loop.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._queue and self._under_way < WIDTH and self._next_look is None:
            self._next_look = loop.call_later(PATIENCE_SECONDS, self._look_again)

    def _may_begin(self, now: float) -> bool:
        if not self._under_way:
            return True
        return self._under_way < WIDTH and now - self._begun >= PATIENCE_SECONDS

    def _look_again(self) -> None:
        self._next_look = None
        self._start()

    def _next(self) -> list[_Waiting[Item, Answer]]:
        weight = 0
        batch: list[_Waiting[Item, Answer]] = []
        later: list[_Waiting[Item, Answer]] = []
        while self._queue and len(batch) < ITEMS:
            waiting = self._queue.popleft()
            if waiting.answer.done():  # given up meanwhile
                continue
            if not self._keys.isdisjoint(waiting.keys) or (batch and weight + waiting.weight > WEIGHT):
                later.append(waiting)
                if len(later) >= ITEMS:
                    break
                continue
            self._keys |= waiting.keys
            weight += waiting.weight
            batch.append(waiting)
        self._queue.extendleft(reversed(later))
        return batch

    async def _run(self, batch: list[_Waiting[Item, Answer]]) -> None:
        try:
            await self._try(batch)
        except Exception as error:  # noqa: BLE001  whoever waits must hear of it
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
        finally:
            self._under_way -= 1
            self._keys.difference_update(*(waiting.keys for waiting in batch))
            self._start()

    async def _try(self, batch: list[_Waiting[Item, Answer]]) -> None:
        try:
            answers = await self._statement([waiting.item for waiting in batch])
        except UndoneError as error:
            if len(batch) == 1 and not error.race:
                _refuse(batch[0], "refused by the database" if not error.lock else "lock")
                return
            await self._one_by_one(batch)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if answer is None:
                waiting.answer.set_exception(NotMineError("not plain"))
            else:
                waiting.answer.set_result(answer)

    async def _one_by_one(self, batch: list[_Waiting[Item, Answer]]) -> None:
        locks = 0
        for waiting in batch:
            if locks >= LOCKS_BORNE or self._is_late(waiting):
                _refuse(waiting, "lock" if locks >= LOCKS_BORNE else "late")
                continue
            try:
                answer = await self._alone(waiting.item)
            except UndoneError as error:
                locks += error.lock
                _refuse(waiting, "lock" if error.lock else "refused by the database")
            except Exception as error:  # noqa: BLE001  of this one alone
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            else:
                if waiting.answer.done():
                    continue
                if answer is None:
                    _refuse(waiting, "not plain")
                else:
                    waiting.answer.set_result(answer)

    async def _alone(self, item: Item) -> Answer | None:
        """Return the answer for one item; one that met another's writing goes once more."""
        try:
            (answer,) = await self._statement([item])
        except UndoneError as error:
            if not error.race:
                raise
            (answer,) = await self._statement([item])
        return answer

    def _is_late(self, waiting: _Waiting[Item, Answer]) -> bool:
        return asyncio.get_running_loop().time() - waiting.since > LATE_SECONDS

    def _send_late_away(self) -> None:
        self._timer = None
        while self._queue and self._is_late(self._queue[0]):
            _refuse(self._queue.popleft(), "late")
        if self._queue:
            self._timer = asyncio.get_running_loop().call_later(1.0, self._send_late_away)


def _refuse(waiting: _Waiting[Item, Answer], reason: str) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(NotMineError(reason))
