"""Exceptions of the operations; each says what an operator can do."""

from __future__ import annotations

from typing import Any


class OperationError(Exception):
    """What is wrong, and the command or edit that mends it (`fix`). Nothing was changed."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


class BusyError(OperationError):
    """Another backup, cleanup or upgrade is at work."""


class FailedError(OperationError):
    """It was tried and did not work, or not all of it; `facts` is what was done nevertheless."""

    def __init__(self, message: str, fix: str, facts: dict[str, Any] | None = None) -> None:
        super().__init__(message, fix)
        self.facts = facts or {}
