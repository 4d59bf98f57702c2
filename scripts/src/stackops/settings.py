"""Settings of the operations: read once from the environment, then passed around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cronsim import CronSim, CronSimError

from stackops.errors import OperationError

JOBS = {
    "backup": ("BACKUP_SCHEDULE", "0 1 * * *"),
    "offsite": ("OFFSITE_SCHEDULE", "20 * * * *"),
    "verify": ("VERIFY_SCHEDULE", "0 3 * * 0"),
    "drill": ("DRILL_SCHEDULE", "0 4 * * *"),
    "usage": ("USAGE_SCHEDULE", "30 0 * * *"),
    "cleanup": ("RETENTION_SCHEDULE", "0 2 * * 0"),
    "audit": ("AUDIT_SCHEDULE", "10 0 * * *"),
}
"""Each scheduled job: its setting, and the default schedule (cron's five fields)."""


@dataclass(frozen=True)
class Settings:
    """Where things are and how often they are done. Ages in days."""

    schedules: dict[str, str]
    backups: Path = Path("/backups")
    data: Path = Path("/data")
    secrets: Path = Path("/secrets/backup")
    audit: Path = Path("/audit")
    acme: Path = Path("/acme")
    audit_keep_days: int = 90
    database_host: str = "postgres"
    storage_endpoint: str = "http://minio:9000"
    bucket: str = "mlflow"
    full_every_days: int = 7
    keep_days: int = 14
    keep_count: int = 2
    offsite_repository: str = ""
    retention_days: int = 90
    purge_after_days: int | None = None
    """None: nothing is deleted for good."""

    @property
    def policy(self) -> Path:
        """The copy of config/retention.toml that the jobs may read; empty where there is none."""
        return self.secrets / "retention.toml"

    @property
    def database_folder(self) -> Path:
        """The cluster inside the volume, as postgres/start.sh has it."""
        return self.data / "17"

    @property
    def kept(self) -> Path:
        """Clusters that a restore or upgrade has put aside."""
        return self.data / "kept"


MOST = 100_000
"""The largest number of days and the like: 274 years."""


def _positive(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "") or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise OperationError(
            f"{name} is '{text}', not a whole number from 1 to {MOST}", f"correct {name} in .env"
        )
    return int(text)


def _schedule(environment: Mapping[str, str], name: str, default: str) -> str:
    """Return a schedule, or "" for one that is off. Raise OperationError if it is none."""
    text = " ".join(environment.get(name, "").split()) or default
    if text == "off":
        return ""
    fix = f"correct {name} in .env: minute hour day month weekday, for example '{default}', or off"
    # With six, CronSim's first are seconds and supercronic's last are years.
    if len(text.split()) != 5:
        raise OperationError(f"{name} is '{text}': not five fields", fix)
    try:
        CronSim(text, datetime.now(UTC))
    except CronSimError as error:
        raise OperationError(f"{name} is '{text}': {error}", fix) from error
    return text


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings of an environment. Raise OperationError for a value that is none."""
    schedules = {job: _schedule(environment, name, default) for job, (name, default) in JOBS.items()}
    enabled = environment.get("RETENTION_ENABLED", "") or "yes"
    if enabled not in {"yes", "no"}:
        raise OperationError(f"RETENTION_ENABLED is '{enabled}', not yes or no", "correct it in .env")
    if enabled == "no":
        schedules["cleanup"] = ""
    purge_after = environment.get("RETENTION_PURGE_AFTER_DAYS", "")
    return Settings(
        schedules=schedules,
        full_every_days=_positive(environment, "BACKUP_FULL_EVERY_DAYS", 7),
        keep_days=_positive(environment, "BACKUP_KEEP_DAYS", 14),
        keep_count=_positive(environment, "BACKUP_KEEP_COUNT", 2),
        offsite_repository=environment.get("OFFSITE_REPOSITORY", ""),
        retention_days=_positive(environment, "RETENTION_DAYS", 90),
        audit_keep_days=_positive(environment, "AUDIT_KEEP_DAYS", 90),
        purge_after_days=_positive(environment, "RETENTION_PURGE_AFTER_DAYS", 1) if purge_after else None,
    )
