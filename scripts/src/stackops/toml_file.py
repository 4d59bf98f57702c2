"""A TOML file of tables, read with the line of everything that is wrong."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from stackops.errors import OperationError

MOST = 100_000
"""The largest age (days) and count. A date that many days ago still exists: it is 274 years."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What makes two lines of one, or what PostgreSQL cannot store."""
TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|'
    r"'''.*?'{3,5}|"
    r'"(?:\\.|[^"\\])*"|'
    r"'[^']*'|"
    r"#[^\n]*|"
    r"[\[\]{}\n]",
    re.DOTALL,
)
"""What ends a statement of TOML, what nests, and the strings and comments that may hide either."""

Place = tuple[str | int, ...]
"""The keys that lead to a value. After the name of a list of tables comes a number from 0."""
Readers = Mapping[str, Callable[[object], Any]]
"""The keys of a table, and what reads the value of each or raises WrongError."""


class WrongError(Exception):
    """What is wrong with a value, in words that follow its key."""


def text(value: object) -> str:
    """Return a text that is not empty and fits on a line."""
    if not isinstance(value, str):
        raise WrongError("is not a text")
    if not value:
        raise WrongError("is empty")
    if CONTROL.search(value):
        raise WrongError("has a control character")
    return value


def texts(value: object) -> tuple[str, ...]:
    """Return the texts of a list that has at least one, or a single text as one of them."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise WrongError("is not a list of texts")
    if not values:
        raise WrongError("is an empty list")
    try:
        return tuple(text(each) for each in values)
    except WrongError as error:
        raise WrongError(f"has an entry that {error}") from error


def one_of(value: object, known: Collection[str]) -> str:
    """Return a text that is known."""
    if not isinstance(value, str) or value not in known:
        raise WrongError(f"is not one of {', '.join(known)}")
    return value


def whole(value: object) -> int:
    """Return a whole number from 1 to MOST."""
    # True is an int too.
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise WrongError(f"is not a whole number from 1 to {MOST}")
    return value


def table(value: object) -> dict[str, Any]:
    """Return a table, the values in it as they are."""
    if not isinstance(value, dict):
        raise WrongError("is not a table")
    return value


def _statements(content: str) -> Iterator[tuple[int, str]]:
    """Yield the statements of valid TOML, each with the line where it begins.

    A statement ends with its line, unless a bracket or a string is open there.
    """
    content += "\n"
    begin, line, depth = 0, 1, 0
    for token in TOKEN.finditer(content):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if token[0] == "\n" and depth == 0:
            statement = content[begin : token.end()]
            yield line, statement
            begin, line = token.end(), line + statement.count("\n")


def _places(value: object, place: Place) -> Iterator[Place]:
    """Yield the keys inside a table and the tables in it, outer ones first, three deep."""
    if isinstance(value, dict) and len(place) < 3:
        for key, inner in value.items():
            yield (*place, key)
            yield from _places(inner, (*place, key))


def _key_lines(content: str, listed: str) -> dict[Place, int]:
    """Return the line of each header and key of valid TOML; `listed` is its list of tables."""
    lines: dict[Place, int] = {}
    around: Place = ()
    number = -1
    for line, statement in _statements(content):
        # A statement is a document of its own, and tomllib knows how keys can be written.
        value = tomllib.loads(statement)
        header = statement.lstrip().startswith("[")
        if header:
            around = ()
            number += isinstance(value.get(listed), list)
        place = around
        for place in _places(value, around):
            lines.setdefault(place, line)
            if place[0] == listed:
                lines.setdefault((listed, number, *place[1:]), line)
        if header:
            around = place
    return lines


class TomlFile:
    """The content of a file, and what was found wrong in which line.

    `where` names the file, `fix` is how to correct it, `listed` its one list of tables. Raise
    OperationError if the text is not TOML.
    """

    def __init__(self, content: str, where: str, fix: str, listed: str) -> None:
        self.where, self.fix = where, fix
        self.problems: list[tuple[int, str]] = []
        try:
            self.content = tomllib.loads(content)
            self._lines = _key_lines(content, listed)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"\(at line (\d+), column \d+\)$", str(error))
            line = int(found[1]) if found else content.count("\n") + 1
            raise OperationError(f"{where} line {line}: {error}", fix) from error
        except (ValueError, RecursionError) as error:
            # Thousands of digits or of open brackets; tomllib does not say where.
            raise OperationError(f"{where}: {error}", fix) from error

    def line(self, place: Place) -> int:
        """Return the line of a key or, where it has none of its own, of what it is in."""
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)

    def refuse(self, place: Place, message: str) -> None:
        """Note what is wrong at a place."""
        self.problems.append((self.line(place), message))

    def read(
        self, values: Mapping[str, object], place: Place, readers: Readers, required: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Return the good values of a table. Note bad values, and missing and unknown keys."""
        found = {}
        for key, value in values.items():
            if key not in readers:
                self.refuse((*place, key), f"{key!r} is not known; known are {', '.join(readers)}")
                continue
            try:
                found[key] = readers[key](value)
            except WrongError as error:
                # In a listed table, its list and number say less than the line.
                name = ".".join(map(str, (*place[2:], key)))
                self.refuse((*place, key), f"{name} {error}")
        for key in required:
            if key not in values:
                self.refuse(place, f"{key} is missing")
        return found

    def finish(self) -> None:
        """Raise OperationError with a line for each problem, if there is one."""
        if self.problems:
            lines = [f"{self.where} line {line}: {message}" for line, message in sorted(self.problems)]
            raise OperationError("\n".join(lines), self.fix)
