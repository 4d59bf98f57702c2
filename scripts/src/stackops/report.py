"""What `backup list` and `backup status` say, as data and as lines."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from stackops import metrics, postgres, state
from stackops import sets as backup_sets
from stackops.errors import FailedError
from stackops.files import size_text
from stackops.retention import show
from stackops.settings import Settings

DEAD_ROWS_SHOWN = 0.2
LATE_SECONDS = 3600


def sets(settings: Settings) -> list[dict[str, Any]]:
    """Return each set, the oldest first."""
    return [
        {
            "set": manifest.id,
            "kind": "full" if manifest.full else "incremental",
            "made": manifest.made,
            "database_bytes": manifest.database_bytes,
            "objects": manifest.objects,
            "object_bytes": manifest.object_bytes,
            "label": manifest.label,
        }
        for manifest in backup_sets.complete(settings)
    ]


def status(settings: Settings) -> dict[str, Any]:
    """Return jobs, continuous backup, database care, and what is wrong with any of them."""
    problems = []
    now = metrics.local_now()
    jobs = {}
    results = state.results(settings.backups)
    for job, schedule in settings.schedules.items():
        if job == "offsite" and not settings.offsite_repository:
            continue
        result = results.get(job)
        following = metrics.next_run(schedule, now)
        jobs[job] = {
            "last": _iso(result.started) if result else None,
            "ok": result.ok if result else None,
            "seconds": round(result.seconds, 1) if result else None,
            "message": result.message if result else "",
            "facts": result.facts if result else {},
            "next": following.isoformat(timespec="minutes") if following else None,
        }
        if result and not result.ok:
            problems.append(f"job {job}: {result.message}")
        elif following and (late := _late(settings, job, result, following)):
            problems.append(f"job {job}: {late}")
    parts = state.continuous(settings.backups)
    for part, value in parts.items():
        if not value["ok"]:
            problems.append(f"continuous backup, {part}: {value['error']}")
    return {
        "cleanup_waits": _waiting_cleanup(settings),
        "jobs": jobs,
        "continuous": parts,
        "database": _database(settings, problems),
        "problems": problems,
    }


def _waiting_cleanup(settings: Settings) -> str:
    """Return what a batch of cleanup that waits for approval says, or ""."""
    try:
        with closing(postgres.connect(settings)) as connection:
            if postgres.fetch_one(connection, "SELECT to_regclass('stackops.batches')")[0] is None:
                return ""
            row = postgres.fetch_one(
                connection,
                "SELECT batch, facts FROM stackops.batches WHERE state = 'waiting'"
                " ORDER BY made DESC LIMIT 1",
            )
    except FailedError:
        return ""  # said by others
    return show.waiting(*row) if row else ""


def _late(settings: Settings, job: str, result: state.JobResult | None, following: datetime) -> str:
    """Return what is wrong if a job has not run well for two of its intervals, or ""."""
    interval = (metrics.next_run(settings.schedules[job], following) or following) - following
    last = result.last_success if result else None
    if last is None:
        last = state.scheduled_since(settings.backups, job)
    if time.time() - last <= 2 * interval.total_seconds() + LATE_SECONDS:
        return ""
    return f"it has not run since {_iso(last)} (fix: ./stack logs cron; is the machine off at that time?)"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(timespec="seconds")


def _database(settings: Settings, problems: list[str]) -> dict[str, Any]:
    """Return the sizes of the database and the tables with many dead rows (room not yet reused)."""
    try:
        with closing(postgres.connect(settings)) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT relname, n_live_tup, n_dead_tup, pg_total_relation_size(relid)"
                " FROM pg_stat_user_tables WHERE n_dead_tup > 1000 AND n_dead_tup > n_live_tup * %s"
                " ORDER BY n_dead_tup DESC LIMIT 10",
                (DEAD_ROWS_SHOWN,),
            )
            bloat = [
                {"table": name, "rows": live, "dead_rows": dead, "bytes": size}
                for name, live, dead, size in cursor
            ]
            cursor.execute(
                "SELECT pg_database_size('mlflow'),"
                " (SELECT coalesce(sum(checksum_failures), 0)::int FROM pg_stat_database)"
            )
            size, failures = cursor.fetchone()
    except FailedError as error:
        problems.append(str(error))
        return {}
    if failures:
        problems.append(f"the database has read {failures} damaged pages (checksum failures)")
    return {"bytes": size, "checksum_failures": failures, "bloat": bloat}


def lines(action: str, found: Any) -> list[str]:
    """Return `backup list` or `backup status` as lines for a person."""
    if action == "list":
        rows = [
            f"{entry['set']}  {entry['kind']:<11}  {entry['made']}  "
            f"database {size_text(entry['database_bytes'])}, "
            f"{entry['objects']} objects {size_text(entry['object_bytes'])}  {entry['label']}".rstrip()
            for entry in found
        ]
        return rows or ["no backup set yet"]
    text = []
    for part, value in found["continuous"].items():
        what = {"log": "database log", "objects": "objects"}[part]
        said = "copied as it is written" if value["ok"] else f"NOT COPIED: {value['error']}"
        age = f", {time.time() - value['at']:.0f} s ago" if "at" in value else ""
        text.append(f"  {what:<12} {said}{age}")
    for job, value in found["jobs"].items():
        last = "not yet run"
        if value["last"]:
            last = f"{value['last']} {'well' if value['ok'] else 'FAILED'} in {value['seconds']} s"
        text.append(f"  {job:<12} {last}; next {value['next'] or 'off'}")
        if value["message"]:
            text += [f"    {line}" for line in value["message"].splitlines()[:5]]
    if found["cleanup_waits"]:
        text.append(f"  {found['cleanup_waits']}")
    database = found["database"]
    if database:
        size = size_text(database["bytes"])
        text.append(f"  database     {size}, checksum failures {database['checksum_failures']}")
        for table in database["bloat"]:
            text.append(
                f"    {table['table']}: {table['dead_rows']} dead rows beside {table['rows']},"
                f" {size_text(table['bytes'])}"
            )
    return text
