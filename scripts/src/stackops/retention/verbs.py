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
PURGED = ("run", "model", "trace", "experiment", "orphan", "unfinished_upload")
"""What a purge counts."""
SHOWN = 100
"""Problems that a message names."""


def read_policy(settings: Settings) -> Policy:
    """Return the policy of config/retention.toml, or the default where there is no such file."""
    return policy.parse(settings.policy.read_text(encoding="utf-8"), settings.retention_days)


def make_plan(settings: Settings) -> dict[str, Any]:
    """Return what a batch would delete now, by experiment and rule, and what a purge would free."""
    rules = read_policy(settings)
    with journal.opened(settings) as connection:
        planned = plan.make(connection, rules)
        return {
            **cleanup.facts_of(planned),
            "by_experiment": plan.by_experiment(connection),
            "rules": [policy.describe(rule) for rule in rules.rules],
            "purge": _purge_preview(settings, connection, rules),
        }


def run(settings: Settings, *, scheduled: bool) -> dict[str, Any]:
    """Make a batch and carry it out (or let it wait); by schedule also purge, where that is set."""
    rules = read_policy(settings)
    with postgres.maintenance_lock(settings), journal.opened(settings) as connection:
        facts = cleanup.run(connection, rules, scheduled=scheduled, now=datetime.now(UTC))
        _note(settings, connection)
        if not scheduled or settings.purge_after_days is None:
            return {**facts, "purge": _purge_preview(settings, connection, rules)}
        try:
            return {**facts, "purged": _purge(settings, connection, rules)}
        except OperationError as error:
            done = f"the batch {facts['batch']} is {facts['state']}" if facts["batch"] else facts["state"]
            purged = getattr(error, "facts", {})
            raise FailedError(
                f"{done}; the purge: {error}", error.fix, {**facts, "purged": purged}
            ) from error


def approve(settings: Settings, batch: str) -> dict[str, Any]:
    """Carry out a batch that waits."""
    with postgres.maintenance_lock(settings), journal.opened(settings) as connection:
        try:
            return cleanup.approve(connection, read_policy(settings), batch)
        finally:
            _note(settings, connection)


def undo(settings: Settings, batch: str) -> dict[str, Any]:
    """Bring back what a batch deleted."""
    with postgres.maintenance_lock(settings), journal.opened(settings) as connection:
        try:
            return cleanup.undo(connection, batch)
        finally:
            _note(settings, connection)


def purge_now(settings: Settings) -> dict[str, Any]:
    """Delete for good what was deleted more than RETENTION_PURGE_AFTER_DAYS ago."""
    with postgres.maintenance_lock(settings), journal.opened(settings) as connection:
        return _purge(settings, connection, read_policy(settings))


def batches(settings: Settings) -> list[dict[str, Any]]:
    """Return every batch, the oldest first."""
    with journal.opened(settings) as connection:
        return [asdict(batch) for batch in journal.batches(connection)]


def deleted(settings: Settings) -> list[dict[str, Any]]:
    """Return what is deleted and can still be brought back (journal.deleted)."""
    with journal.opened(settings) as connection:
        return journal.deleted(connection)


def explain(settings: Settings, name: str) -> dict[str, Any]:
    """Return which rule decides over a run, model or trace and why it is kept (plan.explain).

    Raise OperationError if there is none.
    """
    rules = read_policy(settings)
    with journal.opened(settings) as connection:
        found = plan.explain(connection, rules, name)
    if found is None:
        raise OperationError(f"there is no run, model or trace {name}", "take the id from its page")
    rule = next((rule for rule in rules.rules if rule.name == found["rule"]), None)
    return {"id": name, **found, "rule_says": policy.describe(rule) if rule else None}


def take_inventory(settings: Settings) -> dict[str, Any]:
    """List the bucket and keep whose what is."""
    with journal.opened(settings) as connection:
        facts = inventory.take(connection, open_bucket(settings))
        _note(settings, connection)
        experiments = usage.report(connection)["experiments"][: usage.LARGEST]
        return {**facts, "experiments": {row["experiment"]: row["bytes"] for row in experiments}}


def _note(settings: Settings, connection: Connection) -> None:
    """Write what the batches come to where `status` and the metrics find it."""
    state.write_json(state.cleanup_path(settings.backups), journal.totals(connection))


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
    bucket = open_bucket(settings)
    swept = [sweep.doomed_prefixes(connection, bucket)]  # of a purge that was killed: the rows are gone
    backup = _proven_backup(settings, before_ms)
    purged = purge.Purge(connection, rules, bucket.name, before_ms)
    purged.run()
    if rules.orphans_after_days:
        purged.counts["orphan"] += inventory.doom_orphans(
            connection, bucket.name, rules.orphans_after_days, backup
        )
        aborted, problems = inventory.abort_stale_uploads(bucket, rules.orphans_after_days)
        purged.counts["unfinished_upload"] += aborted
        purged.problems |= problems
    swept.append(sweep.doomed_prefixes(connection, bucket))
    swept += [
        sweep.doomed_artifacts(connection, bucket, rules, rule, before_ms)
        for rule in rules.rules
        if rule.action == "delete-artifacts"
    ]
    problems = sorted(purged.problems.union(*(part.problems for part in swept)))
    facts = {
        **{f"{kind}s": purged.counts[kind] for kind in PURGED},
        "objects": sum(part.objects for part in swept),
        "bytes": sum(part.bytes for part in swept),
        "skipped": len(problems),
    }
    _note(settings, connection)
    if problems:
        shown = problems[:SHOWN] + [f"and {len(problems) - SHOWN} more"] * (len(problems) > SHOWN)
        raise FailedError(
            f"purged ({_counts(facts)}), but {len(problems)} could not be:\n" + "\n".join(shown),
            "mend what is named; the next purge tries again",
            {**facts, "problems": problems[:SHOWN]},
        )
    return facts


def _counts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _proven_backup(settings: Settings, before_ms: int) -> datetime:
    """Return the moment of a set that has all that will go and was read back or restored well.

    Raise OperationError if there is none.
    """
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
            return moment
    raise OperationError(
        "no verified backup is as young as what would be purged: after a purge only a backup helps;"
        " nothing was changed",
        "./stack backup run, then ./stack backup drill",
    )
