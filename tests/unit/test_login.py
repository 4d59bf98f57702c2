"""The login desk: what it remembers, counts and refuses. bcrypt is replaced by a counter."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackauth.login import (
    FAILURE_WINDOW_SECONDS,
    FAILURES_ALLOWED,
    LoginDesk,
    Outcome,
    check_bcrypt,
    parse_basic,
)


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


class Desk:
    """A desk whose hashes are "hash of PASSWORD", with a clock that a test moves."""

    def __init__(self, **passwords: str) -> None:
        self.users = {name: f"hash of {password}" for name, password in passwords.items()}
        self.now = 1000.0
        self.checked: list[str] = []
        self.desk = LoginDesk(lambda: self.users, check=self._check, clock=lambda: self.now)
        self.desk._check_seconds = 0

    def _check(self, password: str, password_hash: str) -> bool:
        self.checked.append(password)
        return password_hash == f"hash of {password}"

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            checks = asyncio.create_task(self.desk.serve_checks())
            await scenario()
            checks.cancel()

        asyncio.run(main())

    async def outcome(self, name: str, password: str, address: str = "10.0.0.1") -> Outcome:
        return (await self.desk.decide(basic(name, password), address)).outcome


def test_a_right_password_is_checked_once_and_then_remembered() -> None:
    desk = Desk(alice="secret")

    async def scenario() -> None:
        for _ in range(5):
            assert await desk.outcome("alice", "secret") is Outcome.ACCEPTED

    desk.run(scenario)
    assert desk.checked == ["secret"]


def test_a_changed_hash_ends_a_remembered_login_at_once() -> None:
    desk = Desk(alice="secret")

    async def scenario() -> None:
        assert await desk.outcome("alice", "secret") is Outcome.ACCEPTED
        desk.users["alice"] = "hash of another"
        assert await desk.outcome("alice", "secret") is Outcome.REFUSED
        assert await desk.outcome("alice", "another") is Outcome.ACCEPTED
        del desk.users["alice"]
        assert await desk.outcome("alice", "another") is Outcome.REFUSED

    desk.run(scenario)


def test_a_password_refused_before_is_accepted_after_it_became_right() -> None:
    desk = Desk(alice="secret")

    async def scenario() -> None:
        assert await desk.outcome("alice", "another") is Outcome.REFUSED
        desk.users["alice"] = "hash of another"
        assert await desk.outcome("alice", "another") is Outcome.ACCEPTED

    desk.run(scenario)


def test_guesses_are_counted_per_address_and_user_and_forgiven_after_the_window() -> None:
    desk = Desk(alice="secret", bob="secret")

    async def scenario() -> None:
        for number in range(FAILURES_ALLOWED):
            assert await desk.outcome("alice", f"guess {number}") is Outcome.REFUSED
        assert await desk.outcome("alice", "one more") is Outcome.TOO_MANY
        assert await desk.outcome("alice", "secret") is Outcome.TOO_MANY
        assert await desk.outcome("bob", "secret") is Outcome.ACCEPTED
        assert await desk.outcome("alice", "secret", address="10.0.0.2") is Outcome.ACCEPTED
        desk.now += FAILURE_WINDOW_SECONDS
        assert await desk.outcome("alice", "secret") is Outcome.ACCEPTED

    desk.run(scenario)
    assert "one more" not in desk.checked


def test_a_logged_in_user_is_untouched_by_guesses_from_the_same_address() -> None:
    desk = Desk(alice="secret")

    async def scenario() -> None:
        assert await desk.outcome("alice", "secret") is Outcome.ACCEPTED
        for number in range(10 * FAILURES_ALLOWED):
            await desk.outcome("alice", f"guess {number}")
        assert await desk.outcome("alice", "secret") is Outcome.ACCEPTED

    desk.run(scenario)


def test_the_same_wrong_password_again_is_neither_checked_nor_counted() -> None:
    desk = Desk(alice="secret")

    async def scenario() -> None:
        for _ in range(5 * FAILURES_ALLOWED):
            assert await desk.outcome("alice", "old password") is Outcome.REFUSED
        assert await desk.outcome("alice", "secret") is Outcome.ACCEPTED

    desk.run(scenario)
    assert desk.checked == ["old password", "secret"]


def test_unknown_names_cost_no_check() -> None:
    desk = Desk(alice="secret")

    async def scenario() -> None:
        for number in range(50):
            assert await desk.outcome(f"nobody{number}", "guess") is Outcome.REFUSED

    desk.run(scenario)
    assert desk.checked == []


def test_forty_users_behind_one_address_all_come_in_during_a_flood() -> None:
    desk = Desk(**{f"user{number}": "secret" for number in range(40)}, victim="secret")

    async def scenario() -> None:
        flood = [desk.outcome("victim", f"guess {number}") for number in range(200)]
        users = [desk.outcome(f"user{number}", "secret") for number in range(40)]
        results = await asyncio.gather(*flood, *users)
        for number, result in enumerate(results[200:]):
            if result is not Outcome.ACCEPTED:  # the queue was full: the client tries again
                assert await desk.outcome(f"user{number}", "secret") is Outcome.ACCEPTED

    desk.run(scenario)


def test_requests_at_once_with_one_password_share_one_check() -> None:
    desk = Desk(alice="secret")

    async def scenario() -> None:
        results = await asyncio.gather(*(desk.outcome("alice", "secret") for _ in range(30)))
        assert set(results) == {Outcome.ACCEPTED}

    desk.run(scenario)
    assert desk.checked == ["secret"]


@pytest.mark.parametrize(
    "header",
    ["", "Basic", "Basic ", "Basic !!!", "Bearer abc", "Basic " + base64.b64encode(b"no colon").decode()],
)
def test_what_is_not_basic_is_refused_without_a_check(header: str) -> None:
    desk = Desk(alice="secret")

    async def scenario() -> None:
        assert (await desk.desk.decide(header, "10.0.0.1")).outcome is Outcome.REFUSED

    desk.run(scenario)
    assert desk.checked == []


@given(name=st.text(min_size=1).filter(lambda text: ":" not in text), password=st.text())
def test_basic_credentials_of_any_text_are_read_back(name: str, password: str) -> None:
    try:
        header = basic(name, password)
    except UnicodeEncodeError:  # a lone surrogate is no text
        return
    assert parse_basic(header) == (name, password)


def test_a_password_that_requests_encoded_as_latin_1_is_read() -> None:
    header = "Basic " + base64.b64encode("admin:grün".encode("latin-1")).decode()
    assert parse_basic(header) == ("admin", "grün")


@given(header=st.text())
def test_no_header_text_raises(header: str) -> None:
    parse_basic(header)


def test_bcrypt_tells_a_right_password_from_a_wrong_one() -> None:
    password_hash = bcrypt.hashpw("grün €".encode(), bcrypt.gensalt(4)).decode()
    assert check_bcrypt("grün €", password_hash)
    assert not check_bcrypt("gruen", password_hash)
