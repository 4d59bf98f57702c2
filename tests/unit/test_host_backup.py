"""The host's side of backup, restore, upgrade and roll back: what runs in which order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit.fake_host import FakeHost

PLAN = json.dumps(
    {
        "set": "20261121T010002",
        "target": "the newest state",
        "made": "2026-11-21T01:00:05+00:00",
        "replaces": True,
        "objects": 12,
        "bytes": 99,
    }
)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """A machine with Docker and everything else that ./stack asks for."""
    return FakeHost(tmp_path)


@pytest.fixture
def ready(host: FakeHost) -> FakeHost:
    """A host with images and a plan that says yes."""
    host.docker("compose run *restore restore plan*", f"echo '{PLAN}'")
    return host


def steps(host: FakeHost, *names: str) -> list[str]:
    """The calls that hold one of the names, shortened to it, in order."""
    return [name for call in host.calls for name in names if name in call]


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (("run",), "ops backup run"),
        (("run", "--full", "--json"), "ops backup run --json --full"),
        (("list",), "ops backup list"),
        (("verify", "20261121T010002"), "ops backup verify 20261121T010002"),
        (("status", "--json"), "ops backup status --json"),
        (("drill",), "ops backup drill"),
        (("offsite",), "ops backup offsite"),
        (("recovery-key",), "secrets secrets show recovery_key"),
    ],
)
def test_each_word_of_backup_is_one_call(host: FakeHost, words: tuple[str, ...], call: str) -> None:
    assert host.run("backup", *words).returncode == 0
    assert [made for made in host.calls if made.endswith(call)], host.calls


@pytest.mark.parametrize("words", [(), ("everything",), ("forget",)])
def test_backup_without_a_word_that_it_knows_is_refused(host: FakeHost, words: tuple[str, ...]) -> None:
    done = host.run("backup", *words)
    assert done.returncode == 2
    assert "backup what?" in done.stderr


def test_restore_stops_restores_and_verifies_in_this_order(ready: FakeHost) -> None:
    done = ready.run("restore", "--replace", "--yes", "--to", "2026-11-21 14:03:07")
    assert done.returncode == 0, done.stderr
    assert "Restored, verified and running" in done.stdout
    order = (
        "restore plan",
        "stop nginx fastpath mlflow cron",
        "backup copy-objects",
        "stop backup postgres",
        "restore database",
        "restore objects",
        "restore verify",
        "ops smoke",
    )
    assert steps(ready, *order) == list(order)
    (database,) = [call for call in ready.calls if "restore database" in call]
    assert "--set 20261121T010002" in database
    assert "--to 2026-11-21 14:03:07" in database


def test_a_restore_that_is_refused_touches_nothing(host: FakeHost) -> None:
    host.docker(
        "compose run *restore restore plan*", "echo 'REFUSED: there is a database already' >&2; exit 5"
    )
    done = host.run("restore")
    assert done.returncode == 5
    assert steps(host, "stop", "restore database", "up --detach") == []


def test_a_restore_that_fails_starts_the_former_database(ready: FakeHost) -> None:
    ready.docker("compose run *restore restore database*", "exit 1")
    done = ready.run("restore", "--replace", "--yes")
    assert done.returncode == 1
    assert "the former database is in its place" in done.stderr
    assert "restore roll-back" not in " ".join(ready.calls)
    assert steps(ready, "up --detach") == ["up --detach"]


def test_a_restore_that_cannot_be_verified_is_rolled_back(ready: FakeHost) -> None:
    ready.docker("compose run *ops restore verify*", "exit 1")
    done = ready.run("restore", "--replace", "--yes")
    assert done.returncode == 1
    assert "in its place again" in done.stderr
    assert steps(ready, "restore database", "restore roll-back") == ["restore database", "restore roll-back"]


def test_an_option_that_needs_a_value_says_so(host: FakeHost) -> None:
    done = host.run("restore", "--to")
    assert done.returncode == 2
    assert "--to needs a value" in done.stderr


def test_an_upgrade_keeps_the_database_before_it_migrates(host: FakeHost) -> None:
    host.docker("compose ps --quiet backup", "echo abc")
    done = host.run("upgrade", "--yes")
    assert done.returncode == 0, done.stderr
    order = (
        "stackserver.prepare --check",
        "stop nginx fastpath mlflow cron",
        "backup run --label before-upgrade",
        "stop backup postgres",
        "restore keep",
        "stackserver.prepare --migrate",
        "ops smoke",
    )
    assert steps(host, *order) == list(order)


@pytest.mark.parametrize("failing", ["*prepare --migrate", "*ops smoke"])
def test_an_upgrade_that_fails_goes_back(host: FakeHost, failing: str) -> None:
    host.docker(f"compose run {failing}", "exit 1")
    done = host.run("upgrade", "--yes")
    assert done.returncode == 1
    assert "the former version and its data run again" in done.stderr
    assert steps(host, "restore keep", "restore roll-back") == ["restore keep", "restore roll-back"]


def test_an_upgrade_from_an_untested_schema_stops_before_anything(host: FakeHost) -> None:
    host.docker("compose run *prepare --check", "echo 'REFUSED: not tested' >&2; exit 78")
    done = host.run("upgrade", "--yes")
    assert done.returncode == 5
    assert steps(host, "stop", "restore keep") == []


def test_a_roll_back_of_an_upgrade_takes_the_former_images(host: FakeHost) -> None:
    host.docker("compose run *restore roll-back*", 'echo \'{"undone": "upgrade"}\'')
    host.docker("images --format*", "echo mlflow-stack/mlflow:latest-previous")
    done = host.run("rollback", "--yes")
    assert done.returncode == 0, done.stderr
    assert "docker tag mlflow-stack/mlflow:latest-previous mlflow-stack/mlflow:latest" in host.calls


def test_the_version_to_go_back_to_is_the_one_that_last_ran_well(host: FakeHost) -> None:
    """Not the containers' own images: an `up` that was refused has made them of the new ones."""
    folder = host.checkout / ".stack"
    assert host.run("up").returncode == 0
    (remembered,) = folder.glob("*.running.yml")
    remembered.write_text("former")
    host.docker("images --format*", "echo mlflow-stack/mlflow:latest-running")
    host.docker("tag *", "true")
    host.run("upgrade", "--yes")
    assert "docker tag mlflow-stack/mlflow:latest-running mlflow-stack/mlflow:latest-previous" in host.calls
    assert (folder / remembered.name.replace("running", "previous")).read_text() == "former"


