"""First-run secrets: made once, kept in the volume, never overwritten.

The volume holds a folder `source` (readable by root only) with one file per secret, and a
folder per consumer, owned by the consumer's uid, with the files in the form it reads.
Consumer files are derived: they are written anew whenever their source has changed. An
operator's own value, `config/secrets/NAME`, wins over the one in the volume.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import bcrypt
import pyrage

from stackops import tls, users
from stackops.errors import OperationError
from stackops.users import ADMIN, BCRYPT_BYTES, BCRYPT_COST, NO_PASSWORD, TOKEN_PREFIX, Accounts, Token, User

INTERNAL_USER = "_stack"
"""Who ./stack itself is when it looks through the door: a reader with a token. Nobody may be named so."""

CONSUMER_UIDS = {
    "postgres": 10001,
    "backup": 10001,  # restored files must belong to PostgreSQL
    "minio": 10002,
    "mlflow": 10003,
    "nginx": 10004,
    "auth": 10006,
    "prepare": 10007,
    "fastpath": 10009,
}
ACCOUNTS = ("auth/accounts", "auth/tokens")
"""Who may log in (users.py): not derived from a source, but changed by ./stack user."""
FORMER_USERS = "auth/users"
"""The same for a version without roles, after a rollback: names and hashes."""
SEALED = "backup/sealed.age"
"""All secrets and the users file, encrypted to the recovery key: what a backup set carries."""


def add_places(parser: ArgumentParser) -> None:
    """Add the options that say where the volume and the operator's own values are."""
    parser.add_argument("--volume", type=Path, default=Path("/secrets"))
    parser.add_argument("--overrides", type=Path, default=Path("/config/secrets"))


def _token() -> str:
    return secrets.token_urlsafe(32)


GENERATORS: dict[str, Callable[[], str]] = {
    "admin_password": lambda: secrets.token_urlsafe(15),
    "database_password": _token,
    "stackops_database_password": _token,
    "backup_database_password": _token,
    "storage_root_user": lambda: "root" + secrets.token_hex(12),
    "storage_root_password": _token,
    # The access key is random too: some of MinIO's unfixed CVEs need no more than that.
    "storage_access_key": lambda: "mlflow" + secrets.token_hex(12),
    "storage_secret_key": _token,
    "door_storage_access_key": lambda: "nginx" + secrets.token_hex(12),
    "door_storage_secret_key": _token,
    "kek_passphrase": _token,
    "webhook_key": lambda: base64.urlsafe_b64encode(os.urandom(32)).decode(),
    "stack_token": lambda: TOKEN_PREFIX + _token(),
    "door_key": _token,
    "recovery_key": lambda: str(pyrage.x25519.Identity.generate()),
}
"""How each secret is made (all from the operating system's random source)."""

ENCRYPTION_KEYS = ("kek_passphrase", "webhook_key")
"""What is encrypted under these is lost with them: they are never made anew by rotation."""

OPTIONAL = ("offsite_credentials", "offsite_key", "offsite_known_hosts")
"""What only an operator can give, in config/secrets/NAME: an environment file; files of ssh for SFTP."""

ROTATIONS = {
    "admin": ("admin_password",),
    "database": ("database_password", "stackops_database_password", "backup_database_password"),
    "storage": (
        *("storage_access_key", "storage_secret_key"),
        *("door_storage_access_key", "door_storage_secret_key"),
    ),
    "door": ("door_key",),
}
"""What `stackops secrets rotate NAME` makes anew."""


