"""Running other programs: bounded, quiet when well, with their own words when not."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from stackops.errors import FailedError

LAST_LINES = 15


def run(
    words: Sequence[str | Path],
    *,
    fix: str,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    good: frozenset[int] = frozenset({0}),
) -> str:
    """Run a program and return its standard output.

    Raise FailedError, with the last lines that it said and `fix`, if its exit status is not
    `good` or it takes longer than `timeout_seconds`.
    """
    name = " ".join(
        [Path(words[0]).name, *(str(word) for word in words[1:2] if not str(word).startswith("-"))]
    )
    try:
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            env=environment,
            cwd=directory,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"{name} took longer than {timeout_seconds:.0f} s", fix) from error
    if done.returncode not in good:
        said = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        raise FailedError(
            f"{name} failed with status {done.returncode}: " + "\n".join(said[-LAST_LINES:]), fix
        )
    return done.stdout
