"""Users with a role and a token, made by ./stack user, and the headers they send."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from kit.door import basic
from kit.stack import Stack
from stackops.users import ROLES


def add(stack: Stack, name: str, role: str) -> str:
    """Add a user without a password and return a token."""
    stack.verb("user", "add", name, "--role", role, "--no-password")
    return token_of(stack, name, "test")


def token_of(stack: Stack, name: str, label: str, *more: str) -> str:
    """Give a user a token and return it."""
    said = stack.verb("user", "token", name, "--label", label, *more).stdout
    (token,) = re.findall(r"^export MLFLOW_TRACKING_PASSWORD=(mlf_\S+)$", said, re.MULTILINE)
    stack.handed_out |= {token, basic(name, token).split()[1]}
    return token


def bearer(token: str) -> dict[str, str]:
    """Return the header that a token is sent in."""
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def one_of_each_role(stack: Stack, prefix: str = "the") -> Iterator[dict[str, str]]:
    """Add a user for each role, named PREFIX-ROLE; yield their tokens by role."""
    made = {role: add(stack, f"{prefix}-{role}", role) for role in ROLES}
    try:
        yield made
    finally:
        for role in ROLES:
            stack.verb("user", "remove", f"{prefix}-{role}")
