"""What is never deleted, and why: found with SQL, kept in temporary tables of a session.

MLflow has no foreign keys from the model registry to runs, models and artifacts, and soft
links elsewhere (tags, inputs, associations). All that this package knows of them is here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from stackops.objects import PREFIX

RUN_OF_URI = "^runs:/+([^/?#]+)"
RUN_OF_PATH = "/([^/]+)/artifacts(?=/|$)"
MODEL_OF_URI = "(?:^models:/+|/models/)(m-[0-9A-Za-z]+)"
SOURCE_RUN = '"mlflow.assessment.sourceRunId": *"([^"]+)"'
"""How a model version names its run or logged model: in its source, storage location or link; and how
an assessment names the run that it comes from.

All that match count: a bucket or folder may have a name that looks like a part of the path.
"""

_NAMED = """
named AS (
    SELECT 'registered model ' || name || ' version ' || version AS reason, run_id,
        unnest(ARRAY[source, storage_location, run_link]) AS uri
    FROM model_versions WHERE current_stage IS DISTINCT FROM 'Deleted_Internal' AND {condition}
), reference AS (
    SELECT reason, 'run' AS kind, run_id AS id FROM named WHERE run_id <> ''
    UNION SELECT reason, 'run', found[1] FROM named, regexp_matches(uri, %(run_of_uri)s, 'g') AS found
    UNION SELECT reason, 'path', found[1] FROM named, regexp_matches(uri, %(run_of_path)s, 'g') AS found
    UNION SELECT reason, 'model', found[1] FROM named, regexp_matches(uri, %(model_of_uri)s, 'g') AS found
)
"""
_PATTERNS = {"run_of_uri": RUN_OF_URI, "run_of_path": RUN_OF_PATH, "model_of_uri": MODEL_OF_URI}

_REFERENCES = f"""
DROP TABLE IF EXISTS model_references;
CREATE TEMP TABLE model_references AS WITH {_NAMED.format(condition="true")} SELECT * FROM reference;
CREATE INDEX ON model_references (id);
ANALYZE model_references;
"""

_NEIGHBOURS = """
    UNION SELECT other FROM tree CROSS JOIN LATERAL (
        SELECT value AS other FROM tags WHERE run_uuid = tree.id AND key = 'mlflow.parentRunId'
        UNION ALL SELECT other FROM run_links WHERE one = tree.id
    ) AS neighbour
"""
"""The rest of a recursive `tree` of run ids: above it as of now, below it as of `find`."""
_SINCE = "age(xmin) <= age(%(seen)s::xid)"

_REGISTERED_SINCE = f"""
WITH RECURSIVE {_NAMED.format(condition=_SINCE)},
tree AS (
    SELECT id FROM reference WHERE kind <> 'model'
    UNION SELECT source_run_id FROM reference JOIN logged_models ON kind = 'model' AND model_id = id
    {_NEIGHBOURS}
)
SELECT EXISTS (SELECT FROM tree WHERE id = ANY(%(runs)s))
    OR EXISTS (SELECT FROM reference WHERE kind = 'model' AND id = ANY(%(models)s))
"""

_UNUSUAL = r"""
DROP TABLE IF EXISTS unusual_places;
CREATE TEMP TABLE unusual_places AS
WITH located (kind, usual, uri) AS (
    SELECT 'experiment', experiment_id::text, artifact_location FROM experiments
    UNION ALL SELECT 'run', experiment_id || '/' || run_uuid || '/artifacts', artifact_uri FROM runs
    UNION ALL SELECT 'model', experiment_id || '/models/' || model_id || '/artifacts', artifact_location
        FROM logged_models
    UNION ALL SELECT 'trace', experiment_id || '/traces/' || request_id || '/artifacts', value
        FROM trace_info JOIN trace_tags USING (request_id) WHERE key = 'mlflow.artifactLocation'
), within AS (
    SELECT kind, usual, rtrim(regexp_replace(uri, %(root)s, ''), '/') AS path FROM located
    WHERE uri ~ %(root)s
)
SELECT kind, concat_ws('/', %(prefix)s, nullif(path, '')) || '/' AS key FROM within WHERE path <> usual;
CREATE INDEX ON unusual_places (key COLLATE "C");
ANALYZE unusual_places;
"""

HOLDS_UNUSUAL = f"""
(EXISTS (SELECT FROM unusual_places WHERE key COLLATE "C" >= {{prefix}}
    AND key COLLATE "C" < {{prefix}} || chr(1114111))
OR EXISTS (SELECT FROM unusual_places WHERE kind <> 'experiment' AND key COLLATE "C" IN (
    '{PREFIX}/', '{PREFIX}/' || split_part({{prefix}}, '/', 2) || '/',
    '{PREFIX}/' || split_part({{prefix}}, '/', 2) || '/' || split_part({{prefix}}, '/', 3) || '/')))
