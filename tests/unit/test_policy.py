"""The retention policy: what its file may say, what is refused in which line, what patterns mean."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stackops.errors import OperationError
from stackops.retention import policy
from stackops.retention.policy import KeepBest, Policy, Rule

EXAMPLE = Path(__file__).resolve().parents[2] / "config/retention.toml.example"
BUILT_IN = Rule("default", "delete-runs", status=("FINISHED",), older_than_days=90)


def refusals(text: str) -> list[tuple[int, str]]:
    """The line and the words of each problem that a text is refused for."""
    with pytest.raises(OperationError) as refusal:
        policy.parse(text, 90)
    lines = str(refusal.value).split("\n")
    matches = [re.fullmatch(r"config/retention\.toml line (\d+): (.+)", line) for line in lines]
    assert all(matches), lines
    return [(int(match[1]), match[2]) for match in matches if match]


# What a file may say.


@pytest.mark.parametrize("text", ["", "\n", "# a comment", "[orphans]\n", "rules = []"])
def test_without_rules_the_built_in_one_is_left(text: str) -> None:
    assert policy.parse(text, 90) == policy.default(90) == Policy((BUILT_IN,), ("keep",), None)


def test_the_built_in_rule_has_the_age_that_is_set_and_is_the_last() -> None:
    text = '[[rules]]\nname = "mine"\naction = "delete-traces"\nolder_than_days = 1\n'
    rules = policy.parse(text, 7).rules
    assert [(rule.name, rule.older_than_days, rule.line) for rule in rules] == [
        ("mine", 1, 1),
        ("default", 7, 0),
    ]


def test_every_key_is_read() -> None:
    text = """
keep_tags = ["keep", "audit"]

[[rules]]
name = "sweeps"
action = "delete-runs"
experiments = ["tuning-*"]
status = ["FINISHED", "FAILED"]
tags = { team = "vision*", "mlflow.user" = "?" }
older_than_days = 30
keep_last = 10
keep_best = { metric = "val_loss", mode = "min", count = 5 }

[[rules]]
name = "checkpoints"
action = "delete-artifacts"
older_than_days = 14
artifacts = ["checkpoints/*"]
larger_than = "100MB"

[[rules]]
name = "silent"
action = "mark-killed"
without_metric_for_days = 7

