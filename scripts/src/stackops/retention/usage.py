"""`./stack usage`: storage by experiment, model and trace, its growth and where that leads."""

from __future__ import annotations

from typing import Any

from psycopg2.extensions import connection as Connection  # noqa: N812

from stackops.retention import inventory

LARGEST = 20
WEEK_DAYS = 7
MONTHS = (1, 3, 6, 12)
DAYS_PER_MONTH = 30.4


def report(connection: Connection) -> dict[str, Any]:
    """Return bytes and objects by experiment, the largest models and traces, growth and projection.

    All of it as of the last inventory, whose moment is in `made` (None before the first).
    """
    newest = inventory.newest(connection)
    found: dict[str, Any] = {"made": newest[0].isoformat(timespec="seconds") if newest else None}
    if not newest:
        return found
    found |= {name: newest[1][name] for name in ("objects", "bytes", "unknown_bytes")}
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(name, 'experiment ' || usage.experiment_id),"
            " coalesce(sum(bytes) FILTER (WHERE kind = 'run'), 0)::bigint,"
            " coalesce(sum(bytes) FILTER (WHERE kind = 'model'), 0)::bigint,"
            " coalesce(sum(bytes) FILTER (WHERE kind = 'trace'), 0)::bigint,"
            " sum(bytes)::bigint, sum(objects)::bigint"
            " FROM stackops.usage LEFT JOIN experiments ON experiments.experiment_id = usage.experiment_id"
            " GROUP BY usage.experiment_id, name ORDER BY 5 DESC, 1"
        )
        names = ("experiment", "run_bytes", "model_bytes", "trace_bytes", "bytes", "objects")
        found["experiments"] = [dict(zip(names, row, strict=True)) for row in cursor]
        cursor.execute(
            "SELECT model_id, logged_models.name, bytes FROM stackops.usage"
            " JOIN logged_models ON kind = 'model' AND id = model_id ORDER BY bytes DESC, 1 LIMIT %s",
            (LARGEST,),
        )
        found["largest_models"] = [dict(zip(("model", "name", "bytes"), row, strict=True)) for row in cursor]
        cursor.execute(
            "SELECT id, bytes FROM stackops.usage WHERE kind = 'trace' ORDER BY bytes DESC, 1 LIMIT %s",
            (LARGEST,),
        )
        found["largest_traces"] = [dict(zip(("trace", "bytes"), row, strict=True)) for row in cursor]
        cursor.execute("SELECT day, sum(bytes)::bigint FROM stackops.usage_history GROUP BY day ORDER BY day")
        history = cursor.fetchall()
        cursor.execute("SELECT pg_database_size(current_database())")
        found["database_bytes"] = cursor.fetchone()[0]
    found["bytes_per_week"] = growth_per_week([(day.toordinal(), size) for day, size in history])
    found["projection"] = projection(found["bytes"], found["bytes_per_week"])
    return found


def growth_per_week(history: list[tuple[int, int]]) -> int | None:
    """Given (day number, bytes) in order, return the growth of the last four weeks per week.

    None without two days at least a week apart.
    """
    if not history:
        return None
    last_day, last_size = history[-1]
    earlier = [entry for entry in history if WEEK_DAYS <= last_day - entry[0] <= 4 * WEEK_DAYS]
    if not earlier:
        return None
    day, size = earlier[0]
    return round((last_size - size) * WEEK_DAYS / (last_day - day))


def projection(size: int, per_week: int | None) -> dict[str, int] | None:
    """Return the bytes to expect in some months if the growth stays as it is."""
    if per_week is None:
        return None
    return {
        f"{months}m": max(0, round(size + per_week * months * DAYS_PER_MONTH / WEEK_DAYS))
        for months in MONTHS
    }
