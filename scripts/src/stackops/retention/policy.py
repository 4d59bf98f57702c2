"""The retention policy: which runs, artifacts and traces a cleanup deletes. It only decides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from stackops import toml_file
from stackops.toml_file import Place, Readers, TomlFile, WrongError

STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
"""The states of a run: mlflow/entities/run_status.py of MLflow 3.17.2."""
UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
KEEP_TAG = "keep"
COMMON_KEYS = {"name", "action", "experiments", "tags"}
ACTION_KEYS = {
    "keep": {"status", "older_than_days"},
    "delete-runs": {"status", "older_than_days", "keep_last", "keep_best"},
    "delete-artifacts": {"status", "older_than_days", "artifacts", "larger_than"},
    "mark-killed": {"without_metric_for_days"},
    "delete-traces": {"older_than_days"},
}
"""Each action, and the keys that it takes besides the common ones."""
AGE_KEYS = {
    "delete-runs": "older_than_days",
    "delete-artifacts": "older_than_days",
    "mark-killed": "without_metric_for_days",
    "delete-traces": "older_than_days",
}
"""The age that an action needs."""
DEFAULT_STATUS = {
    "delete-runs": ("FINISHED",),
    "delete-artifacts": ("FINISHED",),
    "mark-killed": ("RUNNING",),
}


@dataclass(frozen=True)
class KeepBest:
    """The `count` runs in which a metric is lowest ("min") or highest ("max")."""

    metric: str
    mode: str
    count: int


@dataclass(frozen=True)
class Rule:
    """What is done with the runs or traces that meet every condition; an empty one is no condition.

    Ages are days, `larger_than` is bytes. `line` is where the rule begins in its file, 0 for the
    built-in one.
    """

    name: str
    action: str
    experiments: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    older_than_days: int | None = None
    keep_last: int | None = None
    keep_best: KeepBest | None = None
    artifacts: tuple[str, ...] = ()
    larger_than: int | None = None
    without_metric_for_days: int | None = None
    line: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the rule is about: "runs", "traces", or both. Traces have no status of a run."""
        if self.action == "keep" and not self.status:
            return ("runs", "traces")
        return ("traces",) if self.action == "delete-traces" else ("runs",)

    @property
    def matches_all(self) -> bool:
        """Whether no run and no trace passes the rule by. Only `keep` can do without conditions."""
        everywhere = not self.experiments or "*" in self.experiments
        return everywhere and not (self.status or self.tags or self.older_than_days)


@dataclass(frozen=True)
class Policy:
    """The rules, of which the first that matches decides, and the tags that no rule overrules.

    `keep_tags` are names of tags, "keep" always among them. Without `orphans_after_days`, orphans
    are only reported.
    """

    rules: tuple[Rule, ...]
    keep_tags: tuple[str, ...]
    orphans_after_days: int | None


def _name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,60}", value):
        raise WrongError("is not 1 to 60 letters, digits, '-', '_' and '.'")
    if value == "default":
        raise WrongError("is 'default', which is the built-in rule")
    return value


def _statuses(value: object) -> tuple[str, ...]:
    values = toml_file.texts(value)
    unknown = [repr(each) for each in values if each not in STATUSES]
    if unknown:
        raise WrongError(f"has {', '.join(unknown)}: not one of {', '.join(STATUSES)}")
    return values


def _size(value: object) -> int:
    match = isinstance(value, str) and re.fullmatch(r"([1-9][0-9]{0,8})([KMGT]?B)", value)
    if not match:
        raise WrongError(f"is not a whole size like '100MB', in {', '.join(reversed(UNITS))}")
    return int(match[1]) * UNITS[match[2]]


def _tags(value: object) -> dict[str, Any]:
    tags = toml_file.table(value)
    if not tags:
        raise WrongError("is empty")
    if "" in tags or any(toml_file.CONTROL.search(name) for name in tags):
        raise WrongError("has a name that is empty or has a control character")
    return tags


def _tag(value: object) -> str:
    if isinstance(value, dict):
        raise WrongError("is a table: put a name that has dots into quotes")
    return toml_file.text(value)


