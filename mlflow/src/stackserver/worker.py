"""gunicorn's worker class: uvicorn with uvloop, without a second Date header.

Without uvloop each keep-alive request costs 44 ms more (docs/architecture.md).
"""

from __future__ import annotations

from typing import Any, ClassVar

from uvicorn_worker import UvicornWorker


class StackWorker(UvicornWorker):
    """UvicornWorker; the Date header is nginx's, which warned of two."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"loop": "uvloop", "http": "httptools", "date_header": False}
