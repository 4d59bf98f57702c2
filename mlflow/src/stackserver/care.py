"""How PostgreSQL keeps MLflow's big tables in order: their storage parameters.

The settings of the whole database (postgres/postgresql.conf) are fractions: of ten million
rows even 5 % is much. These tables get less. Storage parameters are no part of the schema:
`mlflow db upgrade` neither sees nor removes them.
"""

from __future__ import annotations

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

PARAMETERS = {
    "autovacuum_vacuum_scale_factor": 0.01,
    "autovacuum_vacuum_insert_scale_factor": 0.02,
    "autovacuum_analyze_scale_factor": 0.01,
}

TABLES = ["metrics", "params", "tags", "latest_metrics", "spans", "trace_info"]


def missing_parameters(present: list[str] | None, wanted: dict[str, float]) -> dict[str, float]:
    """Return those of the wanted storage parameters that a table does not have.

    `present` is pg_class.reloptions: "name=value" lines, or None.
    """
    has = dict(line.split("=", 1) for line in present or [])
    return {name: value for name, value in wanted.items() if has.get(name) != str(value)}


def tend_tables(connection: Connection) -> list[str]:
    """Give each big table its parameters and return the names of those that were changed.

    The lock that this takes stops neither readers nor writers (SHARE UPDATE EXCLUSIVE).
    """
    changed = []
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname, reloptions FROM pg_class"
            " WHERE oid = any(array(SELECT to_regclass('public.' || name) FROM unnest(%s) AS name))",
            (TABLES,),
        )
        for table, present in cursor.fetchall():
            missing = missing_parameters(present, PARAMETERS)
            if not missing:
                continue
            assignments = sql.SQL(", ").join(
                sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
                for name, value in missing.items()
            )
            cursor.execute(
                sql.SQL("ALTER TABLE {} SET ({})").format(sql.Identifier("public", table), assignments)
            )
            changed.append(table)
    return changed