def render_consumer_files(values: Mapping[str, str]) -> dict[str, str]:
    """Given the value of each secret, return the text of each consumer file by its path.

    Paths are relative to the volume; the first part names the consumer. The accounts are not
    among them: see `_accounts`.
    """
    database_password = values["database_password"]
    stackops_password = values["stackops_database_password"]
    backup_password = values["backup_database_password"]
    storage = (
        "[default]\n"
        f"aws_access_key_id = {values['storage_access_key']}\n"
        f"aws_secret_access_key = {values['storage_secret_key']}\n"
    )
    door_storage = {
        "access_key": values["door_storage_access_key"],
        "secret_key": values["door_storage_secret_key"],
    }
    # Any user name: the one of a database of the operator's own is in DATABASE_URI.
    passwords = f"*:*:*:*:{_pgpass(database_password)}\n"
    operations = f"*:*:*:stackops:{_pgpass(stackops_password)}\n"
    files = {
        "postgres/mlflow_password": database_password,
        "postgres/stackops_password": stackops_password,
        "postgres/backup_password": backup_password,
        "minio/root_user": values["storage_root_user"],
        "minio/root_password": values["storage_root_password"],
        "mlflow/pgpass": passwords,
        "fastpath/pgpass": passwords,
        "mlflow/aws_credentials": storage,
        "mlflow/door_key": derived("door", values["door_key"]),
        "mlflow/flask_key": derived("flask", values["door_key"]),
        "nginx/door_key": derived("door", values["door_key"]),
        "nginx/storage.json": json.dumps(door_storage),
        "backup/pgpass": f"*:*:*:backup:{_pgpass(backup_password)}\n" + operations,
        "backup/aws_credentials": storage,
        "backup/offsite_password": offsite_password(values["recovery_key"]),
        "prepare/pgpass": operations + passwords,
    }
    for name in ENCRYPTION_KEYS:
        files[f"mlflow/{name}"] = values[name]
        files[f"prepare/{name}"] = values[name]
    for name in ("storage_root_user", "storage_root_password", *ROTATIONS["storage"]):
        files[f"prepare/{name}"] = values[name]
    return files


def offsite_password(recovery_key: str) -> str:
    """Return the password of the off-site repository: whoever has the recovery key can derive it.

    By hand: printf 'offsite:%s' "$RECOVERY_KEY" | sha256sum
    """
    return derived("offsite", recovery_key)


def derived(purpose: str, secret: str) -> str:
    """Return a secret for one purpose: 64 hexadecimal digits, which every configuration file can hold."""
    return hashlib.sha256(f"{purpose}:{secret}".encode()).hexdigest()


def seal(bundle: Mapping[str, str], recovery_key: str) -> bytes:
    """Return the bundle (names and values) as an age file that only the recovery key opens."""
    recipient = pyrage.x25519.Identity.from_str(recovery_key).to_public()
    return pyrage.encrypt(json.dumps(bundle, sort_keys=True).encode(), [recipient])


def unseal(sealed: bytes, recovery_key: str) -> dict[str, str]:
    """Return the bundle of an age file. Raise OperationError if the key does not open it."""
    try:
        identity = pyrage.x25519.Identity.from_str(recovery_key)
        return json.loads(pyrage.decrypt(sealed, [identity]))
    except (pyrage.IdentityError, pyrage.DecryptError, ValueError) as error:
        raise OperationError(
            f"the recovery key does not open the sealed secrets ({error}); nothing was changed",
            "put the key that was in use when the backup was made into config/secrets/recovery_key",
        ) from error


def _pgpass(password: str) -> str:
    """Return a password as a field of a .pgpass file (backslash and colon escaped)."""
    return password.replace("\\", "\\\\").replace(":", "\\:")


def with_admin(accounts: Accounts, admin_password: str) -> Accounts:
    """Return the accounts with the user admin's password right for `admin_password`.

    They are returned unchanged if the hash fits already, since a new hash of the same
    password would make every session log in again.
    """
    admin = accounts.users.get(ADMIN)
    password = admin_password.encode()[:BCRYPT_BYTES]
    if (
        admin
        and admin.password_hash != NO_PASSWORD
        and bcrypt.checkpw(password, admin.password_hash.encode())
    ):
        return accounts
    password_hash = bcrypt.hashpw(password, bcrypt.gensalt(BCRYPT_COST)).decode()
    fresh = (
        replace(admin, password_hash=password_hash)
        if admin
        else User(ADMIN, password_hash, id=users.new_id())
    )
    others = {name: user for name, user in accounts.users.items() if name != ADMIN}
    return replace(accounts, users={ADMIN: fresh, **others})


