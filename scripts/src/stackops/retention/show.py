"""What the verbs of cleanup and usage found, as lines for a person."""

from __future__ import annotations

from typing import Any

from stackops.files import size_text

SHOWN = 50
KINDS = {"run": "runs", "killed": "stuck runs", "trace": "traces", "artifacts": "runs' artifacts"}


def lines(action: str, found: Any) -> list[str]:
    """Return the lines of a verb's result."""
    return _SHOWN.get(action, _batch)(found)


def waiting(batch: str, facts: dict[str, Any]) -> str:
    """Return how `status` says that a batch waits for approval."""
    counted = {
        "runs": facts["runs"],
        "stuck runs": facts["killed"],
        "traces": facts["traces"],
        "runs' artifacts": facts["artifact_runs"],
    }
    parts = [f"{count:,} {name}" for name, count in counted.items() if count]
    what = ", ".join([*parts, size_text(facts["bytes"])])
    return f"cleanup waits for approval: {what}; ./stack cleanup approve {batch}"


def _plan(found: dict[str, Any]) -> list[str]:
    text = [f"{number}. {rule}" for number, rule in enumerate(found["rules"], 1)]
    text.append("")
    for row in found["by_experiment"]:
        text.append(
            f"  {row['experiment']}: {row['count']:,} {KINDS[row['kind']]}, {size_text(row['bytes'])}"
            f" (rule {row['rule']})"
        )
    text.append(f"{found['runs']:,} of {found['active_runs']:,} runs would be deleted, {_others(found)}")
    for reason, count in found["kept"].items():
        text.append(f"  kept although a rule names them: {count:,} ({reason})")
    return text + _purge_preview(found["purge"])


def _others(found: dict[str, Any]) -> str:
    return (
        f"{found['traces']:,} traces, the artifacts of {found['artifact_runs']:,} runs; "
        f"{found['killed']:,} stuck runs would be marked as killed"
    )


def _purge_preview(found: dict[str, Any]) -> list[str]:
    what = (
        f"{found['runs']:,} deleted runs, {found['models']:,} models, {found['traces']:,} traces,"
        f" {size_text(found['bytes'])}"
    )
    if found["after_days"] is None:
        return [f"nothing is purged (RETENTION_PURGE_AFTER_DAYS is empty); it would free {what}"]
    return [f"a purge (after {found['after_days']} days) would free {what}"]


def _batch(found: dict[str, Any]) -> list[str]:
    if found.get("state") == "waiting":
        return [waiting(found["batch"], found)]
    text = [
        f"{name.replace('_', ' ')}: {_text(value)}"
        for name, value in found.items()
        if name != "scheduled" and (name, value) != ("finished", {})
    ]
    if found.get("state") == "done":
        text.append(f"./stack cleanup undo {found['batch']} brings them back")
    return text


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_text(one)}" for name, one in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _list(found: list[dict[str, Any]]) -> list[str]:
    return [
        f"{batch['batch']}  {batch['state']:<8}  {batch['facts']['runs']:,} runs,"
        f" {size_text(batch['facts']['bytes'])}"
        for batch in found
    ] or ["no batch yet"]


def _deleted(found: list[dict[str, Any]]) -> list[str]:
    text = [
        f"  {one['since']:%Y-%m-%d}  {one['kind']} {one['id']}  {one['experiment']},"
        f" {size_text(one['bytes'] or 0)}, by {one['by']}"
        for one in found[:SHOWN]
    ]
    rest = [f"  and {len(found) - SHOWN:,} more (--json has all)"] * (len(found) > SHOWN)
    return [*text, *rest, f"{len(found):,} deleted, {size_text(sum(one['bytes'] or 0 for one in found))}"]


def _orphans(found: dict[str, Any]) -> list[str]:
    text = [f"as of {found['made']:%Y-%m-%d %H:%M} (./stack usage --refresh)"]
    for orphan in found["orphans"]:
        text.append(
            f"  {orphan['prefix']}  {orphan['objects']:,} objects, {size_text(orphan['bytes'])},"
            f" without a record since {orphan['first_seen']:%Y-%m-%d}"
        )
    total = sum(orphan["bytes"] for orphan in found["orphans"])
    text.append(f"{len(found['orphans']):,} places without a record, {size_text(total)}")
    text.append(f"{found['stale_uploads']:,} uploads that were never finished")
    text += [f"  {key}" for key in found["stale_upload_keys"]]
    text.append(
        f"{found['unknown_objects']:,} objects with unknown names, {size_text(found['unknown_bytes'])}:"
        " never touched"
    )
    text += [f"  {key}" for key in found["unknown_keys"]]
    text.append(f"{found['without_objects']:,} records whose objects are missing")
    return text + [f"  {name}" for name in found["without_objects_names"]]


def _usage(found: dict[str, Any]) -> list[str]:
    if not found["made"]:
        return ["no inventory yet: ./stack usage --refresh"]
    text = [
        f"as of {found['made']}: {size_text(found['bytes'])} in {found['objects']:,} objects,"
        f" database {size_text(found['database_bytes'])}"
    ]
    for row in found["experiments"]:
        text.append(
            f"  {row['experiment']}: {size_text(row['bytes'])} (runs {size_text(row['run_bytes'])},"
            f" models {size_text(row['model_bytes'])}, traces {size_text(row['trace_bytes'])})"
        )
    if found["largest_models"]:
        text.append("largest models")
    for row in found["largest_models"]:
        text.append(f"  {row['name']} {row['model']}: {size_text(row['bytes'])}")
    if found["largest_traces"]:
        text.append("largest traces")
    for row in found["largest_traces"]:
        text.append(f"  {row['trace']}: {size_text(row['bytes'])}")
    if found["bytes_per_week"] is None:
        return [*text, "growth: known after a week"]
    months = ", ".join(f"in {name} {size_text(size)}" for name, size in found["projection"].items())
    return [*text, f"growth per week: {size_text(found['bytes_per_week'])}; if it stays so: {months}"]


_SHOWN = {"plan": _plan, "list": _list, "deleted": _deleted, "orphans": _orphans, "usage": _usage}
