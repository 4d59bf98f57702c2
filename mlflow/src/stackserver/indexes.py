"""Indexes of the stack's own in MLflow's tables: a page of runs costs the same in an experiment of any size.

They are no part of MLflow's schema: `mlflow db upgrade` keeps them, and its check looks only at the
revision. MLflow 3.17.2 itself has none on `runs` but the primary key, and none that has a value
(store/tracking/dbmodels/models.py).
"""

from __future__ import annotations

from psycopg2 import errors, sql
from psycopg2.extensions import connection as Connection  # noqa: N812

LOCK_TIMEOUT_SECONDS = 10
VALUE_LENGTH = 64
"""Of params and tags so many characters are in an index, and in the fast path's conditions."""
INDEXES = {
    # ORDER BY of a search without an order: MLflow's, and the fast path's.
    "stack_runs_by_start": "runs (experiment_id, start_time DESC, run_uuid)",
    # The same for the order "attributes.start_time DESC", which the page asks for.
    "stack_runs_by_given_start": (
        "runs (experiment_id, (CASE WHEN (start_time IS NULL) THEN 1 ELSE 0 END), start_time DESC, run_uuid)"
    ),
    # Orders and filters by a metric. It ends updates in place (HOT) of the rows of this table: 0.01 to
    # 0.02 ms of PostgreSQL's for each metric that is logged, measured.
    "stack_metrics_by_value": "latest_metrics (key, value)",
    # Filters for a value that few runs have. Of the value only a beginning: an entry has 2,704 bytes at most.
    "stack_params_by_value": f'params (key, "left"(value, {VALUE_LENGTH}))',
    "stack_tags_by_value": f'tags (key, "left"(value, {VALUE_LENGTH}))',
}
TABLES = sorted({what.split()[0] for what in INDEXES.values()})


def make_indexes(connection: Connection) -> list[str]:
    """Make those that are missing and return their names. Neither readers nor writers wait for it.

    One whose making was interrupted is there but not valid: it is made again. What cannot be done now (an
    old transaction is open, or the tables belong to somebody else) is said and left to the next start.
    """
    made: list[str] = []
    connection.autocommit = True  # CONCURRENTLY knows no transaction
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = 0; SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            cursor.execute(
                "SELECT relname, indisvalid FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid"
                " WHERE indrelid = ANY(%s::regclass[])",
                (TABLES,),
            )
            present = dict(cursor.fetchall())
            for name, what in INDEXES.items():
                if present.get(name):
                    continue
                identifier = sql.Identifier(name)
                cursor.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(identifier))
                cursor.execute(sql.SQL("CREATE INDEX CONCURRENTLY {} ON ").format(identifier) + sql.SQL(what))
                made.append(name)
            for table in sorted({INDEXES[name].split()[0] for name in made}):
                identifier = sql.Identifier(table)
                cursor.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(identifier))
                # Not while it is empty: PostgreSQL would believe that it stays so, and plan whole scans.
                if cursor.fetchone() == (True,):
                    # What PostgreSQL knows of an expression it knows by its index.
                    cursor.execute(sql.SQL("ANALYZE {}").format(identifier))
    except (errors.LockNotAvailable, errors.InsufficientPrivilege) as error:
        print(f"pages of runs are slower than they could be, an index is missing: {error}", flush=True)
    finally:
        connection.autocommit = False
    return made