def with_stack(accounts: Accounts, stack_token: str) -> Accounts:
    """Return the accounts with the stack's own user and token."""
    digest = hashlib.sha256(stack_token.encode()).hexdigest()
    made = next((token.made for token in accounts.tokens if token.digest == digest), int(time.time()))
    others = [token for token in accounts.tokens if token.owner != INTERNAL_USER]
    return replace(
        accounts,
        users={**accounts.users, INTERNAL_USER: User(INTERNAL_USER, NO_PASSWORD, "reader")},
        tokens=[Token(digest, INTERNAL_USER, "stack", made), *others],
    )


def read_override(overrides: Path, name: str) -> str | None:
    """Return the operator's own value of a secret, or None if there is none.

    Raise OperationError if the file is empty, has more than one line, or cannot be read.
    """
    path = overrides / name
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise OperationError(f"config/secrets/{name} cannot be read: {error}", "mend the file") from error
    value = text.removesuffix("\n")
    if not value or "\n" in value or "\r" in value:
        raise OperationError(
            f"config/secrets/{name} is empty or has more than one line",
            "write the value on a single line, or remove the file",
        )
    if name == "recovery_key":
        try:
            pyrage.x25519.Identity.from_str(value)
        except pyrage.IdentityError as error:
            raise OperationError(
                f"config/secrets/recovery_key is no age identity: {error}",
                "write the line AGE-SECRET-KEY-1… that ./stack backup recovery-key printed",
            ) from error
    if name == "admin_password":
        users.check_text(value)
    return value


def check_override_names(overrides: Path) -> None:
    """Raise OperationError if config/secrets has a file that names no secret."""
    if not overrides.is_dir():
        return
    for path in sorted(overrides.iterdir()):
        if path.name in {*GENERATORS, *OPTIONAL} or path.name.startswith((".", "README")):
            continue
        known = ", ".join([*GENERATORS, *OPTIONAL])
        raise OperationError(f"config/secrets/{path.name} names no secret", f"use one of: {known}")


def ensure(volume: Path, overrides: Path, *, own: bool = True) -> list[str]:
    """Make what is missing, follow what was overridden, and return the names written.

    Safe to run at any time and by several at once: a source is linked into place, so the
    first writer wins. `own=False` leaves owners alone (tests without root).
    """
    check_override_names(overrides)
    values, written = _sources(volume, overrides)
    for consumer, uid in CONSUMER_UIDS.items():
        folder = volume / consumer
        folder.mkdir(mode=0o500, exist_ok=True)
        if own:
            os.chown(folder, uid, uid)
    files = render_consumer_files(values) | _optional(overrides)
    # No secret, but the folder of the host may be closed to everybody but root.
    policy = overrides.parent / "retention.toml"
    files["backup/retention.toml"] = _read_policy(policy) if policy.exists() else ""
    files |= _certificate(volume, overrides)
    with users.locked(volume / "auth"):
        accounts = _complete(users.read(volume / "auth"), overrides, values)
        files |= _account_files(accounts)
        for relative, text in files.items():
            path = volume / relative
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            _write(path, text, uid=CONSUMER_UIDS[relative.partition("/")[0]] if own else None)
            written.append(relative)
        written += _seal_all(volume, values, _account_files(accounts), own=own)
    volume.chmod(0o711)
    return written


def _sources(volume: Path, overrides: Path) -> tuple[dict[str, str], list[str]]:
    """Make the sources that are missing; return the value of each, and the names written."""
    source = volume / "source"
    source.mkdir(mode=0o700, exist_ok=True)
    values = {}
    written = []
    for name, generate in GENERATORS.items():
        override = read_override(overrides, name)
        path = source / name
        if override is not None:
            if not path.exists() or path.read_text(encoding="utf-8") != override:
                _write(path, override)
                written.append(f"source/{name}")
            values[name] = override
            continue
        if not path.exists() and _write(path, generate(), overwrite=False):
            written.append(f"source/{name}")
        values[name] = path.read_text(encoding="utf-8")
    return values, written