[orphans]
delete_after_days = 31
"""
    sweeps = Rule(
        "sweeps",
        "delete-runs",
        experiments=("tuning-*",),
        status=("FINISHED", "FAILED"),
        tags=(("team", "vision*"), ("mlflow.user", "?")),
        older_than_days=30,
        keep_last=10,
        keep_best=KeepBest("val_loss", "min", 5),
        line=4,
    )
    checkpoints = Rule(
        "checkpoints",
        "delete-artifacts",
        status=("FINISHED",),
        older_than_days=14,
        artifacts=("checkpoints/*",),
        larger_than=100_000_000,
        line=14,
    )
    silent = Rule("silent", "mark-killed", status=("RUNNING",), without_metric_for_days=7, line=21)
    expected = Policy((sweeps, checkpoints, silent, BUILT_IN), ("keep", "audit"), 31)
    assert policy.parse(text, 90) == expected


def test_the_example_is_a_policy_with_every_key_and_action() -> None:
    text = EXAMPLE.read_text()
    rules = policy.parse(text, 90).rules
    assert {rule.action for rule in rules} == set(policy.ACTION_KEYS)
    for key in (*policy.TOP, *policy.ORPHANS, *policy.RULE, *policy.BEST):
        assert re.search(rf"\b{key}\b", re.sub(r"#.*", "", text)), key


@pytest.mark.parametrize("key", ["experiments", "status", "artifacts"])
def test_a_single_text_stands_for_a_list_of_one(key: str) -> None:
    rule = '[[rules]]\nname = "a"\naction = "delete-artifacts"\nolder_than_days = 1\nlarger_than = "1B"\n'
    assert policy.parse(f'{rule}{key} = "FAILED"', 1) == policy.parse(f'{rule}{key} = ["FAILED"]', 1)


@pytest.mark.parametrize(
    ("size", "size_bytes"),
    [("1B", 1), ("2KB", 2000), ("100MB", 10**8), ("3GB", 3 * 10**9), ("999999999TB", 999_999_999 * 10**12)],
)
def test_sizes_are_in_powers_of_a_thousand(size: str, size_bytes: int) -> None:
    rule = f'[[rules]]\nname = "a"\naction = "delete-artifacts"\nolder_than_days = 1\nlarger_than = "{size}"'
    assert policy.parse(rule, 1).rules[0].larger_than == size_bytes


def test_a_keep_rule_is_about_traces_too_unless_it_asks_for_a_status() -> None:
    assert Rule("a", "keep").kinds == ("runs", "traces")
    assert Rule("a", "keep", status=("FAILED",)).kinds == ("runs",)
    assert Rule("a", "delete-traces").kinds == ("traces",)
    assert Rule("a", "mark-killed").kinds == ("runs",)


# What is refused, and in which line.

NAME = "[[rules]]\nname = 'a'\n"
RUNS = f"{NAME}action = 'delete-runs'\nolder_than_days = 1\n"  # four lines
FILES = f"{NAME}action = 'delete-artifacts'\nolder_than_days = 1\n"
KEEP = f"{NAME}action = 'keep'\n"  # three
KILL = f"{NAME}action = 'mark-killed'\nwithout_metric_for_days = 1\n"
TRACES = f"{NAME}action = 'delete-traces'\nolder_than_days = 1\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        # TOML itself.
        ("\na = ", 2, "Invalid value"),
        ("\n\na = b", 3, "Invalid value"),
        (f"{KEEP}name = 'b'", 4, "Cannot overwrite a value"),
        (f"{KEEP}[rules]\n", 4, "Cannot declare"),
        ("a = '''\n\n", 3, "Expected"),
        ("\ufeff", 1, "Invalid statement"),
        # Keys.
        ("\nkeep_tag = 'a'", 2, "'keep_tag' is not known; known are keep_tags, rules, orphans"),
        ("\n[rule]\nname = 'a'", 2, "'rule' is not known"),
        ("\n[[rule]]\nname = 'a'", 2, "'rule' is not known"),
        (f"{RUNS}older_then_days = 1", 5, "'older_then_days' is not known; known are name, action"),
        (f"{RUNS}'a\\nb' = 1", 5, r"'a\\nb' is not known"),
        (f'{RUNS}"a\\nb" = 1', 5, r"'a\nb' is not known"),
        (
            f"{RUNS}keep_best = {{metric='m', mode='min', count=1, of=2}}",
            5,
            "'of' is not known; known are met",
        ),
        ("[orphans]\n\nafter = 1", 3, "'after' is not known; known are delete_after_days"),
        ("\n[[rules]]\naction = 'keep'", 2, "name is missing"),
        ("\n[[rules]]\nname = 'a'", 2, "action is missing"),
        (f"\n{NAME}action = 'delete-runs'", 2, "older_than_days is missing: delete-runs needs it"),
        (f"\n{NAME}action = 'delete-traces'", 2, "older_than_days is missing: delete-traces needs it"),
        (f"\n{NAME}action = 'mark-killed'", 2, "without_metric_for_days is missing: mark-killed needs it"),
        (f"\n{NAME}action = 'delete-artifacts'\nartifacts = 'a'", 2, "older_than_days is missing"),
        (f"\n{FILES}", 2, "artifacts and larger_than are missing: delete-artifacts needs one"),
        (f"{RUNS}keep_best = {{ mode = 'min', count = 1 }}", 5, "metric is missing"),
        (f"{RUNS}keep_best = {{ metric = 'm', count = 1 }}", 5, "mode is missing"),
        (f"{RUNS}keep_best = {{ metric = 'm', mode = 'min' }}", 5, "count is missing"),
        # Keys of another action.
        (f"{RUNS}artifacts = 'a'", 5, "artifacts does not belong to delete-runs"),
        (f"{RUNS}larger_than = '1B'", 5, "larger_than does not belong to delete-runs"),
        (f"{RUNS}without_metric_for_days = 1", 5, "without_metric_for_days does not belong"),
        (f"{FILES}larger_than = '1B'\nkeep_last = 1", 6, "keep_last does not belong to delete-artifacts"),
        (f"{KEEP}keep_last = 1", 4, "keep_last does not belong to keep"),
        (f"{TRACES}status = 'FINISHED'", 5, "status does not belong to delete-traces"),
        (f"{KILL}status = 'RUNNING'", 5, "status does not belong to mark-killed"),
        (
            f"{RUNS}status = ['FAILED', 'RUNNING']",
            5,
            "status has RUNNING: mark-killed comes before",
        ),
        (f"{KILL}older_than_days = 1", 5, "older_than_days does not belong to mark-killed"),
        (
            f"{TRACES}keep_best = {{metric='m', mode='min', count=1}}",
            5,
            "keep_best does not belong to delete-traces",
        ),
        # Types.
        ("\nkeep_tags = 1", 2, "keep_tags is not a list of texts"),
        ("\nkeep_tags = ['a', 1]", 2, "keep_tags has an entry that is not a text"),
        ("\nrules = 1", 2, "rules is not a list of tables: begin each rule with [[rules]]"),
        ("\nrules = [1]", 2, "rules is not a list of tables"),
        ("\n[rules]\nname = 'a'", 2, "rules is not a list of tables"),
        ("\n[rules.a]\nname = 'a'", 2, "rules is not a list of tables"),
        ("\norphans = 30", 2, "orphans is not a table"),
        ("\n[[orphans]]\ndelete_after_days = 30", 2, "orphans is not a table"),
        ("[[rules]]\naction = 'keep'\nname = 1", 3, "name is not 1 to 60 letters"),
        (f"{NAME}action = ['keep']", 3, "action is not one of keep, delete-runs"),
        (f"{NAME}action = true", 3, "action is not one of"),
        (f"{KEEP}experiments = {{ a = 'b' }}", 4, "experiments is not a list of texts"),
        (f"{KEEP}experiments = [['a']]", 4, "experiments has an entry that is not a text"),
        (f"{KEEP}status = 1", 4, "status is not a list of texts"),
        (f"{KEEP}tags = ['a']", 4, "tags is not a table"),
        (f"{KEEP}tags = {{ a = 1 }}", 4, "tags.a is not a text"),
        (f"{KEEP}tags = {{ a = ['b'] }}", 4, "tags.a is not a text"),
        (
            f"{KEEP}tags = {{ mlflow.user = 'a' }}",
            4,
            "mlflow is a table: put a name that has dots into quotes",
        ),
        (f"{RUNS}keep_best = 'val_loss'", 5, "keep_best is not a table"),
        (f"{RUNS}keep_best = {{ metric = 1, mode = 'min', count = 1 }}", 5, "keep_best.metric is not a text"),
        (
            f"{FILES}larger_than = 100",
            5,
            "larger_than is not a whole size like '100MB', in B, KB, MB, GB, TB",
        ),
        # Empty lists, patterns and names; control characters.
        ("keep_tags = []", 1, "keep_tags is an empty list"),
        ("keep_tags = ['']", 1, "keep_tags has an entry that is empty"),
        (f"{KEEP}experiments = []", 4, "experiments is an empty list"),
        (f"{KEEP}experiments = ''", 4, "experiments has an entry that is empty"),
        (f"{KEEP}experiments = ['a', '']", 4, "experiments has an entry that is empty"),
        (f"{KEEP}status = []", 4, "status is an empty list"),
        (f"{KEEP}tags = {{}}", 4, "tags is empty"),
        (f"{KEEP}tags = {{ a = '' }}", 4, "tags.a is empty"),
        (f"{KEEP}tags = {{ '' = 'a' }}", 4, "tags has a name that is empty"),
        (f"{FILES}artifacts = []", 5, "artifacts is an empty list"),
        (f"{FILES}artifacts = ['']", 5, "artifacts has an entry that is empty"),
        (f"{RUNS}keep_best = {{ metric = '', mode = 'min', count = 1 }}", 5, "keep_best.metric is empty"),
        (f'{KEEP}experiments = ["a\\nb"]', 4, "experiments has an entry that has a control character"),
        (f'{KEEP}tags = {{ a = "\\u0000" }}', 4, "tags.a has a control character"),
        (f'{KEEP}tags = {{ "\\u0000" = "a" }}', 4, "tags has a name that is empty or has a control"),
        # Values.
        (f"{NAME}action = 'delete'", 3, "action is not one of keep, delete-runs, delete-artifacts, mark-k"),
        (
            f"{KEEP}status = ['FINISHED', 'DONE', 'finished']",
            4,
            "status has 'DONE', 'finished': not one of RUN",
        ),
        (
            f"{RUNS}keep_best = {{ metric = 'm', mode = 'low', count = 1 }}",
            5,
            "keep_best.mode is not one of min, max",
        ),
        ("[[rules]]\naction = 'keep'\nname = 'default'", 3, "name is 'default', which is the built-in rule"),
        (f"{RUNS}\n{KEEP}", 7, "name 'a' is taken by the rule in line 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, line: int, words: str) -> None:
    ((found_line, found_words),) = refusals(text)
    assert words in found_words
    assert found_line == line


@pytest.mark.parametrize(
    "value", ["0", "-1", "1.0", "true", "'1'", "[1]", "100001", "0xffffffffffff", "2025-11-21"]
)
@pytest.mark.parametrize(
    ("text", "key"),
    [
        (KEEP, "older_than_days"),
        (f"{NAME}action = 'delete-runs'\n", "older_than_days"),
        (f"{NAME}action = 'delete-artifacts'\nartifacts = 'a'\n", "older_than_days"),
        (f"{NAME}action = 'delete-traces'\n", "older_than_days"),
        (f"{NAME}action = 'mark-killed'\n", "without_metric_for_days"),
        (RUNS, "keep_last"),
        (f"{RUNS}keep_best.metric = 'm'\nkeep_best.mode = 'max'\n", "keep_best.count"),
        ("[orphans]\n", "delete_after_days"),
    ],
)
def test_ages_and_counts_are_whole_numbers_from_1(text: str, key: str, value: str) -> None:
    line = text.count("\n") + 1
    words = f"{key} is not a whole number from 1 to 100000"
    assert refusals(f"{text}{key} = {value}") == [(line, words)]


@pytest.mark.parametrize(
    "value",
    ["", "MB", "0B", "01MB", "-1MB", "1.5GB", "100", "100 MB", "100mb", "1MiB", "1PB", "²B", "1000000000B"],
)
def test_a_bad_size_is_refused(value: str) -> None:
    ((line, words),) = refusals(f"{FILES}larger_than = '{value}'")
    assert (line, words[:33]) == (5, "larger_than is not a whole size l")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä", "a\\n", "x" * 61])
def test_a_bad_name_is_refused(name: str) -> None:
    assert refusals(f'[[rules]]\naction = "keep"\nname = "{name}"') == [
        (3, "name is not 1 to 60 letters, digits, '-', '_' and '.'")
    ]
    assert policy.parse(KEEP.replace("'a'", f"'{'x' * 60}'"), 1).rules[0].name == "x" * 60


def test_each_rule_behind_one_that_keeps_everything_is_refused_once() -> None:
    text = "".join(KEEP.replace("'a'", f"'{name}'") for name in ("first", "b", "c"))
    assert [line for line, words in refusals(text) if "'first' in line 1" in words] == [4, 7]


@pytest.mark.parametrize("conditions", ["", "experiments = '*'\n", "experiments = ['a', '*']\n"])
@pytest.mark.parametrize("later", [RUNS, KEEP, KILL, TRACES, f"{FILES}artifacts = 'a'\n"])
def test_a_rule_behind_one_that_matches_everything_is_refused_with_both_lines(
    conditions: str, later: str
) -> None:
    first = "\n" + KEEP.replace("'a'", "'first'") + conditions
    assert refusals(first + later) == [
        (
            first.count("\n") + 1,
            "rule 'a' never has a turn: 'first' in line 2 comes first and matches everything",
        )
    ]


@pytest.mark.parametrize(
    "condition",
    ["experiments = 'b*'", "status = 'FAILED'", "tags = { team = '*' }", "older_than_days = 1"],
)
def test_a_rule_behind_one_with_a_condition_is_accepted(condition: str) -> None:
    text = KEEP.replace("'a'", "'first'") + f"{condition}\n{RUNS}"
    assert [rule.name for rule in policy.parse(text, 1).rules] == ["first", "a", "default"]


def test_a_last_rule_may_keep_everything_from_the_built_in_one() -> None:
    text = f"{TRACES}{KEEP}".replace("'a'", "'first'", 1)
    assert [rule.name for rule in policy.parse(text, 1).rules] == ["first", "a", "default"]


def test_all_problems_are_named_in_the_order_of_their_lines() -> None:
    text = """