def test_a_roll_back_of_a_restore_brings_the_objects_back_too(host: FakeHost) -> None:
    undone = '{"undone": "restore of 20261121T010000", "moment": "2026-11-21T02:00:00.5+00:00"}'
    host.docker("compose run *restore roll-back*", f"echo '{undone}'")
    assert host.run("rollback", "--yes").returncode == 0
    (back,) = host.calls_of("docker compose run --rm --no-deps -T ops restore objects")
    assert back.endswith("--to 2026-11-21T02:00:00.5+00:00")
    assert "docker compose run --rm --no-deps -T ops backup copy-objects" in host.calls


def test_a_roll_back_that_fails_is_not_called_nothing_to_undo(host: FakeHost) -> None:
    host.docker("compose run *restore roll-back*", "exit 1")
    done = host.run("rollback", "--yes")
    assert done.returncode == 1
    assert "the roll back failed" in done.stderr
    assert "nothing to undo" not in done.stderr


def test_a_restore_goes_nowhere_while_newer_objects_cannot_be_saved(host: FakeHost) -> None:
    plan = '{"set": "s", "target": "t", "made": "m", "objects": 1, "replaces": true}'
    host.docker("compose run *restore plan*", f"echo '{plan}'")
    host.docker("compose run *copy-objects*", "exit 1")
    done = host.run("restore", "--yes", "--replace")
    assert done.returncode == 1
    assert "could not be copied to the backup volume first" in done.stderr
    assert not host.calls_of("docker compose run --rm --no-deps -T restore restore database")


def test_a_roll_back_with_nothing_to_undo_starts_what_was_stopped(host: FakeHost) -> None:
    host.docker("compose run *restore roll-back*", "exit 5")
    done = host.run("rollback", "--yes")
    assert done.returncode == 1
    assert "there is nothing to undo" in done.stderr
    assert steps(host, "up --detach") == ["up --detach"]


def test_an_off_site_repository_needs_its_overlay(host: FakeHost) -> None:
    done = host.run("up", OFFSITE_REPOSITORY="s3:https://s3.example.com/backup")
    assert done.returncode == 5
    assert "compose/offsite.yml" in done.stderr
