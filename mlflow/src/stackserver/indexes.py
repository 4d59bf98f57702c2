"""Indexes of the stack's own in MLflow's tables: a page of runs costs the same in an experiment of any size.

They are no part of MLflow's schema: `mlflow db upgrade` keeps them, and its check looks only at the
revision. MLflow 3.17.2 itself has none on `runs` but the primary key (store/tracking/dbmodels/models.py).
"""

from __future__ import annotations

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

INDEXES = {
    # ORDER BY of a search without an order: MLflow's, and the fast path's.
    "stack_runs_by_start": "runs (experiment_id, start_time DESC, run_uuid)",
    # The same for the order "attributes.start_time DESC", which the page asks for.
    "stack_runs_by_given_start": (
        "runs (experiment_id, (CASE WHEN (start_time IS NULL) THEN 1 ELSE 0 END), start_time DESC, run_uuid)"
    ),
}


def make_indexes(connection: Connection) -> list[str]:
    """Make those that are missing and return their names. Neither readers nor writers wait for it.

    One whose making was interrupted is there but not valid: it is made again.
    """
    made = []
    connection.autocommit = True  # CONCURRENTLY knows no transaction
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = 0")
            cursor.execute(
                "SELECT relname, indisvalid FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid"
                " WHERE relname = ANY(%s)",
                (list(INDEXES),),
            )
            present = dict(cursor.fetchall())
            for name, what in INDEXES.items():
                if present.get(name):
                    continue
                identifier = sql.Identifier(name)
                cursor.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(identifier))
                cursor.execute(sql.SQL("CREATE INDEX CONCURRENTLY {} ON ").format(identifier) + sql.SQL(what))
                made.append(name)
    finally:
        connection.autocommit = False
    return made
