"""The S3 side: a client that fails fast, and the readiness check of bucket and key."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path

import boto3
from botocore.client import BaseClient
from botocore.config import Config

CONNECT_TIMEOUT_SECONDS = 3
READ_TIMEOUT_SECONDS = 60
LOOK_TIMEOUT_SECONDS = 5
"""Of a question whether there is an object: MinIO lets it wait as long as somebody uploads that object."""
READY_PREFIX = ".stack/ready/"
"""Where replicas prove that they may write: outside the artifacts' prefix."""


def s3_client(endpoint: str | None, *, read_timeout_seconds: int = READ_TIMEOUT_SECONDS) -> BaseClient:
    """Return a client that follows the credentials file: a rotated key needs no restart.

    Stock MLflow's client waits 30 s for a store that is down; this one about 7 s.
    """
    return _client(endpoint, read_timeout_seconds, _credentials_time())


@lru_cache(maxsize=8)
def _client(endpoint: str | None, read_timeout_seconds: int, credentials_time: int) -> BaseClient:
    del credentials_time  # only a part of the cache's key
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": os.environ.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "auto")},
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=read_timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=32,
        ),
    )


def _credentials_time() -> int:
    try:
        return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "")).stat().st_mtime_ns
    except OSError:
        return 0


def check_storage(endpoint: str | None, bucket: str) -> None:
    """Raise an exception unless this replica can write and read an object of the bucket."""
    client = s3_client(endpoint, read_timeout_seconds=CONNECT_TIMEOUT_SECONDS)
    key = READY_PREFIX + socket.gethostname()
    client.put_object(Bucket=bucket, Key=key, Body=b"ready")
    body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    if body != b"ready":
        raise RuntimeError(f"s3://{bucket}/{key} does not read back as written")
