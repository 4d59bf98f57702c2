"""The users file: who may log in, as `name:bcrypt-hash` lines (the htpasswd format)."""

from __future__ import annotations

from pathlib import Path


def parse_users(text: str) -> dict[str, str]:
    """Given the text of a users file, return the bcrypt hash of each user name.

    Blank lines and lines that start with "#" are passed over. Raise ValueError with the
    line's number if a line is not `name:$2…`.
    """
    users = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, password_hash = line.partition(":")
        if not colon or not name or not password_hash.startswith("$2"):
            raise ValueError(f"line {number} of the users file is not name:bcrypt-hash")
        users[name] = password_hash
    return users


class UsersFile:
    """A users file that is read again when it changes (its inode, size or time).

    A file that cannot be read or parsed keeps the users known before it: an editor's
    half-written file must not lock everybody out. `error` says what was wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: str | None = None
        self._users: dict[str, str] = {}
        self._generation: tuple[int, int, int] | None = None

    def current(self) -> dict[str, str]:
        """Return the hash of each user, as the file says now."""
        try:
            stat = self.path.stat()
            generation = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if generation != self._generation:
                self._users = parse_users(self.path.read_text(encoding="utf-8"))
                self._generation = generation
                self.error = None
        except (OSError, ValueError) as error:
            self.error = str(error)
        return self._users
