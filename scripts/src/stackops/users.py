"""Users and machine tokens: who may log in, and the files that the login service reads.

accounts name:bcrypt-hash:role[:disabled[:id]]   the htpasswd format and three fields; no role is admin
tokens   sha256:name:label:made:expires     hexadecimal, Unix seconds, "-" for what never expires
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import bcrypt
from zxcvbn import zxcvbn

from stackops.errors import OperationError

ROLES = ("reader", "writer", "approver", "admin")
"""What a user may do, each with all that the ones before it may (nginx/http.d/rights.conf)."""
ADMIN = "admin"
BCRYPT_COST = 10
BCRYPT_BYTES = 72
LEAST_CHARACTERS = 10
LEAST_SCORE = 3
"""Of zxcvbn's 0 to 4: 3 takes over 10^8 guesses."""
TOKEN_PREFIX = "mlf_"  # noqa: S105  how a token begins
NO_PASSWORD = "*"  # noqa: S105  what no hash is
TOKEN_BYTES = 32
ID_BYTES = 8
DAY_SECONDS = 86_400
MOST_DAYS = 36_500
OWN_ADMIN = "# The user admin is no longer as at first."
"""A comment in the users file: `stackops secrets ensure` leaves admin alone."""
ANOTHER = "choose another one, or leave it out: a random one is made and shown"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class User:
    """A user: the bcrypt hash of the password ("*": none, tokens only), the role, whether switched off.

    `id` tells this account from an earlier one of the same name, whose permissions in MLflow are
    not its own (AUTHORIZATION=rbac); "" in a file made before there were ids.
    """

    name: str
    password_hash: str
    role: str = ADMIN
    disabled: bool = False
    id: str = ""


@dataclass(frozen=True)
class Token:
    """A machine's key: its SHA-256, whose it is, its label, when it was made and ends (Unix seconds)."""

    digest: str
    owner: str
    label: str
    made: int
    expires: int | None = None


@dataclass
class Accounts:
    """All users and tokens. What is refused is an OperationError, and nothing is changed."""

    users: dict[str, User] = field(default_factory=dict)
    tokens: list[Token] = field(default_factory=list)
    own_admin: bool = False
    """Whether the user admin is the operators' own affair: changed or removed, no longer as at first."""

    def add(self, name: str, role: str, password: str | None) -> None:
        """Add a user; without a password only tokens open the door."""
        if not NAME.fullmatch(name):
            raise OperationError(
                f"{name!r} is no user name: 1 to 64 letters, digits and . _ @ + -, not first a sign",
                "choose another name",
            )
        if name in self.users:
            raise OperationError(
                f"there is a user {name} already", f"./stack user passwd {name}, or another name"
            )
        password_hash = NO_PASSWORD if password is None else hash_password(name, password)
        self.users[name] = User(name, password_hash, _role(role), id=new_id())

    def set_password(self, name: str, password: str) -> None:
        """Give a user another password."""
        self.users[name] = replace(self.user(name), password_hash=hash_password(name, password))
        self.own_admin = self.own_admin or name == ADMIN

    def set_role(self, name: str, role: str) -> None:
        """Give a user another role."""
        self._change(replace(self.user(name), role=_role(role)))

    def set_disabled(self, name: str, *, disabled: bool) -> None:
        """Switch a user off or on again; the tokens follow."""
        self._change(replace(self.user(name), disabled=disabled))

    def remove(self, name: str) -> None:
        """Remove a user and the tokens."""
        self.user(name)
        left = {other: user for other, user in self.users.items() if other != name}
        _need_admin(left)
        self.users = left
        self.tokens = [token for token in self.tokens if token.owner != name]
        self.own_admin = self.own_admin or name == ADMIN

    def add_token(self, name: str, label: str, days: int | None = None) -> str:
        """Return a new token of a user; only its digest is kept."""
        self.user(name)
        if not LABEL.fullmatch(label):
            raise OperationError(
                f"{label!r} is no label: 1 to 64 letters, digits and . _ -, not first a sign",
                "choose another label",
            )
        if any((token.owner, token.label) == (name, label) for token in self.tokens):
            raise OperationError(
                f"{name} has a token {label} already", f"./stack user token {name} --revoke {label}"
            )
        if days is not None and not 1 <= days <= MOST_DAYS:
            raise OperationError(f"a token lasts 1 to {MOST_DAYS} days", "another --days, or none: for ever")
        text = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        now = int(time.time())
        expires = now + days * DAY_SECONDS if days else None
        self.tokens.append(Token(hashlib.sha256(text.encode()).hexdigest(), name, label, now, expires))
        return text

    def revoke(self, name: str, label: str) -> None:
        """Take a token back."""
        self.user(name)
        left = [token for token in self.tokens if (token.owner, token.label) != (name, label)]
        if len(left) == len(self.tokens):
            raise OperationError(f"{name} has no token {label}", "./stack user list")
        self.tokens = left

    def user(self, name: str) -> User:
        """Return a user. Raise OperationError if there is none of that name."""
        if name not in self.users:
            raise OperationError(f"there is no user {name}", "./stack user list")
        return self.users[name]

    def _change(self, user: User) -> None:
        changed = {**self.users, user.name: user}
        _need_admin(changed)
        self.users = changed

    def render_users(self) -> str:
        """Return the text of the users file."""
        lines = [_line_of(user) for user in self.users.values()]
        return "".join(f"{line}\n" for line in [*[OWN_ADMIN] * self.own_admin, *lines])

    def render_former(self) -> str:
        """Return the text of the users file of a version without roles: names and hashes."""
        return "".join(
            f"{user.name}:{user.password_hash}\n"
            for user in self.users.values()
            if not user.disabled and user.password_hash != NO_PASSWORD
        )

    def render_tokens(self) -> str:
        """Return the text of the tokens file."""
        return "".join(
            f"{token.digest}:{token.owner}:{token.label}:{token.made}:{token.expires or '-'}\n"
            for token in self.tokens
        )


