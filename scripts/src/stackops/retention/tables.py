"""What points to MLflow's records: by the database's foreign keys, and by no more than a column.

From it follow the statements that delete rows: what points to a row goes before it. Rows
that the database itself deletes with their owner (ON DELETE CASCADE) need none.
"""

from __future__ import annotations

from collections.abc import Iterator

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

ForeignKeys = dict[str, list[tuple[str, str, str]]]

UNTIED: dict[str, tuple[str, ...]] = {
    "runs": (
        "DELETE FROM input_tags WHERE input_uuid IN (SELECT input_uuid FROM inputs WHERE"
        " (source_type IN ('RUN_INPUT', 'RUN_OUTPUT') AND source_id = ANY(%(ids)s))"
        " OR (destination_type = 'RUN' AND destination_id = ANY(%(ids)s)))",
        "DELETE FROM inputs WHERE source_type IN ('RUN_INPUT', 'RUN_OUTPUT') AND source_id = ANY(%(ids)s)",
        "DELETE FROM inputs WHERE destination_type = 'RUN' AND destination_id = ANY(%(ids)s)",
        "DELETE FROM entity_associations WHERE destination_type = 'run' AND destination_id = ANY(%(ids)s)",
        "DELETE FROM logged_model_metrics WHERE run_id = ANY(%(ids)s)",
    ),
    "logged_models": (
        "DELETE FROM inputs WHERE destination_type IN ('MODEL_INPUT', 'MODEL_OUTPUT')"
        " AND destination_id = ANY(%(ids)s)",
        "DELETE FROM logged_model_metrics WHERE model_id = ANY(%(ids)s)",
        "DELETE FROM logged_model_params WHERE model_id = ANY(%(ids)s)",
        "DELETE FROM logged_model_tags WHERE model_id = ANY(%(ids)s)",
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
"""Rows that belong to others by their columns alone: what MLflow's stores look for by name. And rows that
the database would delete with a run or model: they go before the registry is held still.
"""
INDEXES = {
    "stackops_logged_model_metrics_run_id": "logged_model_metrics (run_id)",
    "stackops_logged_models_source_run_id": "logged_models (source_run_id)",
}
"""What deleting a run needs and MLflow lacks: without it each run is a scan of those tables."""


def foreign_keys(connection: Connection) -> ForeignKeys:
    """Return, for each table, (child, its column, the column it points to) of keys that do not cascade.

    MLflow's migrations made them: a test compares them with MLflow's own metadata, whose
    import takes seconds.
    """
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT parent.relname, child.relname, own.attname, other.attname"
            " FROM pg_constraint AS key"
            " JOIN pg_class AS child ON child.oid = key.conrelid"
            " JOIN pg_class AS parent ON parent.oid = key.confrelid"
            " CROSS JOIN unnest(key.conkey, key.confkey) AS pair (own_number, other_number)"
            " JOIN pg_attribute AS own ON own.attrelid = key.conrelid AND own.attnum = own_number"
            " JOIN pg_attribute AS other ON other.attrelid = key.confrelid AND other.attnum = other_number"
            " WHERE key.contype = 'f' AND key.confdeltype = 'a'"
            " AND child.relnamespace = 'public'::regnamespace"
            " ORDER BY 1, 2, 3"
        )
        found: ForeignKeys = {}
        for parent, *child in cursor:
            found.setdefault(parent, []).append(tuple(child))
        return found


def make_indexes(connection: Connection) -> None:
    """Make the indexes without holding anybody up. One that an interruption left unfinished is made anew."""
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for name, columns in INDEXES.items():
                cursor.execute(
                    "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", (f"public.{name}",)
                )
                found = cursor.fetchone()
                if found and not found[0]:
                    cursor.execute(f"DROP INDEX CONCURRENTLY public.{name}")
                if not (found and found[0]):
                    cursor.execute(f"CREATE INDEX CONCURRENTLY {name} ON public.{columns}")
    finally:
        connection.autocommit = False


def deletions(keys: ForeignKeys, table: str, column: str) -> list[sql.Composable]:
    """Return the statements that delete the rows of a table whose column is among %(ids)s.

    In order: what has no foreign key, then what points to the rows, then the rows.
    """
    cast = sql.SQL("::int[]") if table == "experiments" else sql.SQL("")
    condition = sql.SQL("{} = ANY(%(ids)s{})").format(sql.Identifier(column), cast)
    return [*(sql.SQL(text) for text in UNTIED.get(table, ())), *_tied(keys, table, condition)]


def _tied(keys: ForeignKeys, table: str, condition: sql.Composable) -> Iterator[sql.Composable]:
    name = sql.Identifier(table)
    for child, column, pointed_to in keys.get(table, []):
        own = sql.SQL("{} IN (SELECT {} FROM {} WHERE {})").format(
            sql.Identifier(column), sql.Identifier(pointed_to), name, condition
        )
        yield from _tied(keys, child, own)
    yield sql.SQL("DELETE FROM {} WHERE {}").format(name, condition)
