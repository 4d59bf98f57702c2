"""The rows of the comparison, by name, in the order of the report."""

from __future__ import annotations

from rows.artifacts import ARTIFACTS
from rows.client import CLIENT
from rows.flow import FLOW, HELD
from rows.models import MODELS
from rows.pages import PAGES
from rows.row import Row
from rows.search import SEARCH

ROWS: dict[str, Row] = {row.name: row for row in (FLOW, HELD, CLIENT, SEARCH, ARTIFACTS, PAGES, MODELS)}