"""
"""Whether a prefix has, or is in, the place of a record that keeps its artifacts where no other does."""

_STEPS = """
DROP TABLE IF EXISTS kept_runs, kept_models, kept_traces, kept_experiments, run_links;
CREATE TEMP TABLE kept_experiments AS
    SELECT experiment_id, 'tag ' || min(key) || ' of the experiment' AS reason
    FROM experiment_tags WHERE key = ANY(%(tags)s) GROUP BY experiment_id;
CREATE TEMP TABLE kept_runs (id text PRIMARY KEY, reason text NOT NULL);
CREATE TEMP TABLE kept_models (id text PRIMARY KEY, reason text NOT NULL);
CREATE TEMP TABLE kept_traces (id text PRIMARY KEY, reason text NOT NULL);

INSERT INTO kept_models SELECT id, min(reason) FROM model_references
    WHERE kind = 'model' GROUP BY id ON CONFLICT DO NOTHING;
INSERT INTO kept_models SELECT model_id, reason FROM logged_models JOIN kept_experiments USING (experiment_id)
    ON CONFLICT DO NOTHING;
INSERT INTO kept_models SELECT model_id, 'tag ' || min(tag_key) FROM logged_model_tags
    WHERE tag_key = ANY(%(tags)s) GROUP BY model_id ON CONFLICT DO NOTHING;
INSERT INTO kept_models SELECT link.destination_id, 'used by run ' || min(link.source_id)
    FROM inputs AS link
    JOIN runs ON runs.run_uuid = link.source_id AND runs.lifecycle_stage = 'active'
    JOIN logged_models AS model ON model.model_id = link.destination_id
    WHERE link.source_type IN ('RUN_INPUT', 'RUN_OUTPUT')
        AND link.destination_type IN ('MODEL_INPUT', 'MODEL_OUTPUT')
        AND model.source_run_id IS DISTINCT FROM link.source_id
    GROUP BY link.destination_id ON CONFLICT DO NOTHING;

INSERT INTO kept_runs SELECT id, min(reason) FROM model_references
    WHERE kind <> 'model' GROUP BY id ON CONFLICT DO NOTHING;
INSERT INTO kept_runs SELECT run_uuid, 'tag ' || min(key) FROM tags
    WHERE key = ANY(%(tags)s) GROUP BY run_uuid ON CONFLICT DO NOTHING;
INSERT INTO kept_runs SELECT run_uuid, reason FROM runs JOIN kept_experiments USING (experiment_id)
    ON CONFLICT DO NOTHING;
INSERT INTO kept_runs SELECT destination_id, 'traces are linked to it' FROM entity_associations
    WHERE destination_type = 'run' ON CONFLICT DO NOTHING;
INSERT INTO kept_runs SELECT DISTINCT run_id, 'assessments come from it' FROM assessments
    WHERE run_id <> '' ON CONFLICT DO NOTHING;
INSERT INTO kept_runs
    SELECT DISTINCT source.run, 'assessments come from it'
    FROM assessments, substring(assessment_metadata FROM %(source_run)s) AS source (run)
    WHERE source.run IS NOT NULL ON CONFLICT DO NOTHING;
INSERT INTO kept_runs SELECT DISTINCT source_run_id, 'an issue comes from it' FROM issues
    WHERE source_run_id <> '' ON CONFLICT DO NOTHING;

CREATE TEMP TABLE run_links AS
    SELECT run_uuid AS one, value AS other FROM tags WHERE key = 'mlflow.parentRunId' AND value <> ''
    UNION ALL SELECT value, run_uuid FROM tags WHERE key = 'mlflow.parentRunId' AND value <> '';
