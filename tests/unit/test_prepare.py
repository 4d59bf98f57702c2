"""What prepare refuses before anything is changed, and the start of the server."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stackserver.errors import RefusedError
from stackserver.prepare import bucket_policy, check_fingerprints, check_revision, door_policy, fingerprint
from stackserver.serve import (
    STALE_TMP_SECONDS,
    auth_environment,
    auth_settings,
    clear_tmp,
    gunicorn_arguments,
    mlflow_environment,
)
from stackserver.settings import read_settings

KNOWN = frozenset({"first", "second", "pinned"})


@pytest.mark.parametrize("revision", [None, "pinned"])
def test_an_empty_or_current_schema_is_accepted(revision: str | None) -> None:
    check_revision(revision, "pinned", KNOWN)


@pytest.mark.parametrize(("revision", "word"), [("second", "older"), ("later", "newer"), ("", "newer")])
def test_an_older_or_newer_schema_is_refused(revision: str, word: str) -> None:
    with pytest.raises(RefusedError, match=word) as refusal:
        check_revision(revision, "pinned", KNOWN)
    assert "nothing was changed" in str(refusal.value)
    assert refusal.value.fix


def test_the_pinned_revision_is_the_head_of_known_ones() -> None:
    from stackserver.database import known_revisions, pinned_revision

    assert pinned_revision() in known_revisions()
    assert len(known_revisions()) > 50


def test_a_lost_key_is_refused_with_both_ways_out_and_what_is_at_stake() -> None:
    stored = {"kek_passphrase": fingerprint("old")}
    check_fingerprints(stored, {"kek_passphrase": fingerprint("old")}, {})
    with pytest.raises(RefusedError, match="3 stored values") as refusal:
        check_fingerprints(stored, {"kek_passphrase": fingerprint("new")}, {"kek_passphrase": 3})
    assert "config/secrets/kek_passphrase" in refusal.value.fix
    assert "./stack accept-keys" in refusal.value.fix


def test_a_fingerprint_differs_by_key_and_does_not_hold_it() -> None:
    assert fingerprint("one") != fingerprint("two")
    assert "one" not in fingerprint("one")


def test_the_storage_user_may_touch_one_bucket_and_administer_nothing() -> None:
    policy = json.dumps(bucket_policy("mlflow"))
    assert "admin:" not in policy
    assert '"s3:*"' not in policy
    resources = {
        resource for statement in bucket_policy("mlflow")["Statement"] for resource in statement["Resource"]
    }
    assert resources == {"arn:aws:s3:::mlflow", "arn:aws:s3:::mlflow/*"}


def test_nginxs_storage_user_may_read_and_write_artifacts_and_do_nothing_else() -> None:
    (statement,) = door_policy("mlflow", "artifacts")["Statement"]
    assert statement["Action"] == ["s3:GetObject", "s3:PutObject"]
    assert statement["Resource"] == ["arn:aws:s3:::mlflow/artifacts/*"]


def test_a_replica_starts_with_an_empty_tmp_and_leaves_living_replicas_alone(tmp_path: Path) -> None:
    now = 1_000_000.0
    for name, age in (("me", 10), ("other", 10), ("gone", STALE_TMP_SECONDS + 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "upload").write_text("half")
        os.utime(tmp_path / name, (now - age, now - age))
    own = clear_tmp(tmp_path, "me", now)
    assert own == tmp_path / "me"
    assert list(own.iterdir()) == []
    assert (tmp_path / "other" / "upload").exists()
    assert not (tmp_path / "gone").exists()


def test_no_secret_is_in_what_mlflow_gets_by_environment_and_command_line() -> None:
    settings = read_settings({"AUTHORIZATION": "rbac"})
    given = {**mlflow_environment(settings), **auth_environment()}
    text = json.dumps(given) + " ".join(gunicorn_arguments(settings)) + auth_settings(settings)
    assert "password" not in text.lower()
    assert "mlflow@postgres" in text


def test_mlflows_auth_app_reads_the_settings_that_are_written_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.server.auth.config import read_auth_config

    settings = read_settings(
        {
            "AUTHORIZATION": "rbac",
            "RBAC_DEFAULT_PERMISSION": "NO_PERMISSIONS",
            "DATABASE_URI": "postgresql://me%40server@db/runs",
        }
    )
    (tmp_path / "auth.ini").write_text(auth_settings(settings))
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "auth.ini"))
    found = read_auth_config()
    assert found.database_uri == settings.permissions_uri
    assert found.default_permission == "NO_PERMISSIONS"
    assert found.authorization_function == "stackserver.identity:authenticate"
    assert (found.admin_username, found.admin_password, found.read_database_uri) == (None, None, None)


@pytest.mark.parametrize("authorization", ["roles", "rbac"])
def test_the_pools_of_one_worker_stay_within_what_was_planned(authorization: str) -> None:
    settings = read_settings({"MLFLOW_THREADS": "10", "AUTHORIZATION": authorization})
    environment = mlflow_environment(settings)
    pool = int(environment["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"]) + int(
        environment["MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"]
    )
    assert pool == settings.record_connections == 40
    assert settings.connections_per_worker == {"roles": 40, "rbac": 50}[authorization]


def test_few_threads_still_make_a_valid_pool() -> None:
    environment = mlflow_environment(read_settings({"MLFLOW_THREADS": "1"}))
    assert int(environment["MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"]) >= 0
