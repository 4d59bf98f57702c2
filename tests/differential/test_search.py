"""runs/search, in experiments whose runs have the same ids on both sides: ties are decided by the id."""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.differential import Pair, Side, Step, cases, either, fast, slow

EXPERIMENT, OTHER, EMPTY, OLD, BROKEN = (f"<experiment {number}>" for number in (1, 2, 3, 4, 5))
"""Two with plain runs, one without any, one with runs as older MLflows left them, one that it cannot read."""
START = 1700000000000


def run_id(number: int) -> str:
    """Return the id of a run of the seed; the order of ids is not that of anything else."""
    return f"{(number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128:032x}"


def text(value: Any) -> str:
    """Return a value as SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, bool | int | float):
        return str(value)
    return "E'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


STATUSES = ("FINISHED", "RUNNING", "FAILED", "SCHEDULED", "KILLED")
USERS = ("ada", "grace", "", "ada%", "Ada")
WORDS = ("adam", "sgd", "Adam", "a%b", "a_b", "", "größe", "a'b", "A", "adam ")
LONG = tuple("ö" * 63 + end for end in ("", "ö", "öa", "öb"))
"""As long as what of a value is in its index, one less, and longer with the same beginning."""
LOSSES = (0.5, 0.25, 0.5, -1.0, 0.0, 1.7976931348623157e308, -1.7976931348623157e308, 1e-300, 3.0)


def seed_rows() -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of all tables; the experiment is its index here.

    Numbers from 36 on are of older MLflows, some without a name; from 48 on one has no user and one no
    start, at which stock MLflow answers 500.
    """
    rows: dict[str, list[tuple[Any, ...]]] = {"runs": [], "latest_metrics": [], "params": [], "tags": []}
    for number in range(52):
        run = run_id(number)
        is_old = number >= 36
        # Ties of three, and one at 0.
        start = 0 if number == 20 else START + (number * 7 % 36) // 3 * 1000
        end = None if number % 4 == 1 else START + number % 5
        name = ("", None)[number % 2] if is_old and number % 5 == 0 else f"run {number % 8}"
        stage = "deleted" if number % 11 == 10 else "active"
        experiment = 4 if number >= 48 else 3 if is_old else 1 if number % 6 == 5 else 0
        user = None if number == 50 else USERS[number % 5]
        if number >= 48:
            start, stage = (START - number, "active") if number < 51 else (None, "deleted")
        uri = f"mlflow-artifacts:/seed/{run}/artifacts"
        status = STATUSES[number * 3 % 5]
        rows["runs"].append(
            (run, name, "UNKNOWN", "", "", user, status, start, end, "", stage, uri, experiment)
        )
        rows["tags"].append((run, "mlflow.runName", name or "old name"))
        if number % 3 != 2:
            nan = number % 7 == 6
            value = 0 if nan else LOSSES[number % len(LOSSES)]
            rows["latest_metrics"].append((run, "loss", value, START, number, nan))
        if number % 2:
            rows["latest_metrics"].append((run, "val/acc 1", number % 4 / 8, START, 0, False))
        if number % 4 != 3:
            rows["params"].append((run, "optimizer", WORDS[number % len(WORDS)]))
        rows["params"].append((run, "lr", str(number % 3 / 10)))
        if number % 5 != 0:
            rows["tags"].append((run, "team", WORDS[(number * 3) % len(WORDS)]))
        if number % 8 == 0:
            rows["tags"].append((run, "mlflow.parentRunId", run_id(1)))
        rows["params"].append((run, "long", LONG[number % 4]))
        rows["tags"].append((run, "long", LONG[number // 4 % 4]))
    return rows


RUN_COLUMNS = (
    "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time,"
    " source_version, lifecycle_stage, artifact_uri, experiment_id"
)
COLUMNS = {
    "runs": RUN_COLUMNS,
    "latest_metrics": "run_uuid, key, value, timestamp, step, is_nan",
    "params": "run_uuid, key, value",
    "tags": "run_uuid, key, value",
}


def store(side: Side, experiments: list[str]) -> None:
    """Write the seed's rows past MLflow, which would give other ids."""
    seeded = seed_rows()
    seeded["runs"] = [(*row[:-1], int(experiments[row[-1]])) for row in seeded["runs"]]
    for table, rows in seeded.items():
        values = ", ".join("(" + ", ".join(text(value) for value in row) + ")" for row in rows)
        side.tables.execute(f"INSERT INTO {table} ({COLUMNS[table]}) VALUES {values}")


Seed = Mapping[str, list[str]]


@pytest.fixture(scope="module")
def seed(pair: Pair) -> Seed:
    """The seed's experiments: the ids by the side's name."""
    pair.begin(run=False)
    for name in ("seed's other", "seed's empty", "seed's old", "seed's broken"):
        pair.send(fast("experiments/create", {"name": name}))
    found = {}
    for side in pair.sides:
        found[side.name] = [
            side.names.fill(name.encode()).decode() for name in (EXPERIMENT, OTHER, EMPTY, OLD, BROKEN)
        ]
        store(side, found[side.name])
    return found


def search(how: Any = fast, without: str = "", **given: Any) -> Step:
    """Return a runs/search of the seed's first experiment."""
    body = {"experiment_ids": [EXPERIMENT], "max_results": 100, **given}
    body.pop(without, None)
    return how("runs/search", body)


def where(filter_string: str, how: Any = fast) -> Step:
    """Return a search with a filter."""
    return search(how, filter=filter_string)


def by(*orders: Any, how: Any = fast) -> Step:
    """Return a search with an order."""
    return search(how, order_by=list(orders))


def token(offset: Any) -> str:
    """Return a page token for an offset."""
    return base64.b64encode(json.dumps({"offset": offset}).encode()).decode()


CALLS = {
    "of the Python client": fast(
        "runs/search",
        {"experiment_ids": [EXPERIMENT], "filter": "", "run_view_type": "ACTIVE_ONLY", "max_results": 1000},
    ),
    "of the Python client, with an order": fast(
        "runs/search",
        {
            "experiment_ids": [EXPERIMENT],
            "filter": "metrics.loss < 1",
            "run_view_type": "ACTIVE_ONLY",
            "max_results": 1,
            "order_by": ["metrics.loss ASC"],
        },
    ),
    "of the page": fast(
        "runs/search",
        {
            "experiment_ids": [EXPERIMENT],
            "order_by": ["attributes.start_time DESC"],
            "run_view_type": "ACTIVE_ONLY",
            "filter": "",
            "max_results": 100,
        },
        prefix="/ajax-api/2.0/mlflow/",
    ),
    "of the page, sorted by a metric": fast(
        "runs/search",
        {
            "experiment_ids": [EXPERIMENT],
            "order_by": ["metrics.`val/acc 1` DESC"],
            "run_view_type": "ACTIVE_ONLY",
            "max_results": 100,
        },
        prefix="/ajax-api/2.0/mlflow/",
    ),
    "of the page, for pinned runs and parents": fast(
        "runs/search",
        {
            "experiment_ids": [EXPERIMENT],
            "filter": f"run_id IN ('{run_id(2)}','{run_id(6)}')",
            "run_view_type": "ALL",
        },
        prefix="/ajax-api/2.0/mlflow/",
    ),
    "of the page, by user": fast(
        "runs/search",
        {
            "experiment_ids": [EXPERIMENT],
            "filter": "",
            "order_by": ["tags.`mlflow.user` DESC"],
            "run_view_type": "ACTIVE_ONLY",
            "max_results": 100,
        },
        prefix="/ajax-api/2.0/mlflow/",
    ),
    "of the page, of the last hours": fast(
        "runs/search",
        {
            "experiment_ids": [EXPERIMENT],
            "filter": f"attributes.start_time >= {START + 4000}",
            "order_by": ["attributes.start_time DESC"],
            "run_view_type": "ACTIVE_ONLY",
            "max_results": 100,
        },
        prefix="/ajax-api/2.0/mlflow/",
    ),
    "of the page, with null": slow(
        "runs/search",
        {
            "experiment_ids": [EXPERIMENT],
            "order_by": ["attributes.start_time DESC"],
            "run_view_type": "ACTIVE_ONLY",
            "filter": None,
            "max_results": 100,
            "page_token": None,
        },
        prefix="/ajax-api/2.0/mlflow/",
    ),
    "nothing but the experiment": fast("runs/search", {"experiment_ids": [EXPERIMENT]}),
    "an empty experiment": fast("runs/search", {"experiment_ids": [EMPTY]}),
    "two experiments": search(experiment_ids=[EXPERIMENT, OTHER]),
    "two experiments, the other way round": search(experiment_ids=[OTHER, EXPERIMENT]),
    "an experiment twice": search(experiment_ids=[EXPERIMENT, EXPERIMENT]),
    "three experiments, one unknown": search(experiment_ids=[EXPERIMENT, "1999999999", OTHER]),
    "an unknown experiment": search(experiment_ids=["1999999999"]),
    "no experiment": search(slow, experiment_ids=[]),
    "no experiments at all": search(slow, without="experiment_ids"),
    "experiments null": search(slow, experiment_ids=None),
    "experiment as a number": slow("runs/search", b'{"experiment_ids": [<experiment 1>]}'),
    "experiments as text": search(slow, experiment_ids=EXPERIMENT),
    "experiment a word": search(slow, experiment_ids=["a"]),
    "experiment empty": search(slow, experiment_ids=[""]),
    "experiment null": search(slow, experiment_ids=[None]),
    "experiment with a blank": search(slow, experiment_ids=[" <experiment 1>"]),
    "experiment with a zero before": search(slow, experiment_ids=["0<experiment 1>"]),
    "experiment beyond int32": search(slow, experiment_ids=["3000000000"]),
    "experiment negative": search(slow, experiment_ids=["-1"]),
    "active": search(run_view_type="ACTIVE_ONLY"),
    "deleted": search(run_view_type="DELETED_ONLY"),
    "all": search(run_view_type="ALL"),
    "view as a number": search(slow, run_view_type=2),
    "view unknown": search(slow, run_view_type="EVERY"),
    "view in lower case": search(slow, run_view_type="all"),
    "view empty": search(run_view_type=""),
    "view null": search(slow, run_view_type=None),
    "0 results": search(slow, max_results=0),
    "1 result": search(max_results=1),
    "2 results": search(max_results=2),
    "exactly all": search(max_results=27),
    "one less than all": search(max_results=26),
    "one more than all": search(max_results=28),
    "1000 results": search(max_results=1000),
    "10,000 results": search(max_results=10_000),  # mlflow.search_runs
    "10,001 results": search(slow, max_results=10_001),
    "50000 results": search(slow, max_results=50000),
    "50001 results": search(slow, max_results=50001),
    "-1 results": search(slow, max_results=-1),
    "results beyond int32": search(slow, max_results=2147483648),
    "results in quotes": search(slow, max_results="2"),
    "results as a whole float": search(slow, max_results=2.0),
    "results as a float": search(slow, max_results=2.5),
    "results true": search(slow, max_results=True),
    "results null": search(slow, max_results=None),
    "results empty": search(slow, max_results=""),
    "token empty": search(page_token=""),
    "token null": search(slow, page_token=None),
    "token of 3": search(page_token=token(3)),
    "token beyond the end": search(page_token=token(1000)),
    "token of 0": search(slow, page_token=token(0)),
    "token negative": search(slow, page_token=token(-1)),
    "token with text": search(slow, page_token=token("3")),
    "token with a float": search(slow, page_token=token(3.7)),
    "token true": search(slow, page_token=token(True)),
    "token huge": search(slow, page_token=token(2**63)),
    "token with more": search(slow, page_token=base64.b64encode(b'{"offset": 3, "a": 1}').decode()),
    "token with other blanks": search(slow, page_token=base64.b64encode(b'{"offset":3}').decode()),
    "token without offset": search(slow, page_token=base64.b64encode(b"{}").decode()),
    "token a list": search(slow, page_token=base64.b64encode(b"[]").decode()),
    "token no base64": search(slow, page_token="%%%"),
    "token cut off": search(slow, page_token=token(3)[:-1]),
    "token with line ends": search(slow, page_token=token(3)[:4] + "\n" + token(3)[4:]),
    "token with odd characters": search(slow, page_token=token(3)[:4] + "*" + token(3)[4:]),
    "token a number": search(slow, page_token=3),
    "unknown key": search(slow, more=1),
    "camel case": slow("runs/search", {"experimentIds": [EXPERIMENT], "maxResults": 3}),
    "both spellings": slow("runs/search", {"experiment_ids": [EXPERIMENT], "experimentIds": [EXPERIMENT]}),
    "order null": search(slow, order_by=None),
    "order text": search(slow, order_by="start_time"),
    "order with null": search(slow, order_by=[None]),
    "order with a number": search(slow, order_by=[1]),
    "filter null": search(slow, filter=None),
    "filter a number": search(slow, filter=1),
}

ORDERS = {
    "none": by(),
    "start": by("start_time"),
    "start asc": by("start_time ASC"),
    "start desc": by("start_time DESC"),
    "start in lower case": by("start_time desc"),
    "start in mixed case": by("start_time Desc", how=slow),
    "attribute.start": by("attribute.start_time ASC"),
    "attributes.start": by("attributes.start_time ASC"),
    "attr.start": by("attr.start_time ASC"),
    "run.start": by("run.start_time ASC", how=slow),
    "start in backquotes": by("`start_time` ASC", how=slow),
    "attributes in backquotes": by("attributes.`start_time` ASC"),
    "attributes in quotes": by('attributes."start_time" ASC'),
    "all in backquotes": by("`attributes`.`start_time` ASC", how=slow),
    "created": by("created DESC", how=slow),
    "metric created": by("metrics.created DESC", how=slow),
    "param run name": by("params.`run name`", how=slow),
    "Created": by("attributes.Created ASC", how=slow),
    "end": by("attributes.end_time ASC"),
    "status": by("attributes.status ASC"),
    "status bare": by("status DESC", how=fast),
    "name": by("attributes.run_name ASC"),
    "name with a blank": by("attributes.`Run name` DESC", how=slow),
    "user": by("attributes.user_id DESC"),
    "artifact uri": by("attributes.artifact_uri"),
    "run id": by("attributes.run_id", how=slow),
    "experiment id": by("attributes.experiment_id", how=slow),
    "metric asc": by("metrics.loss ASC"),
    "metric desc": by("metrics.loss DESC"),
    "metric": by("metric.loss"),
    "metric in backquotes": by("metrics.`val/acc 1` ASC"),
    "metric in quotes": by('metrics."val/acc 1" DESC'),
    "metric that nobody has": by("metrics.none DESC"),
    "param": by("params.optimizer ASC"),
    "param desc": by("params.optimizer DESC"),
    "parameter": by("parameter.lr ASC"),
    "parameters": by("parameters.lr DESC"),
    "tag": by("tags.team DESC"),
    "tag with a dot": by("tags.`mlflow.parentRunId` ASC"),
    "tag with a dot, bare": by("tags.mlflow.parentRunId ASC"),
    "tag with a word of SQL between dots": by("tags.mlflow.values.a ASC", how=slow),
    "two": by("params.lr ASC", "metrics.loss DESC"),
    "three": by("params.lr DESC", "attributes.status ASC", "attributes.start_time ASC"),
    "start twice": by("start_time", "start_time DESC", how=slow),
    "metric twice": by("metrics.loss", "metrics.loss DESC", how=slow),
    "metric and param of one name": by("metrics.lr", "params.lr"),
    "dataset": by("dataset.name", how=slow),
    "empty": by("", how=slow),
    "blank": by(" ", how=slow),
    "word": by("loss", how=slow),
    "unknown kind": by("model.loss", how=slow),
    "unknown way": by("metrics.loss UP", how=slow),
    "three words": by("metrics.loss ASC DESC", how=slow),
    "comma": by("metrics.loss, params.lr", how=slow),
    "semicolon": by("metrics.loss;", how=slow),
    "injection": by("metrics.loss; DROP TABLE runs", how=slow),
    "nulls first": by("metrics.loss ASC NULLS FIRST", how=slow),
    "blank before": by(" metrics.loss ASC", how=slow),
    "blank after": by("metrics.loss ASC ", how=slow),
    "two blanks": by("metrics.loss  ASC", how=slow),
    "tab": by("metrics.loss\tASC", how=slow),
    "open backquote": by("metrics.`loss", how=slow),
    "open quote": by("metrics.'loss", how=slow),
    "single quotes": by("metrics.'loss' ASC", how=slow),
    "asc as a name": by("metrics.asc DESC", how=fast),
    "a keyword as a name": by("metrics.order DESC", how=fast),
    "a number as a name": by("metrics.1 DESC", how=slow),
    "a name that begins with a digit": by("metrics.1a DESC", how=slow),
    "a name with a dash": by("metrics.a-b DESC", how=slow),
    "a name with a slash": by("metrics.a/b DESC", how=slow),
    "unicode": by("metrics.größe DESC", how=slow),
    "function": by("count(metrics.loss)", how=slow),
}

LITERALS = (
    ".5",
    "5.",
    "1e-300",
    "1E5",
    "+1",
    "1_0",
    "0x1",
    "1e400",
    "'0.5'",
    '"0.5"',
    "NaN",
    "abc",
)
FILTERS = {
    **{
        f"metric {compare}": where(f"metrics.loss {compare} 0.5")
        for compare in (">", ">=", "<", "<=", "=", "!=")
    },
    **{
        f"metric {compare} without blanks": where(f"metrics.loss{compare}0.5", slow)
        for compare in (">", "!=")
    },
    "metric <>": where("metrics.loss <> 0.5", slow),
    "metric ==": where("metrics.loss == 0.5", slow),
    "metric LIKE": where("metrics.loss LIKE '0.5'", slow),
    "metric IN": where("metrics.loss IN (0.5)", slow),
    "metric IS NULL": where("metrics.loss IS NULL", slow),
    **{f"metric = {literal}": where(f"metrics.loss = {literal}") for literal in ("0", "0.5", "-1", "-0")},
    **{f"metric = {literal}": where(f"metrics.loss = {literal}", slow) for literal in LITERALS},
    "metric != 0 with NaN": where("metrics.loss != 0"),
    "metric > -1 with infinities": where("metrics.loss > -1"),
    "metric singular": where("metric.loss > 0"),
    "metric in backquotes": where("metrics.`val/acc 1` > 0"),
    "metric in quotes": where('metrics."val/acc 1" > 0'),
    "metric that nobody has": where("metrics.none > 0"),
    "metric bare": where("loss > 0", slow),
    **{
        f"param {compare}": where(f"params.optimizer {compare} 'adam'")
        for compare in ("=", "!=", "LIKE", "ILIKE")
    },
    "param >": where("params.lr > '0.1'", slow),
    "param IN": where("params.optimizer IN ('adam', 'sgd')", slow),
    "param IS NULL": where("params.optimizer IS NULL", slow),
    "param IS NOT NULL": where("params.optimizer IS NOT NULL", slow),
    "param is null in lower case": where("params.optimizer is null", slow),
    "param like in lower case": where("params.optimizer like 'a%'", slow),
    "param LIKE with %": where("params.optimizer LIKE 'a%'"),
    "param LIKE with _": where("params.optimizer LIKE 'a_b'"),
    "param LIKE with backslash": where(r"params.optimizer LIKE 'a\_b'", slow),
    "param LIKE that ends with a backslash": where("params.optimizer LIKE 'a\\'", slow),
    "param ILIKE with %": where("params.optimizer ILIKE 'A%'"),
    "param ILIKE with umlauts": where("params.optimizer ILIKE 'GRÖSSE'"),
    "param ILIKE with capital umlauts": where("params.optimizer ILIKE 'GRÖßE'"),
    "param in double quotes": where('params.optimizer = "adam"', slow),
    "param unquoted": where("params.optimizer = adam", slow),
    "param a number": where("params.lr = 0.1", slow),
    "param empty": where("params.optimizer = ''"),
    "param with a blank after": where("params.optimizer = 'adam '"),
    "param with a doubled quote": where("params.optimizer = 'a''b'", slow),
    "param with an escaped quote": where(r"params.optimizer = 'a\'b'", slow),
    "param with a quote in double quotes": where('params.optimizer = "a\'b"', slow),
    "param with a comment": where("params.optimizer = 'a--b'", fast),
    "param with a semicolon": where("params.optimizer = 'a;b'", slow),
    "param with AND in it": where("params.optimizer = 'a AND b'", slow),
    "param with and in it": where("params.optimizer = 'a and b'", slow),
    "param with a percent": where("params.optimizer = 'a%b'"),
    "param with a colon": where("params.optimizer = ':a'"),
    "param with a backquote": where("params.optimizer = '`'", slow),
    "param with a line end": where("params.optimizer = 'a\nb'", slow),
    "param unicode": where("params.optimizer = 'größe'"),
    "param singular": where("param.lr = '0.1'"),
    "parameter": where("parameter.lr = '0.1'"),
    "parameters": where("parameters.lr = '0.1'"),
    **{f"param of {len(value)} characters, {value[-1]}": where(f"params.long = '{value}'") for value in LONG},
    **{f"tag of {len(value)} characters, {value[-1]}": where(f"tags.long = '{value}'") for value in LONG},
    "param that is another's beginning": where(f"params.long = '{LONG[1][:62]}'"),
    "tag": where("tags.team = 'adam'"),
    "tag singular": where("tag.team != 'adam'"),
    "tag LIKE": where("tags.team LIKE '%a%'"),
    "tag in backquotes": where(f"tags.`mlflow.parentRunId` = '{run_id(1)}'"),
    "tag with dots, bare": where(f"tags.mlflow.parentRunId = '{run_id(1)}'"),
    "tag with a word of SQL between dots": where("tags.mlflow.from.a = 'x'", slow),
    "tag with a word of SQL after dots": where("tags.mlflow.select = 'x'"),
    "tag with a dot at the end": where("tags.mlflow. = 'x'", slow),
    "tag with two dots": where("tags.mlflow..a = 'x'", slow),
    "tag with a number after a dot": where("tags.mlflow.1 = 'x'", slow),
    "tag in quotes": where(f"tags.\"mlflow.parentRunId\" = '{run_id(1)}'"),
    "tag IS NULL": where("tags.`mlflow.parentRunId` IS NULL", slow),
    "tag IN": where("tags.team IN ('adam')", slow),
    "tag run name": where("tags.`mlflow.runName` LIKE 'run%'"),
    "status": where("attributes.status = 'FINISHED'"),
    "status bare": where("status = 'FINISHED'", fast),
    "status !=": where("attributes.status != 'FINISHED'"),
    "status LIKE": where("attribute.status LIKE 'F%'"),
    "status IN": where("attributes.status IN ('FINISHED', 'FAILED')", slow),
    "status unknown": where("attributes.status = 'none'"),
    "user": where("attributes.user_id = 'ada'"),
    "user bare": where("user_id != 'ada'"),
    "name": where("attributes.run_name = 'run 2'"),
    "name bare": where("run_name LIKE 'run%'"),
    "name, other spelling": where("attributes.`Run name` = 'run 2'", slow),
    "name !=": where("attributes.run_name != 'run 2'"),
    "start >": where(f"attributes.start_time > {START + 4000}"),
    "start bare": where(f"start_time <= {START + 4000}"),
    "start = float": where(f"attributes.start_time = {START}.0", slow),
    "start in quotes": where(f"attributes.start_time > '{START}'", slow),
    **{
        f"{kind}.{alias}": where(f"{kind}.`{alias}` {wanted}", slow)
        for kind, wanted in (("metrics", "> 1"), ("params", "= 'x'"), ("tags", "LIKE 'run%'"))
        for alias in ("created", "Created", "run name", "Run name", "Run Name")
    },
    "created": where(f"attributes.created > {START + 4000}", slow),
    "start LIKE": where("attributes.start_time LIKE '1%'", slow),
    "start beyond int64": where("attributes.start_time < 9223372036854775808", slow),
    "end": where(f"attributes.end_time >= {START + 2}"),
    "end of none": where("attributes.end_time != 0"),
    "artifact uri": where("attributes.artifact_uri LIKE 'mlflow-artifacts:%'"),
    "run id": where(f"attributes.run_id = '{run_id(2)}'"),
    "run id bare": where(f"run_id = '{run_id(2)}'", fast),
    "run id IN": where(f"attributes.run_id IN ('{run_id(2)}', '{run_id(6)}')"),
    "run id IN bare": where(f"run_id IN ('{run_id(2)}','{run_id(6)}')", fast),
    "run id in in lower case": where(f"attributes.run_id in ('{run_id(2)}')", slow),
    "run id NOT IN": where(f"attributes.run_id NOT IN ('{run_id(2)}', '{run_id(6)}')", slow),
    "run id IN of none": where("attributes.run_id IN ()", slow),
    "run id IN double quotes": where(f'attributes.run_id IN ("{run_id(2)}")', slow),
    "run id IN with a comma after": where(f"attributes.run_id IN ('{run_id(2)}',)", slow),
    "run id IN without blanks": where(f"attributes.run_id IN('{run_id(2)}')", slow),
    "run id LIKE": where("attributes.run_id LIKE '%0%'", fast),
    "lifecycle": where("attributes.lifecycle_stage = 'active'", slow),
    "experiment": where("attributes.experiment_id = '1'", slow),
    "two": where("metrics.loss > 0 AND params.optimizer = 'adam'"),
    "two of one metric": where("metrics.loss > 0 AND metrics.loss < 0.5"),
    "three": where("metrics.loss > -1 AND params.lr != '0.2' AND tags.team LIKE '%a%'"),
    "four": where(
        "metrics.loss > -1 AND params.lr != '0.2' AND tags.team LIKE '%a%' AND attributes.status = 'FINISHED'"
    ),
    "and in lower case": where("metrics.loss > 0 and params.lr = '0.1'"),
    "and in both cases": where("metrics.loss > 0 and params.lr = '0.1' AND tags.team LIKE '%a%'"),
    "And with a capital": where("metrics.loss > 0 And params.lr = '0.1'", slow),
    "OR": where("metrics.loss > 0 OR params.lr = '0.1'", slow),
    "NOT": where("NOT metrics.loss > 0", slow),
    "parentheses": where("(metrics.loss > 0)", slow),
    "AND at the end": where("metrics.loss > 0 AND", slow),
    "AND at the start": where("AND metrics.loss > 0", slow),
    "AND twice": where("metrics.loss > 0 AND AND params.lr = '0.1'", slow),
    "AND without blanks": where("metrics.loss > 0AND params.lr = '0.1'", slow),
    "line ends": where("metrics.loss > 0\nAND\tparams.lr = '0.1'", slow),
    "two blanks": where("metrics.loss  >  0  AND  params.lr = '0.1'", slow),
    "blanks around": where("  metrics.loss > 0  ", slow),
    "the other way round": where("0 < metrics.loss", slow),
    "two columns": where("metrics.loss = metrics.acc", slow),
    "comma": where("metrics.loss > 0, params.lr = '0.1'", slow),
    "semicolon": where("metrics.loss > 0;", slow),
    "two statements": where("metrics.loss > 0; SELECT 1", slow),
    "comment after": where("metrics.loss > 0 -- x", slow),
    "comment inside": where("metrics.loss /* x */ > 0", slow),
    "model.": where("model.loss > 0", slow),
    "dataset name": where("dataset.name = 'd'", slow),
    "datasets digest IN": where("datasets.digest IN ('d')", slow),
    "dataset unknown key": where("dataset.source = 'd'", slow),
    "a word": where("abc", slow),
    "a blank": where(" ", slow),
    "nonsense": where("!!", slow),
    "open quote": where("params.lr = '0.1", slow),
    "open backquote": where("params.`lr = '0.1'", slow),
    "upper kind": where("METRICS.loss > 0", slow),
    "kind in backquotes": where("`metrics`.loss > 0", slow),
    "all in backquotes": where("`metrics.loss` > 0", slow),
    "a keyword as a name": where("metrics.order > 0", fast),
    "a digit first": where("metrics.1loss > 0", slow),
    "a number as a name": where("metrics.1 > 0", slow),
    "a dash in a name": where("metrics.val-loss > 0", slow),
    "a slash in a name": where("metrics.val/acc > 0", slow),
    "name with a blank": where("metrics.val acc > 0", slow),
    "unicode name": where("metrics.größe > 0", slow),
    "NUL": where("params.lr = '\0'", slow),
    "eight": where(" AND ".join("metrics.loss > -1" for _ in range(8))),
    "sixty": where(" AND ".join("metrics.loss > -1" for _ in range(60)), slow),
    "a string with a keyword": where("params.optimizer = 'SELECT'"),
    "current time": where("params.lr = CURRENT_TIMESTAMP", slow),
    "asc after": where("metrics.loss > 0 ASC", slow),
    "limit after": where("metrics.loss > 0 LIMIT 1", slow),
    "type word as a name": where("params.date = 'a'", fast),
    "value as a name": where("params.value = 'a'", fast),
    "key as a name": where("tags.key = 'a'", fast),
    "name as a name": where("tags.name = 'a'", fast),
    "user as a name": where("tags.user = 'a'", fast),
    "end as a name": where("params.end = 'a'", fast),
    "in as a name": where("params.in = 'a'", slow),
    "underscore first": where("params._a = 'a'", fast),
}


def send(pair: Pair, seed: Seed, steps: list[Step]) -> None:
    """Send searches; they write nothing, which the last test of the suite shows."""
    pair.begin_in(seed)
    for step in steps:
        pair.send(step)


@cases(CALLS)
def test_calls(pair: Pair, seed: Seed, steps: list[Step]) -> None:
    send(pair, seed, steps)


@cases(ORDERS)
def test_orders(pair: Pair, seed: Seed, steps: list[Step]) -> None:
    send(pair, seed, steps)


@cases(FILTERS)
def test_filters(pair: Pair, seed: Seed, steps: list[Step]) -> None:
    send(pair, seed, steps)


OF_OLD_RUNS = {
    "all": slow("runs/search", {"experiment_ids": [OLD]}),
    "by start": slow("runs/search", {"experiment_ids": [OLD], "order_by": ["start_time ASC"]}),
    "by name": slow("runs/search", {"experiment_ids": [OLD], "order_by": ["attributes.run_name ASC"]}),
    "named by their tag": slow(
        "runs/search", {"experiment_ids": [OLD], "filter": "attributes.run_name = 'old name'"}
    ),
    "beside others": slow(
        "runs/search", {"experiment_ids": [OLD, EXPERIMENT, OTHER], "run_view_type": "ALL"}
    ),
    "with a start": slow("runs/search", {"experiment_ids": [OLD], "filter": "attributes.start_time >= 0"}),
    "one without a user": slow("runs/search", {"experiment_ids": [BROKEN]}),
    "one without a user, after the page": slow("runs/search", {"experiment_ids": [BROKEN], "max_results": 2}),
    "one without a start": slow("runs/search", {"experiment_ids": [BROKEN], "run_view_type": "DELETED_ONLY"}),
    "one without a user, on the next page": fast(
        "runs/search", {"experiment_ids": [BROKEN], "max_results": 1}
    ),
    "read, with a name": fast("runs/get", query=f"run_id={run_id(36)}"),
    "read, with an empty name": slow("runs/get", query=f"run_id={run_id(40)}"),
    "read, without a name": slow("runs/get", query=f"run_id={run_id(45)}"),
    "read, without a user": slow("runs/get", query=f"run_id={run_id(50)}"),
    "read, without a start": slow("runs/get", query=f"run_id={run_id(51)}"),
    **{
        f"page {number}": either(
            "runs/search", {"experiment_ids": [OLD], "max_results": 2, "page_token": token(number)}
        )
        for number in (2, 4, 6, 8, 10)
    },
}

WALKS = [
    {},
    {"experiment_ids": [OLD, EXPERIMENT]},
    {"order_by": ["start_time ASC"]},
    {"order_by": ["metrics.loss DESC"]},
    {"order_by": ["params.lr ASC", "attributes.end_time DESC"], "run_view_type": "ALL"},
    {"experiment_ids": [EXPERIMENT, OTHER], "filter": "metrics.loss != 0.5"},
]


@cases(OF_OLD_RUNS)
def test_runs_as_older_mlflows_left_them(pair: Pair, seed: Seed, steps: list[Step]) -> None:
    send(pair, seed, steps)


@pytest.mark.parametrize("page", [1, 4, 27])
@pytest.mark.parametrize("given_fields", WALKS, ids=["default", "old", "start", "metric", "two", "filter"])
def test_all_pages(pair: Pair, seed: Seed, given_fields: dict[str, Any], page: int) -> None:
    pair.begin_in(seed)
    how = either if OLD in given_fields.get("experiment_ids", ()) else fast
    seen: list[str] = []
    page_token = ""
    for _ in range(60):
        said = pair.send(search(how, **given_fields, max_results=page, page_token=page_token))
        seen += [run["info"]["run_id"] for run in said.get("runs", [])]
        if "next_page_token" not in said:
            break
        page_token = token(said["next_page_token"]["page token"]["offset"])
    everything = pair.send(search(how, **given_fields, max_results=1000))
    assert seen == [run["info"]["run_id"] for run in everything["runs"]]
    assert len(seen) > 10


MANY = f"""
CREATE TEMP TABLE many AS SELECT md5('many ' || n) AS id, n FROM generate_series(1, 2300) AS n;
INSERT INTO runs ({RUN_COLUMNS}) SELECT id, 'run ' || n, 'UNKNOWN', '', '', 'ada', 'FINISHED',
    {START} + n / 3, {START} + n, '', CASE n % 50 WHEN 0 THEN 'deleted' ELSE 'active' END,
    'mlflow-artifacts:/many/' || id || '/artifacts', {{experiment}} FROM many;
INSERT INTO latest_metrics (run_uuid, key, value, timestamp, step, is_nan)
    SELECT id, 'loss', n % 100 / 8.0, {START} + n, n, n % 40 = 39 FROM many WHERE n % 7 <> 0;
INSERT INTO params (run_uuid, key, value)
    SELECT id, 'size', CASE WHEN n % 900 = 5 THEN 'größe' ELSE (n % 4)::text END FROM many;
INSERT INTO tags (run_uuid, key, value) SELECT id, 'mlflow.runName', 'run ' || n FROM many;
DROP TABLE many
"""


@pytest.fixture(scope="module")
def many(pair: Pair) -> Seed:
    """An experiment of more runs than are read at once."""
    pair.begin(run=False)
    found = {}
    for side in pair.sides:
        found[side.name] = [side.names.fill(EXPERIMENT.encode()).decode()]
        side.tables.execute(MANY.format(experiment=found[side.name][0]))
    return found


LARGE = {
    "default": {},
    "of all stages": {"run_view_type": "ALL", "order_by": ["attributes.start_time ASC"]},
    "by a metric": {"order_by": ["metrics.loss DESC"]},
    "filter": {"filter": "metrics.loss < 10 and params.size != '2'"},
}


@pytest.mark.parametrize("given_fields", LARGE.values(), ids=list(LARGE))
def test_large_pages(pair: Pair, many: Seed, given_fields: dict[str, Any]) -> None:
    pair.begin_in(many)
    everything = pair.send(search(**given_fields, max_results=10_000))
    assert len(everything["runs"]) > 1100
    first = pair.send(search(**given_fields, max_results=1050))
    rest = pair.send(search(**given_fields, max_results=10_000, page_token=token(1050)))
    assert first["runs"] + rest["runs"] == everything["runs"]


NAMES = [
    "loss",
    "`val/acc 1`",
    "lr",
    "optimizer",
    "team",
    "`mlflow.runName`",
    "none",
    "status",
    "start_time",
    "end_time",
]
KINDS = ["metrics", "metric", "params", "param", "tags", "tag", "attributes", "attribute", "run", "dataset"]
VALUES = [
    "0",
    "0.5",
    "-1",
    "1e3",
    "'adam'",
    "'a%'",
    '"sgd"',
    "''",
    f"'{run_id(2)}'",
    f"{START + 4000}",
    f"('{run_id(2)}')",
]
COMPARES = ["=", "!=", ">", ">=", "<", "<=", "LIKE", "ILIKE", "IN", "NOT IN"]
clauses = st.builds(
    "{}.{}{}{}{}{}".format,
    st.sampled_from(KINDS),
    st.sampled_from(NAMES),
    st.sampled_from([" "] * 6 + [""]),
    st.sampled_from(COMPARES),
    st.sampled_from([" "] * 6 + [""]),
    st.sampled_from(VALUES),
)
filters = st.builds(
    lambda word, some: word.join(some), st.sampled_from([" AND ", " and "]), st.lists(clauses, max_size=3)
)
orders = st.lists(
    st.builds(
        "{}.{}{}".format,
        st.sampled_from(KINDS),
        st.sampled_from([*NAMES, "run_name", "user_id"]),
        st.sampled_from(["", " ASC", " DESC"]),
    ),
    max_size=2,
)
searches = st.fixed_dictionaries(
    {"experiment_ids": st.sampled_from([[EXPERIMENT], [EXPERIMENT, OTHER], [EMPTY], [OLD]])},
    optional={
        "filter": filters,
        "order_by": orders,
        "max_results": st.sampled_from([1, 3, 100]),
        "run_view_type": st.sampled_from(["ACTIVE_ONLY", "DELETED_ONLY", "ALL"]),
        "page_token": st.sampled_from(["", token(2)]),
    },
)


def test_random_searches(pair: Pair, seed: Seed) -> None:
    count = itertools.count()
    examples = {"ci": 200}.get(os.environ.get("HYPOTHESIS_PROFILE", "ci"), 5000)

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(body=searches)
    def check(body: dict[str, Any]) -> None:
        next(count)
        pair.begin_in(seed)
        pair.send(either("runs/search", body))

    before = dict(pair.answered)
    check()
    if pair.tells:
        assert pair.answered["fast"] - before["fast"] > next(count) / 10
