"""MLflow's tables as MLflow's own metadata describes them, and the links that it does not describe.

From it follow the statements that delete rows: what points to a row goes before it. Rows
that the database itself deletes with their owner (ON DELETE CASCADE) need none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from psycopg2 import sql

UNTIED: dict[str, tuple[str, ...]] = {
    "runs": (
        "DELETE FROM input_tags WHERE input_uuid IN (SELECT input_uuid FROM inputs WHERE"
        " (source_type IN ('RUN_INPUT', 'RUN_OUTPUT') AND source_id = ANY(%(ids)s))"
        " OR (destination_type = 'RUN' AND destination_id = ANY(%(ids)s)))",
        "DELETE FROM inputs WHERE source_type IN ('RUN_INPUT', 'RUN_OUTPUT') AND source_id = ANY(%(ids)s)",
        "DELETE FROM inputs WHERE destination_type = 'RUN' AND destination_id = ANY(%(ids)s)",
        "DELETE FROM entity_associations WHERE destination_type = 'run' AND destination_id = ANY(%(ids)s)",
    ),
    "logged_models": (
        "DELETE FROM inputs WHERE destination_type IN ('MODEL_INPUT', 'MODEL_OUTPUT')"
        " AND destination_id = ANY(%(ids)s)",
    ),
    "trace_info": (
        "DELETE FROM entity_associations WHERE source_type = 'trace' AND source_id = ANY(%(ids)s)",
    ),
    "experiments": (
        "DELETE FROM entity_associations WHERE destination_type = 'experiment'"
        " AND destination_id = ANY(%(ids)s::text[])",
        "DELETE FROM sql_trace_rollup_rebuild_queue WHERE experiment_id = ANY(%(ids)s::int[])",
        "DELETE FROM sql_trace_metric_daily_rollups WHERE experiment_id = ANY(%(ids)s::int[])",
        "DELETE FROM sql_span_cost_daily_rollups WHERE experiment_id = ANY(%(ids)s::int[])",
        "DELETE FROM sql_assessment_daily_rollups WHERE experiment_id = ANY(%(ids)s::int[])",
    ),
}
"""Rows that belong to others by their columns alone: what MLflow's stores look for by name."""


@cache
def _metadata() -> dict[str, list[tuple[str, str, str]]]:
    """Return, for each table, (child, its column, the column it points to) of keys that do not cascade."""
    import mlflow.store.model_registry.dbmodels.models
    import mlflow.store.tracking.dbmodels.models  # noqa: F401  both fill the same metadata
    from mlflow.store.db.base_sql_model import Base

    found: dict[str, list[tuple[str, str, str]]] = {}
    for table in Base.metadata.tables.values():
        for key in table.foreign_keys:
            if key.ondelete is None:
                parent = key.column
                found.setdefault(parent.table.name, []).append((table.name, key.parent.name, parent.name))
    return {parent: sorted(children) for parent, children in found.items()}


def deletions(table: str, column: str) -> list[sql.Composable]:
    """Return the statements that delete the rows of a table whose column is among %(ids)s.

    In order: what has no foreign key, then what points to the rows, then the rows.
    """
    cast = sql.SQL("::int[]") if table == "experiments" else sql.SQL("")
    condition = sql.SQL("{} = ANY(%(ids)s{})").format(sql.Identifier(column), cast)
    return [*(sql.SQL(text) for text in UNTIED.get(table, ())), *_tied(table, condition)]


def _tied(table: str, condition: sql.Composable) -> Iterator[sql.Composable]:
    name = sql.Identifier(table)
    for child, column, pointed_to in _metadata().get(table, []):
        if child == table:
            continue
        own = sql.SQL("{} IN (SELECT {} FROM {} WHERE {})").format(
            sql.Identifier(column), sql.Identifier(pointed_to), name, condition
        )
        yield from _tied(child, own)
    yield sql.SQL("DELETE FROM {} WHERE {}").format(name, condition)
