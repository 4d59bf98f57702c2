"""The rows of the comparison, by name, in the order of the report."""

from __future__ import annotations

from importlib.util import find_spec

from rows.client import CLIENT
from rows.flow import FLOW, HELD
from rows.models import MODELS
from rows.pages import PAGES
from rows.row import Row
from rows.search import SEARCH


def _artifacts() -> list[Row]:
    """Return the row of benchmarks/artifacts.py, where that is there and defines one (`ROW`)."""
    if find_spec("artifacts") is None:
        return []
    import artifacts

    return [artifacts.ROW] if hasattr(artifacts, "ROW") else []


ROWS: dict[str, Row] = {row.name: row for row in (FLOW, HELD, CLIENT, SEARCH, *_artifacts(), PAGES, MODELS)}