unknown = 1
keep_tags = []
[[rules]]
name = "a b"
older_than_days = 0
[[rules]]
name = "twice"
action = "delete-artifacts"
keep_last = true
[[rules]]
name = "twice"
action = "delete-runs"
older_than_days = 1
[rules.keep_best]
mode = "low"
cuont = 1
[orphans]
delete_after_days = -1
"""
    assert [(line, words.split(" ")[0]) for line, words in refusals(text)] == [
        (2, "'unknown'"),
        (3, "keep_tags"),
        (4, "action"),
        (5, "name"),
        (6, "older_than_days"),
        (7, "artifacts"),
        (7, "older_than_days"),
        (10, "keep_last"),
        (10, "keep_last"),
        (12, "name"),
        (15, "count"),
        (15, "metric"),
        (16, "keep_best.mode"),
        (17, "'cuont'"),
        (19, "delete_after_days"),
    ]


def test_the_file_is_named_as_it_is_given_and_the_fix_names_it() -> None:
    with pytest.raises(OperationError, match=r"^/a/b line 1: 'c' is not known") as refusal:
        policy.parse("c = 1", 1, where="/a/b")
    assert refusal.value.fix.startswith("correct /a/b;")


# Where a key is, however it is written; KEEP has three lines.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        # Comments, lists and strings that look like something else.
        (f"{KEEP}# [[rules]]\n # wrong = 1\nwrong = 1 # [[rules]]", 6),
        ("# [[rules]]\n[[rules]] # [[rules]]\nname = 'a' # '\naction = 'keep' # \"\"\"\nwrong = 1", 5),
        (f"{KEEP}experiments = [\n'[[rules]]',\n# wrong ] \"\n'wrong = 1',\n]\nwrong = 1", 9),
        (f"{KEEP}experiments = [ 'a]',\n\"b\\\"]\", 'c\\']\nwrong = [\n1]", 6),
        (f"{KEEP}wrong = [\n[1, 2],\n[ # ]\n3]]", 4),
        (f"{KEEP}wrong = '''\n[[rules]]\nwrong = 1\n'''", 4),
        (f'{KEEP}experiments = """a\\\n\n  "" \\""" b"""\nwrong = 1', 7),
        (f'{KEEP}experiments = """a"""""\nwrong = 1\n# """', 5),
        (f'{KEEP}experiments = """a""""\nwrong = 1\n# "', 5),
        (f"{KEEP}experiments = '''a''''\nwrong = 1\n# '", 5),
        (f'{KEEP}experiments = """\\\\"""\nwrong = 1', 5),
        (f"{KEEP}experiments = '''a'''''\nwrong = 1\n# '''", 5),
        (f"{KEEP}experiments = '''#\\'''\nwrong = 1", 5),
        (f"{KEEP}experiments = \"#'\" # '\nwrong = 1", 5),
        (f"{KEEP}# \u2028 \u0085\nwrong = 1", 5),
        # Spaces and quotes.
        ("[[rules]]\n\"name\" = 'a'\n'action' \t = 'keep'\n\n  \"wrong\"\t=1", 5),
        (f'{KEEP}"\\u0077rong"=1', 4),
        ("\n [[ rules ]]\nname = 'a'\naction = 'keep'\nwrong = 1", 5),
        ("[[\t\"rules\" ]]\nname = 'a'\naction = 'keep'\nwrong = 1", 4),
        (f"{KEEP}\nwrong = 1\n".replace("\n", "\r\n"), 5),
        # Dotted keys, and tables in a rule.
        (f"{KEEP}wrong.deep.and.deeper = 1", 4),
        (f"{KEEP}\n[rules.wrong]\nname = 'a'", 5),
        (f"{KEEP}\n[[rules.wrong]]\nname = 'a'", 5),
        (f"{KEEP}\n[rules.wrong.deep.and.deeper]\nname = 'a'", 5),
        (f"{KEEP}[rules.tags]\nteam = '*'\nwrong = 1", 6),
        (f"{KEEP}tags.team = '*'\ntags . 'wrong' = 1", 5),
        (f"{KEEP}tags = {{ team = 'a', wrong = 1 }}", 4),
        (f"{RUNS}[rules.keep_best]\nmetric = 'a'\nmode = 'min'\nwrong = 1\ncount = 1", 8),
        (f"{TRACES}[orphans]\n[[rules]]\nname = 'b'\naction = 'keep'\nwrong = 1", 9),
        (f"{TRACES}[orphans]\n[rules.tags]\nwrong = 1", 7),
        # A list in brackets is one statement: its first line stands for all.
        ("\nrules = [\n{ name = 'a', action = 'keep', wrong = 1 }]", 2),
        # Outside of rules.
        ("[orphans]\nwrong = 1\n[[rules]]\nname = 'a'\naction = 'keep'", 2),
        ("orphans.delete_after_days = 1\norphans.wrong = 1", 2),
        ("\norphans = { wrong = 1 }", 2),
        ("\nwrong = 1\n[[rules]]\nname = 'wrong'\naction = 'keep'", 2),
        (f"{KEEP}[wrong]\nname = 'a'", 4),
        (f"{KEEP}[wrong.rules]\nname = 'a'", 4),
        (f"{KEEP}[[wrong.rules]]\nname = 'a'", 4),
    ],
)
def test_a_key_is_found_in_its_line(text: str, line: int) -> None:
    ((found_line, words),) = refusals(text)
    assert words.startswith(("'wrong' is not known", "tags.wrong is not a text"))
    assert found_line == line


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000, f"a = {'{a=' * 5000}"])
def test_what_is_too_much_for_the_parser_is_refused(text: str) -> None:
    with pytest.raises(OperationError, match=r"^config/retention\.toml: "):
        policy.parse(text, 1)


