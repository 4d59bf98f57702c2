"""First-run secrets: made once, never overwritten, followed when the operator sets one."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pytest

from stackops import secrets
from stackops.errors import OperationError


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    return folder


@pytest.fixture
def overrides(tmp_path: Path) -> Path:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "README.md").write_text("what goes here")
    return folder


def contents(volume: Path) -> dict[str, str]:
    return {
        str(path.relative_to(volume)): path.read_bytes().decode("latin-1")
        for path in volume.rglob("*")
        if path.is_file()
    }


def test_a_second_run_writes_nothing_and_changes_nothing(volume: Path, overrides: Path) -> None:
    assert secrets.ensure(volume, overrides, own=False)
    before = contents(volume)
    assert secrets.ensure(volume, overrides, own=False) == []
    assert contents(volume) == before


def test_two_first_starts_make_different_secrets(tmp_path: Path, overrides: Path) -> None:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        secrets.ensure(tmp_path / name, overrides, own=False)
        made.append({path.read_text() for path in (tmp_path / name / "source").iterdir()})
    assert len(made[0]) == len(secrets.GENERATORS)
    assert made[0].isdisjoint(made[1])


def test_every_file_is_readable_by_its_owner_only(volume: Path, overrides: Path) -> None:
    secrets.ensure(volume, overrides, own=False)
    modes = {path.stat().st_mode & 0o777 for path in volume.rglob("*") if path.is_file()}
    assert modes == {0o400}
    assert (volume / "source").stat().st_mode & 0o077 == 0


def test_first_runs_at_once_agree_on_one_set(volume: Path, overrides: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: secrets.ensure(volume, overrides, own=False), range(8)))
    before = contents(volume)
    assert secrets.ensure(volume, overrides, own=False) == []
    assert contents(volume) == before
    assert not [name for name in before if "/." in name]


def test_consumer_files_carry_the_source_values(volume: Path, overrides: Path) -> None:
    (overrides / "database_password").write_text("a:b\\c\n")
    secrets.ensure(volume, overrides, own=False)
    assert (volume / "postgres/mlflow_password").read_text() == "a:b\\c"
    for reader in ("mlflow", "fastpath"):
        assert (volume / reader / "pgpass").read_text() == "*:*:*:*:a\\:b\\\\c\n"
    assert [path.name for path in (volume / "fastpath").iterdir()] == ["pgpass"]
    source = {path.name: path.read_text() for path in (volume / "source").iterdir()}
    assert source["storage_secret_key"] in (volume / "mlflow/aws_credentials").read_text()
    assert (volume / "mlflow/kek_passphrase").read_text() == source["kek_passphrase"]
    # The server may use the bucket, never administer the store.
    assert not any(
        source["storage_root_password"] in text for text in map(Path.read_text, (volume / "mlflow").iterdir())
    )


def test_files_for_the_copy_elsewhere_reach_only_the_backup_with_whole_lines(
    volume: Path, overrides: Path
) -> None:
    (overrides / "offsite_key").write_text("-----BEGIN KEY-----\r\nabc\n-----END KEY-----")
    secrets.ensure(volume, overrides, own=False)
    key = "-----BEGIN KEY-----\nabc\n-----END KEY-----\n"
    assert [name for name, text in contents(volume).items() if "BEGIN KEY" in text] == ["backup/offsite_key"]
    assert (volume / "backup/offsite_key").read_text() == key
    assert (volume / "backup/offsite_known_hosts").read_text() == ""


def test_the_users_file_has_the_admin_with_a_bcrypt_hash(volume: Path, overrides: Path) -> None:
    secrets.ensure(volume, overrides, own=False)
    first, *others = (volume / "auth/accounts").read_text().splitlines()
    name, password_hash, role, state, account_id = first.split(":")
    assert (name, role, state, others) == ("admin", "admin", "", ["_stack:*:reader"])
    assert len(account_id) == 16
    assert password_hash.startswith("$2b$10$")
    assert bcrypt.checkpw((volume / "source/admin_password").read_bytes(), password_hash.encode())


def test_an_operators_password_wins_and_other_users_stay(volume: Path, overrides: Path) -> None:
    secrets.ensure(volume, overrides, own=False)
    users = volume / "auth/accounts"
    users.chmod(0o600)
    users.write_text(users.read_text() + "bob:$2b$10$hash\n")
    (overrides / "admin_password").write_text("my own\n")
    assert set(secrets.ensure(volume, overrides, own=False)) == {
        "source/admin_password",
        "auth/accounts",
        "auth/users",
        "backup/sealed.age",
    }
    lines = users.read_text().splitlines()
    assert bcrypt.checkpw(b"my own", lines[0].split(":")[1].encode())
    assert lines[1:] == ["_stack:*:reader", "bob:$2b$10$hash:admin"]


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("admin_password", "", "empty"),
        ("admin_password", "two\nlines\n", "more than one line"),
        ("admin_password", "x" * 73, "72 bytes"),
        ("admin_pasword", "typo", "names no secret"),
    ],
)
def test_an_unusable_override_is_refused_and_nothing_is_written(
    volume: Path, overrides: Path, name: str, text: str, wrong: str
) -> None:
    secrets.ensure(volume, overrides, own=False)
    before = contents(volume)
    (overrides / name).write_text(text)
    with pytest.raises(OperationError, match=wrong):
        secrets.ensure(volume, overrides, own=False)
    assert contents(volume) == before


def test_rotation_changes_its_group_and_nothing_else(volume: Path, overrides: Path) -> None:
    secrets.ensure(volume, overrides, own=False)
    before = contents(volume)
    secrets.rotate(volume, overrides, "database", own=False)
    changed = {name for name, text in contents(volume).items() if text != before[name]}
    assert changed == {
        "source/database_password",
        "source/stackops_database_password",
        "source/backup_database_password",
        "postgres/backup_password",
        "backup/pgpass",
        "backup/sealed.age",
        "backup/sealed.fingerprint",
        "postgres/mlflow_password",
        "postgres/stackops_password",
        "mlflow/pgpass",
        "fastpath/pgpass",
        "prepare/pgpass",
    }


def test_rotation_of_an_operators_own_password_is_refused(volume: Path, overrides: Path) -> None:
    (overrides / "admin_password").write_text("mine")
    secrets.ensure(volume, overrides, own=False)
    with pytest.raises(OperationError, match="config/secrets/admin_password"):
        secrets.rotate(volume, overrides, "admin", own=False)


def test_the_key_of_the_door_reaches_both_ends_as_digits_and_is_rotated(
    volume: Path, overrides: Path
) -> None:
    (overrides / "door_key").write_text('my "own" $key;\n')
    secrets.ensure(volume, overrides, own=False)
    key = (volume / "nginx/door_key").read_text()
    assert len(key) == 64
    assert int(key, 16)
    assert (volume / "mlflow/door_key").read_text() == key
    assert (volume / "mlflow/flask_key").read_text() != key
    (overrides / "door_key").unlink()
    assert set(secrets.rotate(volume, overrides, "door", own=False)) == {
        *("mlflow/door_key", "mlflow/flask_key", "nginx/door_key", "backup/sealed.age"),
    }
    assert (volume / "nginx/door_key").read_text() != key


def test_nginx_has_a_key_of_the_storage_that_is_rotated_with_mlflows(volume: Path, overrides: Path) -> None:
    secrets.ensure(volume, overrides, own=False)
    key = json.loads((volume / "nginx/storage.json").read_text())
    for name, value in key.items():
        assert value == (volume / f"source/door_storage_{name}").read_text()
        assert value == (volume / f"prepare/door_storage_{name}").read_text()
        assert value not in (volume / "mlflow/aws_credentials").read_text()
    assert set(secrets.rotate(volume, overrides, "storage", own=False)) == {
        *("mlflow/aws_credentials", "backup/aws_credentials", "backup/sealed.age", "nginx/storage.json"),
        *("prepare/storage_access_key", "prepare/storage_secret_key"),
        *("prepare/door_storage_access_key", "prepare/door_storage_secret_key"),
    }
    now = json.loads((volume / "nginx/storage.json").read_text())
    assert now.keys() == key.keys() == {"access_key", "secret_key"}
    assert set(now.values()).isdisjoint(key.values())


def test_keys_that_encrypt_stored_values_are_in_no_rotation() -> None:
    rotated = {name for group in secrets.ROTATIONS.values() for name in group}
    assert rotated.isdisjoint(secrets.ENCRYPTION_KEYS)


def test_sealed_secrets_open_with_the_recovery_key_only(volume: Path, overrides: Path) -> None:
    secrets.ensure(volume, overrides, own=False)
    sealed = (volume / secrets.SEALED).read_bytes()
    values = {path.name: path.read_text() for path in (volume / "source").iterdir()}
    opened = secrets.unseal(sealed, values["recovery_key"])
    assert opened == {
        **values,
        **{name: (volume / name).read_text() for name in (*secrets.ACCOUNTS, secrets.FORMER_USERS)},
    }
    assert not [value for value in values.values() if value.encode() in sealed]
    with pytest.raises(OperationError, match="does not open"):
        secrets.unseal(sealed, secrets.GENERATORS["recovery_key"]())
    with pytest.raises(OperationError, match="does not open"):
        secrets.unseal(sealed, "no key at all")
    flipped = sealed[:-1] + bytes([sealed[-1] ^ 1])
    with pytest.raises(OperationError, match="does not open"):
        secrets.unseal(flipped, values["recovery_key"])


def test_a_rotation_seals_anew(volume: Path, overrides: Path) -> None:
    secrets.ensure(volume, overrides, own=False)
    written = secrets.rotate(volume, overrides, "admin", own=False)
    assert secrets.SEALED in written
    sealed = (volume / secrets.SEALED).read_bytes()
    opened = secrets.unseal(sealed, (volume / "source/recovery_key").read_text())
    assert opened["admin_password"] == (volume / "source/admin_password").read_text()


def test_secrets_are_restored_into_an_empty_volume(volume: Path, overrides: Path, tmp_path: Path) -> None:
    secrets.ensure(volume, overrides, own=False)
    recovery_key = (volume / "source/recovery_key").read_text()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    secrets.restore(fresh, (volume / secrets.SEALED).read_bytes(), recovery_key, own=False)
    secrets.ensure(fresh, overrides, own=False)
    kept = {name: text for name, text in contents(volume).items() if name != secrets.SEALED}
    assert {name: text for name, text in contents(fresh).items() if name != secrets.SEALED} == kept


def test_secrets_are_not_restored_over_other_encryption_keys(
    volume: Path, overrides: Path, tmp_path: Path
) -> None:
    secrets.ensure(volume, overrides, own=False)
    other = tmp_path / "other"
    other.mkdir()
    secrets.ensure(other, overrides, own=False)
    before = contents(other)
    with pytest.raises(OperationError, match="another kek_passphrase"):
        secrets.restore(
            other,
            (volume / secrets.SEALED).read_bytes(),
            (volume / "source/recovery_key").read_text(),
            own=False,
        )
    assert contents(other) == before


def test_a_recovery_key_that_is_none_is_refused(volume: Path, overrides: Path) -> None:
    (overrides / "recovery_key").write_text("hunter2\n")
    with pytest.raises(OperationError, match="no age identity"):
        secrets.ensure(volume, overrides, own=False)
