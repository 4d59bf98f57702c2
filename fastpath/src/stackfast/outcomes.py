"""How a request ends other than well."""

from __future__ import annotations


class NotMineError(Exception):
    """Nothing was done; MLflow answers. The reason is a word for the counters."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownOutcomeError(Exception):
    """A statement was sent and its end is not known: it may have been committed. Nobody may repeat it."""


class UndoneError(Exception):
    """PostgreSQL refused a statement and rolled it back."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate

    @property
    def lock(self) -> bool:
        """Whether another transaction held what the statement needed (55P03, 40P01)."""
        return self.sqlstate in {"55P03", "40P01"}

    @property
    def slow(self) -> bool:
        """Whether it took longer than it may (57014)."""
        return self.sqlstate == "57014"

    @property
    def race(self) -> bool:
        """Whether another wrote the same just now, and who tries again finds it written.

        22012, as logs.py raises it; 40P01, of two that wait for each other PostgreSQL gives up one.
        """
        return self.sqlstate in {"22012", "40P01"}
