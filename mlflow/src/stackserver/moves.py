"""What MLflow's migrations are known to change, each with the revision that does it.

Read from mlflow/store/db_migrations/versions of 3.17.2, and met with the databases of
tests/data/old. Everything else must come out as it went in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Move:
    """Rows of tables of keys and values that the migration turns into columns of another table.

    `before` and `after` select the same facts from the old and the new place; `cut` counts
    the values that do not fit there whole. `leaving` names the keys whose rows leave, by
    table. It applies if all tables of `needs` are there.
    """

    name: str
    needs: frozenset[str]
    leaving: tuple[tuple[str, tuple[str, ...]], ...]
    before: str
    after: str
    cut: str


TOKENS = (
    *("input_tokens", "output_tokens", "total_tokens", "cache_read_input_tokens"),
    *("cache_creation_input_tokens", "cache_creation_input_tokens_above_1hr"),
)
COSTS = ("input_cost", "output_cost", "total_cost")
# By pattern, not by parsing: a value that is no JSON must be counted, not end the query.
_TOKENS_OF_METADATA = """
    SELECT m.request_id, k AS key, substring(m.value FROM '"' || k || '": *([0-9]+)')::bigint AS value
    FROM trace_request_metadata m, unnest(ARRAY['input_tokens', 'output_tokens', 'total_tokens',
        'cache_read_input_tokens', 'cache_creation_input_tokens', 'cache_creation_input_tokens_above_1hr']) k
    WHERE m.key = 'mlflow.trace.tokenUsage' AND m.value ~ ('"' || k || '": *[0-9]')"""
_TOKENS_AFTER = """
    SELECT t.request_id, c.key, c.value
    FROM trace_info t, LATERAL (VALUES ('input_tokens', t.input_tokens), ('output_tokens', t.output_tokens),
        ('total_tokens', t.total_tokens), ('cache_read_input_tokens', t.cache_read_input_tokens),
        ('cache_creation_input_tokens', t.cache_creation_input_tokens),
        ('cache_creation_input_tokens_above_1hr', t.cache_creation_input_tokens_above_1hr)) c (key, value)
    WHERE c.value IS NOT NULL"""
_TOKENS_CUT = """
    SELECT count(*) FROM trace_request_metadata
    WHERE key = 'mlflow.trace.tokenUsage' AND value !~ '_tokens(_above_1hr)?": *[0-9]'"""
# A trace of the gateway without a cost gets the sum of its spans' costs.
_NOT_OF_GATEWAY = """NOT EXISTS (SELECT FROM trace_request_metadata g
        WHERE g.request_id = t.request_id AND g.key = 'mlflow.gateway.endpointId')"""

MOVES = (
    Move(
        name="trace names",
        needs=frozenset({"trace_tags"}),
        leaving=(("trace_tags", ("mlflow.traceName",)),),
        before="SELECT request_id, left(value, 4096) FROM trace_tags WHERE key = 'mlflow.traceName'",
        after="SELECT request_id, trace_name FROM trace_info WHERE trace_name IS NOT NULL",
        cut="SELECT count(*) FROM trace_tags WHERE key = 'mlflow.traceName' AND length(value) > 4096",
    ),
    Move(
        name="trace sessions",
        needs=frozenset({"trace_request_metadata"}),
        leaving=(("trace_request_metadata", ("mlflow.trace.session",)),),
        before="""SELECT request_id, left(value, 250) FROM trace_request_metadata
            WHERE key = 'mlflow.trace.session'""",
        after="SELECT request_id, session_id FROM trace_info WHERE session_id IS NOT NULL",
        cut="""SELECT count(*) FROM trace_request_metadata
            WHERE key = 'mlflow.trace.session' AND length(value) > 250""",
    ),
    Move(
        name="trace tokens",
        needs=frozenset({"trace_request_metadata"}),
        leaving=(("trace_request_metadata", ("mlflow.trace.tokenUsage",)),),
        before=_TOKENS_OF_METADATA,
        after=_TOKENS_AFTER,
        cut=_TOKENS_CUT,
    ),
    Move(
        name="trace tokens",
        needs=frozenset({"trace_request_metadata", "trace_metrics"}),
        leaving=(("trace_request_metadata", ("mlflow.trace.tokenUsage",)), ("trace_metrics", TOKENS)),
        before=f"""
            SELECT request_id, key, value::bigint FROM trace_metrics
            WHERE key IN ('input_tokens', 'output_tokens', 'total_tokens', 'cache_read_input_tokens',
                'cache_creation_input_tokens', 'cache_creation_input_tokens_above_1hr')
            UNION ALL SELECT * FROM ({_TOKENS_OF_METADATA}) o
            WHERE NOT EXISTS (
                SELECT FROM trace_metrics n WHERE n.request_id = o.request_id AND n.key = o.key)""",
        after=_TOKENS_AFTER,
        cut=_TOKENS_CUT,
    ),
    Move(
        name="trace costs",
        needs=frozenset({"trace_request_metadata"}),
        leaving=(("trace_request_metadata", ("mlflow.trace.cost",)),),
        before=f"""
            SELECT t.request_id, k, substring(t.value FROM '"' || k || '": *([-+0-9.eE]+)')::float8
            FROM trace_request_metadata t, unnest(ARRAY['input_cost', 'output_cost', 'total_cost']) k
            WHERE t.key = 'mlflow.trace.cost' AND t.value ~ ('"' || k || '": *[-+0-9.]')
                AND {_NOT_OF_GATEWAY}""",
        after=f"""
            SELECT t.request_id, c.key, c.value
            FROM trace_info t, LATERAL (VALUES ('input_cost', t.input_cost), ('output_cost', t.output_cost),
                ('total_cost', t.total_cost)) c (key, value)
            WHERE c.value IS NOT NULL AND {_NOT_OF_GATEWAY}""",
        cut="""SELECT count(*) FROM trace_request_metadata
            WHERE key = 'mlflow.trace.cost' AND value !~ '_cost": *[-+0-9.]'""",
    ),
    Move(
        name="span costs",
        needs=frozenset({"span_metrics"}),
        leaving=(("span_metrics", COSTS),),
        before="""SELECT trace_id, span_id, key, value FROM span_metrics
            WHERE key IN ('input_cost', 'output_cost', 'total_cost') AND abs(value) < 'Infinity'""",
        after="""
            SELECT s.trace_id, s.span_id, c.key, c.value
            FROM spans s, LATERAL (VALUES ('input_cost', s.input_cost), ('output_cost', s.output_cost),
                ('total_cost', s.total_cost)) c (key, value)
            WHERE c.value IS NOT NULL""",
        cut="""SELECT count(*) FROM span_metrics
            WHERE key IN ('input_cost', 'output_cost', 'total_cost') AND NOT abs(value) < 'Infinity'""",
    ),
    Move(
        name="span models",
        # The revision that made span_metrics also made spans.dimension_attributes.
        needs=frozenset({"spans", "span_metrics"}),
        leaving=(),
        before="""
            SELECT trace_id, span_id, left(dimension_attributes ->> 'mlflow.llm.model', 500),
                left(dimension_attributes ->> 'mlflow.llm.provider', 500)
            FROM spans WHERE coalesce(dimension_attributes ->> 'mlflow.llm.model',
                dimension_attributes ->> 'mlflow.llm.provider') IS NOT NULL""",
        after="""SELECT trace_id, span_id, model_name, model_provider FROM spans
            WHERE coalesce(model_name, model_provider) IS NOT NULL""",
        cut="""SELECT count(*) FROM spans
            WHERE length(dimension_attributes ->> 'mlflow.llm.model') > 500
                OR length(dimension_attributes ->> 'mlflow.llm.provider') > 500""",
    ),
)
"""All by revision 75868b020152 of MLflow 3.17. Of two with one name, the later that applies counts."""
NEW_ROWS = {"workspaces": 1}
"""Rows that the migration makes in tables that are new: the workspace `default` (1b5f0d9ad7c1)."""
NOT_COMPARED = {
    "alembic_version": frozenset({"version_num"}),  # the revision
    "jobs": frozenset({"status", "last_update_time"}),  # dc11669786a5 cancels what waits or runs
}
"""Columns that the migration may write."""
