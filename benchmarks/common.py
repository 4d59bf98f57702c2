"""What the benchmarks share: a throwaway stack and the medians of their rounds."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.extend([str(_ROOT / folder) for folder in ("tests", "mlflow/src", "scripts/src")])

from kit.stack import Stack, free_port  # noqa: E402


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows --rounds; the description is a docstring's first line."""
    found = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    found.add_argument("--rounds", type=int, default=5)
    return found


@contextmanager
def throwaway(name: str, **extra: str) -> Iterator[Stack]:
    """A started stack with a project, port and volumes of its own, and default settings but for `extra`."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "env"
        settings.write_text("")
        stack = Stack(f"bench-{name}", free_port(), settings, "latest", extra)
        try:
            stack.verb("up", "--yes", timeout=1800)
            yield stack
        finally:
            stack.compose("down", "--volumes", check=False)
            for path in (_ROOT / ".stack").glob(f"{stack.project}.*"):
                path.unlink()


def spread(name: str, values: list[float], unit: str) -> str:
    """Return one line: the median and the extremes."""
    return f"{name:<8} median {statistics.median(values):.1f} {unit} [{min(values):.1f} to {max(values):.1f}]"