def test_no_depth_of_brackets_is_another_error() -> None:
    for depth in range(1, 1000, 3):
        with pytest.raises(OperationError):
            policy.parse(f"a = {'[' * depth}{']' * depth}", 1)


def test_a_key_of_thousands_of_parts_is_refused_in_its_line() -> None:
    assert refusals("\n" + ".".join(["a"] * 5000) + " = 0x" + "f" * 5000)[0][0] == 2


# Whatever is generated.

PLAIN = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=8)
NUMBER = st.integers(1, 100_000)
PATTERNS = st.lists(PLAIN, min_size=1, max_size=3).map(tuple)
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """A rule, still without a name, that matches not everything."""

    def perhaps(strategy: st.SearchStrategy, nothing: object = None) -> object:
        return draw(st.one_of(st.just(nothing), strategy))

    action = draw(
        st.sampled_from(["keep", "delete-runs", "delete-artifacts", "mark-killed", "delete-traces"])
    )
    values = {
        "experiments": perhaps(PATTERNS, ()),
        "tags": perhaps(
            st.dictionaries(PLAIN, PLAIN, min_size=1, max_size=3).map(lambda x: tuple(x.items())), ()
        ),
    }
    if action == "mark-killed":
        values |= {"without_metric_for_days": draw(NUMBER), "status": ("RUNNING",)}
    else:
        values["older_than_days"] = draw(NUMBER)
    if action in ("keep", "delete-runs", "delete-artifacts"):
        known = [name for name in policy.STATUSES if action == "keep" or name != "RUNNING"]
        status = st.lists(st.sampled_from(known), min_size=1, unique=True).map(tuple)
        values["status"] = perhaps(status, () if action == "keep" else ("FINISHED",))
    if action == "delete-runs":
        values["keep_last"] = perhaps(NUMBER)
        values["keep_best"] = perhaps(st.builds(KeepBest, PLAIN, st.sampled_from(["min", "max"]), NUMBER))
    if action == "delete-artifacts":
        size = st.builds(lambda n, unit: n * UNITS[unit], st.integers(1, 999), st.sampled_from(sorted(UNITS)))
        values["artifacts"] = perhaps(PATTERNS, ())
        values["larger_than"] = perhaps(size) if values["artifacts"] else draw(size)
    return Rule("", action, **values)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class Writer:
    """Writes a policy as TOML, each value in one of the ways that there are."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.lines: list[str] = []

    def add(self, *lines: str) -> None:
        noise = st.sampled_from(["", "\n", "# [[rules]]\n", "  # name = '''\n\n", '#"""\n'])
        self.lines += (self.draw(noise) + "\n".join(lines)).split("\n")

    def pair(self, key: str, value: object) -> None:
        key = self.draw(st.sampled_from([key, quoted(key), f"  '{key}'\t"]))
        tail = self.draw(st.sampled_from(["", " # ]", "\t# \"'''"]))
        if isinstance(value, tuple) and self.draw(st.booleans()):
            self.add(f"{key} = [ # [", *(f"  {quoted(each)}, # ]" for each in value), f"]{tail}")
        elif isinstance(value, tuple):
            self.add(f"{key}=[{', '.join(map(quoted, value))}]{tail}")
        elif isinstance(value, str) and self.draw(st.booleans()):
            self.add(f'{key} = """\\', f'    {quoted(value)[1:-1]}"""{tail}')
        else:
            self.add(f"{key} = {quoted(value) if isinstance(value, str) else value}{tail}")

    def table(self, key: str, values: dict[str, object]) -> None:
        """Write a table inline or as dotted keys."""
        pairs = {quoted(name): quoted(x) if isinstance(x, str) else str(x) for name, x in values.items()}
        if self.draw(st.booleans()):
            self.add(f"{key} = {{ {', '.join(f'{name} = {value}' for name, value in pairs.items())} }}")
        else:
            self.add(*(f"{key} . {name} = {value}" for name, value in pairs.items()))

    def rule(self, rule: Rule) -> int:
        """Write a rule and return its line."""
        self.add(self.draw(st.sampled_from(["[[rules]]", " [[ 'rules' ]] # [[rules]]", '[["rules"]]'])))
        line = len(self.lines)
        for key in ("name", "action", "experiments", "status", "older_than_days", "keep_last", "artifacts"):
            if getattr(rule, key) and not (key == "status" and rule.action == "mark-killed"):
                self.pair(key, getattr(rule, key))
        if rule.larger_than:
            self.pair("larger_than", written_size(rule.larger_than))
        if rule.without_metric_for_days:
            self.pair("without_metric_for_days", rule.without_metric_for_days)
        if rule.keep_best:
            self.table("keep_best", vars(rule.keep_best))
        if rule.tags and self.draw(st.booleans()):
            self.table("tags", dict(rule.tags))
        elif rule.tags:
            self.add("[rules.tags]", *(f"{quoted(name)} = {quoted(value)}" for name, value in rule.tags))
        return line


