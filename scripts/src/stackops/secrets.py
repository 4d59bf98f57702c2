"""First-run secrets: made once, kept in the volume, never overwritten.

The volume holds a folder `source` (readable by root only) with one file per secret, and a
folder per consumer, owned by the consumer's uid, with the files in the form it reads.
Consumer files are derived: they are written anew whenever their source has changed. An
operator's own value, `config/secrets/NAME`, wins over the one in the volume.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import bcrypt

from stackops.errors import OperationError

ADMIN_USER = "admin"
BCRYPT_COST = 10
BCRYPT_BYTES = 72

CONSUMER_UIDS = {"postgres": 10001, "minio": 10002, "mlflow": 10003, "auth": 10006, "prepare": 10007}


def _token() -> str:
    return secrets.token_urlsafe(32)


GENERATORS: dict[str, Callable[[], str]] = {
    "admin_password": lambda: secrets.token_urlsafe(15),
    "database_password": _token,
    "stackops_database_password": _token,
    "storage_root_user": lambda: "root" + secrets.token_hex(12),
    "storage_root_password": _token,
    # The access key is random too: some of MinIO's unfixed CVEs need no more than that.
    "storage_access_key": lambda: "mlflow" + secrets.token_hex(12),
    "storage_secret_key": _token,
    "kek_passphrase": _token,
    "webhook_key": lambda: base64.urlsafe_b64encode(os.urandom(32)).decode(),
}
"""How each secret is made (all from the operating system's random source)."""

IRREPLACEABLE = ("kek_passphrase", "webhook_key")
"""What is encrypted under these is lost with them: they are never made anew by rotation."""

ROTATIONS = {
    "admin": ("admin_password",),
    "database": ("database_password", "stackops_database_password"),
    "storage": ("storage_access_key", "storage_secret_key"),
}
"""What `stackops secrets rotate NAME` makes anew."""


def render_consumer_files(values: Mapping[str, str]) -> dict[str, str]:
    """Given the value of each secret, return the text of each consumer file by its path.

    Paths are relative to the volume; the first part names the consumer. The users file is
    not among them: see `render_users`.
    """
    database_password = values["database_password"]
    stackops_password = values["stackops_database_password"]
    # Any user name: the one of a database of the operator's own is in DATABASE_URI.
    passwords = f"*:*:*:*:{_pgpass(database_password)}\n"
    files = {
        "postgres/mlflow_password": database_password,
        "postgres/stackops_password": stackops_password,
        "minio/root_user": values["storage_root_user"],
        "minio/root_password": values["storage_root_password"],
        "mlflow/pgpass": passwords,
        "mlflow/aws_credentials": (
            "[default]\n"
            f"aws_access_key_id = {values['storage_access_key']}\n"
            f"aws_secret_access_key = {values['storage_secret_key']}\n"
        ),
        "prepare/pgpass": f"*:*:*:stackops:{_pgpass(stackops_password)}\n" + passwords,
    }
    for name in IRREPLACEABLE:
        files[f"mlflow/{name}"] = values[name]
        files[f"prepare/{name}"] = values[name]
    for name in ("storage_root_user", "storage_root_password", "storage_access_key", "storage_secret_key"):
        files[f"prepare/{name}"] = values[name]
    return files


def _pgpass(password: str) -> str:
    """Return a password as a field of a .pgpass file (backslash and colon escaped)."""
    return password.replace("\\", "\\\\").replace(":", "\\:")


def render_users(existing: str, admin_password: str) -> str:
    """Return the users file with the admin's line right for `admin_password`.

    Other lines stay. The text is returned unchanged if the hash fits already, since a new
    hash of the same password would make every session log in again.
    """
    lines = existing.splitlines()
    for line in lines:
        name, _, password_hash = line.partition(":")
        if name == ADMIN_USER and bcrypt.checkpw(_bcrypt_bytes(admin_password), password_hash.encode()):
            return existing
    password_hash = bcrypt.hashpw(_bcrypt_bytes(admin_password), bcrypt.gensalt(BCRYPT_COST)).decode()
    others = [line for line in lines if not line.startswith(f"{ADMIN_USER}:")]
    return "\n".join([f"{ADMIN_USER}:{password_hash}", *others]) + "\n"


def _bcrypt_bytes(password: str) -> bytes:
    return password.encode()[:BCRYPT_BYTES]


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
    if name == "admin_password" and len(value.encode()) > BCRYPT_BYTES:
        raise OperationError(
            f"config/secrets/{name} is longer than bcrypt's {BCRYPT_BYTES} bytes",
            "choose a shorter password",
        )
    return value


def check_override_names(overrides: Path) -> None:
    """Raise OperationError if config/secrets has a file that names no secret."""
    if not overrides.is_dir():
        return
    for path in sorted(overrides.iterdir()):
        if path.name in GENERATORS or path.name.startswith((".", "README")):
            continue
        known = ", ".join(GENERATORS)
        raise OperationError(f"config/secrets/{path.name} names no secret", f"use one of: {known}")


def ensure(volume: Path, overrides: Path, *, own: bool = True) -> list[str]:
    """Make what is missing, follow what was overridden, and return the names written.

    Safe to run at any time and by several at once: a source is linked into place, so the
    first writer wins. `own=False` leaves owners alone (tests without root).
    """
    check_override_names(overrides)
    written = []
    source = volume / "source"
    source.mkdir(mode=0o700, exist_ok=True)
    values = {}
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

    for consumer, uid in CONSUMER_UIDS.items():
        folder = volume / consumer
        folder.mkdir(mode=0o500, exist_ok=True)
        if own:
            os.chown(folder, uid, uid)
    users = volume / "auth" / "users"
    files = render_consumer_files(values)
    files["auth/users"] = render_users(
        users.read_text(encoding="utf-8") if users.exists() else "", values["admin_password"]
    )
    for relative, text in files.items():
        path = volume / relative
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        _write(path, text, uid=CONSUMER_UIDS[relative.partition("/")[0]] if own else None)
        written.append(relative)
    volume.chmod(0o711)
    return written


def rotate(volume: Path, overrides: Path, what: str, *, own: bool = True) -> list[str]:
    """Make the secrets of `what` (a key of ROTATIONS) anew and return the names written.

    Raise OperationError if the operator has set one of them in config/secrets.
    """
    for name in ROTATIONS[what]:
        if read_override(overrides, name) is not None:
            raise OperationError(
                f"{name} is set by config/secrets/{name}", f"edit config/secrets/{name}, then ./stack up"
            )
    for name in ROTATIONS[what]:
        _write(volume / "source" / name, GENERATORS[name]())
    return ensure(volume, overrides, own=own)


def _write(path: Path, text: str, *, uid: int | None = None, overwrite: bool = True) -> bool:
    """Write a 0400 file in one step and return whether it was written.

    With overwrite=False an existing file stays and False is returned.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400)
    try:
        os.write(descriptor, text.encode())
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
