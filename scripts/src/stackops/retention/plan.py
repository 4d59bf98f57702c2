"""The plan: which rule decides over each run and trace, and what would go. Nothing is changed.

Each rule is one statement; the first rule that matches a run decides over it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from stackops.retention import keep
from stackops.retention.journal import Item
from stackops.retention.policy import Policy, Rule, describe, like

KINDS = {
    "delete-runs": "run",
    "mark-killed": "killed",
    "delete-artifacts": "artifacts",
    "delete-traces": "trace",
}
"""The kind of item that each action makes."""
DAY_MS = 86_400_000


@dataclass
class Plan:
    """What would go (without what is kept), and why the rest of what the rules name is kept."""

    counts: dict[str, int]
    """How many items of each kind."""
    bytes: int = 0
    """Of its runs and traces, as of the last inventory."""
    kept: dict[str, int] = field(default_factory=dict)
    """How many runs and traces the rules name but that are kept, by reason."""
    active_runs: int = 0
    traces: int = 0


def make(connection: Connection, policy: Policy) -> Plan:
    """Return the plan of a policy.

    It leaves the tables of keep.find, `decided` and `planned` (what would go) in the session: there
    may be a million items.
    """
    keep.find(connection, policy.keep_tags)
    said = {rule.name: describe(rule) for rule in policy.rules}
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "DROP TABLE IF EXISTS decided;"
            "CREATE TEMP TABLE decided (kind text, id text, experiment_id integer, rule text,"
            " spared text, PRIMARY KEY (kind, id))"
        )
        for rule in policy.rules:
            if "runs" in rule.kinds:
                cursor.execute(_decide_runs(rule))
            if "traces" in rule.kinds:
                cursor.execute(_decide_traces(rule))
        cursor.execute("ANALYZE decided")
        _keep_spared(cursor, policy)
        cursor.execute(
            "DROP TABLE IF EXISTS planned;"
            "CREATE TEMP TABLE planned AS SELECT %(kinds)s::jsonb ->> decided.rule AS kind, decided.id,"
            " decided.experiment_id, decided.rule, %(says)s::jsonb ->> decided.rule AS says,"
            " usage.bytes + coalesce(models.bytes, 0) AS bytes"
            " FROM decided LEFT JOIN kept_runs ON kept_runs.id = decided.id AND decided.kind = 'run'"
            " LEFT JOIN kept_traces ON kept_traces.id = decided.id AND decided.kind = 'trace'"
            " LEFT JOIN stackops.usage ON usage.kind = decided.kind AND usage.id = decided.id"
            " LEFT JOIN (SELECT source_run_id, sum(bytes)::bigint AS bytes FROM logged_models"
            "  JOIN stackops.usage ON usage.kind = 'model' AND usage.id = model_id GROUP BY 1"
            " ) AS models ON models.source_run_id = decided.id"
            " LEFT JOIN runs ON decided.kind = 'run' AND run_uuid = decided.id"
            " JOIN experiments AS experiment ON experiment.experiment_id = decided.experiment_id"
            " WHERE spared IS NULL AND kept_runs.id IS NULL AND kept_traces.id IS NULL"
            " AND experiment.lifecycle_stage = 'active'"
            " AND coalesce(runs.lifecycle_stage, 'active') = 'active'"
            # What cannot be deleted at once is noted once; what was brought back has its time again.
            " AND NOT EXISTS (SELECT FROM stackops.batch_items AS noted WHERE noted.id = decided.id"
            "  AND noted.rule = decided.rule AND noted.kind IN ('trace', 'artifacts')"
            "  AND noted.says = (%(says)s::jsonb ->> noted.rule)"
            "  AND (noted.state = 'done' OR noted.state = 'purged'"
            "    AND coalesce(runs.end_time, 0) < extract(epoch FROM noted.done) * 1000"
            "   OR noted.state = 'undone' AND noted.kind = 'trace'"
            "    AND noted.done > now() - (%(days)s::jsonb ->> noted.rule)::int * interval '1 day'));"
            "CREATE UNIQUE INDEX ON planned (kind, id);"
            "ANALYZE planned",
            {
                "kinds": json.dumps({rule.name: KINDS.get(rule.action) for rule in policy.rules}),
                "says": json.dumps(said),
                "days": json.dumps({rule.name: rule.older_than_days or 0 for rule in policy.rules}),
            },
        )
        cursor.execute(
            "SELECT kind, count(*), coalesce(sum(bytes) FILTER (WHERE kind IN ('run', 'trace')), 0)::bigint"
            " FROM planned GROUP BY kind"
        )
        sums = cursor.fetchall()
        cursor.execute(
            "SELECT regexp_replace(regexp_replace(reason, 'model .* version [0-9]+$', 'model'),"
            " 'run [^ ]+$', 'run'), count(*)"
            " FROM decided JOIN (SELECT 'run' AS kind, * FROM kept_runs"
            "  UNION ALL SELECT 'trace', * FROM kept_traces) AS kept USING (kind, id)"
            " JOIN experiments AS experiment ON experiment.experiment_id = decided.experiment_id"
            " WHERE spared IS NULL AND experiment.lifecycle_stage = 'active'"
            " AND NOT EXISTS (SELECT FROM runs WHERE run_uuid = id AND lifecycle_stage = 'deleted')"
            " GROUP BY 1 ORDER BY 2 DESC"
        )
        kept = dict(cursor.fetchall())
        cursor.execute(
            "SELECT (SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'),"
            " (SELECT count(*) FROM trace_info)"
        )
        counts = {kind: count for kind, count, _ in sums}
        return Plan(counts, sum(size for _, _, size in sums), kept, *cursor.fetchone())


def items(connection: Connection) -> list[Item]:
    """Return what the last plan of this session would do, item by item."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT kind, id, experiment_id, rule, says, bytes FROM planned ORDER BY kind, id")
        return [Item(*row) for row in cursor]


