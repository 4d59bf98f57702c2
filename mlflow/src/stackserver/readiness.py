"""Readiness: does this replica reach its database, the right schema, and its bucket?

MLflow's own /health is a constant. The answer is remembered for a second, and the bucket's
for ten, so that probes (Docker's, the door's, a load balancer's) cost little.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

DATABASE_REMEMBERED_SECONDS = 1.0
STORAGE_REMEMBERED_SECONDS = 10.0


@dataclass(frozen=True)
class CheckResult:
    """One dependency's answer: the error's text, or None when it is well."""

    name: str
    error: str | None
    seconds: float


class Check:
    """A check that is done at most once per `remembered_seconds`, by one thread at a time.

    A failure is not remembered longer than a second: recovery must show at once.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], None],
        remembered_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._run = run
        self._remembered_seconds = remembered_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._last: CheckResult | None = None
        self._until = 0.0

    def result(self) -> CheckResult:
        """Return the remembered result, or do the check."""
        with self._lock:
            if self._last is not None and self._clock() < self._until:
                return self._last
            started = self._clock()
            try:
                self._run()
                error = None
            except Exception as problem:  # whatever is wrong is the answer
                error = f"{type(problem).__name__}: {problem}".strip().splitlines()[0]
            now = self._clock()
            self._last = CheckResult(self.name, error, now - started)
            self._until = now + (self._remembered_seconds if error is None else 1.0)
            return self._last


def report(checks: list[Check]) -> dict:
    """Return {"status": "ready" | "not ready", "checks": {name: {"ok", "seconds", "error"}}}."""
    results = [check.result() for check in checks]
    return {
        "status": "ready" if all(result.error is None for result in results) else "not ready",
        "checks": {
            result.name: {
                "ok": result.error is None,
                "seconds": round(result.seconds, 4),
                **({"error": result.error} if result.error else {}),
            }
            for result in results
        },
    }