def _tables(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise WrongError("is not a list of tables: begin each rule with [[rules]]")
    return value


TOP: Readers = {"keep_tags": toml_file.texts, "rules": _tables, "orphans": toml_file.table}
ORPHANS: Readers = {"delete_after_days": toml_file.whole}
BEST: Readers = {
    "metric": toml_file.text,
    "mode": lambda value: toml_file.one_of(value, ("min", "max")),
    "count": toml_file.whole,
}
RULE: Readers = {
    "name": _name,
    "action": lambda value: toml_file.one_of(value, ACTION_KEYS),
    "experiments": toml_file.texts,
    "status": _statuses,
    "tags": _tags,
    "older_than_days": toml_file.whole,
    "keep_last": toml_file.whole,
    "keep_best": toml_file.table,
    "artifacts": toml_file.texts,
    "larger_than": _size,
    "without_metric_for_days": toml_file.whole,
}


def _check_keys(file: TomlFile, values: dict[str, object], place: Place, action: str) -> None:
    """Note keys that the action does not take, and those that it needs."""
    for key in values:
        if key in RULE and key not in COMMON_KEYS | ACTION_KEYS[action]:
            file.refuse((*place, key), f"{key} does not belong to {action}")
    age = AGE_KEYS.get(action)
    if age and age not in values:
        file.refuse(place, f"{age} is missing: {action} needs it")
    if action == "delete-artifacts" and not {"artifacts", "larger_than"} & set(values):
        file.refuse(place, f"artifacts and larger_than are missing: {action} needs one")


def _rule(file: TomlFile, values: dict[str, object], place: Place) -> Rule | None:
    """Return a rule, or None if something is wrong with it."""
    before = len(file.problems)
    found = file.read(values, place, RULE, required=("name", "action"))
    if "tags" in found:
        tags = file.read(found["tags"], (*place, "tags"), dict.fromkeys(found["tags"], _tag))
        found["tags"] = tuple(tags.items())
    best = None
    if "keep_best" in found:
        best = file.read(found["keep_best"], (*place, "keep_best"), BEST, required=BEST)
    if "action" in found:
        _check_keys(file, values, place, found["action"])
        if found["action"] in {"delete-runs", "delete-artifacts"} and "RUNNING" in found.get("status", ()):
            file.refuse((*place, "status"), f"status has RUNNING: mark-killed comes before {found['action']}")
    if len(file.problems) > before:
        return None
    found["keep_best"] = KeepBest(**best) if best else None
    found.setdefault("status", DEFAULT_STATUS.get(found["action"], ()))
    return Rule(**found, line=file.line(place))


def _rules(file: TomlFile, found: list[dict[str, Any]]) -> list[Rule]:
    """Return the good rules. Note names that come twice, and rules that never have a turn."""
    rules: list[Rule] = []
    name_lines: dict[str, int] = {}
    whole: Rule | None = None
    for number, values in enumerate(found):
        place: Place = ("rules", number)
        name = values.get("name")
        if isinstance(name, str):
            if name in name_lines:
                file.refuse(
                    (*place, "name"), f"name {name!r} is taken by the rule in line {name_lines[name]}"
                )
            name_lines[name] = file.line(place)
        rule = _rule(file, values, place)
        if not rule:
            continue
        if whole:
            first = f"'{whole.name}' in line {whole.line} comes first and matches everything"
            file.refuse(place, f"rule '{rule.name}' never has a turn: {first}")
        elif rule.matches_all:
            whole = rule
        rules.append(rule)
    return rules


def parse(text: str, days: int, where: str = "config/retention.toml") -> Policy:
    """Return the policy of a file's text. Its last rule is the built-in one, with `days` as age.

    Raise OperationError with a line "`where` line N: what is wrong" for each thing that is wrong.
    """
    fix = f"correct {where}; config/retention.toml.example has every key"
    file = TomlFile(text, where, fix, listed="rules")
    top = file.read(file.content, (), TOP)
    orphans = file.read(top.get("orphans", {}), ("orphans",), ORPHANS)
    rules = _rules(file, top.get("rules", []))
    file.finish()
    built_in = Rule("default", "delete-runs", status=DEFAULT_STATUS["delete-runs"], older_than_days=days)
    keep_tags = tuple(dict.fromkeys((KEEP_TAG, *top.get("keep_tags", ()))))
    return Policy((*rules, built_in), keep_tags, orphans.get("delete_after_days"))


def default(days: int) -> Policy:
    """Return the policy without a file: runs that FINISHED are deleted after `days`."""
    return parse("", days)


def like(pattern: str) -> str:
    r"""Return a pattern with * and ? as one of PostgreSQL's LIKE, whose escape is a backslash."""
    return re.sub(r"[\\%_]", r"\\\g<0>", pattern).replace("*", "%").replace("?", "_")


def matches(pattern: str, text: str) -> bool:
    """Return whether a whole text matches: * is any text, ? any one character; case counts."""
    wild = {"*": ".*", "?": "."}
    expression = "".join(wild.get(character) or re.escape(character) for character in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count} days"


def _subject(rule: Rule) -> str:
    if rule.action == "keep":
        return f"keep {' and '.join(rule.kinds)}"
    if rule.action == "mark-killed":
        return "mark as KILLED runs"
    if rule.action != "delete-artifacts":
        return rule.action.replace("-", " ")
    words = "delete artifacts"
    if rule.artifacts:
        words += f" like {' or '.join(rule.artifacts)}"
    if rule.larger_than:
        unit = next(unit for unit, factor in UNITS.items() if rule.larger_than % factor == 0)
        words += f" larger than {rule.larger_than // UNITS[unit]}{unit}"
    return f"{words} of runs"


def describe(rule: Rule) -> str:
    """Return a rule as one line for people."""
    line = _subject(rule)
    conditions = [" or ".join(rule.status)] if rule.status else []
    if rule.older_than_days:
        conditions.append(f"older than {_days(rule.older_than_days)}")
    if rule.without_metric_for_days:
        conditions.append(f"without a metric for {_days(rule.without_metric_for_days)}")
    if conditions:
        line += f" that are {' and '.join(conditions)}"
    if rule.experiments:
        line += f" in {' or '.join(rule.experiments)}"
    if rule.tags:
        line += f" with {' and '.join(f'{name}={value}' for name, value in rule.tags)}"
    kept = [f"the newest {rule.keep_last}"] if rule.keep_last else []
    if rule.keep_best:
        best = rule.keep_best
        kept.append(f"the best {best.count} by {best.metric} ({best.mode})")
    return f"{line}, but {' and '.join(kept)} of each experiment" if kept else line
