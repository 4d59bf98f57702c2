"""The command line: `stackops VERB …`. One place parses, prints, and turns errors into messages."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg2

from stackops import (
    acme_verbs,
    audit,
    backup,
    drill,
    major,
    offsite,
    protect,
    report,
    restore,
    schedule,
    secrets,
    sets,
    smoke,
    state,
    tls,
    user_verbs,
    users,
)
from stackops.errors import BusyError, FailedError, OperationError
from stackops.retention import show, verbs
from stackops.settings import JOBS, Settings, read_settings

STATUS_FAILED = 1
STATUS_BUSY = 4
STATUS_REFUSED = 5
RECOVERY_KEY_NOTE = (
    "Keep this line outside of this machine: with it and the off-site copy everything comes back,\n"
    "without it the off-site copy and the secrets in every backup stay closed."
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stackops")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", required=True)

    _add_secrets(verbs)
    verbs.add_parser("protect", help="receive the log and copy objects (the service backup)")
    verbs.add_parser("schedule", help="run the jobs by schedule (the service cron)")
    job = verbs.add_parser("job", help="run a scheduled job now")
    job.add_argument("name", choices=sorted(JOBS))

    backup_verb = verbs.add_parser("backup", help="make, list and verify backup sets")
    actions = backup_verb.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run")
    run.add_argument("--full", action="store_true")
    run.add_argument("--label", default="")
    run.add_argument("--json", action="store_true")
    for name in ("list", "status"):
        actions.add_parser(name).add_argument("--json", action="store_true")
    for name in ("verify", "drill"):
        proof = actions.add_parser(name)
        proof.add_argument("set", nargs="?")
        proof.add_argument("--json", action="store_true")
    for name in ("offsite", "fetch", "copy-objects", "begin-anew"):
        actions.add_parser(name).add_argument("--json", action="store_true")

    restore_verb = verbs.add_parser("restore", help="the steps of ./stack restore")
    actions = restore_verb.add_subparsers(dest="action", required=True)
    for name in ("plan", "database", "objects", "verify"):
        step = actions.add_parser(name)
        step.add_argument("--set")
        step.add_argument("--to")
        step.add_argument("--json", action="store_true")
        if name == "plan":
            step.add_argument("--replace", action="store_true")
        if name == "database":
            step.add_argument("--own-moment", action="store_true")
    for name in ("roll-back", "keep", "former", "move-over"):
        step = actions.add_parser(name)
        step.add_argument("--json", action="store_true")
        if name == "roll-back":
            step.add_argument("--failed", action="store_true")
    _add_cleanup(verbs)
    user_verbs.add_parser(verbs)
    acme_verbs.add_parser(verbs)
    _add_audit(verbs)
    verbs.add_parser("smoke", help="use the running stack through nginx; the token comes on stdin")
    return parser


def _add_secrets(verbs: Any) -> None:
    secrets_verb = verbs.add_parser("secrets", help="make, show, rotate and restore the stack's secrets")
    secrets.add_places(secrets_verb)
    secrets_verb.add_argument("--backups", type=Path, default=Path("/backups"))
    secrets_verb.add_argument("--audit", type=Path, default=Path("/audit"))
    secrets_verb.add_argument("--acme", type=Path, default=Path("/acme"))
    actions = secrets_verb.add_subparsers(dest="action", required=True)
    actions.add_parser("ensure", help="make what is missing")
    show = actions.add_parser("show", help="print one secret")
    show.add_argument("name", choices=sorted(secrets.GENERATORS))
    actions.add_parser("certificate", help="print the certificate of the door")
    rotate = actions.add_parser("rotate", help="make a group of secrets anew")
    rotate.add_argument("what", choices=sorted(secrets.ROTATIONS))
    unseal = actions.add_parser("unseal", help="put the secrets of a set into an empty volume")
    unseal.add_argument("--set")
    actions.add_parser("offsite", help="make only what reaching the off-site copy needs")


def _add_cleanup(verbs: Any) -> None:
    cleanup_verb = verbs.add_parser("cleanup", help="what may go, goes: plan, run, undo, purge")
    actions = cleanup_verb.add_subparsers(dest="action", required=True)
    for name in ("plan", "run", "list", "deleted", "purge", "orphans"):
        actions.add_parser(name).add_argument("--json", action="store_true")
    for name, what in (("approve", "batch"), ("undo", "batch"), ("explain", "id")):
        one = actions.add_parser(name)
        one.add_argument(what)
        one.add_argument("--json", action="store_true")
    usage_verb = verbs.add_parser("usage", help="storage by experiment and model")
    usage_verb.add_argument("--refresh", action="store_true")
    usage_verb.add_argument("--json", action="store_true")


def _add_audit(verbs: Any) -> None:
    audit_verb = verbs.add_parser("audit", help="who changed what")
    audit_verb.add_argument("--user", default="")
    audit_verb.add_argument("--since", default="7d")
    audit_verb.add_argument("--words", default="")
    audit_verb.add_argument("--requests", action="store_true")
    audit_verb.add_argument("--json", action="store_true")


def _secrets(arguments: argparse.Namespace) -> None:
    volume, overrides = arguments.volume, arguments.overrides
    if arguments.action == "show":
        path = volume / "source" / arguments.name
        if not path.exists():
            raise OperationError(f"{arguments.name} has not been made yet", "./stack up")
        if arguments.name == "admin_password" and users.read(volume / "auth").own_admin:
            raise OperationError(
                "the password of admin was changed with ./stack user passwd; it is stored nowhere",
                "./stack rotate admin makes a new one and stores it",
            )
        print(path.read_text(encoding="utf-8"))
        if arguments.name == "recovery_key":
            print(RECOVERY_KEY_NOTE, file=sys.stderr)
        return
    if arguments.action == "certificate":
        print((volume / tls.CERTIFICATE).read_text(encoding="ascii"), end="")
        return
    if arguments.action == "rotate":
        written = secrets.rotate(volume, overrides, arguments.what)
    elif arguments.action == "offsite":
        secrets.give_backups(arguments.backups)
        written = secrets.ensure_offsite(volume, overrides)
    elif arguments.action == "unseal":
        written = secrets.restore_set(volume, overrides, arguments.backups, arguments.set)
    else:
        secrets.give_backups(arguments.backups)
        audit.make_folders(arguments.audit)
        acme_verbs.prepare(arguments.acme, overrides.parent)
        written = secrets.ensure(volume, overrides)
    for name in written:
        print(f"wrote {name}")


def _print(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name.replace('_', ' ')}: {len(value) if isinstance(value, dict) else value}")


def _job(settings: Settings, name: str, set_id: str | None = None, **options: Any) -> dict[str, Any]:
    """Run a job as the schedule does: one at a time, its result kept for status and metrics."""

    def back_up() -> dict[str, Any]:
        return backup.run(settings, **options)

    def verify() -> dict[str, Any]:
        facts = backup.verify(settings, set_id)
        return facts | (offsite.check(settings) if settings.offsite_repository else {})

    actions: dict[str, Callable[[], dict[str, Any]]] = {
        "backup": back_up,
        "verify": verify,
        "drill": lambda: drill.run(settings, set_id),
        "offsite": lambda: offsite.push(settings),
        "usage": lambda: verbs.take_inventory(settings),
        "cleanup": lambda: verbs.run(settings, scheduled=True),
        "audit": lambda: audit.clean(settings.audit, settings.audit_keep_days),
    }
    return state.record(settings.backups, name, actions[name])


def _backup(settings: Settings, arguments: argparse.Namespace) -> None:
    action = arguments.action
    if action == "run":
        facts = _job(settings, "backup", full=arguments.full, label=arguments.label)
    elif action in {"verify", "drill"}:
        facts = _job(settings, action, arguments.set)
    elif action == "offsite":
        facts = _job(settings, "offsite")
    elif action == "fetch":
        facts = offsite.fetch(settings)
    elif action == "begin-anew":
        facts = backup.begin_anew(settings)
    elif action == "copy-objects":
        facts = protect.copy_objects(settings)
    else:
        found = report.sets(settings) if action == "list" else report.status(settings)
        print(json.dumps(found) if arguments.json else "\n".join(report.lines(action, found)))
        if action == "status" and found["problems"]:
            raise SystemExit(STATUS_FAILED)
        return
    _print(facts, as_json=arguments.json)


def _cleanup(settings: Settings, arguments: argparse.Namespace) -> None:
    action = arguments.action
    found: Any
    if action == "plan":
        found = verbs.make_plan(settings)
    elif action == "run":
        found = verbs.run(settings, scheduled=False)
    elif action == "approve":
        found = verbs.approve(settings, arguments.batch)
    elif action == "undo":
        found = verbs.undo(settings, arguments.batch)
    elif action == "purge":
        found = verbs.purge_now(settings)
    elif action == "explain":
        found = verbs.explain(settings, arguments.id)
    elif action == "deleted":
        found = verbs.deleted(settings)
    elif action == "orphans":
        found = verbs.orphans(settings)
    else:
        found = verbs.batches(settings)
    print(json.dumps(found, default=str) if arguments.json else "\n".join(show.lines(action, found)))


def _audit(settings: Settings, arguments: argparse.Namespace) -> None:
    since = audit.parse_since(arguments.since)
    for line in audit.read(
        settings.audit, since, user=arguments.user, words=arguments.words, requests=arguments.requests
    ):
        print(json.dumps(line) if arguments.json else audit.text_of(line))


def _usage(settings: Settings, arguments: argparse.Namespace) -> None:
    if arguments.refresh:
        _job(settings, "usage")
    found = verbs.storage(settings)
    print(json.dumps(found, default=str) if arguments.json else "\n".join(show.lines("usage", found)))


def _restore(settings: Settings, arguments: argparse.Namespace) -> None:
    action = arguments.action
    if action == "roll-back":
        facts = restore.roll_back(settings, failed=arguments.failed)
    elif action == "keep":
        facts = restore.keep(settings, "upgrade")
    elif action == "former":
        facts = major.former(settings)
    elif action == "move-over":
        facts = major.move_over(settings)
    else:
        moment = restore.parse_moment(arguments.to) if arguments.to else None
        if action == "plan":
            facts = asdict(restore.plan(settings, arguments.set, moment, replace=arguments.replace))
        elif action == "database":
            if not arguments.set:
                raise OperationError("no set is named", "name the one that `restore plan` chose: --set")
            manifest = sets.read(settings, arguments.set)
            named = arguments.set if arguments.own_moment else None
            target = restore.target_of(settings, manifest, named, moment)
            facts = restore.database(settings, manifest.id, target)
        else:
            if arguments.set and moment is None:
                moment = sets.read(settings, arguments.set).objects_moment
            step = restore.verify if action == "verify" else restore.bring_objects_back
            facts = step(settings, moment)
    _print(facts, as_json=arguments.json)


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked and print it. Raise OperationError if it cannot be done."""
    before_settings = {"secrets": _secrets, "user": user_verbs.run, "acme": acme_verbs.run}
    if arguments.verb in before_settings:
        before_settings[arguments.verb](arguments)
        return
    settings = read_settings(os.environ)
    verbs_of: dict[str, Callable[[Settings, argparse.Namespace], None]] = {
        "protect": lambda *_: protect.run(settings),
        "schedule": lambda *_: schedule.run(settings),
        "smoke": lambda *_: _print(_smoke(), as_json=False),
        "job": lambda *_: _print(_job(settings, arguments.name), as_json=True),
        "backup": _backup,
        "restore": _restore,
        "cleanup": _cleanup,
        "usage": _usage,
        "audit": _audit,
    }
    verbs_of[arguments.verb](settings, arguments)


def _smoke() -> dict[str, Any]:
    return smoke.run(os.environ.get("PUBLIC_URL", ""), sys.stdin.readline().strip())


def main() -> None:
    """Run the command line; an error is its message and what mends it on stderr."""
    arguments = _parser().parse_args()
    try:
        run(arguments)
    except OperationError as error:
        if arguments.debug:
            raise
        if getattr(arguments, "json", False):
            print(
                json.dumps(
                    {**getattr(error, "facts", {}), "error": str(error), "fix": error.fix}, default=str
                )
            )
        status = STATUS_REFUSED
        if isinstance(error, BusyError):
            status = STATUS_BUSY
        elif isinstance(error, FailedError):
            status = STATUS_FAILED
        _say("REFUSED" if status == STATUS_REFUSED else "error", str(error), error.fix)
        raise SystemExit(status) from None
    except (OSError, psycopg2.Error) as error:
        if arguments.debug:
            raise
        fix = "has the volume room? is the database up? ./stack status; --debug shows where it was"
        _say("error", str(error).strip(), fix)
        raise SystemExit(STATUS_FAILED) from None


def _say(head: str, what: str, fix: str) -> None:
    print(f"{head}: {what}\nfix: {fix}", file=sys.stderr)
