"""Guessing of passwords, from the honest client's own address and from many: nobody else is refused."""

from __future__ import annotations

import secrets
import time
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest
import requests

from kit.door import Door, basic, docker, door, send, stack_networks, user
from kit.flood import Flood
from kit.stack import Stack
from kit.writer import Writer

MANY = tuple(f"198.51.100.{number}" for number in range(1, 201))
ELSEWHERE = "198.51.100.250"
REMEMBERED_SECONDS = 2
"""How long nginx remembers a login (nginx/server.d/00-gates.conf)."""
WINDOW_SECONDS = 60
"""How long the login service remembers failures."""
FAILURES_ALLOWED = 10
"""Wrong passwords of one user from one address in that time."""
SOME_POINTS = 30


@pytest.fixture(scope="module")
def trusting(stack: Stack) -> Iterator[Door]:
    """A door that believes what this machine says of the addresses of its clients."""
    outside, _ = stack_networks(stack)
    gateway = docker("network", "inspect", outside, "--format", "{{(index .IPAM.Config 0).Gateway}}").strip()
    with door(stack, stack_networks(stack), TRUSTED_PROXIES=gateway) as opened:
        yield opened


def seen_address(opened: Door, claimed: str) -> str:
    """Return the address that the door takes a client for."""
    path = f"/no-such/{claimed}"
    send(opened.port, "GET", path, X_Forwarded_For=claimed)
    return opened.log_line(path).split()[0]


def guess(opened: Door, name: str, **headers: str) -> int:
    """Guess a password of a user and return the status of the answer."""
    return send(
        opened.port, "HEAD", "/version", Authorization=basic(name, secrets.token_hex(8)), **headers
    ).status


def logged_in(name_and_password: requests.auth.HTTPBasicAuth) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.auth = name_and_password
    return session


@pytest.mark.parametrize(
    "addresses", [("",) * 16, ("", *MANY)], ids=["the honest client's address", "200 addresses and that one"]
)
@pytest.mark.parametrize(
    "seconds",
    [3 * REMEMBERED_SECONDS, pytest.param(3 * WINDOW_SECONDS, marks=pytest.mark.long)],
    ids=["3 lifetimes of a login in nginx", "3 windows of failures"],
)
def test_a_training_job_loses_no_point_and_nobody_is_refused(
    stack: Stack,
    trusting: Door,
    addresses: tuple[str, ...],
    seconds: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job's own user name is guessed at too. Its client repeats nothing."""
    # New names each time: those of the last test are locked for a minute, for this address.
    names = [f"{name}-{uuid.uuid4().hex[:6]}" for name in ("alice", "bob", "ivan")]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    seen: Counter[int] = Counter()
    with user(stack, names[0]) as alice, user(stack, names[1]) as bob, user(stack, names[2]):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", alice.username)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", alice.password)
        assert seen_address(trusting, MANY[0]) == MANY[0]
        with (
            Writer(trusting) as job,
            logged_in(alice) as page,
            logged_in(bob) as newcomer,
            Flood(trusting.port, [names[0], names[2]], addresses) as flood,
        ):
            ends = time.monotonic() + seconds
            while time.monotonic() < ends or len(job.acknowledged) < SOME_POINTS or newcomer.auth:
                seen[page.get(f"{trusting.url}/version", timeout=60).status_code] += 1
                if newcomer.auth and sum(flood.statuses.values()) > SOME_POINTS:
                    seen[newcomer.get(f"{trusting.url}/version", timeout=60).status_code] += 1
                    newcomer.auth = None
        assert flood.failed == []
        job.assert_nothing_lost()
        assert set(seen) == {200}, seen
        assert set(flood.statuses) == {401, 429}, flood.statuses
        assert sum(flood.statuses.values()) > 50
        # alice's name is locked for newcomers from here, and only from here
        heard = [guess(trusting, names[0]) for _ in range(FAILURES_ALLOWED + 1)]
        assert 429 in heard, heard  # not always the last: a lock of the flood's may end in between
        assert guess(trusting, names[0], X_Forwarded_For=ELSEWHERE) == 401