def new_id() -> str:
    """Return the id of a new account."""
    return secrets.token_hex(ID_BYTES)


def _line_of(user: User) -> str:
    fields = (user.name, user.password_hash, user.role, "disabled" if user.disabled else "", user.id)
    return ":".join(fields).rstrip(":")


def _role(role: str) -> str:
    if role not in ROLES:
        raise OperationError(f"{role!r} is no role: {', '.join(ROLES)}", "choose one of them")
    return role


def _need_admin(users: dict[str, User]) -> None:
    if not any(user.role == ADMIN and not user.disabled for user in users.values()):
        raise OperationError(
            "nobody would be an admin any more; nothing was changed",
            "./stack user role NAME admin, for another one",
        )


def check_text(password: str) -> None:
    """Raise OperationError for a password that could never be used."""
    if any(not character.isprintable() for character in password):
        raise OperationError("the password has a control character", ANOTHER)
    if password.startswith(TOKEN_PREFIX):
        raise OperationError(f"a password must not begin with {TOKEN_PREFIX}, as tokens do", ANOTHER)
    if len(password.encode()) > BCRYPT_BYTES:
        raise OperationError(f"the password is longer than bcrypt's {BCRYPT_BYTES} bytes", ANOTHER)


def hash_password(name: str, password: str) -> str:
    """Return the bcrypt hash of a good password. Raise OperationError with the reason for a weak one."""
    check_text(password)
    if len(password) < LEAST_CHARACTERS:
        raise OperationError(f"the password has fewer than {LEAST_CHARACTERS} characters", ANOTHER)
    found = zxcvbn(password, user_inputs=[name, "mlflow"])
    if found["score"] < LEAST_SCORE:
        advice = [found["feedback"]["warning"], *found["feedback"]["suggestions"]]
        raise OperationError(
            f"the password is easy to guess: {' '.join(text for text in advice if text)}".rstrip(": "),
            ANOTHER,
        )
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(BCRYPT_COST)).decode()


def parse(users: str, tokens: str) -> Accounts:
    """Return the accounts of the texts of both files."""
    accounts = Accounts(own_admin=OWN_ADMIN in users.splitlines())
    for number, line in _lines(users):
        name, password_hash, role, state, account_id, *_ = (*line.split(":"), "", "", "", "")
        if not name or not (password_hash.startswith("$2") or password_hash == NO_PASSWORD):
            raise OperationError(
                f"line {number} of the accounts is not name:bcrypt-hash:role",
                "correct it, or restore a backup",
            )
        accounts.users[name] = User(name, password_hash, role or ADMIN, state == "disabled", account_id)
    for number, line in _lines(tokens):
        try:
            digest, owner, label, made, expires = line.split(":")
            ends = None if expires == "-" else int(expires)
            accounts.tokens.append(Token(digest, owner, label, int(made), ends))
        except ValueError as error:
            raise OperationError(
                f"line {number} of the tokens is not as it must be", "take it out, or restore a backup"
            ) from error
    return accounts


def _lines(text: str) -> list[tuple[int, str]]:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others from changing the accounts of a folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(folder: Path) -> Accounts:
    """Return the accounts of a folder; a missing file is an empty one."""
    found = folder / "accounts"
    if not found.exists():  # made by a version without roles
        found = folder / "users"
    texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in (found, folder / "tokens")]
    return parse(*texts)
