"""What a comparison prints and saves: tables, a chart, the figures in docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import figures
from figures import LABELS, Sample
from kit.stack import ROOT
from rows.row import Options, Row

FOLDER = ROOT / "build" / "bench"
PAGE = ROOT / "docs" / "performance.md"
CHART = ROOT / "docs" / "images" / "performance.svg"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
"""Between these two lines `save_docs` writes what was measured."""
COLORS = {
    "ours": "#0b7a75",
    "stock": "#9aa5b1",
    "stockuv": "#6b7785",
    "fasttrack": "#d98e04",
    "limit": "#d9dee4",
}


def markdown(run: Mapping[str, Any], rows: Mapping[str, Row]) -> str:
    """Return the report of a run: where it was measured, a table for each row."""
    samples = figures.from_json(run["samples"])
    parts = [_where(run)]
    for row in rows.values():
        of_row = [one for one in samples if one.row == row.name]
        if not of_row:
            continue
        parts.append(f"### {row.title}")
        parts.append(figures.table_of(of_row, row.measures))
        if row.lists_calls:
            parts.append("Each HTTP call: how many in the middle round, and their milliseconds together.")
            parts.append(figures.table_of_calls(of_row))
    return "\n\n".join(parts) + "\n"


def _where(run: Mapping[str, Any]) -> str:
    machine, options = run["machine"], run["options"]
    loads = [one["load_average"] for one in run["samples"]]
    quick = (
        " This was a quick look: seconds instead of minutes, so the figures say little." * options["quick"]
    )
    memory = "; ".join(f"{LABELS[name]} {number:,.0f}" for name, number in run.get("memory_mb", {}).items())
    return (
        f"Measured {run['date']} on {machine['cores']} cores ({machine['processor']}),"
        f" {machine['memory_gb']} GB, kernel {machine['kernel']}, engine {machine['engine']},"
        f" revision {run['revision']}; rounds: {options['rounds']};"
        f" load average {min(loads, default=0):.1f} to {max(loads, default=0):.1f}."
        f"{quick}" + (f" Memory after the load, MB without the stores: {memory}." if memory else "")
    )


def save(run: Mapping[str, Any], rows: Mapping[str, Row], folder: Path = FOLDER) -> Path:
    """Write the run as JSON and as Markdown; return the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    name = run["date"].replace(":", "").replace("-", "").replace(" ", "T")
    path = folder / f"{name}.json"
    path.write_text(json.dumps(run, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(run, rows))
    return path


def between_marks(page: str, text: str) -> str:
    """Return a page with what is between the two marks replaced. Raise ValueError if they are not there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{begin}\n{text.strip()}\n{end}{after}"


def save_docs(
    runs: Sequence[Mapping[str, Any]], rows: Mapping[str, Row], page: Path = PAGE, chart: Path = CHART
) -> None:
    """Write the reports of runs into docs/performance.md, and the chart beside its other pictures."""
    samples = [one for run in runs for one in figures.from_json(run["samples"])]
    text = "\n".join(markdown(run, rows) for run in runs)
    bars = bars_of(samples, "flow", "runs/s")
    if bars:
        chart.write_text(svg("Whole runs a second", bars))
        text = f"![Whole runs a second](images/{chart.name})\n\n{text}"
    page.write_text(between_marks(page.read_text(), f"## Figures\n\n{text}"))


def bars_of(samples: Sequence[Sample], row: str, measure: str) -> dict[str, dict[str, float]]:
    """Return the medians of a measure: by case, by server, in the order of the tables."""
    of_row = [one for one in samples if one.row == row]
    found: dict[str, dict[str, float]] = {}
    for case in dict.fromkeys(one.case for one in of_row):
        for server in LABELS:
            middle = figures.spread(figures.values_by_round(of_row, case, server, measure).values())
            if middle is not None:
                found.setdefault(case, {})[server] = middle.median
    return found


def svg(title: str, bars: Mapping[str, Mapping[str, float]]) -> str:
    """Return a chart of horizontal bars, a group for each case; every bar says its number."""
    left, width, height, gap = 150, 420, 18, 14
    longest = max((value for group in bars.values() for value in group.values()), default=0) or 1
    parts, y = [], 40
    for case, group in bars.items():
        parts.append(f'<text x="8" y="{y + 12}" font-weight="bold">{escape(case)}</text>')
        y += 20
        for server, value in group.items():
            long = max(1, round(value / longest * width))
            parts.append(
                f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(LABELS[server])}</text>'
            )
            parts.append(
                f'<rect x="{left}" y="{y}" width="{long}" height="{height - 4}"'
                f' fill="{COLORS.get(server, "#9aa5b1")}"/>'
            )
            parts.append(f'<text x="{left + long + 6}" y="{y + 12}">{escape(figures.number(value))}</text>')
            y += height
        y += gap
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 80}" height="{y}"'
        ' font-family="sans-serif" font-size="12">'
    )
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    name = f'<text x="8" y="22" font-size="15" font-weight="bold">{escape(title)}</text>'
    return "\n".join([head, ground, name, *parts, "</svg>"]) + "\n"


def run_of(
    samples: Sequence[Sample],
    options: Options,
    *,
    machine: Mapping[str, Any],
    memory_mb: Mapping[str, float],
    date: str,
    revision: str,
) -> dict[str, Any]:
    """Return what is saved of a run."""
    return {
        "date": date,
        "revision": revision,
        "machine": dict(machine),
        "options": asdict(options),
        "memory_mb": dict(memory_mb),
        "samples": figures.as_json(samples),
    }