CREATE INDEX ON run_links (one);
ANALYZE run_links;

INSERT INTO kept_traces SELECT request_id, 'tag ' || min(key) FROM trace_tags
    WHERE key = ANY(%(tags)s) GROUP BY request_id ON CONFLICT DO NOTHING;
INSERT INTO kept_traces SELECT request_id, reason FROM trace_info JOIN kept_experiments USING (experiment_id)
    ON CONFLICT DO NOTHING;
INSERT INTO kept_traces SELECT DISTINCT source_id, 'in an evaluation dataset' FROM evaluation_dataset_records
    WHERE source_type = 'TRACE' AND source_id <> '' ON CONFLICT DO NOTHING;
INSERT INTO kept_traces SELECT link.source_id, 'linked to run ' || min(link.destination_id)
    FROM entity_associations AS link
    JOIN runs ON runs.run_uuid = link.destination_id AND runs.lifecycle_stage = 'active'
    WHERE link.source_type = 'trace' AND link.destination_type = 'run'
    GROUP BY link.source_id ON CONFLICT DO NOTHING;
"""

_SPREAD = (
    """
    INSERT INTO kept_runs SELECT model.source_run_id, min('its model: ' || kept_models.reason)
        FROM kept_models JOIN logged_models AS model ON model.model_id = kept_models.id
        WHERE model.source_run_id <> '' GROUP BY model.source_run_id ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO kept_runs SELECT metric.run_id, 'its metrics of model ' || min(metric.model_id)
        FROM kept_models JOIN logged_model_metrics AS metric ON metric.model_id = kept_models.id
        GROUP BY metric.run_id ON CONFLICT DO NOTHING
    """,
    """
    WITH RECURSIVE tree AS (
        SELECT id FROM kept_runs
        UNION
        SELECT link.other FROM tree JOIN run_links AS link ON link.one = tree.id
    )
    INSERT INTO kept_runs SELECT id, 'another run of its tree is kept' FROM tree ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO kept_models SELECT model_id, 'its run: ' || kept_runs.reason FROM kept_runs
        JOIN logged_models ON source_run_id = kept_runs.id ON CONFLICT DO NOTHING
    """,
)
"""What stays because of what stays: to be repeated until nothing is added."""


_MODEL_REASONS = """
    SELECT FROM logged_models AS model JOIN logged_model_tags AS tag USING (model_id)
        WHERE {owned} AND tag_key = ANY(%(tags)s)
    UNION ALL SELECT FROM logged_models AS model
        JOIN inputs AS link ON link.destination_id = model.model_id
            AND link.destination_type IN ('MODEL_INPUT', 'MODEL_OUTPUT')
        JOIN runs ON runs.run_uuid = link.source_id AND runs.lifecycle_stage = 'active'
        WHERE {owned} AND link.source_type IN ('RUN_INPUT', 'RUN_OUTPUT')
            AND model.source_run_id IS DISTINCT FROM link.source_id
    UNION ALL SELECT FROM logged_models AS model JOIN experiment_tags AS tag USING (experiment_id)
        WHERE {owned} AND tag.key = ANY(%(tags)s)
