"""The plain part of MLflow's language for filters and orders, and its SQL.

mlflow/utils/search_utils.py of 3.17.2 parses with sqlparse and takes far more; what is not
certainly the same in both is MLflow's. The rows and their order are those of its
`_search_runs`: inner joins for filters, NULL and NaN last in orders, then start time and id.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sqlparse import keywords

from stackfast.outcomes import NotMineError

CLAUSES = 8
FEW = 1000
"""So many runs are taken by their ids, and put into the page's order then."""
STRING_ATTRIBUTES = frozenset({"status", "user_id", "artifact_uri", "run_id"})
NUMBER_ATTRIBUTES = frozenset({"start_time", "end_time"})
ORDER_ATTRIBUTES = {"start_time", "end_time", "status", "user_id", "artifact_uri", "run_name"}
NUMBER_COMPARES = frozenset({"=", "!=", "<=", ">=", "<", ">"})
TEXT_COMPARES = frozenset({"=", "!=", "LIKE", "ILIKE"})
_ALIASES = frozenset({"created", "Created", "run name", "Run name", "Run Name"})
"""What MLflow reads as another name, whatever it is the name of (SearchUtils.translate_key_alias)."""
INDEXED = 64
"""So many characters of a param or tag are in its index (stackserver.indexes)."""
TABLES = {"metric": "latest_metrics", "param": "params", "tag": "tags"}
_KINDS = {
    **dict.fromkeys(("metric", "metrics"), "metric"),
    **dict.fromkeys(("param", "params", "parameter", "parameters"), "param"),
    **dict.fromkeys(("tag", "tags"), "tag"),
    **dict.fromkeys(("attribute", "attributes", "attr"), "attribute"),
}
_WORDS = frozenset().union(
    *(getattr(keywords, name) for name in dir(keywords) if name.startswith("KEYWORDS"))
)
"""What sqlparse does not take for a name where no dot is beside it; in capitals."""
_WORDS_AFTER_A_DOT = frozenset({"AS", "CASE", "FROM", "IN", "USING", "VALUES"})
"""What sqlparse takes for a word of SQL even there (all of its words were tried)."""
_PART = "[A-Za-z_][A-Za-z0-9_]*"
_NAME = (
    r"(?:(?P<kind>[a-z]+)\.)?"
    rf"(?:(?P<plain>{_PART}(?:\.{_PART})*)|(?P<quote>[`\"])(?P<quoted>[\w\-./: ]+)(?P=quote))"
)
_FILTER = re.compile(
    _NAME + r" (?P<compare>=|!=|<=|>=|<|>|LIKE|ILIKE|IN) "
    r"(?:'(?P<text>[^'\"`\\\r\n;]*)'"
    r"|(?P<number>-?[0-9]{1,15}(?:\.[0-9]{1,15})?)"
    r"|\((?P<list>'[0-9a-f]{32}'(?:, ?'[0-9a-f]{32}')*)\))"
)
_AND = re.compile(" (?:AND|and) ")
_ORDER = re.compile(_NAME + r"(?: (?P<way>ASC|DESC|asc|desc))?")


@dataclass
class Arguments:
    """The arguments of a statement, numbered as they come."""

    values: list[object] = field(default_factory=list)

    def add(self, value: object, kind: str) -> str:
        """Return the place of a value: "$3::text"."""
        self.values.append(value)
        return f"${len(self.values)}::{kind}"


def _name(match: re.Match[str]) -> tuple[str, str]:
    kind = _KINDS.get(match["kind"] or "attribute")
    key = match["plain"] or match["quoted"]
    if kind is None or key in _ALIASES:
        raise NotMineError("filter")
    if match["kind"] is None and (match["quoted"] or key.upper() in _WORDS):
        raise NotMineError("filter")
    if match["plain"] and not _WORDS_AFTER_A_DOT.isdisjoint(key.upper().split(".")):
        raise NotMineError("filter")
    if match["quoted"] and key != key.strip():
        raise NotMineError("filter")
    return kind, key


@dataclass(frozen=True)
class Clause:
    """One comparison of a filter: of an attribute of the run, or of a record in one of TABLES."""

    kind: str
    key: str
    compare: str
    value: str | int | float | list[str]


def clauses(filter_string: str) -> list[Clause]:
    """Return the clauses of a filter, all of which a run must meet."""
    if not filter_string:
        return []
    texts = _AND.split(filter_string)
    if len(texts) > CLAUSES:
        raise NotMineError("filter")
    return [_clause(text) for text in texts]


def _clause(written: str) -> Clause:
    match = _FILTER.fullmatch(written)
    if not match:
        raise NotMineError("filter")
    kind, key = _name(match)
    compare, text, number = match["compare"], match["text"], match["number"]
    if kind == "attribute":
        if (
            key in NUMBER_ATTRIBUTES
            and number is not None
            and "." not in number
            and compare in NUMBER_COMPARES
        ):
            return Clause(kind, key, compare, int(number))
        if key == "run_id" and match["list"] and compare == "IN":
            return Clause(kind, key, compare, re.findall(r"[0-9a-f]{32}", match["list"]))
        if key in STRING_ATTRIBUTES and text is not None and compare in TEXT_COMPARES:
            return Clause(kind, key, compare, text)
        if key != "run_name":
            raise NotMineError("filter")
        kind, key = "tag", "mlflow.runName"  # as MLflow does: the column is empty in old records
    if kind == "metric":
        if number is None or compare not in NUMBER_COMPARES:
            raise NotMineError("filter")
        return Clause(kind, key, compare, float(number))
    if text is None or compare not in TEXT_COMPARES:
        raise NotMineError("filter")
    return Clause(kind, key, compare, text)


