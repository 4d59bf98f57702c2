"""One-shot before the server: refuse what would lose data, then make what is missing.

Checks come first and change nothing: the settings, the schema's revision, the fingerprints
of the keys that encrypt stored values. Then: MLflow's tables in an empty database, those of its
permissions in another (AUTHORIZATION=rbac), the schema `stackops`, the bucket, and a storage
user that may do nothing but use it.

With --migrate it does another job: see migrate.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import sqlalchemy
import urllib3
from minio import Minio, MinioAdmin
from minio.credentials import StaticProvider
from psycopg2.extensions import connection as Connection  # noqa: N812

from stackserver.care import tend_tables
from stackserver.database import connect, known_revisions, pinned_revision, schema_revision, unknown_revision
from stackserver.errors import RefusedError, exit_refused
from stackserver.indexes import make_indexes
from stackserver.migrate import MigrationError, check, migrate, report
from stackserver.permissions_schema import check_permissions, known_revision, upgrade_permissions
from stackserver.settings import Settings, read_settings

SECRETS = Path("/secrets/prepare")
KEYS = ("kek_passphrase", "webhook_key")
POLICY_NAME = "mlflow-stack-bucket"
DOOR_POLICY_NAME = "mlflow-stack-artifacts"
WAIT_SECONDS = 60
NOT_THERE_YET = (psycopg2.OperationalError, urllib3.exceptions.HTTPError, OSError)


def fingerprint(key: str) -> str:
    """Return the fingerprint of a key: enough to recognise it, useless to derive it."""
    return hashlib.sha256(b"mlflow-stack fingerprint\0" + key.encode()).hexdigest()


def check_revision(revision: str | None, pinned: str, known: frozenset[str]) -> None:
    """Raise RefusedError unless the schema is absent or exactly the pinned one."""
    if revision is None or revision == pinned:
        return
    if revision in known:
        raise RefusedError(
            f"the database has the older schema {revision}, this MLflow needs {pinned}; nothing was changed",
            "./stack upgrade",
        )
    raise unknown_revision(revision, pinned)


def check_fingerprints(stored: dict[str, str], now: dict[str, str], encrypted: dict[str, int]) -> None:
    """Raise RefusedError if a key is not the one that the database knows.

    `encrypted` is the number of stored values that the key encrypts.
    """
    for name, known in stored.items():
        if now.get(name) == known:
            continue
        raise RefusedError(
            f"the key {name} is not the one that this database was used with; "
            f"{encrypted.get(name, 0)} stored values are encrypted under the old one; nothing was changed",
            f"put the old key into config/secrets/{name} (from your backup of the secrets), then ./stack up; "
            "if it is lost for good, ./stack accept-keys goes on without those values",
        )


def create_tables(database_uri: str) -> None:
    """Make MLflow's tables in an empty database."""
    from mlflow.store.db.utils import _initialize_tables

    engine = sqlalchemy.create_engine(database_uri)
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def create_stackops(connection: Connection) -> None:
    """Make the stack's own schema: no foreign keys into MLflow's tables."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('stackops'))")
        cursor.execute("CREATE SCHEMA IF NOT EXISTS stackops")
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS stackops.key_fingerprints ("
            " name text PRIMARY KEY, fingerprint text NOT NULL,"
            " known_since timestamptz NOT NULL DEFAULT now())"
        )


def stored_fingerprints(connection: Connection) -> dict[str, str]:
    """Return the fingerprint of each key that the database knows."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('stackops.key_fingerprints')")
        if cursor.fetchone()[0] is None:
            return {}
        cursor.execute("SELECT name, fingerprint FROM stackops.key_fingerprints")
        return dict(cursor.fetchall())


def store_fingerprints(connection: Connection, fingerprints: dict[str, str]) -> None:
    """Make the fingerprints the known ones."""
    with connection, connection.cursor() as cursor:
        for name, value in fingerprints.items():
            cursor.execute(
                "INSERT INTO stackops.key_fingerprints (name, fingerprint) VALUES (%s, %s)"
                " ON CONFLICT (name) DO UPDATE SET fingerprint = excluded.fingerprint, known_since = now()"
                " WHERE key_fingerprints.fingerprint <> excluded.fingerprint",
                (name, value),
            )


def encrypted_values(connection: Connection) -> dict[str, int]:
    """Return how many stored values each key encrypts."""
    queries = {
        "kek_passphrase": ("secrets", "SELECT count(*) FROM secrets"),
        "webhook_key": ("webhooks", "SELECT count(*) FROM webhooks WHERE secret IS NOT NULL"),
    }
    counts = {}
    with connection, connection.cursor() as cursor:
        for name, (table, query) in queries.items():
            cursor.execute("SELECT to_regclass(%s)", (table,))
            if cursor.fetchone()[0] is not None:
                cursor.execute(query)
                counts[name] = cursor.fetchone()[0]
    return counts


def bucket_policy(bucket: str) -> dict:
    """Return the policy of the storage user: this bucket's objects, nothing else."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"],
                "Resource": [f"arn:aws:s3:::{bucket}"],
            },
            {
                "Effect": "Allow",
                "Action": [
                    "s3:GetObject",
                    "s3:PutObject",
                    "s3:DeleteObject",
                    "s3:AbortMultipartUpload",
                    "s3:ListMultipartUploadParts",
                ],
                "Resource": [f"arn:aws:s3:::{bucket}/*"],
            },
        ],
    }


def door_policy(bucket: str, prefix: str) -> dict:
    """Return the policy of nginx's storage user: artifacts to read and to write, none to list or delete."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject"],
                "Resource": [f"arn:aws:s3:::{bucket}/{prefix}/*"],
            }
        ],
    }