"""

_NEW_REASONS = {
    "runs": f"""
    WITH RECURSIVE tree AS (SELECT unnest(%(ids)s::text[]) AS id {_NEIGHBOURS})
    SELECT FROM tree JOIN tags ON run_uuid = id AND key = ANY(%(tags)s)
    UNION ALL SELECT FROM tree JOIN runs ON run_uuid = id JOIN experiment_tags AS tag USING (experiment_id)
        WHERE tag.key = ANY(%(tags)s)
    UNION ALL SELECT FROM tree JOIN entity_associations ON destination_type = 'run' AND destination_id = id
    UNION ALL SELECT FROM tree JOIN assessments
        ON run_id = id OR substring(assessment_metadata FROM %(source_run)s) = id
        WHERE {_SINCE.replace("xmin", "assessments.xmin")}
    UNION ALL SELECT FROM tree JOIN issues ON source_run_id = id
    UNION ALL SELECT FROM tree JOIN logged_model_metrics AS metric ON metric.run_id = tree.id
        JOIN kept_models ON kept_models.id = metric.model_id
    UNION ALL ({_MODEL_REASONS.format(owned="model.source_run_id = ANY(%(ids)s)")})
    """,
    "logged_models": _MODEL_REASONS.format(owned="model.model_id = ANY(%(ids)s)"),
    "trace_info": """
    SELECT FROM trace_tags WHERE request_id = ANY(%(ids)s) AND key = ANY(%(tags)s)
    UNION ALL SELECT FROM trace_info JOIN experiment_tags AS tag USING (experiment_id)
        WHERE request_id = ANY(%(ids)s) AND tag.key = ANY(%(tags)s)
    UNION ALL SELECT FROM evaluation_dataset_records WHERE source_type = 'TRACE' AND source_id = ANY(%(ids)s)
    UNION ALL SELECT FROM entity_associations AS link
        JOIN runs ON runs.run_uuid = link.destination_id AND runs.lifecycle_stage = 'active'
        WHERE link.source_type = 'trace' AND link.source_id = ANY(%(ids)s) AND link.destination_type = 'run'
    """,
}
"""Queries of each table that have a row if something has come to keep one of its records since `find`."""


def find(connection: Connection, keep_tags: Iterable[str]) -> None:
    """Fill kept_runs, kept_models and kept_traces: the id of what must stay, and the reason.

    Runs of one tree (mlflow.parentRunId) stay together. Call it outside of a transaction.
    """
    find_references(connection)
    with connection, connection.cursor() as cursor:
        cursor.execute(_STEPS, {"tags": list(keep_tags), "source_run": SOURCE_RUN})
        spread(cursor)


def spread(cursor: Cursor) -> None:
    """Add what must stay because of what is in kept_runs and kept_models already."""
    added = True
    while added:
        added = False
        cursor.execute("ANALYZE kept_runs, kept_models")
        for statement in _SPREAD:
            cursor.execute(statement)
            added = added or cursor.rowcount > 0


def find_references(connection: Connection) -> None:
    """Fill model_references: what versions of registered models name (kind: run, path, model; id)."""
    with connection, connection.cursor() as cursor:
        cursor.execute(_REFERENCES, _PATTERNS)


def find_unusual(connection: Connection, bucket: str) -> None:
    """Fill unusual_places: prefixes in our bucket of records that are not where MLflow puts such by itself.

    An experiment at mlflow-artifacts:/2024/team/artifacts, for instance: its runs look like files of
    a run `team`.
    """
    root = (
        "^(mlflow-artifacts:(//[^/]*)?/+"
        "|https?://[^/]+/(ajax-)?api/2.0/mlflow-artifacts/artifacts/+"
        f"|s3://{re.escape(bucket)}/{PREFIX}(/+|$))"
    )
    with connection, connection.cursor() as cursor:
        cursor.execute(_UNUSUAL, {"root": root, "prefix": PREFIX})


def moment(cursor: Cursor) -> str:
    """Return the transaction that is the oldest under way: what commits from now on is not older."""
    cursor.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::xid::text")
    return cursor.fetchone()[0]


def reasons_since(
    cursor: Cursor, seen: str, keep_tags: Iterable[str], table: str, ids: Sequence[str]
) -> bool:
    """Return whether a tag, link or the like has come to keep one of some records of a table.

    Registrations are not among them (registered_since). Call it after `find`.
    """
    if table not in _NEW_REASONS:
        return False
    values = {"ids": list(ids), "tags": list(keep_tags), "seen": seen, "source_run": SOURCE_RUN}
    cursor.execute(f"SELECT EXISTS ({_NEW_REASONS[table]})", values)
    return cursor.fetchone()[0]


def registered_since(cursor: Cursor, seen: str, run_ids: Sequence[str], model_ids: Sequence[str]) -> bool:
    """Return whether a version made or changed since `seen` (moment) keeps one of these.

    By transactions, not by clocks: those of several servers may differ. Call it after `find`.
    """
    values = {**_PATTERNS, "seen": seen, "runs": list(run_ids), "models": list(model_ids)}
    cursor.execute(_REGISTERED_SINCE, values)
    return cursor.fetchone()[0]
