"""What `./stack cleanup` and `./stack usage` do, put together from the parts of this package."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from psycopg2.extensions import connection as Connection  # noqa: N812

from stackops import postgres, sets, state
from stackops.errors import FailedError, OperationError
from stackops.retention import cleanup, inventory, journal, plan, policy, purge, sweep, usage
from stackops.retention.policy import Policy
from stackops.settings import Settings
from stackops.storage import open_bucket

DAY_SECONDS = 86_400
PROVING_JOBS = ("drill", "verify")


def read_policy(settings: Settings) -> Policy:
    """Return the policy of config/retention.toml, or the default where there is no such file."""
    return policy.parse(settings.policy.read_text(encoding="utf-8"), settings.retention_days)


def make_plan(settings: Settings) -> dict[str, Any]:
    """Return what a batch would delete now, by experiment and rule, and what a purge would free."""
    rules = read_policy(settings)
    with journal.opened(settings) as connection:
        planned = plan.make(connection, rules)
        rows: dict[tuple[str, str, str], list[int]] = {}
        names = _experiment_names(connection)
        for item in planned.items:
            key = (names.get(item.experiment_id, str(item.experiment_id)), item.rule, item.kind)
            row = rows.setdefault(key, [0, 0])
            row[0] += 1
            row[1] += item.bytes or 0
        return {
            **cleanup.facts_of(planned),
            "by_experiment": [
                {"experiment": key[0], "rule": key[1], "kind": key[2], "count": row[0], "bytes": row[1]}
                for key, row in sorted(rows.items())
            ],
            "rules": [policy.describe(rule) for rule in rules.rules],
            "purge": _purge_preview(settings, connection, rules),
        }


def run(settings: Settings, *, scheduled: bool) -> dict[str, Any]:
    """Make a batch and carry it out (or let it wait); by schedule also purge, where that is set."""
    rules = read_policy(settings)
    with postgres.maintenance_lock(settings), journal.opened(settings) as connection:
        facts = cleanup.run(connection, rules, scheduled=scheduled, now=datetime.now(UTC))
        if scheduled and settings.purge_after_days is not None:
            facts["purged"] = _purge(settings, connection, rules)
        else:
            facts["purge"] = _purge_preview(settings, connection, rules)
    return facts


def approve(settings: Settings, batch: str) -> dict[str, Any]:
    """Carry out a batch that waits."""
    with postgres.maintenance_lock(settings), journal.opened(settings) as connection:
        return cleanup.approve(connection, read_policy(settings), batch)


def undo(settings: Settings, batch: str) -> dict[str, Any]:
    """Bring back what a batch deleted."""
    with postgres.maintenance_lock(settings), journal.opened(settings) as connection:
        return cleanup.undo(connection, batch)


def purge_now(settings: Settings) -> dict[str, Any]:
    """Delete for good what was deleted more than RETENTION_PURGE_AFTER_DAYS ago."""
    with postgres.maintenance_lock(settings), journal.opened(settings) as connection:
        return _purge(settings, connection, read_policy(settings))


def batches(settings: Settings) -> list[dict[str, Any]]:
    """Return every batch, the oldest first."""
    with journal.opened(settings) as connection:
        return [asdict(batch) for batch in journal.batches(connection)]


def explain(settings: Settings, run_id: str) -> dict[str, Any]:
    """Return which rule decides over a run and why it is kept. Raise OperationError if there is none."""
    rules = read_policy(settings)
    with journal.opened(settings) as connection:
        found = plan.explain(connection, rules, run_id)
    if found is None:
        raise OperationError(f"there is no run {run_id}", "take the id from the run's page")
    rule = next((rule for rule in rules.rules if rule.name == found["rule"]), None)
    return {"run": run_id, **found, "rule_says": policy.describe(rule) if rule else None}


def take_inventory(settings: Settings) -> dict[str, Any]:
    """List the bucket and keep whose what is."""
    with journal.opened(settings) as connection:
        return inventory.take(connection, open_bucket(settings))


def orphans(settings: Settings) -> dict[str, Any]:
    """Return objects without a record and records without objects, as of the last inventory."""
    with journal.opened(settings) as connection:
        newest = inventory.newest(connection)
        if not newest:
            raise OperationError("there is no inventory yet", "./stack usage --refresh")
        return {"made": newest[0], "orphans": inventory.orphans(connection), **newest[1]}


def storage(settings: Settings) -> dict[str, Any]:
    """Return the storage report (usage.report)."""
    with journal.opened(settings) as connection:
        return usage.report(connection)


def _experiment_names(connection: Connection) -> dict[int, str]:
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT experiment_id, name FROM experiments")
        return dict(cursor.fetchall())


def _before_ms(days: int) -> int:
    return int((time.time() - days * DAY_SECONDS) * 1000)


def _purge_preview(settings: Settings, connection: Connection, rules: Policy) -> dict[str, Any]:
    """Return what a purge would free: by the setting, or all that is deleted where there is none."""
    days = settings.purge_after_days
    return {"after_days": days, **purge.preview(connection, rules, _before_ms(days or 0))}


def _purge(settings: Settings, connection: Connection, rules: Policy) -> dict[str, Any]:
    if settings.purge_after_days is None:
        raise OperationError(
            "nothing is purged before you have said so: RETENTION_PURGE_AFTER_DAYS is empty;"
            " nothing was changed",
            "set it in .env to the days that deleted runs stay restorable, then ./stack up",
        )
    before_ms = _before_ms(settings.purge_after_days)
    _check_backup(settings, before_ms)
    bucket = open_bucket(settings)
    purged = purge.Purge(connection, rules, bucket.name, before_ms)
    purged.run()
    if rules.orphans_after_days:
        purged.counts["orphan"] += inventory.doom_orphans(connection, rules.orphans_after_days)
        for upload in inventory.stale_uploads(bucket, rules.orphans_after_days):
            bucket.abort(upload)
            purged.counts["unfinished upload"] += 1
    swept = [sweep.doomed_prefixes(connection, bucket)]
    plan.make(connection, rules)  # as it is now
    swept += [
        sweep.doomed_artifacts(connection, bucket, rule, before_ms)
        for rule in rules.rules
        if rule.action == "delete-artifacts"
    ]
    problems = sorted(purged.problems.union(*(part.problems for part in swept)))
    facts = {
        **{f"{kind}s": count for kind, count in sorted(purged.counts.items())},
        "objects": sum(part.objects for part in swept),
        "bytes": sum(part.bytes for part in swept),
        "skipped": len(problems),
    }
    if problems:
        error = FailedError(
            f"purged ({_counts(facts)}), but {len(problems)} could not be:\n" + "\n".join(problems),
            "mend what is named; the next purge tries again",
        )
        error.facts = facts  # type: ignore[attr-defined]
        raise error
    return facts


def _counts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _check_backup(settings: Settings, before_ms: int) -> None:
    """Raise OperationError unless a set that has all that will go was read back or restored well."""
    results = state.results(settings.backups)
    for job in PROVING_JOBS:
        result = results.get(job)
        if not (result and result.ok and result.facts.get("set")):
            continue
        try:
            moment = sets.read(settings, result.facts["set"]).moment
        except OperationError:
            continue
        if moment.timestamp() * 1000 >= before_ms:
            return
    raise OperationError(
        "no verified backup is as young as what would be purged: after a purge only a backup helps;"
        " nothing was changed",
        "./stack backup run, then ./stack backup drill",
    )