def written_size(size_bytes: int) -> str:
    exact = [unit for unit, factor in UNITS.items() if size_bytes % factor == 0]
    return f"{size_bytes // UNITS[exact[-1]]}{exact[-1]}"


@given(st.data(), st.lists(rules(), max_size=4), PATTERNS, st.none() | NUMBER)
def test_what_is_written_is_read_with_its_lines(
    data: st.DataObject, drawn: list[Rule], keep_tags: tuple[str, ...], orphans: int | None
) -> None:
    writer = Writer(data.draw)
    writer.pair("keep_tags", keep_tags)
    expected = []
    for number, rule in enumerate(drawn):
        named = Rule(**vars(rule) | {"name": f"rule-{number}"})
        expected.append(Rule(**vars(named) | {"line": writer.rule(named)}))
    if orphans:
        writer.add("[orphans]")
        writer.pair("delete_after_days", orphans)
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    assert policy.parse(end.join(writer.lines), 90) == Policy(
        (*expected, BUILT_IN), tuple(dict.fromkeys(("keep", *keep_tags))), orphans
    )


def check_refusal(text: str) -> None:
    """A text is a policy, or is refused with lines that it has."""
    try:
        found = policy.parse(text, 90)
    except OperationError as error:
        for line in str(error).split("\n"):
            match = re.match(r"config/retention\.toml line (\d+): .", line)
            assert match, line
            assert 1 <= int(match[1]) <= text.count("\n") + 1
    else:
        assert all("\n" not in policy.describe(rule) for rule in found.rules)