def _certificate(volume: Path, overrides: Path) -> dict[str, str]:
    """Return the files of the door's certificate, as TLS_MODE says. Raise OperationError for a bad one."""
    hosts = (os.environ.get("PUBLIC_URL", ""), os.environ.get("BIND_ADDRESS", ""))
    return tls.files(os.environ.get("TLS_MODE") or "off", overrides.parent / "tls", volume, *hosts)


def _complete(accounts: Accounts, overrides: Path, values: Mapping[str, str]) -> Accounts:
    """Return the accounts with the stack's own user, and admin as config/secrets or the first start say."""
    accounts = with_stack(accounts, values["stack_token"])
    if (overrides / "admin_password").exists() or not accounts.own_admin:
        accounts = with_admin(accounts, values["admin_password"])
    return accounts


def _account_files(accounts: Accounts) -> dict[str, str]:
    return {
        **dict(zip(ACCOUNTS, (accounts.render_users(), accounts.render_tokens()), strict=True)),
        FORMER_USERS: accounts.render_former(),
    }


def change_accounts(
    volume: Path, overrides: Path, change: Callable[[Accounts], None], *, own: bool = True
) -> list[str]:
    """Change the accounts, seal them anew, and return the names written.

    What `change` raises leaves them as they are. Others that change them wait.
    """
    values, written = _sources(volume, overrides)
    uid = CONSUMER_UIDS["auth"] if own else None
    with users.locked(volume / "auth"):
        accounts = users.read(volume / "auth")
        change(accounts)
        files = _account_files(_complete(accounts, overrides, values))
        for name, text in files.items():
            _write(volume / name, text, uid=uid)
        return [*written, *files, *_seal_all(volume, values, files, own=own)]


