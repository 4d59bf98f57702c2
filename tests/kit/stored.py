"""All that the stack keeps, in a form that two moments can be compared by."""

from __future__ import annotations

import json

from kit.stack import Stack

_OBJECTS = """
import boto3, json, sys
client = boto3.client("s3", endpoint_url="http://minio:9000")
pages = client.get_paginator("list_objects_v2").paginate(Bucket="mlflow", Prefix=sys.argv[1])
print(json.dumps({found["Key"]: found["ETag"] for page in pages for found in page.get("Contents", ())}))
"""


def objects(stack: Stack, prefix: str = "artifacts/") -> dict[str, str]:
    """Return the digest of each object of the bucket below a prefix, by its key."""
    done = stack.compose("exec", "-T", "mlflow", "python", "-c", _OBJECTS, prefix)
    return json.loads(done.stdout)


def rows(stack: Stack) -> dict[str, str]:
    """Return a digest of all rows of each of MLflow's tables, by its name."""
    tables = stack.psql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").split()
    digests = " UNION ALL ".join(
        f"SELECT '{table}', md5(coalesce(string_agg(t::text, ' ' ORDER BY t::text), '')) FROM {table} AS t"
        for table in tables
    )
    return dict(line.split("|") for line in stack.psql(digests).splitlines())


def everything(stack: Stack) -> dict[str, str]:
    """Return the digests of all tables and all artifacts."""
    return {**rows(stack), **objects(stack)}
