"""Runs by the ten thousand and what else pages show much of, put into a database past its server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from kit.stack import Stack

Tables = Literal["mlflow", "fasttrack"]
"""Whose tables: FastTrackML's have its name, its contexts and row numbers besides."""
METRICS = PARAMS = 10
PAGE_RUNS = 100
OF_A_VALUE = 20
"""So few runs have the same value of the param p0; of the others a value is that of one in 16 runs."""
LARGEST_FOR_ALL = 100_000
START_MS = 1_700_000_000_000
NEWEST = "newest run of all"
"""The name of the run that a page shows first."""
CHARTS = "charts"
"""The experiment whose 50 runs have 10,000 points of a metric each."""
CHART_RUNS, CHART_POINTS = 50, 10_000
MODELS = "models"
"""1,000 registered models with a version each; the first ones are of the name below and a number."""
MODEL = "a-model"

_EXTRA: dict[str, dict[str, tuple[str, str]]] = {
    "mlflow": {
        "experiments": (", workspace", ", 'default'"),
        "runs": ("", ""),
        "params": ("value", ""),
        "latest_metrics": ("", ""),
        "metrics": ("", ""),
    },
    "fasttrack": {
        "experiments": (", namespace_id", ", 1"),
        "runs": (", row_num", ", number"),
        "params": ("value_str", ""),
        "latest_metrics": (", last_iter, context_id", ", 1, 1"),
        "metrics": (", iter, context_id", ", last_iter, context_id"),
    },
}
"""What each table has besides the columns of both: more columns, and their values."""


def takes_part(server: str, what: int | str) -> bool:
    """Return whether a server gets an experiment of that many runs, or what a name stands for.

    A million would take about 9 GB in each database (110,000 take 0.9), so not all of them get one.
    """
    return isinstance(what, str) or what <= LARGEST_FOR_ALL or server in ("ours", "stock")


def experiment_name(runs: int) -> str:
    """Return the name of the experiment with that many runs."""
    return f"{runs} runs"


def statements(runs: int, tables: Tables) -> str:
    """Return SQL that makes an experiment of so many runs: 10 metrics, 10 params and 4 tags each.

    Ids and values are those of their number, so every database gets the same.
    """
    more = _EXTRA[tables]
    name = experiment_name(runs)
    return f"""
INSERT INTO experiments (name, artifact_location, lifecycle_stage, creation_time,
        last_update_time{more["experiments"][0]})
    VALUES ('{name}', 'mlflow-artifacts:/seeded', 'active', {START_MS}, {START_MS}{more["experiments"][1]});
CREATE TEMP TABLE seeded ON COMMIT DROP AS
    SELECT md5('{name} ' || number) AS id, number, {START_MS} + number * 1000::bigint AS ms, experiment_id
    FROM generate_series(1, {runs}) AS number, experiments WHERE name = '{name}';
INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,
        end_time, source_version, lifecycle_stage, artifact_uri, experiment_id{more["runs"][0]})
    SELECT id, CASE number WHEN {runs} THEN '{NEWEST}' ELSE 'run-' || number END, 'UNKNOWN', '', '',
        'trainer', 'FINISHED', ms, ms + 500, '', 'active', 'mlflow-artifacts:/seeded/' || id || '/artifacts',
        experiment_id{more["runs"][1]} FROM seeded;
INSERT INTO params (key, {more["params"][0]}, run_uuid)
    SELECT 'p' || part,
        CASE part WHEN 0 THEN number / {OF_A_VALUE} ELSE hashtext(id || part) & 15 END::text, id
    FROM seeded, generate_series(0, {PARAMS - 1}) AS part;
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid{more["latest_metrics"][0]})
    SELECT 'm' || part, (hashtext(id || part) & 65535) / 65536.0, ms, 1, false, id{more["latest_metrics"][1]}
    FROM seeded, generate_series(0, {METRICS - 1}) AS part;
INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid{more["metrics"][0]})
    SELECT key, value, timestamp, step, is_nan, run_uuid{more["metrics"][1]}
    FROM latest_metrics JOIN seeded ON run_uuid = id;
INSERT INTO tags (key, value, run_uuid)
    SELECT tag.key, tag.value, id FROM seeded, LATERAL (VALUES
        ('mlflow.runName', CASE number WHEN {runs} THEN '{NEWEST}' ELSE 'run-' || number END),
        ('mlflow.user', 'trainer'), ('mlflow.source.name', 'train.py'), ('mlflow.source.type', 'LOCAL')
    ) AS tag (key, value);
"""