def condition(clause: Clause, arguments: Arguments) -> str:
    """Return the SQL condition on `runs AS run`."""
    compare, value = clause.compare, clause.value
    if clause.kind == "attribute":
        column = "run_uuid" if clause.key == "run_id" else clause.key
        if compare == "IN":
            return f"run.{column} = ANY({arguments.add(value, 'text[]')})"
        return f"run.{column} {compare} {arguments.add(value, _type(clause))}"
    if compare == "=" and isinstance(value, str):
        meets = _is(value, arguments)
    else:
        meets = f"value {compare} {arguments.add(value, _type(clause))}"
    if clause.kind == "metric":
        meets = f"({meets} OR is_nan)" if compare == "!=" else f"({meets} AND NOT is_nan)"
    return (
        f"EXISTS (SELECT FROM {TABLES[clause.kind]} AS t WHERE t.run_uuid = run.run_uuid"
        f" AND t.key = {arguments.add(clause.key, 'text')} AND {meets})"
    )


def _type(clause: Clause) -> str:
    return {str: "text", int: "bigint", float: "float8"}[type(clause.value)]


def _is(text: str, arguments: Arguments) -> str:
    """Return the condition that a value is this text, as the index on it has it.

    A text that is shorter than what the index holds is compared with that alone: with both conditions
    PostgreSQL would take common values for rare ones.
    """
    beginning = f'"left"(value, {INDEXED}) = {arguments.add(text[:INDEXED], "text")}'
    return beginning if len(text) < INDEXED else f"{beginning} AND value = {arguments.add(text, 'text')}"


def lookups(wanted: list[Clause]) -> list[tuple[str, list[object]]]:
    """Return, for each clause that an index knows, a statement for the ids of up to FEW + 1 runs.

    Of all experiments; some may fail the clause (NaN, a text that only begins like this), none that meets
    it is left out. They come in the order of the index, so that PostgreSQL reads it however many it
    believes there are; with "=" it would see that this order is none, and drop it.
    """
    found: list[tuple[str, list[object]]] = []
    for clause in sorted(wanted, key=lambda each: each.kind == "metric"):
        if clause.kind == "attribute" or clause.compare in ("!=", "LIKE", "ILIKE"):
            continue
        arguments = Arguments()
        key, value = arguments.add(clause.key, "text"), clause.value
        if isinstance(value, str):
            indexed, value = f'"left"(value, {INDEXED})', value[:INDEXED]
        else:
            indexed = "value"
        place = arguments.add(value, _type(clause))
        compares = (">=", "<=") if clause.compare == "=" else (clause.compare,)
        bounds = " AND ".join(f"{indexed} {compare} {place}" for compare in compares)
        text = f"SELECT run_uuid FROM {TABLES[clause.kind]} WHERE key = {key} AND {bounds}"
        found.append((f"{text} ORDER BY {indexed} LIMIT {FEW + 1}", arguments.values))
    return found


def begins_with_metric(order_by: list[str]) -> bool:
    """Return whether runs are ordered by a metric before all else."""
    match = _ORDER.fullmatch(order_by[0]) if order_by else None
    return bool(match) and _KINDS.get(match["kind"] or "") == "metric"


def order(order_by: list[str], arguments: Arguments, *, measured: bool = False) -> tuple[str, str]:
    """Return (joins, ORDER BY) of `runs AS run` for a list of orders.

    With `measured` (the list begins with a metric) only runs that have a number of it: those come first
    anyway, and for them an index has the order.
    """
    joins: list[str] = []
    terms: list[str] = []
    seen: set[tuple[str, str]] = set()
    if len(order_by) > CLAUSES:
        raise NotMineError("order")
    for number, clause in enumerate(order_by, 1):
        match = _ORDER.fullmatch(clause)
        if not match:
            raise NotMineError("order")
        kind, key = _name(match)
        if (kind, key) in seen:
            raise NotMineError("order")
        seen.add((kind, key))
        way = " DESC" if (match["way"] or "").lower() == "desc" else ""
        if kind == "attribute":
            if key not in ORDER_ATTRIBUTES:
                raise NotMineError("order")
            value, nan = f"run.{'name' if key == 'run_name' else key}", ""
        else:
            alias = f"o{number}"
            join = f"JOIN {TABLES[kind]} AS {alias} ON {alias}.run_uuid = run.run_uuid"
            join += f" AND {alias}.key = {arguments.add(key, 'text')}"
            if measured and number == 1:
                joins.append(f"{join} AND NOT {alias}.is_nan")
                terms.append(f"{alias}.value{way}")
                continue
            joins.append(f"LEFT {join}")
            value, nan = f"{alias}.value", f"WHEN {alias}.is_nan THEN 1 " if kind == "metric" else ""
        terms.append(f"CASE {nan}WHEN ({value} IS NULL) THEN {2 if kind == 'metric' else 1} ELSE 0 END")
        terms.append(value + way)
    if ("attribute", "start_time") not in seen:
        terms.append("run.start_time DESC")
    return " ".join(joins), ", ".join([*terms, "run.run_uuid"])
