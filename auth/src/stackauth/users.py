"""Who may log in and what they may do: the users file and the tokens file beside it.

accounts name:bcrypt-hash:role[:disabled[:id]]   the htpasswd format and three fields; no role is admin
tokens   sha256:name:label:made:expires      hexadecimal, Unix seconds, "-" for what never expires
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

ROLES = ("reader", "writer", "approver", "admin")
"""What a user may do, each with all that the ones before it may (nginx/http.d/rights.conf)."""
NO_PASSWORD = "*"  # noqa: S105  what no hash is
ID = re.compile(r"[0-9a-f]*")
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class User:
    """A user who may log in: the bcrypt hash of the password ("*": none fits), the role, the account's id."""

    password_hash: str
    role: str
    id: str = ""


@dataclass(frozen=True)
class Token:
    """A machine's key: whose it is, and the Unix time at which it ends (None: never)."""

    owner: str
    expires: float | None


def parse_users(text: str) -> dict[str, User]:
    """Given the text of a users file, return each user who is not disabled.

    Blank lines and lines that start with "#" are passed over. Raise ValueError with the
    line's number if a line is not `name:$2…:role`.
    """
    users = {}
    for number, line in _lines(text):
        name, _, rest = line.partition(":")
        password_hash, _, rest = rest.partition(":")
        role, _, rest = rest.partition(":")
        state, _, account_id = rest.partition(":")
        if not name or not (password_hash.startswith("$2") or password_hash == NO_PASSWORD):
            raise ValueError(f"line {number} of the users file is not name:bcrypt-hash:role")
        if (role or "admin") not in ROLES or state not in {"", "disabled"} or not ID.fullmatch(account_id):
            raise ValueError(f"line {number} of the users file has an unknown role or state")
        if not state:
            users[name] = User(password_hash, role or "admin", account_id)
    return users


def parse_tokens(text: str) -> dict[str, Token]:
    """Given the text of a tokens file, return each token by its SHA-256 (hexadecimal).

    Raise ValueError with the line's number if a line is not as it must be.
    """
    tokens = {}
    for number, line in _lines(text):
        fields = line.split(":")
        try:
            digest, owner, _, _, expires = fields
            tokens[digest] = Token(owner, None if expires == "-" else float(expires))
        except ValueError as error:
            raise ValueError(f"line {number} of the tokens file is not as it must be") from error
    return tokens


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if line and not line.startswith("#"):
            yield number, line


class Watched(Generic[Parsed]):
    """A file that is read again when it changes (its inode, size or time).

    One that cannot be read or parsed keeps what was known before it: an editor's half-written
    file must not lock everybody out. `error` says what was wrong.
    """

    def __init__(self, path: Path, parse: Callable[[str], Parsed], *, optional: bool = False) -> None:
        self.path = path
        self.error: str | None = None
        self._parse = parse
        self._optional = optional
        self._value = parse("")
        self._generation: tuple[int, int, int] | None = None

    def current(self) -> Parsed:
        """Return what the file says now."""
        try:
            if self._optional and not self.path.exists():
                self._value, self._generation, self.error = self._parse(""), None, None
                return self._value
            stat = self.path.stat()
            generation = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if generation != self._generation:
                self._value = self._parse(self.path.read_text(encoding="utf-8"))
                self._generation = generation
                self.error = None
        except (OSError, ValueError) as error:
            self.error = str(error)
        return self._value
