"""The settings of the fast path: MLflow's own (stackserver.settings) and a few more."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stackserver.errors import RefusedError
from stackserver.settings import read_server_settings

SOCKET = Path("/run/fastpath/fast.sock")
PORT = 8092


@dataclass(frozen=True)
class FastSettings:
    """What the service is told."""

    database_uri: str
    socket: Path
    port: int
    connections: int
    searches: int
    audit_folder: Path
    off_because: str
    """Why nothing at all is answered here; empty if something is."""
    writes: bool
    """Whether routes that change something are answered: with BACKUP_SYNCHRONOUS a commit may wait long."""


def read_fast_settings(environment: Mapping[str, str] = os.environ) -> FastSettings:
    """Return the settings that an environment says. Raise RefusedError."""
    server = read_server_settings(environment)

    def one_of(name: str, default: str) -> str:
        text = environment.get(name) or default
        if text not in {"on", "off"}:
            raise RefusedError(f"{name} is '{text}'", "write on or off in .env")
        return text

    reasons = {
        "FASTPATH is off": one_of("FASTPATH", "on") == "off",
        "AUTHORIZATION is rbac: MLflow itself decides about each object": server.rbac,
    }
    return FastSettings(
        database_uri=server.database_uri,
        socket=Path(environment.get("FASTPATH_SOCKET") or SOCKET),
        port=int(environment.get("FASTPATH_PORT") or PORT),
        connections=server.fast_write_connections,
        searches=server.fast_read_connections,
        audit_folder=Path(environment.get("AUDIT_FOLDER") or "/audit/fastpath"),
        off_because=next((reason for reason, holds in reasons.items() if holds), ""),
        writes=one_of("BACKUP_SYNCHRONOUS", "off") == "off",
    )
