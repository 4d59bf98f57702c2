"""Decide about one login: remembered, to be verified, refused, or asked too often.

Three facts shape this (all measured, see docs/security.md): a bcrypt check costs about
50 ms of CPU, so a credential that was verified stays verified until its user's hash
changes; a flood of guesses must not push honest users out, so failures are counted per
address and user name, and waiting checks are served with the quietest address first; and
an unknown name must cost the guesser the same time as a wrong password, but us no CPU.

A machine's token has 256 random bits: it is found by its SHA-256, nobody guesses it, so it
is neither slowed nor limited.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import itertools
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import bcrypt

from stackauth.users import NO_PASSWORD, ROLES, Token, User

TOKEN_PREFIX = "mlf_"  # noqa: S105
"""How a token begins; no password may."""
FAILURES_ALLOWED = 10
"""Wrong passwords that one address may try for one user name within FAILURE_WINDOW_SECONDS."""
FAILURE_WINDOW_SECONDS = 60.0
WAITING_CHECKS_LIMIT = 64
"""Checks that may wait for the one bcrypt thread (about 3 s of work). A quieter one takes the place
of the loudest."""
REMEMBERED_LIMIT = 10_000
"""Credentials, right or wrong, and addresses that are remembered at most."""


class Outcome(Enum):
    """What to answer: the values are HTTP status codes of the verify route."""

    ACCEPTED = 204
    REFUSED = 401
    TOO_MANY = 403  # auth_request passes only 2xx, 401 and 403 on


@dataclass(frozen=True)
class Login:
    """The decision about one login. `user`, `role` and the account's `id` are set only when accepted."""

    outcome: Outcome
    user: str = ""
    role: str = ""
    id: str = ""
    retry_after_seconds: int = 0

    def may(self, right: str) -> bool:
        """Return whether the user's role has a right (a name of ROLES)."""
        return ROLES.index(self.role) >= ROLES.index(right)


def parse_basic(authorization: str) -> tuple[str, str] | None:
    """Given an Authorization header, return (name, password), or None if it is not Basic.

    The password may hold colons and any UTF-8 (RFC 7617). What is not UTF-8 is read as
    Latin-1, which Python's requests sends for such characters as "ü".
    """
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        raw = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    try:
        decoded = raw.decode("utf-8")
    except UnicodeDecodeError:
        decoded = raw.decode("latin-1")
    name, colon, password = decoded.partition(":")
    return (name, password) if colon and name else None


