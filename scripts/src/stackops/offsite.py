"""The copy elsewhere: restic, encrypted with a password that follows from the recovery key."""

from __future__ import annotations

import json
import os
from typing import Any

from stackops import command
from stackops.errors import FailedError, OperationError
from stackops.settings import Settings

TIMEOUT_SECONDS = 24 * 3600
QUICK_TIMEOUT_SECONDS = 300
CHECKED_PERCENT = 5
CREDENTIAL_NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_DEFAULT_REGION",
    "RESTIC_REST_USERNAME",
    "RESTIC_REST_PASSWORD",
)
SFTP_ARGUMENTS = (
    "-i {secrets}/offsite_key -o UserKnownHostsFile={secrets}/offsite_known_hosts"
    " -o StrictHostKeyChecking=yes -o BatchMode=yes -o ConnectTimeout=30"
)
"""What restic tells ssh: the operator's key, and no server but those that the operator named."""
FETCHING = "state/fetching"
"""Is there while the backup volume is being filled from elsewhere, below that volume."""
SCRATCH = (
    *("drill", "tree", "objects/damaged", "barman/.locks", "barman/aside"),
    *("state/*.lock", "state/jobs/*.running", FETCHING),
)
"""What is no part of a backup, below the backup volume."""


def credentials(text: str) -> dict[str, str]:
    """Return the variables of an environment file. Raise OperationError for one that is not known."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or name not in CREDENTIAL_NAMES:
            # A line without a name may be the secret itself.
            what = f"'{name}' is not known" if equals else f"line {number} has no name"
            raise OperationError(
                f"config/secrets/offsite_credentials: {what}",
                f"use NAME=value lines with {', '.join(CREDENTIAL_NAMES)}",
            )
        found[name] = value
    return found


def _environment(settings: Settings) -> dict[str, str]:
    if not settings.offsite_repository:
        raise OperationError(
            "no off-site repository is set", "set OFFSITE_REPOSITORY in .env (docs/backup.md)"
        )
    path = settings.secrets / "offsite_credentials"
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/tmp",
        "RESTIC_REPOSITORY": settings.offsite_repository,
        "RESTIC_PASSWORD_FILE": str(settings.secrets / "offsite_password"),
        **(credentials(path.read_text(encoding="utf-8")) if path.exists() else {}),
    }


def _restic(settings: Settings, *words: str, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
    options = ["--no-cache", "--retry-lock", "5m"]
    if settings.offsite_repository.startswith("sftp:"):
        options += ["--option", f"sftp.args={SFTP_ARGUMENTS.format(secrets=settings.secrets)}"]
    return command.run(
        ["restic", *options, *words],
        fix="is the repository reachable, and is the recovery key the right one? docs/backup.md",
        timeout_seconds=timeout_seconds,
        environment=_environment(settings),
    )


def _make_repository(settings: Settings) -> None:
    """Make the repository, and its bucket, if there is none. Raise FailedError if that fails.

    By trying: restic asks a bucket that is not there for a quarter of an hour whether it has
    a repository.
    """
    try:
        _restic(settings, "init", timeout_seconds=QUICK_TIMEOUT_SECONDS)
    except FailedError as error:
        if "already" not in str(error):
            raise


def push(settings: Settings) -> dict[str, Any]:
    """Copy the backup volume to the repository and forget what is older than the window.

    Return the snapshot's id, the files and the bytes that were new. Raise FailedError if the
    repository cannot be reached or has another password.
    """
    _make_repository(settings)
    excluded = [f"--exclude={settings.backups / path}" for path in SCRATCH]
    text = _restic(settings, "--json", "backup", "--host", "mlflow-stack", *excluded, str(settings.backups))
    summary = json.loads(text.splitlines()[-1])
    keep = f"{settings.keep_days}d"
    _restic(
        settings, "forget", "--host", "mlflow-stack", "--group-by", "host", "--keep-within", keep, "--prune"
    )
    return {
        "snapshot": summary["snapshot_id"],
        "files_new": summary["files_new"],
        "bytes_added": summary["data_added"],
    }


def fetch(settings: Settings) -> dict[str, Any]:
    """Bring the newest snapshot back into an empty backup volume and return its id and time.

    A fetch that was interrupted is gone on with.

    Raise OperationError if the volume has backups, or if the repository has no snapshot.
    """
    fetching = settings.backups / FETCHING
    if any(settings.backups.glob("*/*")) and not fetching.exists():
        raise OperationError(
            "the backup volume is not empty; nothing was changed",
            "restore from it (./stack restore), or choose another BACKUP_FOLDER",
        )
    snapshots = json.loads(_restic(settings, "--json", "snapshots", "--host", "mlflow-stack"))
    if not snapshots:
        raise OperationError("the off-site repository has no snapshot", "check OFFSITE_REPOSITORY in .env")
    newest = max(snapshots, key=lambda snapshot: snapshot["time"])
    # The snapshot's folder is named, so that it is the volume's top wherever it was made.
    source = f"{newest['id']}:{newest['paths'][0]}"
    fetching.parent.mkdir(exist_ok=True)
    fetching.touch()
    _restic(settings, "restore", source, "--target", str(settings.backups), "--verify")
    fetching.unlink()
    return {"snapshot": newest["id"], "time": newest["time"]}


def check(settings: Settings) -> dict[str, Any]:
    """Read a twentieth of the repository back, and its whole structure."""
    _restic(settings, "check", f"--read-data-subset={CHECKED_PERCENT}%")
    return {"checked_percent": CHECKED_PERCENT}