def _read_policy(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise OperationError(f"config/{path.name} is no UTF-8 text: {error}", "save it as UTF-8") from error


def _optional(overrides: Path) -> dict[str, str]:
    """Return the consumers' files of what only an operator can give; empty where it is not given.

    Every line has an end: ssh takes no key whose last line has none.
    """
    given = {}
    for name in OPTIONAL:
        path = overrides / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        given[f"backup/{name}"] = "".join(f"{line}\n" for line in lines)
    return given


def _seal_all(
    volume: Path, values: Mapping[str, str], accounts: Mapping[str, str], *, own: bool
) -> list[str]:
    """Seal the secrets anew if they have changed since they were sealed, and return the names written.

    Encryption is random: a fingerprint of the contents tells whether they have changed.
    """
    bundle = {**values, **accounts}
    fingerprint = hashlib.sha256(json.dumps(bundle, sort_keys=True).encode()).hexdigest()
    path = volume / SEALED
    known = path.with_suffix(".fingerprint")
    if path.exists() and known.exists() and known.read_text(encoding="utf-8") == fingerprint:
        return []
    uid = CONSUMER_UIDS["backup"] if own else None
    _write(path, seal(bundle, values["recovery_key"]), uid=uid)
    _write(known, fingerprint, uid=uid)
    return [SEALED]


def restore(volume: Path, sealed: bytes, recovery_key: str, *, own: bool = True) -> list[str]:
    """Put the secrets of a backup into an empty volume and return their names.

    `ensure` then makes the consumers' files of them. Raise OperationError if the key does not
    open them, or if the volume has other encryption keys already.
    """
    bundle = unseal(sealed, recovery_key)
    source = volume / "source"
    source.mkdir(mode=0o700, exist_ok=True)
    for name in ENCRYPTION_KEYS:
        path = source / name
        if path.exists() and path.read_text(encoding="utf-8") != bundle[name]:
            raise OperationError(
                f"this stack has another {name} than the backup; nothing was changed",
                "restore into an empty project (./stack down --volumes deletes this one's data)",
            )
    (volume / "auth").mkdir(mode=0o500, exist_ok=True)
    for name in (*ACCOUNTS, FORMER_USERS):
        if name in bundle:  # a version without roles had only users
            _write(volume / name, bundle.pop(name), uid=CONSUMER_UIDS["auth"] if own else None)
    for name, value in bundle.items():
        _write(source / name, value)
    return sorted(bundle)


def restore_set(volume: Path, overrides: Path, backups: Path, set_id: str | None) -> list[str]:
    """Do `restore` with a set of the backup volume: the named one, or the newest.

    Where the volume has secrets already they stay (nothing is lost with them), and [] is
    returned. The recovery key is the one in config/secrets. Raise OperationError if there is
    no set or no key.
    """
    if (volume / "source" / ENCRYPTION_KEYS[0]).exists():
        return []
    recovery_key = read_override(overrides, "recovery_key")
    if recovery_key is None:
        raise OperationError(
            "the secrets of the backup are sealed and there is no recovery key; nothing was changed",
            "write the key that ./stack backup recovery-key printed into config/secrets/recovery_key",
        )
    sealed = sorted((backups / "sets").glob(f"{set_id or '*'}/sealed.age"))
    if not sealed:
        raise OperationError("there is no backup set", "./stack backup list")
    return restore(volume, sealed[-1].read_bytes(), recovery_key)


def ensure_offsite(volume: Path, overrides: Path) -> list[str]:
    """Make the two files that reaching the off-site copy takes, on a machine that has no secrets yet."""
    recovery_key = read_override(overrides, "recovery_key")
    if recovery_key is None:
        raise OperationError(
            "there is no recovery key; nothing was changed",
            "write the key that ./stack backup recovery-key printed into config/secrets/recovery_key",
        )
    folder = volume / "backup"
    folder.mkdir(mode=0o500, exist_ok=True)
    uid = CONSUMER_UIDS["backup"]
    os.chown(folder, uid, uid)
    volume.chmod(0o711)
    _write(folder / "offsite_password", offsite_password(recovery_key), uid=uid)
    for relative, text in _optional(overrides).items():
        _write(volume / relative, text, uid=uid)
    return ["backup/offsite_password"]


def give_backups(backups: Path) -> None:
    """Give the backup volume to its user (a folder of the host belongs to whoever made it)."""
    if backups.is_dir() and backups.stat().st_uid != CONSUMER_UIDS["backup"]:
        os.chown(backups, CONSUMER_UIDS["backup"], CONSUMER_UIDS["backup"])


def rotate(volume: Path, overrides: Path, what: str, *, own: bool = True) -> list[str]:
    """Make the secrets of `what` (a key of ROTATIONS) anew and return the names written.

    Raise OperationError if the operator has set one of them in config/secrets.
    """
    for name in ROTATIONS[what]:
        if read_override(overrides, name) is not None:
            raise OperationError(
                f"{name} is set by config/secrets/{name}", f"edit config/secrets/{name}, then ./stack up"
            )
    _certificate(volume, overrides)  # a bad one would leave this half done
    for name in ROTATIONS[what]:
        _write(volume / "source" / name, GENERATORS[name]())
    if what != ADMIN:
        return ensure(volume, overrides, own=own)

    def as_at_first(accounts: Accounts) -> None:
        accounts.own_admin = False

    return change_accounts(volume, overrides, as_at_first, own=own)


def _write(path: Path, content: str | bytes, *, uid: int | None = None, overwrite: bool = True) -> bool:
    """Write a 0400 file in one step and return whether it was written.

    With overwrite=False an existing file stays and False is returned.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400)
    try:
        os.write(descriptor, content.encode() if isinstance(content, str) else content)
        os.fsync(descriptor)
        if uid is not None:
            os.fchown(descriptor, uid, uid)
    finally:
        os.close(descriptor)
    try:
        if overwrite:
            temporary.replace(path)
        else:
            os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
