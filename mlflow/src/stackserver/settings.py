"""The server's settings: read once from the environment, checked, then passed around."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from stackserver.errors import RefusedError

DATABASE_URI_DEFAULT = "postgresql+psycopg2://mlflow@postgres/mlflow"
CONNECTIONS_RESERVED = 20
"""PostgreSQL connections kept for superusers, prepare, operations and backup."""
SESSIONS_PER_REQUEST = 4
"""Connections that one request of MLflow 3.17.2 may hold at once (nested sessions of
log_batch); a pool below threads times this can deadlock on itself under load."""
_BYTE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Settings:
    """The server's settings. Sizes in bytes, times in seconds."""

    database_uri: str
    bucket: str
    artifact_prefix: str
    s3_endpoint: str | None
    workers: int
    threads: int
    max_replicas: int
    max_connections: int
    tmp_limit_bytes: int
    tmp_reserve_bytes: int
    gateway: bool

    @property
    def operations_user(self) -> str | None:
        """The role that owns the schema `stackops`; in a database of the user's own, the URI's."""
        return "stackops" if urlsplit(self.database_uri).hostname == "postgres" else None

    @property
    def artifact_destination(self) -> str:
        """The S3 URI under which MLflow keeps all artifacts."""
        return f"s3://{self.bucket}/{self.artifact_prefix}"

    @property
    def connections_per_worker(self) -> int:
        """Connections that one worker process may open to PostgreSQL at most.

        MLflow makes one pool for tracking and one for the registry; a thread is in one
        request, and so in one of them, at a time.
        """
        return self.threads * SESSIONS_PER_REQUEST

    @property
    def connections_needed(self) -> int:
        """Connections that all replicas may open together, with the reserve."""
        return self.max_replicas * self.workers * self.connections_per_worker + CONNECTIONS_RESERVED


def normalise_database_uri(uri: str) -> str:
    """Return the URI with the driver named, which SQLAlchemy 2.1 needs.

    SQLAlchemy 2.1 takes a plain `postgresql://` for psycopg 3, which is not installed, so
    it is rewritten. Raise RefusedError for another database, or for a password in
    the URI (it would stand in `docker inspect` and in every error message).
    """
    parts = urlsplit(uri)
    if parts.scheme in {"postgresql", "postgres"}:
        uri = "postgresql+psycopg2" + uri[len(parts.scheme) :]
    elif parts.scheme != "postgresql+psycopg2":
        raise RefusedError(
            f"DATABASE_URI has the scheme '{parts.scheme}', and the stack keeps its records in PostgreSQL",
            "write postgresql+psycopg2://USER@HOST/DATABASE in .env",
        )
    if parts.password is not None:
        raise RefusedError(
            "DATABASE_URI holds a password, which would show in docker inspect and in error messages",
            "take it out of the address and put it into config/secrets/database_password",
        )
    return uri


def parse_bytes(text: str) -> int:
    """Return the number of bytes that '20g', '512m' or '1048576' says. Raise ValueError."""
    match = re.fullmatch(r"(\d+)([kmgt]?)b?", text.strip().lower())
    if match is None:
        raise ValueError(text)
    return int(match[1]) * _BYTE_UNITS[match[2]]


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings that an environment says. Raise RefusedError."""

    def number(name: str, default: int, low: int, high: int) -> int:
        text = environment.get(name) or str(default)
        if not text.isdecimal() or not low <= int(text) <= high:
            raise RefusedError(f"{name} is '{text}'", f"write a whole number from {low} to {high} in .env")
        return int(text)

    def size(name: str, default: str) -> int:
        text = environment.get(name) or default
        try:
            return parse_bytes(text)
        except ValueError:
            raise RefusedError(f"{name} is '{text}'", "write a size such as 20g or 512m in .env") from None

    def switch(name: str) -> bool:
        text = environment.get(name) or "off"
        if text not in {"on", "off"}:
            raise RefusedError(f"{name} is '{text}'", "write on or off in .env")
        return text == "on"

    settings = Settings(
        database_uri=normalise_database_uri(environment.get("DATABASE_URI") or DATABASE_URI_DEFAULT),
        bucket=environment.get("S3_BUCKET") or "mlflow",
        artifact_prefix=environment.get("S3_PREFIX") or "artifacts",
        s3_endpoint=environment.get("MLFLOW_S3_ENDPOINT_URL") or None,
        workers=number("MLFLOW_WORKERS", 2, 1, 64),
        threads=number("MLFLOW_THREADS", 16, 1, 256),
        max_replicas=number("MLFLOW_MAX_REPLICAS", 3, 1, 64),
        max_connections=number("POSTGRES_MAX_CONNECTIONS", 500, 20, 10_000),
        tmp_limit_bytes=size("MLFLOW_TMP_LIMIT", "20g"),
        tmp_reserve_bytes=size("MLFLOW_TMP_RESERVE", "1g"),
        gateway=switch("MLFLOW_GATEWAY"),
    )
    if settings.connections_needed > settings.max_connections:
        raise RefusedError(
            f"{settings.max_replicas} replicas x {settings.workers} workers x "
            f"{settings.connections_per_worker} connections + {CONNECTIONS_RESERVED} make "
            f"{settings.connections_needed}, and POSTGRES_MAX_CONNECTIONS is {settings.max_connections}",
            f"set POSTGRES_MAX_CONNECTIONS={settings.connections_needed} in .env, or fewer "
            "MLFLOW_WORKERS, MLFLOW_THREADS or MLFLOW_MAX_REPLICAS",
        )
    return settings
