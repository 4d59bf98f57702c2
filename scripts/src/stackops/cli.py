"""The command line: `stackops secrets ensure|show NAME|rotate WHAT`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stackops import secrets
from stackops.errors import OperationError

STATUS_REFUSED = 5


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stackops")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", required=True)
    secrets_verb = verbs.add_parser("secrets", help="make, show and rotate the stack's secrets")
    secrets_verb.add_argument("--volume", type=Path, default=Path("/secrets"))
    secrets_verb.add_argument("--overrides", type=Path, default=Path("/config/secrets"))
    actions = secrets_verb.add_subparsers(dest="action", required=True)
    actions.add_parser("ensure", help="make what is missing")
    show = actions.add_parser("show", help="print one secret")
    show.add_argument("name", choices=sorted(secrets.GENERATORS))
    rotate = actions.add_parser("rotate", help="make a group of secrets anew")
    rotate.add_argument("what", choices=sorted(secrets.ROTATIONS))
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked and print it. Raise OperationError if it cannot be done."""
    if arguments.action == "show":
        path = arguments.volume / "source" / arguments.name
        if not path.exists():
            raise OperationError(f"{arguments.name} has not been made yet", "./stack up")
        print(path.read_text(encoding="utf-8"))
        return
    if arguments.action == "rotate":
        written = secrets.rotate(arguments.volume, arguments.overrides, arguments.what)
    else:
        written = secrets.ensure(arguments.volume, arguments.overrides)
    for name in written:
        print(f"wrote {name}")


def main() -> None:
    """Run the command line; a refusal is two lines on stderr and status 5."""
    arguments = _parser().parse_args()
    try:
        run(arguments)
    except OperationError as error:
        if arguments.debug:
            raise
        print(f"REFUSED: {error}\nfix: {error.fix}", file=sys.stderr)
        raise SystemExit(STATUS_REFUSED) from None
