"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def size_text(count: int) -> str:
    """Return bytes as a person reads them: 1.4 GB."""
    sign, value = ("-" if count < 0 else ""), float(abs(count))
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{sign}{value:.0f} {unit}"
        value /= 1000
    return f"{sign}{value:.1f} GB" if value < 1000 else f"{sign}{value / 1000:.1f} TB"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
