"""The service `cron`: supercronic with a table of the jobs that have a schedule."""

from __future__ import annotations

import os
from pathlib import Path

from stackops import state
from stackops.settings import Settings


def crontab(settings: Settings) -> str:
    """Return the table: a line per job that is on. Each calls what ./stack calls by hand."""
    lines = []
    for job, schedule in settings.schedules.items():
        if job == "offsite" and not settings.offsite_repository:
            continue
        if schedule:
            lines.append(f"{schedule} stackops job {job}\n")
    return "".join(lines)


def run(settings: Settings) -> None:
    """Become supercronic. It starts no job while the same one still runs (its default)."""
    state.know_jobs(settings.backups, [job for job, schedule in settings.schedules.items() if schedule])
    path = Path("/tmp/crontab")
    # An idle line, since supercronic refuses an empty table.
    path.write_text(crontab(settings) or "0 0 1 1 * true\n", encoding="utf-8")
    os.execvp("supercronic", ["supercronic", "-passthrough-logs", str(path)])
