"""Readiness checks: what they report and how long they are remembered."""

from __future__ import annotations

from stackserver.readiness import Check, report


class Dependency:
    """A dependency that a test breaks and mends, with a clock that it moves."""

    def __init__(self) -> None:
        self.broken: Exception | None = None
        self.asked = 0
        self.now = 0.0

    def __call__(self) -> None:
        self.asked += 1
        if self.broken:
            raise self.broken

    def check(self, remembered_seconds: float) -> Check:
        return Check("database", self, remembered_seconds, clock=lambda: self.now)


def test_a_good_answer_is_remembered_for_its_time_only() -> None:
    dependency = Dependency()
    check = dependency.check(10)
    for dependency.now in (0, 5, 9.9, 10, 15):
        assert check.result().error is None
    assert dependency.asked == 2


def test_a_failure_is_asked_again_after_a_second() -> None:
    dependency = Dependency()
    dependency.broken = ConnectionError("refused\nsecond line")
    check = dependency.check(10)
    assert check.result().error == "ConnectionError: refused"
    dependency.broken = None
    assert check.result().error is not None
    dependency.now = 1.0
    assert check.result().error is None


def test_the_report_names_the_dependency_that_fails() -> None:
    good, bad = Dependency(), Dependency()
    bad.broken = TimeoutError("no answer")
    result = report([Check("database", good, 1), Check("storage", bad, 1)])
    assert result["status"] == "not ready"
    assert result["checks"]["database"]["ok"] is True
    assert result["checks"]["storage"] == {
        "ok": False,
        "seconds": result["checks"]["storage"]["seconds"],
        "error": "TimeoutError: no answer",
    }