def by_experiment(connection: Connection) -> list[dict[str, Any]]:
    """Return the count and bytes of the last plan by experiment, rule and kind."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, rule, kind, count(*), coalesce(sum(bytes), 0)::bigint"
            " FROM planned JOIN experiments USING (experiment_id) GROUP BY experiment_id, name, rule, kind"
            " ORDER BY name, rule, kind"
        )
        names = ("experiment", "rule", "kind", "count", "bytes")
        return [dict(zip(names, row, strict=True)) for row in cursor]


def _keep_spared(cursor: Cursor, policy: Policy) -> None:
    """Keep what a `keep` rule matches (of runs their trees), and the parents of runs that are ranked high."""
    keeping = [rule.name for rule in policy.rules if rule.action == "keep"]
    cursor.execute(
        "INSERT INTO kept_runs SELECT id, 'rule ' || rule FROM decided"
        " WHERE kind = 'run' AND rule = ANY(%s) ON CONFLICT DO NOTHING",
        (keeping,),
    )
    if cursor.rowcount:
        keep.spread(cursor)
    cursor.execute(
        "INSERT INTO kept_traces SELECT id, 'rule ' || rule FROM decided"
        " WHERE kind = 'trace' AND rule = ANY(%s) ON CONFLICT DO NOTHING",
        (keeping,),
    )
    cursor.execute(
        "WITH RECURSIVE above AS ("
        " SELECT id, rule, false AS is_parent FROM decided WHERE kind = 'run' AND spared IS NOT NULL"
        "  AND rule <> ALL(%s)"
        " UNION SELECT tags.value, rule, true FROM above"
        "  JOIN tags ON tags.run_uuid = above.id AND tags.key = 'mlflow.parentRunId')"
        " UPDATE decided SET spared = 'a run below it is spared by rule ' || above.rule FROM above"
        " WHERE is_parent AND kind = 'run' AND decided.id = above.id AND spared IS NULL",
        (keeping,),
    )


_EXPLAINED = """
WITH record AS (
    SELECT 'run' AS kind, run_uuid AS id, experiment_id, lifecycle_stage AS stage, status,
        run_uuid AS decided_by, since FROM runs LEFT JOIN stackops.known_runs ON run_id = run_uuid
    UNION ALL SELECT 'model', model_id, experiment_id, lifecycle_stage, NULL, source_run_id, NULL
        FROM logged_models
    UNION ALL SELECT 'trace', request_id, experiment_id, 'active', status, request_id, NULL FROM trace_info
), kept AS (
    SELECT 'run' AS kind, * FROM kept_runs
    UNION ALL SELECT 'model', * FROM kept_models
    UNION ALL SELECT 'trace', * FROM kept_traces
)
SELECT record.kind, record.stage, record.status, experiments.name, nullif(decided_by, record.id),
    decided.rule, decided.rule IS NOT NULL AND spared IS NULL AND kept.id IS NULL,
    coalesce(kept.reason, spared), record.since, usage.bytes
