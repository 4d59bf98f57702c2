"""The login desk: what it remembers, counts and refuses. bcrypt is replaced by a counter."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackauth.login import (
    FAILURE_WINDOW_SECONDS,
    FAILURES_ALLOWED,
    WAITING_CHECKS_LIMIT,
    LoginDesk,
    Outcome,
    check_bcrypt,
    parse_basic,
)
from stackauth.users import NO_PASSWORD, Token, User


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


class Desk:
    """A desk whose hashes are "hash of PASSWORD", with a clock that a test moves."""

    def __init__(self, **passwords: str) -> None:
        self.users = {name: User(f"hash of {password}", "writer") for name, password in passwords.items()}
        self.tokens: dict[str, Token] = {}
        self.now = 1000.0
        self.checked: list[str] = []
        self.desk = LoginDesk(
            lambda: self.users, lambda: self.tokens, check=self._check, clock=lambda: self.now
        )
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
        desk.users["alice"] = User("hash of another", "writer")
        assert await desk.outcome("alice", "secret") is Outcome.REFUSED
        assert await desk.outcome("alice", "another") is Outcome.ACCEPTED
        del desk.users["alice"]
        assert await desk.outcome("alice", "another") is Outcome.REFUSED

    desk.run(scenario)


def test_a_password_refused_before_is_accepted_after_it_became_right() -> None:
    desk = Desk(alice="secret")

    async def scenario() -> None:
        assert await desk.outcome("alice", "another") is Outcome.REFUSED
        desk.users["alice"] = User("hash of another", "writer")
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
        assert set(results[200:]) == {Outcome.ACCEPTED}
        assert results[:200].count(Outcome.REFUSED) <= FAILURES_ALLOWED

    desk.run(scenario)
    assert len(desk.checked) <= 40 + FAILURES_ALLOWED


def test_a_newcomer_comes_in_while_guesses_of_many_addresses_fill_the_queue() -> None:
    """From an address that was there before, even if there is guessing from it as well."""
    desk = Desk(alice="secret", bob="secret", victim="secret")
    many = ["10.0.0.1", *(f"198.51.100.{number}" for number in range(1, 101))]

    async def scenario() -> None:
        assert await desk.outcome("alice", "secret", "10.0.0.1") is Outcome.ACCEPTED
        flood = [
            asyncio.create_task(desk.outcome("victim", f"{number} {at}", at))
            for number in range(3)
            for at in many
        ]
        await asyncio.sleep(0)
        assert len(desk.desk._waiting) == WAITING_CHECKS_LIMIT
        assert await desk.outcome("bob", "secret", "10.0.0.1") is Outcome.ACCEPTED
        assert set(await asyncio.gather(*flood)) == {Outcome.REFUSED, Outcome.TOO_MANY}

    desk.run(scenario)


def test_a_quiet_address_comes_in_before_those_that_have_guessed() -> None:
    desk = Desk(alice="secret", victim="secret")
    many = [f"198.51.100.{number}" for number in range(1, 61)]

    async def scenario() -> None:
        await asyncio.gather(*(desk.outcome("victim", f"first {at}", at) for at in many))
        flood = [
            asyncio.create_task(desk.outcome("victim", f"{number} {at}", at))
            for number in range(3)
            for at in many
        ]
        await asyncio.sleep(0)
        assert await desk.outcome("alice", "secret", "10.0.0.1") is Outcome.ACCEPTED
        await asyncio.gather(*flood)

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


# Tokens and roles.


def test_a_token_opens_for_its_owner_at_once_and_after_any_number_of_failures() -> None:
    desk = Desk(alice="secret", bob="other")
    digest = hashlib.sha256(b"mlf_right").hexdigest()
    desk.tokens[digest] = Token("alice", None)

    async def scenario() -> None:
        for _ in range(FAILURES_ALLOWED * 3):
            assert await desk.outcome("alice", "mlf_wrong") is Outcome.REFUSED
        assert await desk.outcome("alice", "mlf_right") is Outcome.ACCEPTED
        assert await desk.outcome("bob", "mlf_right") is Outcome.REFUSED
        login = await desk.desk.decide("Bearer mlf_right", "10.0.0.1")
        assert (login.outcome, login.user, login.role) == (Outcome.ACCEPTED, "alice", "writer")
        assert (await desk.desk.decide("Bearer mlf_wrong", "10.0.0.1")).outcome is Outcome.REFUSED
        assert (await desk.desk.decide("Bearer ", "10.0.0.1")).outcome is Outcome.REFUSED
        assert await desk.outcome("alice", "secret") is Outcome.ACCEPTED  # tokens count no failures
        del desk.users["alice"]
        assert await desk.outcome("alice", "mlf_right") is Outcome.REFUSED

    desk.run(scenario)
    assert desk.checked == ["secret"]


def test_a_token_ends_when_its_time_is_over() -> None:
    desk = Desk(alice="secret")
    digest = hashlib.sha256(b"mlf_short").hexdigest()
    for expires, outcome in ((time.time() + 60, Outcome.ACCEPTED), (time.time() - 1, Outcome.REFUSED)):
        desk.tokens[digest] = Token("alice", expires)

        async def scenario(outcome: Outcome = outcome) -> None:
            assert await desk.outcome("alice", "mlf_short") is outcome

        desk.run(scenario)


def test_a_user_without_a_password_is_like_one_that_is_not_there() -> None:
    desk = Desk()
    desk.users["robot"] = User(NO_PASSWORD, "writer")

    async def scenario() -> None:
        assert await desk.outcome("robot", "*") is Outcome.REFUSED

    desk.run(scenario)
    assert desk.checked == []


def test_a_changed_role_counts_for_a_remembered_login() -> None:
    desk = Desk(alice="secret")

    async def scenario() -> None:
        login = await desk.desk.decide(basic("alice", "secret"), "10.0.0.1")
        assert (login.may("reader"), login.may("writer"), login.may("approver")) == (True, True, False)
        desk.users["alice"] = replace(desk.users["alice"], role="approver")
        assert (await desk.desk.decide(basic("alice", "secret"), "10.0.0.1")).may("approver")

    desk.run(scenario)
    assert desk.checked == ["secret"]
