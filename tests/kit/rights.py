"""The table of rights, nginx/http.d/rights.conf and rights-rbac.conf, read as nginx reads it."""

from __future__ import annotations

import re

from kit.stack import ROOT

LINE = re.compile(r'"~(?P<any_case>\*?)\^(?P<mode>rbac )?(?P<pattern>.+)" (?P<right>[a-z]+);')
Rules = list[tuple[re.Pattern[str], str]]


def rules(*, rbac: bool = False) -> Rules:
    """Return (pattern of "METHOD /path", right) of each line, in order; with rbac those that come before."""
    lines = (ROOT / f"nginx/http.d/rights{'-rbac' if rbac else ''}.conf").read_text().splitlines()
    found = [LINE.fullmatch(line.strip()) for line in lines if line.strip().startswith('"')]
    assert found
    assert all(line and bool(line["mode"]) == rbac for line in found)
    return [
        (re.compile("^" + line["pattern"], re.IGNORECASE if line["any_case"] else 0), line["right"])
        for line in found
        if line
    ]


def right(method: str, path: str, *, rbac: bool = False) -> str | None:
    """Return the right that a request needs; None if no line names it (nginx then wants an admin)."""
    asked = [*(rules(rbac=True) if rbac else []), *rules()]
    return next((right for pattern, right in asked if pattern.search(f"{method} {path}")), None)