FROM record JOIN experiments USING (experiment_id)
LEFT JOIN decided ON decided.id = record.decided_by
LEFT JOIN kept ON kept.kind = record.kind AND kept.id = record.id
LEFT JOIN stackops.usage ON usage.id = record.id AND usage.kind = record.kind
WHERE record.id = %s
"""


def explain(connection: Connection, policy: Policy, name: str) -> dict[str, Any] | None:
    """Return what decides over a run, model or trace, or None if there is none of that id.

    In `doomed` whether it would go, in `kept_because` why not. Over a model its run decides.
    """
    make(connection, policy)
    with connection, connection.cursor() as cursor:
        cursor.execute(_EXPLAINED, (name,))
        row = cursor.fetchone()
    names = ("kind", "stage", "status", "experiment", "run")
    names += ("rule", "doomed", "kept_because", "known_since", "bytes")
    return dict(zip(names, row, strict=True)) if row else None


def _all(conditions: list[sql.Composable]) -> sql.Composable:
    return sql.SQL(" AND ").join([sql.SQL("true"), *conditions])


def _experiments(rule: Rule) -> list[sql.Composable]:
    conditions: list[sql.Composable] = []
    if rule.experiments:
        patterns = sql.Literal([like(pattern) for pattern in rule.experiments])
        conditions.append(sql.SQL("experiment.name LIKE ANY({})").format(patterns))
    return conditions


def _tags(rule: Rule, table: str, column: str, owner: sql.Composable) -> list[sql.Composable]:
    return [
        sql.SQL(
            "EXISTS (SELECT FROM {} AS tag WHERE tag.{} = {} AND tag.key = {} AND tag.value LIKE {})"
        ).format(
            sql.Identifier(table), sql.Identifier(column), owner, sql.Literal(key), sql.Literal(like(pattern))
        )
        for key, pattern in rule.tags
    ]


def _milliseconds_before_now(days: int) -> sql.Composable:
    return sql.SQL("(extract(epoch FROM now()) * 1000 - {})::bigint").format(sql.Literal(days * DAY_MS))


def _run_age(rule: Rule) -> list[sql.Composable]:
    """Conditions on the age of a run: it ended (or began) and was known here so long ago."""
    days = rule.older_than_days or rule.without_metric_for_days
    if not days:
        return []
    conditions = [
        sql.SQL("coalesce(run.end_time, run.start_time, 0) < {}").format(_milliseconds_before_now(days)),
        sql.SQL("known.since < now() - {} * interval '1 day'").format(sql.Literal(days)),
    ]
    if rule.without_metric_for_days:
        conditions.append(
            sql.SQL("known.running_since < now() - {} * interval '1 day'").format(sql.Literal(days))
        )
        conditions.append(
            sql.SQL(
                "NOT EXISTS (SELECT FROM latest_metrics AS metric WHERE metric.run_uuid = run.run_uuid"
                " AND metric.timestamp >= {})"
            ).format(_milliseconds_before_now(days))
        )
    return conditions


def _decide_runs(rule: Rule) -> sql.Composable:
    """Return the statement that decides over the runs that a rule matches and no earlier one did.

    Also over those that are deleted already: a rule that keeps them keeps them from a purge. Only
    active ones are ranked.
    """
    matched = _experiments(rule)
    matched += _tags(rule, "tags", "run_uuid", sql.SQL("run.run_uuid"))
    if rule.status:
        matched.append(sql.SQL("run.status = ANY({})").format(sql.Literal(list(rule.status))))
    spared: list[sql.Composable] = []
    ranks, joins = sql.SQL(""), sql.SQL("")
    if rule.keep_last:
        ranks += sql.SQL(
            ", row_number() OVER (PARTITION BY experiment_id, run.lifecycle_stage"
            " ORDER BY start_time DESC NULLS LAST, run.run_uuid) AS newest"
        )
        text = f"among the newest {rule.keep_last}"
        spared.append(
            sql.SQL("WHEN active AND newest <= {} THEN {}").format(
                sql.Literal(rule.keep_last), sql.Literal(text)
            )
        )
    if rule.keep_best:
        order = sql.SQL("DESC" if rule.keep_best.mode == "max" else "ASC")
        ranks += sql.SQL(
            ", metric.value, row_number() OVER (PARTITION BY experiment_id, run.lifecycle_stage"
            " ORDER BY metric.value {} NULLS LAST, start_time DESC NULLS LAST, run.run_uuid) AS best"
        ).format(order)
        joins = sql.SQL(
            " LEFT JOIN latest_metrics AS metric ON metric.run_uuid = run.run_uuid"
            " AND metric.key = {} AND NOT metric.is_nan"
        ).format(sql.Literal(rule.keep_best.metric))
        text = f"among the best {rule.keep_best.count} by {rule.keep_best.metric}"
        spared.append(
            sql.SQL("WHEN active AND best <= {} AND value IS NOT NULL THEN {}").format(
                sql.Literal(rule.keep_best.count), sql.Literal(text)
            )
        )
    return sql.SQL(
        "INSERT INTO decided SELECT 'run', run_uuid, experiment_id, {name}, {spared} FROM ("
        " SELECT run.run_uuid, run.experiment_id, run.lifecycle_stage = 'active' AS active,"
        " {old} AS old{ranks}"
        " FROM runs AS run JOIN experiments AS experiment USING (experiment_id)"
        " LEFT JOIN stackops.known_runs AS known ON known.run_id = run.run_uuid{joins}"
        " WHERE {matched}) AS matched WHERE old ON CONFLICT DO NOTHING"
    ).format(
        name=sql.Literal(rule.name),
        spared=_spared(rule, spared),
        old=_all(_run_age(rule)),
        ranks=ranks,
        joins=joins,
        matched=_all(matched),
    )


def _spared(rule: Rule, cases: list[sql.Composable]) -> sql.Composable:
    """Return why a run or trace that a rule matches stays, NULL if it does not."""
    if rule.action == "keep":
        return sql.Literal(f"rule {rule.name}")
    if not cases:
        return sql.SQL("NULL")
    return sql.SQL("CASE {} END").format(sql.SQL(" ").join(cases))


def _decide_traces(rule: Rule) -> sql.Composable:
    """Return the statement that decides over the traces that a rule matches and no earlier one did."""
    matched = [*_experiments(rule), *_tags(rule, "trace_tags", "request_id", sql.SQL("trace.request_id"))]
    if rule.older_than_days:
        matched.append(
            sql.SQL("trace.timestamp_ms < {}").format(_milliseconds_before_now(rule.older_than_days))
        )
    return sql.SQL(
        "INSERT INTO decided SELECT 'trace', trace.request_id, trace.experiment_id, {name}, {spared}"
        " FROM trace_info AS trace JOIN experiments AS experiment USING (experiment_id)"
        " WHERE {matched} ON CONFLICT DO NOTHING"
    ).format(
        name=sql.Literal(rule.name),
        spared=_spared(rule, []),
        matched=_all(matched),
    )