@given(st.text() | st.binary().map(lambda raw: raw.decode(errors="surrogateescape")))
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    check_refusal(text)


@given(
    st.lists(
        st.tuples(st.integers(0, 2500), st.integers(0, 12), st.text("[]{}=,.\"'#\\\n\r ax1", max_size=3))
    )
)
def test_any_damaged_example_is_a_policy_or_refused(damages: list[tuple[int, int, str]]) -> None:
    text = EXAMPLE.read_text()
    for begin, length, inserted in damages:
        text = text[:begin] + inserted + text[begin + length :]
    check_refusal(text)


KEY = st.sampled_from([*policy.TOP, *policy.RULE, *policy.BEST, *policy.ORPHANS, "other", '""', '"a b"'])
VALUE = st.recursive(
    st.sampled_from(
        [
            *("0", "1", "-1", "true", "nan", "-inf", "1e400", "2025-11-21", "07:00:00"),
            *("'keep'", "'delete-runs'", "'delete-artifacts'", "'mark-killed'"),
            *("'FINISHED'", "'min'", "'1MB'", "'*'", "''", '"\\u0000"'),
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: f"[{','.join(values)}]")
        | st.dictionaries(KEY, inner, max_size=3).map(
            lambda pairs: f"{{{','.join(f'{key}={value}' for key, value in pairs.items())}}}"
        )
    ),
    max_leaves=5,
)
HEADER = st.sampled_from(["[[rules]]", "[rules.tags]", "[rules.keep_best]", "[orphans]", "[rules]", "[a.b]"])
LINE = HEADER | st.builds("{} = {}".format, KEY, VALUE) | st.builds("{}.{} = {}".format, KEY, KEY, VALUE)


