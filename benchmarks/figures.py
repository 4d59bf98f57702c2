"""What a benchmark found: samples of each round, their medians and ratios, and tables of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

LABELS = {
    "ours": "this stack",
    "stock": "MLflow",
    "stockuv": "MLflow, uvloop",
    "fasttrack": "FastTrackML",
    "minio": "MinIO itself",
    "limit": "PostgreSQL itself",
    "floor": "the client itself",
}
"""What a table calls each server."""
BASE = "stock"
"""The server that the others are compared with."""


@dataclass(frozen=True)
class Measure:
    """A column: what is measured, and whether more of it or less of it is better."""

    name: str
    better: Literal["more", "less"]


@dataclass
class Measured:
    """What one measurement of one case found."""

    values: dict[str, float] = field(default_factory=dict)
    """By the measure's name."""
    cpu_ms: dict[str, float] = field(default_factory=dict)
    """Milliseconds of processor time a request, by group of processes."""
    errors: dict[str, int] = field(default_factory=dict)
    """How many requests failed, by kind: a status, timeout, reset, closed, refused, lost rows."""
    requests: int = 0
    """All that were sent; the errors are among these."""
    note: str = ""
    """Why there are no values, or the first error."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    """HTTP calls one by one, where a row lists them: method, route, ms, status."""


@dataclass
class Sample(Measured):
    """The same with where it belongs."""

    row: str = ""
    case: str = ""
    server: str = ""
    round: int = 0
    load_average: float = 0


def sample(found: Measured, **where: Any) -> Sample:
    """Return a measurement with its place: row, case, server, round, load_average."""
    return Sample(**asdict(found), **where)


@dataclass(frozen=True)
class Spread:
    """A median of rounds and its extremes."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return the median, the least and the greatest of some values; None if there are none."""
    found = list(values)
    if not found:
        return None
    return Spread(statistics.median(found), min(found), max(found), len(found))


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which this part of the values lies (the nearest one). Raise ValueError."""
    if not values:
        raise ValueError("no values")
    found = sorted(values)
    return found[min(int(len(found) * part), len(found) - 1)]


def values_by_round(samples: Iterable[Sample], case: str, server: str, measure: str) -> dict[int, float]:
    """Return what a server's rounds measured in a case."""
    return {
        one.round: one.values[measure]
        for one in samples
        if one.case == case and one.server == server and measure in one.values
    }


def times_better(samples: Sequence[Sample], case: str, server: str, measure: Measure) -> Spread | None:
    """Return how many times better a server is than the stock one.

    Each round is compared with itself, since a shared machine changes from round to round more
    than from one minute to the next: the median of the ratios, not the ratio of the medians.
    None where no round has both.
    """
    own = values_by_round(samples, case, server, measure.name)
    base = values_by_round(samples, case, BASE, measure.name)
    pairs = [(own[number], base[number]) for number in own if number in base]
    if measure.better == "less":
        pairs = [(theirs, ours) for ours, theirs in pairs]
    return spread(upper / lower for upper, lower in pairs if lower > 0)


def mean_by_group(samples: Iterable[Sample]) -> dict[str, float]:
    """Return the median processor time a request of each group of processes, in ms."""
    groups: dict[str, list[float]] = {}
    for one in samples:
        for group, value in one.cpu_ms.items():
            groups.setdefault(group, []).append(value)
    return {group: statistics.median(values) for group, values in groups.items()}


def all_errors(samples: Iterable[Sample]) -> dict[str, int]:
    """Return the sum of errors by kind."""
    found: dict[str, int] = {}
    for one in samples:
        for kind, count in one.errors.items():
            found[kind] = found.get(kind, 0) + count
    return found


def number(value: float) -> str:
    """Return a number with three digits that count, and thousands apart.

    >>> [number(value) for value in (12345.6, 123.4, 12.34, 1.234, 0.0123)]
    ['12,346', '123', '12.3', '1.23', '0.012']
    """
    for above, digits in ((100, 0), (10, 1), (1, 2)):
        if round(abs(value), digits) >= above:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}" if value else "0"


