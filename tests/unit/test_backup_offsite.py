"""The copy elsewhere: its credentials, its repository, what is copied and fetched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.backups import program, put_set, settings_in
from stackops import offsite
from stackops.errors import FailedError, OperationError
from stackops.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return settings_in(tmp_path, offsite_repository="/elsewhere")


def restic(tmp_path: Path, script: str) -> Path:
    program(tmp_path / "bin", "restic", f'echo "$@" >>{tmp_path}/calls\ncase "$*" in\n{script}\nesac')
    return tmp_path / "calls"


# Credentials.


def test_credentials_are_names_and_values_with_comments_and_empty_lines() -> None:
    text = "# of the bucket\nAWS_ACCESS_KEY_ID=key\r\n\n  # more\nAWS_SECRET_ACCESS_KEY=a=b/c#d \n"
    assert offsite.credentials(text) == {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a=b/c#d "}
    assert offsite.credentials("") == {}


@pytest.mark.parametrize("name", ["PATH", "LD_PRELOAD", "RESTIC_PASSWORD", "export AWS_ACCESS_KEY_ID"])
def test_another_name_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(OperationError) as refusal:
        offsite.credentials(f"AWS_ACCESS_KEY_ID=a\n{name}=hunter2\n")
    assert f"'{name}' is not known" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)
    assert "RESTIC_REST_PASSWORD" in refusal.value.fix


def test_a_line_without_a_name_is_refused_and_not_repeated() -> None:
    with pytest.raises(OperationError, match="line 2 has no name") as refusal:
        offsite.credentials("AWS_ACCESS_KEY_ID=a\nhunter2\n")
    assert "hunter2" not in str(refusal.value) + refusal.value.fix
    with pytest.raises(OperationError, match="line 1 has no name"):
        offsite.credentials("AWS_SECRET_ACCESS_KEY\n")


@given(
    st.dictionaries(
        st.sampled_from(offsite.CREDENTIAL_NAMES),
        st.text(st.characters(min_codepoint=32, max_codepoint=126)),
    )
)
def test_every_value_arrives_as_it_was_written(values: dict[str, str]) -> None:
    assert offsite.credentials("".join(f"{name}={value}\n" for name, value in values.items())) == values


def test_the_environment_has_the_repository_the_credentials_and_no_password(settings: Settings) -> None:
    (settings.secrets / "offsite_credentials").write_text("AWS_ACCESS_KEY_ID=key\n")
    (settings.secrets / "offsite_password").write_text("hunter2")
    environment = offsite._environment(settings)
    assert environment["RESTIC_REPOSITORY"] == "/elsewhere"
    assert environment["AWS_ACCESS_KEY_ID"] == "key"
    assert "hunter2" not in environment.values()


@pytest.mark.parametrize("address", ["sftp:me@there:/kept", "sftp://me@there:2022//kept"])
def test_ssh_gets_the_operators_key_and_trusts_no_unknown_server(
    settings: Settings, tmp_path: Path, address: str
) -> None:
    calls = restic(tmp_path, f"*' backup '*) echo '{SUMMARY}' ;;")
    offsite.push(replace(settings, offsite_repository=address))
    for said in calls.read_text().splitlines():
        assert f"--option sftp.args=-i {settings.secrets}/offsite_key" in said
        assert f"UserKnownHostsFile={settings.secrets}/offsite_known_hosts" in said
        assert "StrictHostKeyChecking=yes" in said


# The repository.


def test_without_a_repository_every_action_is_refused(settings: Settings) -> None:
    without = replace(settings, offsite_repository="")
    for action in (offsite.push, offsite.fetch, offsite.check):
        with pytest.raises(OperationError, match="no off-site repository is set"):
            action(without)


SUMMARY = json.dumps({"message_type": "summary", "snapshot_id": "abc", "files_new": 2, "data_added": 300})


@pytest.mark.parametrize(
    "init", ["exit 0", "echo 'Fatal: config file already exists' >&2; exit 1"], ids=["new", "there already"]
)
def test_a_push_makes_the_repository_where_there_is_none(
    settings: Settings, tmp_path: Path, init: str
) -> None:
    calls = restic(tmp_path, f"*' init'*) {init} ;;\n*' backup '*) echo '{{}}'; echo '{SUMMARY}' ;;")
    assert offsite.push(settings) == {"snapshot": "abc", "files_new": 2, "bytes_added": 300}
    said = calls.read_text()
    assert "--keep-within 14d --prune" in said
    assert f"--exclude={settings.backups}/drill" in said
    # On another machine this very job would look killed.
    assert f"--exclude={settings.backups}/state/jobs/*.running" in said
    assert said.count(" backup ") == 1


def test_a_repository_with_another_password_is_an_error(settings: Settings, tmp_path: Path) -> None:
    restic(
        tmp_path,
        "*' init'*) echo 'Fatal: repository already initialized' >&2; exit 1 ;;\n"
        "*) echo 'Fatal: wrong password' >&2; exit 12 ;;",
    )
    with pytest.raises(FailedError, match="wrong password"):
        offsite.push(settings)


def test_a_repository_that_cannot_be_made_is_an_error(settings: Settings, tmp_path: Path) -> None:
    restic(tmp_path, "*' init'*) echo 'Fatal: access denied' >&2; exit 1 ;;")
    with pytest.raises(FailedError, match="access denied"):
        offsite.push(settings)


def test_a_repository_that_does_not_answer_is_an_error(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsite, "QUICK_TIMEOUT_SECONDS", 0.2)
    restic(tmp_path, "*) exec sleep 60 ;;")
    with pytest.raises(FailedError, match="took longer"):
        offsite.push(settings)


def test_the_newest_snapshot_is_fetched_into_an_empty_volume(settings: Settings, tmp_path: Path) -> None:
    snapshots = [
        {"id": "old", "time": "2025-11-20T00:00:00Z", "paths": ["/backups"]},
        {"id": "new", "time": "2025-11-21T00:00:00Z", "paths": ["/volume"]},
        {"id": "older", "time": "2025-11-19T00:00:00Z", "paths": ["/backups"]},
    ]
    calls = restic(tmp_path, f"*snapshots*) echo '{json.dumps(snapshots)}' ;;")
    (settings.backups / "state").mkdir()
    assert offsite.fetch(settings) == {"snapshot": "new", "time": "2025-11-21T00:00:00Z"}
    assert f"restore new:/volume --target {settings.backups} --verify" in calls.read_text()


def test_a_fetch_that_was_interrupted_is_gone_on_with(settings: Settings, tmp_path: Path) -> None:
    snapshots = [{"id": "new", "time": "2025-11-21T00:00:00Z", "paths": ["/volume"]}]
    listed = f"*snapshots*) echo '{json.dumps(snapshots)}' ;;"
    restic(tmp_path, f"{listed}\n*' restore '*) exit 1 ;;")
    with pytest.raises(FailedError):
        offsite.fetch(settings)
    put_set(settings)
    assert (settings.backups / offsite.FETCHING).exists()
    restic(tmp_path, listed)
    assert offsite.fetch(settings)["snapshot"] == "new"
    assert not (settings.backups / offsite.FETCHING).exists()


def test_a_volume_with_backups_is_not_fetched_into(settings: Settings, tmp_path: Path) -> None:
    calls = restic(tmp_path, "*) exit 9 ;;")
    put_set(settings)
    with pytest.raises(OperationError, match="not empty; nothing was changed"):
        offsite.fetch(settings)
    assert not calls.exists()


def test_an_empty_repository_has_nothing_to_fetch(settings: Settings, tmp_path: Path) -> None:
    restic(tmp_path, "*snapshots*) echo '[]' ;;")
    with pytest.raises(OperationError, match="has no snapshot"):
        offsite.fetch(settings)
