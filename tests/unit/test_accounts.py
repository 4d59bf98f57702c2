"""Users, roles and tokens as ./stack user changes them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import bcrypt
import pytest

import stackauth.login
import stackauth.users
from stackops import cli, secrets, users
from stackops.errors import OperationError
from stackops.users import Accounts

GOOD = "correct-horse-battery"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume of secrets with its first accounts."""
    made = tmp_path / "volume"
    made.mkdir()
    secrets.ensure(made, tmp_path / "overrides", own=False)
    return made


@pytest.fixture
def stack(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., str]:
    """Return a function that does `stackops user WORDS…` and returns what it printed."""
    original = secrets.change_accounts
    monkeypatch.setattr(secrets, "change_accounts", lambda *given, **_: original(*given, own=False))

    def user(*words: str) -> str:
        places = ["--volume", str(volume), "--overrides", str(tmp_path / "overrides")]
        cli.run(cli._parser().parse_args(["user", *places, *words]))
        return capsys.readouterr().out

    return user


def known(volume: Path) -> dict[str, stackauth.users.User]:
    """What the login service reads."""
    return stackauth.users.parse_users((volume / "auth/accounts").read_text())


def test_both_sides_agree_on_roles_and_marks() -> None:
    assert users.ROLES == stackauth.users.ROLES
    assert users.NO_PASSWORD == stackauth.users.NO_PASSWORD
    assert users.TOKEN_PREFIX == stackauth.login.TOKEN_PREFIX


def test_a_new_user_has_a_random_password_that_is_shown_once(volume: Path, stack: Callable[..., str]) -> None:
    said = stack("add", "alice@example.com", "--role", "reader")
    (password,) = [line.split("=")[1] for line in said.splitlines() if "TRACKING_PASSWORD=" in line]
    alice = known(volume)["alice@example.com"]
    assert alice.role == "reader"
    assert bcrypt.checkpw(password.encode(), alice.password_hash.encode())
    assert alice.password_hash.startswith("$2b$10$")
    assert stack("add", "bob").startswith("bob is writer")


def test_a_token_is_kept_as_its_digest_only(volume: Path, stack: Callable[..., str]) -> None:
    stack("add", "robot", "--no-password")
    said = stack("token", "robot", "--label", "ci", "--days", "30")
    (token,) = [line.split("=")[1] for line in said.splitlines() if "TRACKING_TOKEN=" in line]
    assert len(token) >= len("mlf_") + 43  # 256 bits
    text = (volume / "auth/tokens").read_text()
    assert token not in text
    found = stackauth.users.parse_tokens(text)[hashlib.sha256(token.encode()).hexdigest()]
    assert found.owner == "robot"
    assert f"Authorization=Bearer%20{token}" in said
    listed = {user["name"]: user for user in json.loads(stack("list", "--json"))}
    assert listed["robot"]["password"] is False
    assert [one["label"] for one in listed["robot"]["tokens"]] == ["ci"]
    assert set(listed) == {"admin", "robot"}
    assert "token ci" in stack("list")
    stack("token", "robot", "--revoke", "ci")
    assert token not in stack("list")
    assert len(stackauth.users.parse_tokens((volume / "auth/tokens").read_text())) == 1  # the stack's own


def test_disabled_and_removed_users_are_not_known_to_the_login_service(
    volume: Path, stack: Callable[..., str]
) -> None:
    stack("add", "alice")
    stack("token", "alice", "--label", "one")
    stack("disable", "alice")
    assert "alice" not in known(volume)
    stack("enable", "alice")
    assert known(volume)["alice"].role == "writer"
    stack("role", "alice", "approver")
    assert known(volume)["alice"].role == "approver"
    stack("remove", "alice")
    assert "alice" not in known(volume)
    assert ":alice:" not in (volume / "auth/tokens").read_text()


def test_an_account_keeps_its_id_until_it_is_removed(volume: Path, stack: Callable[..., str]) -> None:
    stack("add", "alice")
    first = known(volume)["alice"].id
    assert len(first) == 16
    for words in (
        ("role", "alice", "reader"),
        ("passwd", "alice"),
        ("disable", "alice"),
        ("enable", "alice"),
    ):
        stack(*words)
    assert known(volume)["alice"].id == first
    stack("remove", "alice")
    stack("add", "alice")
    assert known(volume)["alice"].id not in {"", first}


def test_an_account_without_an_id_gets_none_later(volume: Path, stack: Callable[..., str]) -> None:
    accounts = volume / "auth/accounts"
    text = accounts.read_text()
    accounts.chmod(0o600)
    accounts.write_text(f"{text}bob:*:writer\neve:*:reader:disabled\n")
    stack("role", "bob", "reader")
    stack("enable", "eve")
    assert (known(volume)["bob"].id, known(volume)["eve"].id) == ("", "")
    assert accounts.read_text().endswith("bob:*:reader\neve:*:reader\n")