def shown(found: Spread | None) -> str:
    """Return "median [least-greatest]", or the median alone of one round."""
    if found is None:
        return "-"
    if found.rounds == 1:
        return number(found.median)
    return f"{number(found.median)} [{number(found.low)}-{number(found.high)}]"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def table_of(samples: Sequence[Sample], measures: Sequence[Measure]) -> str:
    """Return the table of a row's samples: a line for each case and server, in the order they were met.

    Processor time and errors have a column where any sample has some. Where a server gave no
    values, the note says why.
    """
    with_cpu = any(one.cpu_ms for one in samples)
    with_requests = any(one.requests for one in samples)
    head = ["", "server", *(measure.name for measure in measures), f"times better than {LABELS[BASE]}"]
    head += ["CPU ms a request"] * with_cpu + ["errors"] * with_requests
    lines = []
    for case in dict.fromkeys(one.case for one in samples):
        for server in _in_order(one.server for one in samples if one.case == case):
            of_it = [one for one in samples if (one.case, one.server) == (case, server)]
            lines.append(_line(samples, measures, of_it, with_cpu, with_requests))
    return table(head, lines)


def _in_order(servers: Iterable[str]) -> list[str]:
    found = set(servers)
    return [name for name in LABELS if name in found]


def _line(
    samples: Sequence[Sample],
    measures: Sequence[Measure],
    of_it: Sequence[Sample],
    with_cpu: bool,
    with_requests: bool,
) -> list[str]:
    case, server = of_it[0].case, of_it[0].server
    cells = [case, LABELS[server]]
    for measure in measures:
        found = spread(values_by_round(of_it, case, server, measure.name).values())
        cells.append(shown(found))
    if not any(one.values for one in of_it):
        cells[2] = next((one.note for one in of_it if one.note), "nothing was measured")
    cells.append("1" if server == BASE else shown(times_better(samples, case, server, measures[0])))
    if with_cpu:
        cells.append(shown_cpu(mean_by_group(of_it)))
    if with_requests:
        cells.append(shown_errors(all_errors(of_it), sum(one.requests for one in of_it)))
    return cells


def shown_cpu(groups: Mapping[str, float]) -> str:
    """Return "0.31 = nginx 0.05 + ...": all servers together, then each; the client's side apart."""
    apart = ("load",)
    servers = {name: value for name, value in groups.items() if name not in apart and value >= 0.0005}
    if not servers:
        return "-"
    text = f"{number(sum(servers.values()))} = " + " + ".join(
        f"{name} {number(value)}" for name, value in servers.items()
    )
    beside = [f"{name} {number(groups[name])}" for name in apart if name in groups]
    return text + (f" ({', '.join(beside)})" if beside else "")


def shown_errors(errors: Mapping[str, int], requests: int) -> str:
    """Return "0 of 12,000", or the sum and each kind."""
    if not requests:
        return "-"
    text = f"{sum(errors.values()):,} of {requests:,}"
    if errors:
        text += ": " + ", ".join(f"{count:,} x {kind}" for kind, count in sorted(errors.items()))
    return text


def table_of_calls(samples: Sequence[Sample]) -> str:
    """Return the table of single HTTP calls: how many of each a server was asked, and their ms together.

    A line for each case, method and route, medians of the rounds.
    """
    servers = _in_order(one.server for one in samples if one.calls)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for case in dict.fromkeys(one.case for one in samples):
        for server in servers:
            rounds = [one for one in samples if (one.case, one.server) == (case, server) and one.calls]
            kinds = dict.fromkeys(f"{call['method']} {call['route']}" for one in rounds for call in one.calls)
            for kind in kinds:
                each = [
                    [call["ms"] for call in one.calls if f"{call['method']} {call['route']}" == kind]
                    for one in rounds
                ]
                count = statistics.median_low([len(times) for times in each])
                spent = statistics.median([sum(times) for times in each])
                cells.setdefault((case, kind), {})[server] = f"{count} x, {number(spent)} ms"
    lines = [
        [case, f"`{kind}`", *(by.get(name, "-") for name in servers)] for (case, kind), by in cells.items()
    ]
    return table(["", "call", *(LABELS[name] for name in servers)], lines)


def as_json(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """Return what `from_json` reads."""
    return [asdict(one) for one in samples]


def from_json(found: Iterable[Mapping[str, Any]]) -> list[Sample]:
    """Return the samples of a saved run."""
    return [Sample(**one) for one in found]
