"""The plan: which rule decides over each run and trace, and what would go. Nothing is changed.

Each rule is one statement; the first rule that matches a run decides over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812

from stackops.retention import keep
from stackops.retention.journal import Item
from stackops.retention.policy import Policy, Rule, like

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

    items: list[Item]
    kept: dict[str, int] = field(default_factory=dict)
    """How many runs and traces the rules name but that are kept, by reason."""
    active_runs: int = 0

    def of(self, kind: str) -> list[Item]:
        """Return the items of a kind."""
        return [item for item in self.items if item.kind == kind]


def make(connection: Connection, policy: Policy) -> Plan:
    """Return the plan of a policy. It leaves the tables of keep.find, and `decided`, in the session."""
    keep.find(connection, policy.keep_tags)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "DROP TABLE IF EXISTS decided;"
            "CREATE TEMP TABLE decided (kind text, id text, experiment_id integer, rule text, doomed boolean,"
            " PRIMARY KEY (kind, id))"
        )
        for rule in policy.rules:
            if "runs" in rule.kinds:
                cursor.execute(_decide_runs(rule))
            if "traces" in rule.kinds:
                cursor.execute(_decide_traces(rule))
        cursor.execute("ANALYZE decided")
        cursor.execute(
            "SELECT decided.rule, decided.id, decided.experiment_id, usage.bytes + coalesce(models.bytes, 0)"
            " FROM decided LEFT JOIN kept_runs ON kept_runs.id = decided.id AND decided.kind = 'run'"
            " LEFT JOIN kept_traces ON kept_traces.id = decided.id AND decided.kind = 'trace'"
            " LEFT JOIN stackops.usage ON usage.kind = decided.kind AND usage.id = decided.id"
            " LEFT JOIN (SELECT source_run_id, sum(bytes)::bigint AS bytes FROM logged_models"
            "  JOIN stackops.usage ON usage.kind = 'model' AND usage.id = model_id GROUP BY 1"
            " ) AS models ON models.source_run_id = decided.id"
            " WHERE doomed AND kept_runs.id IS NULL AND kept_traces.id IS NULL"
            # What cannot be deleted at once is noted once.
            " AND NOT EXISTS (SELECT FROM stackops.batch_items AS noted WHERE noted.id = decided.id"
            "  AND noted.rule = decided.rule AND noted.kind IN ('trace', 'artifacts')"
            "  AND noted.state IN ('done', 'purged'))"
            " ORDER BY decided.kind, decided.id"
        )
        actions = {rule.name: KINDS[rule.action] for rule in policy.rules if rule.action in KINDS}
        items = [Item(actions[rule], name, experiment, rule, size) for rule, name, experiment, size in cursor]
        cursor.execute(
            "SELECT regexp_replace(regexp_replace(reason, 'model .* version [0-9]+$', 'model'),"
            " 'run [^ ]+$', 'run'), count(*)"
            " FROM decided JOIN (SELECT 'run' AS kind, * FROM kept_runs"
            "  UNION ALL SELECT 'trace', * FROM kept_traces) AS kept USING (kind, id)"
            " WHERE doomed GROUP BY 1 ORDER BY 2 DESC"
        )
        kept = dict(cursor.fetchall())
        cursor.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'")
        return Plan(items, kept, cursor.fetchone()[0])


def explain(connection: Connection, policy: Policy, run_id: str) -> dict[str, Any] | None:
    """Return what decides over a run (rule, whether it would go, why it is kept), or None without one."""
    make(connection, policy)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT runs.lifecycle_stage, runs.status, experiments.name, decided.rule, decided.doomed,"
            " kept_runs.reason, known_runs.since, usage.bytes"
            " FROM runs JOIN experiments USING (experiment_id)"
            " LEFT JOIN decided ON decided.id = run_uuid AND decided.kind = 'run'"
            " LEFT JOIN kept_runs ON kept_runs.id = run_uuid"
            " LEFT JOIN stackops.known_runs ON known_runs.run_id = run_uuid"
            " LEFT JOIN stackops.usage ON usage.id = run_uuid AND usage.kind = 'run'"
            " WHERE run_uuid = %s",
            (run_id,),
        )
        row = cursor.fetchone()
    if row is None:
        return None
    names = ("stage", "status", "experiment", "rule", "doomed", "kept_because", "known_since", "bytes")
    return dict(zip(names, row, strict=True))


def _all(conditions: list[sql.Composable]) -> sql.Composable:
    return sql.SQL(" AND ").join(conditions)


def _experiments(rule: Rule) -> list[sql.Composable]:
    conditions: list[sql.Composable] = [sql.SQL("experiment.lifecycle_stage = 'active'")]
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
            sql.SQL(
                "NOT EXISTS (SELECT FROM latest_metrics AS metric WHERE metric.run_uuid = run.run_uuid"
                " AND metric.timestamp >= {})"
            ).format(_milliseconds_before_now(days))
        )
    return conditions


def _decide_runs(rule: Rule) -> sql.Composable:
    """Return the statement that decides over the runs that a rule matches and no earlier one did."""
    matched = [sql.SQL("run.lifecycle_stage = 'active'"), *_experiments(rule)]
    matched += _tags(rule, "tags", "run_uuid", sql.SQL("run.run_uuid"))
    if rule.status:
        matched.append(sql.SQL("run.status = ANY({})").format(sql.Literal(list(rule.status))))
    spared = [sql.SQL("false")]
    ranks, joins = sql.SQL(""), sql.SQL("")
    if rule.keep_last:
        ranks += sql.SQL(
            ", row_number() OVER (PARTITION BY experiment_id"
            " ORDER BY start_time DESC, run.run_uuid) AS newest"
        )
        spared.append(sql.SQL("newest <= {}").format(sql.Literal(rule.keep_last)))
    if rule.keep_best:
        order = sql.SQL("DESC" if rule.keep_best.mode == "max" else "ASC")
        ranks += sql.SQL(
            ", metric.value, row_number() OVER (PARTITION BY experiment_id"
            " ORDER BY metric.value {} NULLS LAST, start_time DESC, run.run_uuid) AS best"
        ).format(order)
        joins = sql.SQL(
            " LEFT JOIN latest_metrics AS metric ON metric.run_uuid = run.run_uuid"
            " AND metric.key = {} AND NOT metric.is_nan"
        ).format(sql.Literal(rule.keep_best.metric))
        spared.append(sql.SQL("(best <= {} AND value IS NOT NULL)").format(sql.Literal(rule.keep_best.count)))
    doomed = (
        sql.SQL("false")
        if rule.action == "keep"
        else sql.SQL("NOT ({})").format(sql.SQL(" OR ").join(spared))
    )
    return sql.SQL(
        "INSERT INTO decided SELECT 'run', run_uuid, experiment_id, {name}, {doomed} FROM ("
        " SELECT run.run_uuid, run.experiment_id, {old} AS old{ranks}"
        " FROM runs AS run JOIN experiments AS experiment USING (experiment_id)"
        " LEFT JOIN stackops.known_runs AS known ON known.run_id = run.run_uuid{joins}"
        " WHERE {matched}) AS matched WHERE old ON CONFLICT DO NOTHING"
    ).format(
        name=sql.Literal(rule.name),
        doomed=doomed,
        old=_all([sql.SQL("true"), *_run_age(rule)]),
        ranks=ranks,
        joins=joins,
        matched=_all(matched),
    )


def _decide_traces(rule: Rule) -> sql.Composable:
    """Return the statement that decides over the traces that a rule matches and no earlier one did."""
    matched = [*_experiments(rule), *_tags(rule, "trace_tags", "request_id", sql.SQL("trace.request_id"))]
    if rule.older_than_days:
        matched.append(
            sql.SQL("trace.timestamp_ms < {}").format(_milliseconds_before_now(rule.older_than_days))
        )
    return sql.SQL(
        "INSERT INTO decided SELECT 'trace', trace.request_id, trace.experiment_id, {name}, {doomed}"
        " FROM trace_info AS trace JOIN experiments AS experiment USING (experiment_id)"
        " WHERE {matched} ON CONFLICT DO NOTHING"
    ).format(
        name=sql.Literal(rule.name),
        doomed=sql.Literal(rule.action != "keep"),
        matched=_all(matched),
    )
