"""The files of the login service: users with roles, tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackauth.users import NO_PASSWORD, Token, User, Watched, parse_tokens, parse_users


def test_names_hashes_and_roles_are_read_and_comments_passed_over() -> None:
    text = (
        "# people\nalice:$2b$10$abc\n\nbob:$2y$12$def:reader\nrobot:*:writer\nold:$2b$10$x:admin:disabled\n"
        "new:$2b$10$x:writer::1f9c\ngone:$2b$10$x:admin:disabled:2e\n"
    )
    assert parse_users(text) == {
        "alice": User("$2b$10$abc", "admin"),
        "bob": User("$2y$12$def", "reader"),
        "robot": User(NO_PASSWORD, "writer"),
        "new": User("$2b$10$x", "writer", "1f9c"),
    }


@pytest.mark.parametrize(
    "line",
    [
        *("alice", ":$2b$10$x", "alice:plain", "alice:$apr1$x", "alice:$2b$10$x:king"),
        *("alice:$2b$10$x:admin:gone", "alice:$2b$10$x:Admin", "alice::admin"),
        *("alice:$2b$10$x:admin::not an id", "alice:$2b$10$x:admin::1f:2e", "alice:$2b$10$x:admin::1F"),
    ],
)
def test_a_line_that_is_not_as_it_must_be_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_users(f"bob:$2b$10$x\n{line}\n")


def test_tokens_are_found_by_their_digest() -> None:
    assert parse_tokens("aa:alice:laptop:1:-\nbb:bob:ci:1:99\n") == {
        "aa": Token("alice", None),
        "bb": Token("bob", 99.0),
    }


@pytest.mark.parametrize("line", ["aa", "aa:alice:laptop:1", "aa:alice:laptop:1:soon", "a:b:c:d:e:f"])
def test_a_token_line_that_is_not_as_it_must_be_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 1 of the tokens file"):
        parse_tokens(line)


def test_a_change_is_seen_and_a_broken_file_keeps_what_was_known_before(tmp_path: Path) -> None:
    path = tmp_path / "users"
    users_file = Watched(path, parse_users)
    assert users_file.current() == {}
    assert users_file.error
    path.write_text("alice:$2b$10$one\n")
    assert users_file.current() == {"alice": User("$2b$10$one", "admin")}
    assert users_file.error is None
    path.write_text("broken")
    assert users_file.current() == {"alice": User("$2b$10$one", "admin")}
    assert "line 1" in users_file.error
    path.write_text("bob:$2b$10$two\n")
    assert users_file.current() == {"bob": User("$2b$10$two", "admin")}


def test_a_file_that_need_not_be_there_may_go(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    tokens_file = Watched(path, parse_tokens, optional=True)
    assert tokens_file.current() == {}
    assert tokens_file.error is None
    path.write_text("aa:alice:laptop:1:-\n")
    assert set(tokens_file.current()) == {"aa"}
    path.unlink()
    assert tokens_file.current() == {}
    assert tokens_file.error is None