def test_admins_own_password_outlives_every_start(
    volume: Path, tmp_path: Path, stack: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = known(volume)["admin"].password_hash
    stack("passwd", "admin")
    second = known(volume)["admin"].password_hash
    assert second != first
    secrets.ensure(volume, tmp_path / "overrides", own=False)
    assert known(volume)["admin"].password_hash == second
    secrets.rotate(volume, tmp_path / "overrides", "admin")
    password = (volume / "source/admin_password").read_bytes()
    assert bcrypt.checkpw(password, known(volume)["admin"].password_hash.encode())


def test_the_accounts_are_sealed_and_restored(
    volume: Path, tmp_path: Path, stack: Callable[..., str]
) -> None:
    stack("add", "alice")
    stack("token", "alice")
    stack("passwd", "admin")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    key = (volume / "source/recovery_key").read_text()
    secrets.restore(fresh, (volume / secrets.SEALED).read_bytes(), key, own=False)
    secrets.ensure(fresh, tmp_path / "overrides", own=False)
    for name in secrets.ACCOUNTS:
        assert (fresh / name).read_text() == (volume / name).read_text()


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("add", "admin"), "there is a user admin already"),
        (("add", "a:b"), "is no user name"),
        (("add", "a\nb"), "is no user name"),
        (("add", ""), "is no user name"),
        (("add", "x" * 65), "is no user name"),
        (("add", "alice", "--role", "king"), "is no role"),
        (("add", "_stack"), "the stack's own user"),
        (("passwd", "nobody"), "there is no user nobody"),
        (("role", "nobody", "reader"), "there is no user nobody"),
        (("role", "admin", "reader"), "nobody would be an admin"),
        (("disable", "admin"), "nobody would be an admin"),
        (("remove", "admin"), "nobody would be an admin"),
        (("remove", "nobody"), "there is no user nobody"),
        (("token", "nobody"), "there is no user nobody"),
        (("token", "admin", "--label", "a b"), "is no label"),
        (("token", "admin", "--days", "0"), "lasts 1 to 36500 days"),
        (("token", "admin", "--revoke", "none"), "admin has no token none"),
        (("token", "admin", "--days", "99999999"), "lasts 1 to 36500 days"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    volume: Path, stack: Callable[..., str], words: tuple[str, ...], wrong: str
) -> None:
    before = {name: (volume / name).read_text() for name in secrets.ACCOUNTS}
    with pytest.raises(OperationError, match=wrong):
        stack(*words)
    assert {name: (volume / name).read_text() for name in secrets.ACCOUNTS} == before


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("short", "fewer than 10 characters"),
        ("", "fewer than 10 characters"),
        ("password1234", "easy to guess"),
        ("alicealice", "easy to guess"),
        ("qwertyuiop", "easy to guess"),
        ("x" * 73, "longer than bcrypt's 72 bytes"),
        ("ä" * 37, "longer than bcrypt's 72 bytes"),
        ("mlf_correct-horse", "must not begin with mlf_"),
        (f"{GOOD}\x07", "control character"),
    ],
)
def test_a_weak_password_is_refused_with_the_reason(password: str, reason: str) -> None:
    with pytest.raises(OperationError, match=reason):
        users.hash_password("alice", password)


@pytest.mark.parametrize("password", [GOOD, "Übergrößenträger 7", "a:b:c-Xy9:rt"])
def test_a_good_password_is_taken(password: str) -> None:
    assert bcrypt.checkpw(password.encode(), users.hash_password("alice", password).encode())


def test_admin_stays_as_config_secrets_says(volume: Path, tmp_path: Path, stack: Callable[..., str]) -> None:
    (tmp_path / "overrides").mkdir()
    (tmp_path / "overrides/admin_password").write_text("the operators own\n")
    secrets.ensure(volume, tmp_path / "overrides", own=False)
    for words in (("passwd", "admin"), ("remove", "admin")):
        with pytest.raises(OperationError, match="is set by config/secrets/admin_password"):
            stack(*words)
    stack("add", "boss", "--role", "admin")
    stack("disable", "admin")
    (tmp_path / "overrides/admin_password").write_text("another of them\n")
    secrets.ensure(volume, tmp_path / "overrides", own=False)
    assert "admin" not in known(volume)  # still disabled


def test_a_bad_certificate_keeps_nobody_from_changing_users(
    volume: Path, stack: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLS_MODE", "files")
    stack("add", "alice")
    stack("disable", "alice")
    assert "alice" not in known(volume)
    before = (volume / "source/admin_password").read_text()
    with pytest.raises(OperationError, match=r"cert\.pem cannot be read"):
        secrets.rotate(volume, volume.parent / "overrides", "admin", own=False)
    assert (volume / "source/admin_password").read_text() == before


def test_a_version_without_roles_finds_its_users_and_is_taken_over(
    volume: Path, tmp_path: Path, stack: Callable[..., str]
) -> None:
    stack("add", "alice")
    stack("add", "robot", "--no-password")
    former = (volume / "auth/users").read_text().splitlines()
    assert [line.split(":")[0] for line in former] == ["admin", "alice"]
    assert all(line.split(":")[1].startswith("$2b$") for line in former)
    for name in secrets.ACCOUNTS:
        (volume / name).unlink()
    secrets.ensure(volume, tmp_path / "overrides", own=False)
    assert {name: user.role for name, user in known(volume).items()} == {
        "admin": "admin",
        "alice": "admin",
        "_stack": "reader",
    }


def test_an_empty_password_is_weak(stack: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(OperationError, match="fewer than 10 characters"):
        stack("add", "alice", "--password-stdin")


def test_the_last_of_several_admins_stays() -> None:
    accounts = Accounts()
    accounts.add("one", "admin", None)
    accounts.add("two", "admin", None)
    accounts.set_disabled("one", disabled=True)
    for change in (
        lambda: accounts.remove("two"),
        lambda: accounts.set_role("two", "approver"),
        lambda: accounts.set_disabled("two", disabled=True),
    ):
        with pytest.raises(OperationError, match="nobody would be an admin"):
            change()
    accounts.set_disabled("one", disabled=False)
    accounts.remove("two")
    assert set(accounts.users) == {"one"}
