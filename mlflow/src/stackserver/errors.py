"""One exception for everything that the server refuses and an operator can mend."""

from __future__ import annotations

import sys
from typing import NoReturn

EXIT_REFUSED = 78  # EX_CONFIG of sysexits.h


class RefusedError(Exception):
    """What is wrong and what it means, and the edit or command that mends it (`fix`)."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def exit_refused(refusal: RefusedError) -> NoReturn:
    """Print the refusal as ./stack looks for it in a container's log, and exit with 78."""
    print(f"REFUSED: {refusal}\nfix: {refusal.fix}", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_REFUSED)
