"""Logins under attack, under load, and when the users file changes."""

from __future__ import annotations

import secrets
import socket
from collections import Counter

import requests

from kit.door import basic, read_answer, send, set_user, user
from kit.stack import Stack, poll


def status(stack: Stack, login: requests.auth.HTTPBasicAuth, **headers: str) -> int:
    """Return what a request with this login is answered."""
    return send(
        stack.port, "GET", "/version", Authorization=basic(login.username, login.password), **headers
    ).status


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
