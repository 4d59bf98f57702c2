"""The server's settings: read once from the environment, checked, then passed around."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stackserver.errors import RefusedError

DATABASE_URI_DEFAULT = "postgresql+psycopg2://mlflow@postgres/mlflow"
DATABASE_URI_BY_SOCKET = "postgresql+psycopg2://mlflow@/mlflow?host=/run/postgresql"
CONNECTIONS_RESERVED = 20
"""PostgreSQL connections kept for superusers, prepare, operations and backup."""
SESSIONS_PER_REQUEST = 4
"""Connections that one request of MLflow 3.17.2 may hold at once (nested sessions of
log_batch); a pool below threads times this can deadlock on itself under load."""
PERMISSIONS = ("READ", "USE", "EDIT", "MANAGE", "NO_PERMISSIONS")
"""What RBAC_DEFAULT_PERMISSION may be (mlflow/server/auth/permissions.py of 3.17.2; its DENY is a veto,
under which nobody but an admin could make anything)."""
PERMISSIONS_DATABASE_ENDING = "_auth"
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
    audit_folder: Path
    rbac: bool
    default_permission: str
    fast_connections: int

    @property
    def operations_user(self) -> str | None:
        """The role that owns the schema `stackops`; in a database of the user's own, the URI's."""
        own = (
            self.database_uri == DATABASE_URI_BY_SOCKET or urlsplit(self.database_uri).hostname == "postgres"
        )
        return "stackops" if own else None

    @property
    def permissions_uri(self) -> str:
        """The database of MLflow's permissions: beside that of the records, its name and "_auth"."""
        parts = urlsplit(self.database_uri)
        return parts._replace(path=parts.path + PERMISSIONS_DATABASE_ENDING).geturl()

    @property
    def permissions_owner(self) -> tuple[str, str]:
        """The user and the name of the database of permissions, as PostgreSQL has them."""
        parts = urlsplit(self.permissions_uri)
        return unquote(parts.username or ""), unquote(parts.path.lstrip("/"))

    @property
    def artifact_destination(self) -> str:
        """The S3 URI under which MLflow keeps all artifacts."""
        return f"s3://{self.bucket}/{self.artifact_prefix}"

    @property
    def record_connections(self) -> int:
        """Connections of one worker process for MLflow's records.

        MLflow makes one pool for tracking and one for the registry; a thread is in one
        request, and so in one of them, at a time.
        """
        return self.threads * SESSIONS_PER_REQUEST

    @property
    def permission_connections(self) -> int:
        """Connections of one worker process for MLflow's permissions: none is held while another is taken."""
        return self.threads if self.rbac else 0

    @property
    def connections_per_worker(self) -> int:
        """Connections that one worker process may open to PostgreSQL at most."""
        return self.record_connections + self.permission_connections

    @property
    def fast_read_connections(self) -> int:
        """Connections of the fast path for searches, so that these never take all of them."""
        return max(1, self.fast_connections // 4)

    @property
    def fast_write_connections(self) -> int:
        """Connections of the fast path for everything else."""
        return self.fast_connections - self.fast_read_connections

    @property
    def connections_needed(self) -> int:
        """Connections that all replicas and the fast path may open together, with the reserve."""
        return (
            self.max_replicas * self.workers * self.connections_per_worker
            + self.fast_connections
            + CONNECTIONS_RESERVED
        )


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

    def one_of(name: str, values: tuple[str, ...]) -> str:
        text = environment.get(name) or values[0]
        if text not in values:
            raise RefusedError(
                f"{name} is '{text}'", f"write {', '.join(values[:-1])} or {values[-1]} in .env"
            )
        return text

    rbac = one_of("AUTHORIZATION", ("roles", "rbac")) == "rbac"
    fast_connections = number("FASTPATH_CONNECTIONS", 8, 2, 64)
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
        audit_folder=Path(environment.get("AUDIT_FOLDER") or "/audit/mlflow"),
        rbac=rbac,
        default_permission=one_of("RBAC_DEFAULT_PERMISSION", PERMISSIONS),
        fast_connections=0 if rbac else fast_connections,  # MLflow alone decides then
    )
    if settings.connections_needed > settings.max_connections:
        raise RefusedError(
            f"{settings.max_replicas} replicas x {settings.workers} workers x "
            f"{settings.connections_per_worker} connections + {settings.fast_connections} of the fast path + "
            f"{CONNECTIONS_RESERVED} make "
            f"{settings.connections_needed}, and POSTGRES_MAX_CONNECTIONS is {settings.max_connections}",
            f"set POSTGRES_MAX_CONNECTIONS={settings.connections_needed} in .env, or fewer "
            "MLFLOW_WORKERS, MLFLOW_THREADS or MLFLOW_MAX_REPLICAS",
        )
    return settings


def read_server_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of a service that has the socket of the stack's own database.

    Raise RefusedError.
    """
    settings = read_settings(environment)
    if settings.database_uri != DATABASE_URI_DEFAULT:
        return settings
    return replace(settings, database_uri=DATABASE_URI_BY_SOCKET)
