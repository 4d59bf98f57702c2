"""One exception for everything that an operator can mend."""


class OperationError(Exception):
    """What is wrong, and the command or edit that mends it (`fix`)."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix
