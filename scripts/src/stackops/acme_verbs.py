"""`stackops acme`: what the service `acme` runs, and what ./stack asks of it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from stackops import acme
from stackops.errors import FailedError


def add_parser(verbs: Any) -> None:
    """Describe the words that follow `stackops acme`."""
    verb = verbs.add_parser("acme", help="the door's certificate, by an ACME server")
    actions = verb.add_subparsers(dest="action", required=True)
    actions.add_parser("serve", help="keep it good (the service acme)")
    actions.add_parser("obtain", help="ask now").add_argument("--renew", action="store_true")
    actions.add_parser("status").add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> None:
    """Do what was asked and print it. Raise OperationError if the certificate is not as it should be."""
    settings = acme.read_settings(os.environ)
    if arguments.action == "serve":
        acme.run(settings)
        return
    if arguments.action == "obtain":
        obtain(settings, renew=arguments.renew)
        return
    found = acme.status(settings)
    print(json.dumps(found) if arguments.json else acme.line(found))
    if found["problem"] and arguments.json:
        raise SystemExit(1)
    if found["problem"]:
        raise FailedError(f"certificate: {found['problem']}", found["fix"])


def obtain(settings: acme.AcmeSettings, *, renew: bool) -> None:
    """Ask, and print what is at the door then.

    Raise FailedError if that is nothing good; with `renew` also if it is nothing new.
    """
    try:
        acme.obtain(settings, renew=renew)
    except FailedError as error:
        if renew or acme.at_the_door(settings).get("ends", 0) <= time.time():
            raise
        print(f"warning: the certificate was not renewed: {error}\nfix: {error.fix}", file=sys.stderr)
    print(acme.line(acme.at_the_door(settings)))


def prepare(folder: Path, config: Path) -> None:
    """Make the volume ready for the service, if TLS_MODE asks for it (as root)."""
    if os.environ.get("TLS_MODE") == "acme":
        acme.make_folders(acme.read_settings(os.environ, folder), config / "tls" / "ca.pem")