def parse_bearer(authorization: str) -> str | None:
    """Given an Authorization header, return its token, or None if it is not Bearer."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def check_bcrypt(password: str, password_hash: str) -> bool:
    """Return whether the password has this bcrypt hash (about 50 ms at cost 10).

    bcrypt reads 72 bytes; what is longer is refused when a password is set.
    """
    return bcrypt.checkpw(password.encode()[:72], password_hash.encode())


@dataclass
class Check:
    """A password that waits for its check. `loudness` decides who is served first, and who has to go."""

    loudness: tuple[int, int, int, int]
    address: str
    name: str
    password: str
    password_hash: str
    answer: asyncio.Future[bool | None]

    def __lt__(self, other: Check) -> bool:
        return self.loudness < other.loudness


class Bounded(OrderedDict):
    """A mapping that forgets its oldest entry beyond REMEMBERED_LIMIT."""

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > REMEMBERED_LIMIT:
            self.popitem(last=False)


def _accepted(name: str, user: User) -> Login:
    return Login(Outcome.ACCEPTED, name, user.role, user.id)


class LoginDesk:
    """Decides about logins and remembers what was decided. One per process."""

    def __init__(
        self,
        users: Callable[[], dict[str, User]],
        tokens: Callable[[], dict[str, Token]] = dict,
        *,
        check: Callable[[str, str], bool] = check_bcrypt,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._users = users
        self._tokens = tokens
        self._check = check
        self._clock = clock
        self._pepper = os.urandom(32)
        self._verified: Bounded = Bounded()  # digest -> (user, hash it was verified against)
        self._wrong: Bounded = Bounded()  # digest -> (hash it failed against, time)
        self._failures: Bounded = Bounded()  # (address, user) -> times of failures
        self._failing_addresses: Bounded = Bounded()  # address -> (failures, time of the last)
        self._known_addresses: Bounded = Bounded()  # address -> True: a right password came from it
        self._queue: asyncio.PriorityQueue[Check] = asyncio.PriorityQueue()
        self._order = itertools.count()
        self._waiting: dict[bytes, Check] = {}
        self._check_seconds = 0.05
        self.checks_done = 0

    async def decide(self, authorization: str, address: str) -> Login:
        """Return the decision about an Authorization header that came from an address."""
        if token := parse_bearer(authorization):
            return self._decide_token(None, token)
        credentials = parse_basic(authorization)
        if credentials is None:
            return Login(Outcome.REFUSED)
        name, password = credentials
        if password.startswith(TOKEN_PREFIX):
            return self._decide_token(name, password)
        return await self._decide_password(authorization, name, password, address)

    async def _decide_password(self, authorization: str, name: str, password: str, address: str) -> Login:
        digest = hmac.digest(self._pepper, authorization.encode("utf-8", "replace"), hashlib.sha256)
        user = self._users().get(name)
        password_hash = user.password_hash if user and user.password_hash != NO_PASSWORD else None

        remembered = self._verified.get(digest)
        if remembered is not None and remembered == (name, password_hash):
            return _accepted(name, user)
        if wait := self._locked_seconds(address, name):
            return Login(Outcome.TOO_MANY, retry_after_seconds=wait)
        if self._failed_lately(digest, password_hash):
            return Login(Outcome.REFUSED)  # the same wrong words again: no check, no count
        if password_hash is None:
            await asyncio.sleep(self._check_seconds)
            self._count_failure(address, name)
            self._wrong[digest] = (None, self._clock())
            return Login(Outcome.REFUSED)
        right = await self._check_in_turn(digest, password, password_hash, (address, name))
        if right is None:
            return Login(Outcome.TOO_MANY, retry_after_seconds=2)
        if right:
            self._verified[digest] = (name, password_hash)
            self._known_addresses[address] = True
            return _accepted(name, user)
        if not self._failed_lately(digest, password_hash):  # of many at once, count one
            self._wrong[digest] = (password_hash, self._clock())
            self._count_failure(address, name)
        return Login(Outcome.REFUSED)

    def _decide_token(self, name: str | None, text: str) -> Login:
        """Decide about a token; with a name it must be its owner's."""
        token = self._tokens().get(hashlib.sha256(text.encode()).hexdigest())
        if token is None or (name is not None and name != token.owner):
            return Login(Outcome.REFUSED)
        user = self._users().get(token.owner)
        if user is None or (token.expires is not None and time.time() >= token.expires):
            return Login(Outcome.REFUSED)
        return _accepted(token.owner, user)

    async def serve_checks(self) -> None:
        """Do the waiting checks, one at a time, outside the event loop. Runs for ever."""
        while True:
            check = await self._queue.get()
            if check.answer.done():  # it had to go
                continue
            started = self._clock()
            try:
                result = await asyncio.to_thread(self._check, check.password, check.password_hash)
            except ValueError as error:  # a hash that bcrypt cannot read
                print(f"login: {error}", flush=True)
                result = False
            self._check_seconds = min(self._clock() - started, 1.0)
            self.checks_done += 1
            if not check.answer.done():
                check.answer.set_result(result)

    async def _check_in_turn(
        self, digest: bytes, password: str, password_hash: str, guessed: tuple[str, str]
    ) -> bool | None:
        """Return whether a password is right; None if too many wait. Equal ones share one check."""
        check = self._waiting.get(digest)
        if check is None:
            check = self._line_up(password, password_hash, guessed)
            if check is None:
                return None
            self._waiting[digest] = check
            check.answer.add_done_callback(lambda _: self._waiting.pop(digest, None))
            await self._queue.put(check)
        return await asyncio.shield(check.answer)

    def _line_up(self, password: str, password_hash: str, guessed: tuple[str, str]) -> Check | None:
        """Return a check for the queue, or None if there is no place for it.

        What waits counts as if it had failed: many guesses at once are no way around the limit.
        """
        address, name = guessed
        waiting = [check for check in self._waiting.values() if not check.answer.done()]
        beside = [check for check in waiting if check.address == address]
        same = sum(check.name == name for check in beside)
        of_pair = len(self._failures.get(guessed, ())) + same
        if of_pair >= FAILURES_ALLOWED:
            return None
        failures, _ = self._failing_addresses.get(address, (0, 0.0))
        unknown = int(address not in self._known_addresses)
        loudness = (of_pair, unknown, failures + len(beside), next(self._order))
        if len(waiting) >= WAITING_CHECKS_LIMIT:
            loudest = max(waiting)
            if loudest.loudness[:3] <= loudness[:3]:
                return None
            loudest.answer.set_result(None)
        answer = asyncio.get_running_loop().create_future()
        return Check(loudness, address, name, password, password_hash, answer)

    def _failed_lately(self, digest: bytes, password_hash: str | None) -> bool:
        entry = self._wrong.get(digest)
        return (
            entry is not None
            and entry[0] == password_hash
            and self._clock() - entry[1] < FAILURE_WINDOW_SECONDS
        )

    def _locked_seconds(self, address: str, name: str) -> int:
        times = self._failures.get((address, name))
        if not times:
            return 0
        now = self._clock()
        while times and now - times[0] >= FAILURE_WINDOW_SECONDS:
            times.popleft()
        if len(times) < FAILURES_ALLOWED:
            return 0
        return max(1, round(FAILURE_WINDOW_SECONDS - (now - times[0])))

    def _count_failure(self, address: str, name: str) -> None:
        now = self._clock()
        self._failures.setdefault((address, name), deque(maxlen=FAILURES_ALLOWED)).append(now)
        self._failures.move_to_end((address, name))
        while len(self._failures) > REMEMBERED_LIMIT:
            self._failures.popitem(last=False)
        failures, last = self._failing_addresses.get(address, (0, now))
        if now - last >= FAILURE_WINDOW_SECONDS:
            failures = 0
        self._failing_addresses[address] = (failures + 1, now)