def chart_statements(runs: int = CHART_RUNS, points: int = CHART_POINTS) -> str:
    """Return SQL that makes the experiment CHARTS."""
    return f"""
INSERT INTO experiments (name, artifact_location, lifecycle_stage, creation_time, last_update_time, workspace)
    VALUES ('{CHARTS}', 'mlflow-artifacts:/charts', 'active', {START_MS}, {START_MS}, 'default');
CREATE TEMP TABLE seeded ON COMMIT DROP AS
    SELECT md5('{CHARTS} ' || number) AS id, number, {START_MS} + number * 1000::bigint AS ms, experiment_id
    FROM generate_series(1, {runs}) AS number, experiments WHERE name = '{CHARTS}';
INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,
        end_time, source_version, lifecycle_stage, artifact_uri, experiment_id)
    SELECT id, 'run-' || number, 'UNKNOWN', '', '', 'trainer', 'FINISHED', ms, ms + 500, '', 'active',
        'mlflow-artifacts:/charts/' || id || '/artifacts', experiment_id FROM seeded;
INSERT INTO tags (key, value, run_uuid) SELECT 'mlflow.runName', 'run-' || number, id FROM seeded;
INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid)
    SELECT 'loss', number / (step + 1.0), ms + step, step, false, id
    FROM seeded, generate_series(0, {points - 1}) AS step;
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
    SELECT key, value, timestamp, step, is_nan, run_uuid
    FROM metrics JOIN seeded ON run_uuid = id WHERE step = {points - 1};
"""


MODEL_STATEMENTS = f"""
INSERT INTO registered_models (workspace, name, creation_time, last_updated_time, description)
    SELECT 'default', '{MODEL}-' || lpad(number::text, 4, '0'), {START_MS} + number, {START_MS} + number, ''
    FROM generate_series(1, 1000) AS number;
INSERT INTO model_versions (workspace, name, version, creation_time, last_updated_time, description, user_id,
        current_stage, source, run_id, status)
    SELECT workspace, name, 1, creation_time, creation_time, '', 'trainer', 'None',
        'mlflow-artifacts:/seeded', NULL, 'READY' FROM registered_models WHERE name LIKE '{MODEL}-%';
"""


INDEXES_AWAY = """
SET maintenance_work_mem = '256MB';
CREATE TEMP TABLE put_away ON COMMIT DROP AS
    SELECT indrelid::regclass AS of_table, indexrelid::regclass::text AS name, conname,
        pg_get_indexdef(indexrelid) AS definition
    FROM pg_index LEFT JOIN pg_constraint ON conindid = indexrelid AND contype = 'p'
    WHERE indrelid IN ('params'::regclass, 'metrics'::regclass, 'latest_metrics'::regclass, 'tags'::regclass);
DO $$ DECLARE one record; BEGIN
    FOR one IN TABLE put_away LOOP
        IF one.conname IS NULL THEN EXECUTE format('DROP INDEX %s', one.name);
        ELSE EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.of_table, one.conname); END IF;
    END LOOP;
END $$;
"""
INDEXES_BACK = """
DO $$ DECLARE one record; BEGIN
    FOR one IN TABLE put_away LOOP
        EXECUTE one.definition;
        IF one.conname IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I PRIMARY KEY USING INDEX %s',
                one.of_table, one.conname, one.name);
        END IF;
    END LOOP;
END $$;
"""
"""Without their indexes tables of millions of rows fill several times as fast: ids are random."""


def chart_run(number: int) -> str:
    """Return the id of a run of CHARTS; they count from 1."""
    return hashlib.md5(f"{CHARTS} {number}".encode(), usedforsecurity=False).hexdigest()


def script(what: int | str, tables: Tables) -> str:
    """Return the SQL for an experiment of so many runs, or for CHARTS or MODELS (of MLflow's tables only)."""
    if isinstance(what, int):
        return statements(what, tables)
    return {CHARTS: chart_statements(), MODELS: MODEL_STATEMENTS}[what]


def seed(stack: Stack, database: str, tables: Tables, wanted: Sequence[int | str]) -> None:
    """Put in what is wanted (see `script`), then gather statistics, so that no server plans without them."""
    for what in wanted:
        psql = ("psql", "--host=/run/postgresql", "--username=postgres", "--quiet", "--output=/dev/null")
        options = ("--single-transaction", "--set=ON_ERROR_STOP=1", f"--dbname={database}")
        # Foreign keys hold already.
        given = "SET session_replication_role = replica;" + script(what, tables)
        if isinstance(what, int) and what >= LARGEST_FOR_ALL:
            given = INDEXES_AWAY + given + INDEXES_BACK
        stack.compose("exec", "-T", "postgres", *psql, *options, given=given, timeout=3600)
    stack.compose(
        *("exec", "-T", "postgres", "psql", "--host=/run/postgresql", "--username=postgres"),
        *(f"--dbname={database}", "--command=VACUUM ANALYZE", "--command=CHECKPOINT"),
        timeout=3600,
    )


def searches(experiment_id: str) -> dict[str, dict[str, Any]]:
    """Return the bodies of runs/search that are measured, by what they ask for."""
    page = {"experiment_ids": [experiment_id], "max_results": PAGE_RUNS}
    return {
        "newest first": page,
        "by a metric": page | {"order_by": ["metrics.m1 DESC"]},
        "of a metric and a param": page | {"filter": "metrics.m1 > 0.5 and params.p1 = '3'"},
        "of a param's rare value": page | {"filter": "params.p0 = '7'"},
    }
