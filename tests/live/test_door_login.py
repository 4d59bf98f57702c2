"""Logins under attack, under load, and when the users file changes."""

from __future__ import annotations

import base64
import itertools
import secrets
import socket
import threading
import time
from collections import Counter

import requests

from kit.door import basic, read_answer, send, set_user, user
from kit.stack import Stack, poll

FLOOD_SECONDS = 10  # five times as long as the door remembers a login


def status(stack: Stack, login: requests.auth.HTTPBasicAuth, **headers: str) -> int:
    """Return what a request with this login is answered."""
    return send(
        stack.port, "GET", "/version", Authorization=basic(login.username, login.password), **headers
    ).status


class Flood:
    """Threads that guess passwords from this address as fast as they can, for a bounded time."""

    def __init__(self, stack: Stack, *names: str, threads: int = 8) -> None:
        self.statuses: Counter[int] = Counter()
        self.errors: list[str] = []
        self._stack = stack
        self._names = names
        self._started = time.monotonic()
        self._threads = [threading.Thread(target=self._guess) for _ in range(threads)]

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def goes_on(self) -> bool:
        return self.seconds < FLOOD_SECONDS

    def _guess(self) -> None:
        session = requests.Session()
        session.trust_env = False
        for name in itertools.cycle([*self._names, ""]):
            if not self.goes_on:
                return
            guess = (name or f"nobody{secrets.token_hex(4)}", secrets.token_hex(8))
            try:
                answer = session.get(f"{self._stack.url}/version", auth=guess, timeout=30)
                self.statuses[answer.status_code] += 1
            except requests.RequestException as error:
                self.errors.append(repr(error))


def test_a_flood_of_guesses_disturbs_nobody_at_the_same_address(stack: Stack) -> None:
    seen: Counter[int] = Counter()
    with user(stack, "alice") as alice, user(stack, "bob") as bob, user(stack, "ivan"):
        session = requests.Session()
        session.trust_env = False
        session.auth = alice
        assert session.get(f"{stack.url}/version", timeout=30).status_code == 200
        newcomer: list[int] = []
        with Flood(stack, "alice", "ivan") as flood:
            while flood.goes_on:
                seen[session.get(f"{stack.url}/version", timeout=30).status_code] += 1
                if not newcomer and flood.seconds > 3:
                    newcomer.append(status(stack, bob))
                time.sleep(0.02)
        assert flood.errors == []
        assert set(flood.statuses) == {401, 429}, flood.statuses
        assert set(seen) == {200}
        assert newcomer == [200]
        assert status(stack, alice) == 200  # still logged in, though her name is locked for newcomers
        assert status(stack, requests.auth.HTTPBasicAuth("alice", "a last guess")) == 429


def test_ten_wrong_passwords_lock_a_name_for_this_address_alone(stack: Stack) -> None:
    with user(stack, "carol") as carol, user(stack, "dave") as dave:
        for number in range(10):
            wrong = requests.auth.HTTPBasicAuth("carol", f"guess {number}")
            # Claims of another address win no further guesses.
            assert status(stack, wrong, X_Forwarded_For=f"203.0.113.{number}") == 401
        for password in ("one more guess", carol.password):
            answer = send(
                stack.port,
                "GET",
                "/version",
                Authorization=basic("carol", password),
                X_Forwarded_For="203.0.113.77",
            )
            assert answer.status == 429
            assert 0 < int(answer.headers["Retry-After"]) <= 60
            assert "WWW-Authenticate" not in answer.headers  # a browser would ask for another
        assert status(stack, dave) == 200


def test_one_wrong_password_repeated_locks_nobody_out(stack: Stack) -> None:
    """A client that goes on with an old password, as cron jobs do."""
    with user(stack, "erin") as erin:
        old = requests.auth.HTTPBasicAuth("erin", "an old password")
        assert {status(stack, old) for _ in range(30)} == {401}
        assert status(stack, erin) == 200


def test_a_user_who_is_taken_out_is_out_within_seconds(stack: Stack) -> None:
    with user(stack, "frank") as frank:
        assert status(stack, frank) == 200
        set_user(stack, "frank", None)
        poll(lambda: status(stack, frank) == 401, seconds=10, what="the user is out")


def test_a_changed_password_counts_within_seconds_and_without_a_restart(stack: Stack) -> None:
    started = stack.inspect(stack.container("auth"))["State"]["StartedAt"]
    with user(stack, "grace") as grace:
        new = requests.auth.HTTPBasicAuth("grace", "grün €:" + secrets.token_hex(4))
        assert status(stack, grace) == 200
        assert status(stack, new) == 401
        set_user(stack, "grace", new.password)
        poll(lambda: status(stack, new) == 200, seconds=10, what="the new password works")
        poll(lambda: status(stack, grace) == 401, seconds=10, what="the old password is refused")
    assert stack.inspect(stack.container("auth"))["State"]["StartedAt"] == started


def test_500_connections_of_one_address_are_all_served(stack: Stack) -> None:
    head = f"GET /version HTTP/1.1\r\nHost: 127.0.0.1:{stack.port}\r\n"
    request = f"{head}Authorization: {stack.authorization}\r\n\r\n".encode()
    connections: list[socket.socket] = []
    try:
        for _ in range(500):
            connections.append(socket.create_connection(("127.0.0.1", stack.port), timeout=60))
        for _ in range(2):  # the second time on the same connections
            for connection in connections:
                connection.sendall(request)
            answers = Counter(read_answer(connection).status for connection in connections)
            assert answers == {200: 500}
    finally:
        for connection in connections:
            connection.close()


def test_no_password_and_no_secret_stands_in_any_log(stack: Stack) -> None:
    wrong, mistyped = secrets.token_hex(12), secrets.token_hex(12)
    with user(stack, "heidi") as heidi:
        right = basic("heidi", heidi.password)
        assert status(stack, heidi) == 200
        send(stack.port, "GET", "/version", Authorization=basic("heidi", wrong))
        send(stack.port, "GET", "/version", Authorization=f"Bearer {wrong}")
        send(stack.port, "GET", f"/version?token={mistyped}", Authorization=right)
        send(stack.port, "GET", f"/no-such?token={mistyped}", Authorization=right)
        send(stack.port, "GET", "/version", Authorization=right, authorization=right)  # twice: 400
        send(stack.port, "GET", "/version", Authorization=right + wrong * 4000)  # too long: 400
        send(stack.port, "GET", "/version", Authorization=f"{right}\0")
        send(stack.port, "POST", "/version", Authorization=right, Content_Length="x")
        stack.get("/version")
    names = stack.compose(
        *("run", "--rm", "--no-deps", "-T", "--entrypoint", "sh", "secrets"),
        *("-c", "cd /secrets/source && grep -H '' *"),
    ).stdout
    values = {line.partition(":")[2] for line in names.splitlines()}
    assert len(values) >= 9
    assert stack.password in values
    values |= {wrong, mistyped, heidi.password}
    values |= {basic("admin", stack.password).split()[1], basic("heidi", heidi.password).split()[1]}
    values |= {basic("heidi", wrong).split()[1]}
    values |= {base64.b64encode(value.encode()).decode().rstrip("=") for value in values}
    log = stack.compose("logs").stdout
    assert "GET /version" in log
    assert not [value for value in values if value in log]
    door_log = stack.compose("logs", "nginx", "auth").stdout
    assert "Basic " not in door_log
    assert "Authorization" not in door_log
