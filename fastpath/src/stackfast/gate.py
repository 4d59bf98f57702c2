"""What the fast path was proven against: it answers nothing on any other schema or MLflow."""

from __future__ import annotations

from importlib.metadata import version

import asyncpg

from stackfast.outcomes import NotMineError

PROVEN_MLFLOW = "3.17.2"
PROVEN_REVISION = "dc11669786a5"
"""MLflow's newest schema revision in that version; tests/differential is the proof."""


def unproven_mlflow(installed: str | None = None) -> str:
    """Return why the installed MLflow is not the proven one; empty if it is."""
    installed = installed or version("mlflow")
    return "" if installed == PROVEN_MLFLOW else f"MLflow is {installed}, proven is {PROVEN_MLFLOW}"


class Gate:
    """Looks at the schema's revision on each new connection."""

    def __init__(self) -> None:
        self.revision = ""
        """As last seen."""

    @property
    def open(self) -> bool:
        """Whether the last connection found the proven schema."""
        return self.revision == PROVEN_REVISION

    async def check(self, connection: asyncpg.Connection) -> None:
        """Raise NotMineError unless the database has the proven schema."""
        try:
            rows = await connection.fetch("SELECT version_num FROM alembic_version")
        except asyncpg.UndefinedTableError:
            rows = []
        found = ",".join(row[0] for row in rows) or "none"
        if found != self.revision:
            self.revision = found
            state = "as proven" if self.open else f"proven is {PROVEN_REVISION}: everything goes to MLflow"
            print(f"schema {found}, {state}", flush=True)
        if not self.open:
            raise NotMineError("schema")