@given(st.lists(LINE, max_size=8).map("\n".join))
def test_any_values_of_any_keys_are_a_policy_or_refused(text: str) -> None:
    check_refusal(text)


# Patterns.


def is_like(pattern: str, text: str) -> bool:
    """LIKE as PostgreSQL's manual has it (9.7.1): % any text, _ one character, \\ the next as it is."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(is_like(pattern[1:], text[skipped:]) for skipped in range(len(text) + 1))
    if pattern[0] == "_":
        return bool(text) and is_like(pattern[1:], text[1:])
    literal = pattern[:2] if pattern[0] == "\\" else pattern[0]
    # An escape that ends the pattern is an error in PostgreSQL.
    assert literal != "\\"
    return text[:1] == literal[-1] and is_like(pattern[len(literal) :], text[1:])


@given(st.text("*?%_\\[]^ab.\n", max_size=7), st.text("*?%_\\[]^abB.\n", max_size=7))
@example("a*", "a\n")
@example("\\*", "\\a")
@example("100%", "1000")
def test_a_pattern_means_the_same_in_sql_and_here(pattern: str, text: str) -> None:
    assert policy.matches(pattern, text) == is_like(policy.like(pattern), text)


@given(st.data(), st.text(max_size=10))
def test_a_text_matches_itself_with_parts_made_wild(data: st.DataObject, text: str) -> None:
    wild = "".join(data.draw(st.sampled_from([each if each not in "*?" else "?", "?", "*"])) for each in text)
    assert policy.matches(wild, text)
    assert is_like(policy.like(wild), text)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("tuning-*", "tuning-", True),
        ("tuning-*", "old/tuning-1", False),
        ("Tuning", "tuning", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("checkpoints/*", "checkpoints/1/model.pt", True),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("a.c", "abc", False),
        ("a*", "a\nb\n", True),
        ("a", "a\n", False),
    ],
)
def test_patterns(pattern: str, text: str, expected: bool) -> None:
    assert policy.matches(pattern, text) is expected
    assert is_like(policy.like(pattern), text) is expected


def test_what_like_takes_for_special_is_escaped() -> None:
    assert policy.like(r"100%_\*?") == r"100\%\_\\%_"


# Words for people.


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            Rule(
                "sweeps",
                "delete-runs",
                experiments=("tuning-*",),
                status=("FINISHED",),
                older_than_days=30,
                keep_last=10,
                keep_best=KeepBest("val_loss", "min", 5),
            ),
            "delete runs that are FINISHED and older than 30 days in tuning-*, "
            "but the newest 10 and the best 5 by val_loss (min) of each experiment",
        ),
        (BUILT_IN, "delete runs that are FINISHED and older than 90 days"),
        (
            Rule("a", "delete-runs", status=("FAILED", "KILLED"), older_than_days=1, keep_last=3),
            "delete runs that are FAILED or KILLED and older than 1 day, but the newest 3 of each experiment",
        ),
        (Rule("a", "keep"), "keep runs and traces"),
        (
            Rule("a", "keep", experiments=("a", "b*"), tags=(("team", "vision*"), ("mlflow.user", "?"))),
            "keep runs and traces in a or b* with team=vision* and mlflow.user=?",
        ),
        (Rule("a", "keep", status=("RUNNING",)), "keep runs that are RUNNING"),
        (
            Rule(
                "a",
                "delete-artifacts",
                status=("FINISHED",),
                older_than_days=14,
                artifacts=("checkpoints/*", "*.pt"),
                larger_than=100_000_000,
            ),
            "delete artifacts like checkpoints/* or *.pt larger than 100MB of runs "
            "that are FINISHED and older than 14 days",
        ),
        (
            Rule("a", "delete-artifacts", status=("FAILED",), older_than_days=2, larger_than=1500),
            "delete artifacts larger than 1500B of runs that are FAILED and older than 2 days",
        ),
        (
            Rule("a", "mark-killed", status=("RUNNING",), without_metric_for_days=7),
            "mark as KILLED runs that are RUNNING and without a metric for 7 days",
        ),
        (
            Rule("a", "delete-traces", experiments=("chat",), older_than_days=90),
            "delete traces that are older than 90 days in chat",
        ),
    ],
)
def test_a_rule_is_described_in_one_line(rule: Rule, words: str) -> None:
    assert policy.describe(rule) == words
