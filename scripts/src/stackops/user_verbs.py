"""`./stack user`: users, roles and tokens, changed in the volume of secrets."""

from __future__ import annotations

import argparse
import json
import os
import secrets as random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stackops import audit, secrets, users
from stackops.errors import OperationError
from stackops.users import Accounts, Token


def add_parser(verbs: Any) -> None:
    """Describe the words that follow `stackops user`."""
    verb = verbs.add_parser("user", help="users, roles and tokens")
    secrets.add_places(verb)
    verb.add_argument("--audit", type=Path, default=Path("/audit"))
    actions = verb.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", help="add a user")
    add.add_argument("name")
    add.add_argument("--role", default="writer")
    add.add_argument("--no-password", action="store_true", help="tokens only: a machine")
    add.add_argument("--password-stdin", action="store_true")
    actions.add_parser("list").add_argument("--json", action="store_true")
    passwd = actions.add_parser("passwd", help="give a user another password")
    passwd.add_argument("name")
    passwd.add_argument("--password-stdin", action="store_true")
    role = actions.add_parser("role", help="give a user another role")
    role.add_argument("name")
    role.add_argument("role")
    for name in ("disable", "enable", "remove"):
        actions.add_parser(name).add_argument("name")
    token = actions.add_parser("token", help="give a user a token, or take one back")
    token.add_argument("name")
    token.add_argument("--label", default="")
    token.add_argument("--days", type=int)
    token.add_argument("--revoke", metavar="LABEL")


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked and print it."""
    if arguments.action == "list":
        _print_list(users.read(arguments.volume / "auth"), as_json=arguments.json)
        return
    said: list[str] = []

    def change(accounts: Accounts) -> None:
        said.extend(_change(accounts, arguments))

    secrets.change_accounts(arguments.volume, arguments.overrides, change)
    told = {name: getattr(arguments, name, None) for name in ("name", "role", "label", "revoke", "days")}
    audit.note(
        arguments.audit,
        event=f"user {arguments.action}",
        user=f"{os.environ.get('STACK_USER', '')} (./stack)".lstrip(),
        objects={name: value for name, value in told.items() if value},
    )
    print("\n".join(said))


def _change(accounts: Accounts, arguments: argparse.Namespace) -> list[str]:
    """Change the accounts as asked and return what to say."""
    name, action = arguments.name, arguments.action
    if name == secrets.INTERNAL_USER:
        raise OperationError(f"{name} is the stack's own user", "choose another name")
    if (
        name == users.ADMIN
        and action in {"passwd", "remove"}
        and (arguments.overrides / "admin_password").exists()
    ):
        raise OperationError(
            "admin's password is set by config/secrets/admin_password", "edit that file, then ./stack up"
        )
    if action in {"add", "passwd"}:
        password = None
        if action == "passwd" or not arguments.no_password:
            password = sys.stdin.readline().rstrip("\n") if arguments.password_stdin else None
            password = password if arguments.password_stdin else random.token_urlsafe(15)
        if action == "add":
            accounts.add(name, arguments.role, password)
        else:
            accounts.set_password(name, password or "")
        shown = None if arguments.password_stdin else password
        return [f"{name} is {accounts.user(name).role}", *(_lines_for(name, shown) if shown else [])]
    if action == "token":
        if arguments.revoke:
            accounts.revoke(name, arguments.revoke)
            return [f"the token {arguments.revoke} of {name} opens nothing any more"]
        label = arguments.label or f"token-{random.token_hex(4)}"
        return [
            f"the token {label} of {name}, shown only now",
            *_lines_for(name, accounts.add_token(name, label, arguments.days)),
        ]
    if action == "role":
        accounts.set_role(name, arguments.role)
    elif action == "remove":
        accounts.remove(name)
        return [f"{name} is removed, with all tokens"]
    else:
        accounts.set_disabled(name, disabled=action == "disable")
    user = accounts.user(name)
    return [f"{name} is {user.role}{', disabled' if user.disabled else ''}"]


def _lines_for(name: str, key: str) -> list[str]:
    """Return what to paste for a notebook, a CI job, an OTLP exporter and a Java client."""
    url = os.environ.get("STACK_URL", "http://localhost:8080")
    lines = [
        "",
        "# shell, notebook, CI (keep the last line among its secrets)",
        f"export MLFLOW_TRACKING_URI={url}",
        f"export MLFLOW_TRACKING_USERNAME={name}",
        f"export MLFLOW_TRACKING_PASSWORD={key}",
    ]
    if key.startswith(users.TOKEN_PREFIX):
        lines += [
            "",
            "# OTLP exporter (EXPERIMENT_ID is the number in the page's address)",
            f"export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={url}/v1/traces",
            "export OTEL_EXPORTER_OTLP_TRACES_HEADERS="
            f"'Authorization=Bearer%20{key},x-mlflow-experiment-id=EXPERIMENT_ID'",
            "",
            "# Java: new MlflowClient(new BasicMlflowHostCreds(URL, token))",
            f"export MLFLOW_TRACKING_TOKEN={key}",
        ]
    return lines


def _print_list(accounts: Accounts, *, as_json: bool) -> None:
    listed = [
        {
            "name": user.name,
            "role": user.role,
            "disabled": user.disabled,
            "password": user.password_hash != users.NO_PASSWORD,
            "tokens": [_told(token) for token in accounts.tokens if token.owner == user.name],
        }
        for user in accounts.users.values()
        if user.name != secrets.INTERNAL_USER
    ]
    if as_json:
        print(json.dumps(listed))
        return
    for user in listed:
        print(f"{user['name']}  {user['role']}{'  disabled' if user['disabled'] else ''}")
        for token in user["tokens"]:
            ends = (
                f", {'ended' if token['ended'] else 'until'} {token['expires']}" if token["expires"] else ""
            )
            print(f"  token {token['label']}, since {token['made']}{ends}")


def _told(token: Token) -> dict[str, Any]:
    return {
        "owner": token.owner,
        "label": token.label,
        "made": _day(token.made),
        "expires": _day(token.expires) if token.expires else None,
        "ended": token.expires is not None and token.expires <= time.time(),
    }


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