def prepare_storage(settings: Settings, secret: Callable[[str], str]) -> None:
    """Make the bucket and the users limited to it, MLflow's and nginx's; remove their predecessors."""
    address = (settings.s3_endpoint or "").removeprefix("http://")
    root_user, root_password = secret("storage_root_user"), secret("storage_root_password")
    client = Minio(address, access_key=root_user, secret_key=root_password, secure=False, region="us-east-1")
    if not client.bucket_exists(settings.bucket):
        client.make_bucket(settings.bucket)

    admin = MinioAdmin(
        endpoint=address,
        credentials=StaticProvider(root_user, root_password),
        secure=False,
        region="us-east-1",
    )
    users = {
        POLICY_NAME: (bucket_policy(settings.bucket), "storage"),
        DOOR_POLICY_NAME: (door_policy(settings.bucket, settings.artifact_prefix), "door_storage"),
    }
    for policy_name, (policy, name) in users.items():
        admin.policy_add(policy_name, policy=policy)
        access_key = secret(f"{name}_access_key")
        admin.user_add(access_key, secret(f"{name}_secret_key"))
        admin.policy_set(policy_name, user=access_key)
        for user, facts in json.loads(admin.user_list()).items():
            if user != access_key and facts.get("policyName") == policy_name:
                admin.user_remove(user)


def wait_for(action: Callable[[], None], what: str) -> None:
    """Run an action until its service answers, for WAIT_SECONDS at most; then raise its error."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return action()
        except NOT_THERE_YET as error:
            if time.monotonic() > deadline:
                raise
            print(f"waiting for {what}: {type(error).__name__}", flush=True)
            time.sleep(1)


def check_reachable(database_uri: str) -> None:
    """Raise psycopg2.OperationalError unless the database takes a connection."""
    with closing(connect(database_uri)):
        return


def check_migration(settings: Settings) -> None:
    """Say which migration there would be. Raise RefusedError if it was not tested; change nothing."""
    check(settings.database_uri)
    if settings.rbac:
        known_revision(settings)


def migrate_database(settings: Settings) -> None:
    """Migrate an older database, report, and exit with 1 if it did not come out as it went in.

    The tables of permissions too, with AUTHORIZATION=rbac.
    """
    wait_for(lambda: check_reachable(settings.database_uri), "the database")
    try:
        outcome = migrate(settings.database_uri)
        if settings.rbac:
            before, after = upgrade_permissions(settings)
            print(f"permissions: schema {before or 'not made yet'}, now {after}", flush=True)
        status = report(outcome)
    except (MigrationError, sqlalchemy.exc.SQLAlchemyError) as error:
        print(f"FAILED: {error}", file=sys.stderr, flush=True)
        status = 1
    if status:
        raise SystemExit(status)


def prepare(settings: Settings, *, accept_keys: bool = False) -> None:
    """Do the whole job. Raise RefusedError before anything was changed."""

    def secret(name: str) -> str:
        return (SECRETS / name).read_text()

    wait_for(lambda: check_reachable(settings.database_uri), "the database")
    keys_now = {name: fingerprint(secret(name)) for name in KEYS}
    with closing(connect(settings.database_uri)) as connection:
        revision = schema_revision(connection)
        check_revision(revision, pinned_revision(), known_revisions())
        encrypted = encrypted_values(connection)
    with closing(connect(settings.database_uri, user=settings.operations_user)) as connection:
        if not accept_keys:
            check_fingerprints(stored_fingerprints(connection), keys_now, encrypted)
    if settings.rbac:
        check_permissions(settings)

    if revision is None:
        print("an empty database: making MLflow's tables", flush=True)
        create_tables(settings.database_uri)
    if settings.rbac:
        upgrade_permissions(settings)
    with closing(connect(settings.database_uri)) as connection:
        tend_tables(connection)
        make_indexes(connection)
    with closing(connect(settings.database_uri, user=settings.operations_user)) as connection:
        create_stackops(connection)
        store_fingerprints(connection, keys_now)
    wait_for(lambda: prepare_storage(settings, secret), "the storage")
    print(f"ready: schema {pinned_revision()}, bucket {settings.bucket}", flush=True)


def main() -> None:
    """Prepare, with --migrate only migrate, with --check only look; or exit with 78 and say what mends it."""
    os.environ["PGPASSFILE"] = str(SECRETS / "pgpass")
    try:
        if "--check" in sys.argv[1:]:
            return check_migration(read_settings())
        if "--migrate" in sys.argv[1:]:
            return migrate_database(read_settings())
        prepare(read_settings(), accept_keys="--accept-keys" in sys.argv[1:])
    except RefusedError as refusal:
        exit_refused(refusal)
    except psycopg2.Error as error:
        message = f"the database cannot be used: {str(error).strip()}"
        exit_refused(RefusedError(message, "./stack logs postgres"))


if __name__ == "__main__":
    main()
