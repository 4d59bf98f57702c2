"""The users file of the login service."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackauth.users import UsersFile, parse_users


def test_names_and_hashes_are_read_and_comments_passed_over() -> None:
    assert parse_users("# people\nalice:$2b$10$abc\n\nbob:$2y$12$def\n") == {
        "alice": "$2b$10$abc",
        "bob": "$2y$12$def",
    }


@pytest.mark.parametrize("line", ["alice", ":$2b$10$x", "alice:plain", "alice:$apr1$x"])
def test_a_line_without_a_bcrypt_hash_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_users(f"bob:$2b$10$x\n{line}\n")


def test_a_change_is_seen_and_a_broken_file_keeps_the_users_known_before(tmp_path: Path) -> None:
    path = tmp_path / "users"
    users_file = UsersFile(path)
    assert users_file.current() == {}
    assert users_file.error
    path.write_text("alice:$2b$10$one\n")
    assert users_file.current() == {"alice": "$2b$10$one"}
    assert users_file.error is None
    path.write_text("broken")
    assert users_file.current() == {"alice": "$2b$10$one"}
    assert "line 1" in users_file.error
    path.write_text("bob:$2b$10$two\n")
    assert users_file.current() == {"bob": "$2b$10$two"}
