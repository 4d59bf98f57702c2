"""What ./stack bench makes of its measurements, and the client's side of them; without any of its servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import psycopg2
import pytest
import yaml

import canned
import client_calls
import compare
import figures
import peers
import pgbench
import processes
import report
import seeding
import transfers
from figures import Measure, Measured, Sample, Spread, sample
from kit.mlflow_tables import mlflow_tables
from kit.stack import ROOT
from rows import ROWS
from rows.client import canned as canned_server
from rows.row import Bench, Options, Row, client_process

RATE, LATENCY = Measure("runs/s", "more"), Measure("p50, ms", "less")


def one(server: str, number: int, case: str = "10 clients", **more: Any) -> Sample:
    values = {"runs/s": more.pop("rate", 1.0), "p50, ms": more.pop("ms", 1.0)}
    return sample(
        Measured(values, **more), row="flow", case=case, server=server, round=number, load_average=1.5
    )


# Medians, ratios


def test_a_spread_is_the_median_and_the_extremes() -> None:
    assert figures.spread([3, 1, 2]) == Spread(2, 1, 3, 3)
    assert figures.spread([4, 1, 2, 3]) == Spread(2.5, 1, 4, 4)
    assert figures.spread([]) is None


@pytest.mark.parametrize(("part", "expected"), [(0, 1), (0.5, 51), (0.99, 100), (1, 100)])
def test_a_quantile_is_one_of_the_values(part: float, expected: int) -> None:
    assert figures.quantile(list(range(100, 0, -1)), part) == expected


def test_a_quantile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        figures.quantile([], 0.5)


def test_a_ratio_compares_each_round_with_itself() -> None:
    """The machine was three times as slow in round 1: the ratio of the medians would say 4, not 2."""
    samples = [one("stock", 0, rate=30), one("stock", 1, rate=10), one("stock", 2, rate=15)]
    samples += [one("ours", 0, rate=60), one("ours", 1, rate=20), one("ours", 2, rate=75)]
    assert figures.times_better(samples, "10 clients", "ours", RATE) == Spread(2, 2, 5, 3)


def test_less_of_a_latency_is_better() -> None:
    samples = [one("stock", 0, ms=10), one("ours", 0, ms=4)]
    assert figures.times_better(samples, "10 clients", "ours", LATENCY) == Spread(2.5, 2.5, 2.5, 1)


def test_a_ratio_uses_only_rounds_that_have_both() -> None:
    samples = [one("stock", 0, rate=10), one("ours", 0, rate=20), one("ours", 1, rate=500)]
    assert figures.times_better(samples, "10 clients", "ours", RATE) == Spread(2, 2, 2, 1)
    assert figures.times_better(samples, "10 clients", "fasttrack", RATE) is None
    assert figures.times_better(samples, "1 client", "ours", RATE) is None


def test_a_server_that_did_nothing_is_no_divisor() -> None:
    samples = [one("stock", 0, rate=0), one("ours", 0, rate=20)]
    assert figures.times_better(samples, "10 clients", "ours", RATE) is None


# Tables


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.0123, "0.012"),
        (0.9996, "1.00"),
        (9.996, "10.0"),
        (99.96, "100"),
        (12.34, "12.3"),
        (12345.6, "12,346"),
        (-1.234, "-1.23"),
    ],
)
def test_a_number_has_three_digits_that_count(value: float, expected: str) -> None:
    assert figures.number(value) == expected


def test_a_table_shows_medians_ranges_ratios_processor_time_and_every_error() -> None:
    samples = [
        one("stock", 0, rate=10, cpu_ms={"stock": 6.0, "postgres": 1.0, "load": 0.05}, requests=100),
        one("stock", 1, rate=20, cpu_ms={"stock": 8.0, "postgres": 1.0}, requests=100, errors={"500": 2}),
        one("ours", 0, rate=50, cpu_ms={"nginx": 0.05, "postgres": 0.1}, requests=1000),
        one("ours", 1, rate=60, cpu_ms={"nginx": 0.05, "postgres": 0.1}, requests=1000),
    ]
    samples[1].errors["timeout"] = 1
    assert figures.table_of(samples, [RATE]).splitlines() == [
        "|  | server | runs/s | times better than MLflow | CPU ms a request | errors |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 10 clients | this stack | 55.0 [50.0-60.0] | 4.00 [3.00-5.00]"
        " | 0.150 = nginx 0.050 + postgres 0.100 | 0 of 2,000 |",
        "| 10 clients | MLflow | 15.0 [10.0-20.0] | 1 | 8.00 = stock 7.00 + postgres 1.00 (load 0.050)"
        " | 3 of 200: 2 x 500, 1 x timeout |",
    ]


def test_a_table_says_why_a_server_has_no_figures() -> None:
    failed = sample(
        Measured(note="ENDPOINT_NOT_FOUND"), row="client", case="register", server="fasttrack", round=0
    )
    line = figures.table_of([failed], [LATENCY]).splitlines()[-1]
    assert line == "| register | FastTrackML | ENDPOINT_NOT_FOUND | - |"


def test_what_was_measured_of_the_limit_alone_has_no_latency_and_no_ratio_of_it() -> None:
    limit = sample(Measured({"runs/s": 600}), row="flow", case="10 clients", server="limit", round=0)
    line = figures.table_of([one("stock", 0, rate=20), limit], [RATE, LATENCY]).splitlines()[-1]
    assert line == "| 10 clients | PostgreSQL itself | 600 | - | 30.0 |"


def test_the_calls_of_a_client_are_counted_by_route() -> None:
    def calls(*ms: float) -> list[dict[str, Any]]:
        return [{"method": "POST", "route": "/runs/create", "ms": each, "status": 200} for each in ms]

    samples = [one("ours", 0, "log_model", calls=calls(1, 2)), one("ours", 1, "log_model", calls=calls(3, 4))]
    samples.append(one("stock", 0, "log_model", calls=calls(50)))
    assert figures.table_of_calls(samples).splitlines()[2:] == [
        "| log_model | `POST /runs/create` | 2 x, 5.00 ms | 1 x, 50.0 ms |"
    ]


# Saving


def a_run(*samples: Sample) -> dict[str, Any]:
    machine = {"processor": "a processor", "cores": 2, "memory_gb": 24.0, "kernel": "6.1", "engine": "28"}
    found = samples or (one("ours", 0, rate=50), one("stock", 0, rate=10), one("limit", 0, rate=100))
    return report.run_of(
        found,
        Options(),
        machine=machine,
        memory_mb={"ours": 300.0},
        date="2026-11-22 10:00:00",
        revision="abc",
    )


def test_a_saved_run_reads_back_as_it_was(tmp_path: Path) -> None:
    run = a_run(one("ours", 0, cpu_ms={"nginx": 0.1}, errors={"500": 1}, requests=7, note="x"))
    path = report.save(run, ROWS, tmp_path)
    assert path.name == "20261122T100000.json"
    assert json.loads(path.read_text()) == run
    assert figures.from_json(run["samples"])[0].errors == {"500": 1}
    said = path.with_suffix(".md").read_text()
    assert "2 cores (a processor), 24.0 GB" in said
    assert f"### {ROWS['flow'].title}" in said
    assert ROWS["search"].title not in said


def test_the_figures_take_their_place_in_the_page_and_nothing_else_changes(tmp_path: Path) -> None:
    page, chart = tmp_path / "performance.md", tmp_path / "performance.svg"
    page.write_text(f"# Head\n\n{report.BEGIN}\nold\n{report.END}\n\nfoot\n")
    for _ in range(2):  # written anew, not added
        report.save_docs([a_run()], ROWS, page, chart)
        text = page.read_text()
        assert text.startswith(f"# Head\n\n{report.BEGIN}\n## Figures\n\n![")
        assert text.endswith(f"\n{report.END}\n\nfoot\n")
        assert "old" not in text
        assert text.count("| 10 clients | this stack | 50.0 |") == 1
    with pytest.raises(ValueError, match="the page has no"):
        report.between_marks("# Head\n", "x")


def test_rows_of_two_runs_stand_in_one_page(tmp_path: Path) -> None:
    page, chart = tmp_path / "performance.md", tmp_path / "performance.svg"
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    search = sample(Measured({"p50, ms": 5.0}), row="search", case="10 runs", server="ours", round=0)
    report.save_docs([a_run(search), a_run()], ROWS, page, chart)
    text = page.read_text()
    assert text.index(ROWS["search"].title) < text.index(ROWS["flow"].title)
    assert text.count("Measured ") == 2
    assert chart.exists()


def test_the_page_of_this_repository_has_its_marks_once() -> None:
    text = report.PAGE.read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    assert report.between_marks(text, "x") != text


def test_the_chart_draws_every_bar_by_its_value() -> None:
    bars = report.bars_of(figures.from_json(a_run()["samples"]), "flow", "runs/s")
    assert bars == {"10 clients": {"ours": 50, "stock": 10, "limit": 100}}
    picture = ElementTree.fromstring(report.svg("Runs & more", bars))
    names = {"s": "http://www.w3.org/2000/svg"}
    widths = [int(bar.get("width")) for bar in picture.findall("s:rect", names)[1:]]
    assert widths == [210, 42, 420]
    words = [text.text for text in picture.findall("s:text", names)]
    assert words[0] == "Runs & more"
    assert {"this stack", "50.0", "MLflow", "10.0", "PostgreSQL itself", "100"} <= set(words)


def test_a_run_without_the_flow_draws_no_chart(tmp_path: Path) -> None:
    page, chart = tmp_path / "performance.md", tmp_path / "performance.svg"
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    only_search = sample(Measured({"p50, ms": 5.0}), row="search", case="10 runs", server="ours", round=0)
    report.save_docs([a_run(only_search)], ROWS, page, chart)
    assert not chart.exists()
    assert "performance.svg" not in page.read_text()


# Who is measured when


def test_the_servers_take_turns_and_each_round_begins_with_another_one() -> None:
    assert [compare.turned("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
    found = list(compare.order(ROWS["flow"], Options(rounds=5)))
    assert len(found) == 5 * 3 * 5
    for number in range(5):
        for step in ROWS["flow"].steps(Options()):
            of_it = [server for *where, server in found if where == [number, step]]
            assert sorted(of_it) == sorted(ROWS["flow"].servers)
    firsts = {server for number, step, server in found[:: len(ROWS["flow"].servers)]}
    assert firsts == set(ROWS["flow"].servers)


def test_who_is_not_measured_is_paused_also_if_another_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []

    def docker(verb: str, container: str, *, check: bool) -> None:
        told.append((verb, container))
        assert not check

    monkeypatch.setattr(peers, "docker", docker)
    stack = SimpleNamespace(containers=lambda service: [] if service == "auth" else [service])
    all_of_them = peers.Peers(stack, dict.fromkeys(("ours", "stock", "stockuv")), 0, "", "")
    with all_of_them.alone("ours"):
        assert told == [("pause", "stock"), ("pause", "stockuv")]
    assert told[2:] == [("unpause", "stock"), ("unpause", "stockuv")]
    del told[:]
    with pytest.raises(OSError, match="broken"), all_of_them.alone("stock"):
        raise OSError("broken")
    ours = ["nginx", "fastpath", "stockuv"]  # not its MLflow
    assert told == [(verb, container) for verb in ("pause", "unpause") for container in ours]


def measure_with(measure: Callable[..., dict[str, Measured]]) -> list[Sample]:
    row = Row("r", "R", ("ours", "stock"), (RATE,), lambda _: ["step"], measure)
    samples: list[Sample] = []
    all_at_once = SimpleNamespace(alone=nullcontext)
    compare.measure_row(Bench(all_at_once, Options(rounds=2), Path("load"), set()), row, samples)
    return samples


def test_a_measurement_that_fails_is_told_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(bench: Bench, server: str, step: str) -> dict[str, Measured]:
        if server == "stock":
            raise subprocess.TimeoutExpired("load", 5)
        return {"case": Measured({"runs/s": 3.0})}

    samples = measure_with(measure)
    assert [(each.server, each.round, each.errors) for each in samples] == [
        ("ours", 0, {}),
        ("stock", 0, {"failed": 1}),
        ("stock", 1, {"failed": 1}),
        ("ours", 1, {}),
    ]
    assert "TimeoutExpired" in samples[1].note
    assert "TimeoutExpired" in capsys.readouterr().err


def test_a_mistake_in_a_row_is_not_taken_for_a_server_that_failed() -> None:
    def measure(bench: Bench, server: str, step: str) -> dict[str, Measured]:
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        measure_with(measure)


@pytest.mark.parametrize(
    "words", [["speed"], ["flow", "x"], ["--rounds", "0"], ["--rounds", "x"], ["--save", "x"]]
)
def test_words_that_are_off_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        compare.parse(words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_verb_knows_the_rows() -> None:
    verb = (ROOT / "scripts/host/verbs/bench.sh").read_text()
    known = re.search(r"case \$name in ([a-z| ]+)\)", verb)[1].split(" | ")
    assert set(ROWS) == set(known)


def test_every_server_of_a_row_has_a_name_and_stock_is_among_them() -> None:
    for row in ROWS.values():
        assert set(row.servers) <= set(figures.LABELS)
        assert figures.BASE in row.servers
        assert set(row.peers) <= set(peers.PEERS)


def test_a_million_runs_are_for_two_servers() -> None:
    sizes = Options(long=True).sizes
    assert sizes == [10_000, 100_000, 1_000_000]
    names = ROWS["search"].servers
    assert [name for name in names if seeding.takes_part(name, sizes[-1])] == ["ours", "stock"]
    assert all(seeding.takes_part(name, size) for name in names for size in sizes[:-1])


# The servers


def test_the_other_servers_databases_are_let_in_beside_what_the_stack_lets_in(tmp_path: Path) -> None:
    path = peers._hba(tmp_path)
    own, added = path.read_text().rsplit("\n", 2)[:2]
    assert f"{own}\n" == (ROOT / "postgres/pg_hba.conf").read_text()
    assert added.split() == ["host", "stock,stockuv,fasttrack", "mlflow", "samenet", "scram-sha-256"]
    assert path.stat().st_mode & 0o777 == 0o644


def overlay() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "benchmarks/compose.yml").read_text())["services"]


def test_the_overlay_publishes_ports_of_this_machine_only_and_starts_nothing_by_itself() -> None:
    services = overlay()
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:${BENCH_") for port in ports)
    own = set(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])
    assert {name for name, service in services.items() if "profiles" not in service} <= own
    assert set(peers.PEERS) <= set(services)


def test_stock_mlflow_runs_none_of_the_stacks_own_code_and_differs_in_two_words() -> None:
    services = overlay()
    commands = {name: services[name]["command"] for name in ("stock", "stockuv")}
    assert all(services[name]["environment"]["PYTHONPATH"] == "" for name in commands)
    assert commands["stock"][-1] == "--uvicorn-opts=--loop asyncio --http h11"
    assert commands["stockuv"][-1] == "--uvicorn-opts=--loop uvloop --http httptools"
    assert [word.replace("stockuv", "stock") for word in commands["stockuv"][:-1]] == commands["stock"][:-1]


def test_only_this_stack_is_asked_with_a_login() -> None:
    ours = peers.Server("ours", 8080, "ann", "secret")
    stock = peers.Server("stock", 8081)
    assert (ours.authorization, stock.authorization) == ("Basic YW5uOnNlY3JldA==", "")
    assert ours.client_environment["MLFLOW_TRACKING_PASSWORD"] == "secret"
    assert "MLFLOW_TRACKING_PASSWORD" not in stock.client_environment
    assert [stock.url, ours.database, stock.database] == ["http://127.0.0.1:8081", "mlflow", "stock"]


# Processor time


def test_processor_time_is_shared_among_the_requests_and_a_restarted_group_is_left_out() -> None:
    before = {"nginx": 1.0, "mlflow": 50.0, "gone": 1.0}
    after = {"nginx": 1.5, "mlflow": 2.0, "new": 9.0}
    assert processes.per_request_ms(before, after, 1000) == {"nginx": 0.5}
    assert processes.per_request_ms(before, after, 0) == {}


BUSY = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"


def test_processor_time_counts_children_and_those_that_have_ended() -> None:
    run = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', {!r}])\n"
    child = run.format(BUSY) + BUSY + "print(1, flush=True)\ninput()"
    command = [sys.executable, "-c", run.format(child)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        assert processes.cpu_seconds(process.pid) >= 0.55  # a child's, and a child's child that has ended
        assert processes.memory_mb({"it": [process.pid]})["it"] > 5
        process.stdin.write("\n")
    assert processes.cpu_seconds(process.pid) == 0
    assert processes.seconds_by_group({"gone": [process.pid]}) == {"gone": 0}


def test_a_proxy_of_docker_is_known_by_its_port(tmp_path: Path) -> None:
    program = tmp_path / "docker-proxy"
    shutil.copy("/bin/sh", program)
    words = ("-proto", "tcp", "-host-port", "64321", "-container-port", "64322")
    command = [str(program), "-c", "echo 1; read line", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        assert processes.proxies_of(64321) == [process.pid]
        assert processes.proxies_of(64322) == processes.proxies_of(6432) == []
        process.stdin.write("\n")


# The limit

PGBENCH = """pgbench (17.6 (Debian 17.6-0+deb13u1))
transaction type: -
scaling factor: 1
query mode: prepared
number of clients: 10
number of threads: 1
maximum number of tries: 1
duration: 5 s
number of transactions actually processed: 3521
number of failed transactions: 4 (0.114%)
latency average = 14.196 ms
initial connection time = 10.316 ms
tps = 704.437092 (without initial connection time)
"""


def test_the_figures_of_pgbench_are_found() -> None:
    assert pgbench.parse(PGBENCH) == pgbench.Found(704.437092, 14.196, 3521, 4)


@pytest.mark.parametrize("line", ["tps = ", "latency average", "number of transactions", "number of failed"])
def test_a_report_of_pgbench_without_a_figure_is_an_error(line: str) -> None:
    text = "\n".join(each for each in PGBENCH.splitlines() if not each.startswith(line))
    with pytest.raises(ValueError, match="pgbench said nothing like"):
        pgbench.parse(text)


# SQL, in a real PostgreSQL


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a database with MLflow's tables."""
    with mlflow_tables() as uri:
        yield uri


def test_seeded_runs_are_runs_of_mlflow(database: str) -> None:
    from mlflow.entities import ViewType
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute(seeding.statements(300, "mlflow"))
    connection.close()
    store = SqlAlchemyStore(database.replace("postgresql://", "postgresql+psycopg2://"), "file:///tmp")
    experiment = store.get_experiment_by_name(seeding.experiment_name(300))
    found = {}
    for what, body in seeding.searches(experiment.experiment_id).items():
        found[what] = store.search_runs(
            body["experiment_ids"],
            body.get("filter", ""),
            ViewType.ACTIVE_ONLY,
            body["max_results"],
            body.get("order_by"),
        )
    newest = found["newest first"][0]
    assert newest.info.run_name == newest.data.tags["mlflow.runName"] == seeding.NEWEST
    assert [len(each) for each in (newest.data.metrics, newest.data.params, newest.data.tags)] == [10, 10, 4]
    assert [len(found[what]) for what in ("newest first", "by a metric")] == [100, 100]
    values = [run.data.metrics["m1"] for run in found["by a metric"]]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 90
    assert {run.data.params["p0"] for run in found["of a param's rare value"]} == {"7"}
    assert len(found["of a param's rare value"]) == seeding.OF_A_VALUE
    assert 0 < len(found["of a metric and a param"]) < 100
    for run in found["of a metric and a param"]:
        assert run.data.metrics["m1"] > 0.5
        assert run.data.params["p1"] == "3"


def test_indexes_that_are_put_away_come_back_as_they_were(database: str) -> None:
    described = (
        "SELECT tablename, indexname, indexdef, contype FROM pg_indexes"
        " LEFT JOIN pg_constraint ON conindid = indexname::regclass AND contype = 'p' ORDER BY 1, 2"
    )
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE INDEX one_more ON metrics (run_uuid) INCLUDE (value) WHERE step > 7")
        cursor.execute(described)
        before = cursor.fetchall()
        cursor.execute(seeding.INDEXES_AWAY)
        cursor.execute(described)
        left = {name for table, name, *_ in cursor.fetchall()}
        assert {name for table, name, *_ in before if table == "metrics"}.isdisjoint(left)
        assert "run_pk" in left
        cursor.execute(seeding.INDEXES_BACK)
        cursor.execute(described)
        assert cursor.fetchall() == before
    connection.close()


def test_what_pages_show_much_of_is_mlflows(database: str) -> None:
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute(seeding.chart_statements(2, 30))
        cursor.execute(seeding.script(seeding.MODELS, "mlflow"))
    connection.close()
    uri = database.replace("postgresql://", "postgresql+psycopg2://")
    store = SqlAlchemyStore(uri, "file:///tmp")
    run = store.get_run(seeding.chart_run(1))
    assert run.info.experiment_id == store.get_experiment_by_name(seeding.CHARTS).experiment_id
    assert set(run.data.metrics) == {"loss"}
    assert len(store.get_metric_history(seeding.chart_run(2), "loss")) == 30
    models = Registry(uri).search_registered_models(max_results=100)
    assert [model.name for model in models][:2] == [f"{seeding.MODEL}-0001", f"{seeding.MODEL}-0002"]
    assert [version.version for version in models[0].latest_versions] == [1]


def test_the_limit_leaves_the_rows_that_a_run_of_the_flow_leaves(database: str) -> None:
    """Statement by statement, with pgbench's variables put in as the parameters that it makes of them."""
    statements = [line for line in pgbench.FLOW.read_text().splitlines() if line.endswith(";")]
    assert len(statements) == 8  # one for each request
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
            " VALUES (0, 'Default', 'mlflow-artifacts:/0', 'active', 'default') ON CONFLICT DO NOTHING"
        )
        for statement in statements:
            cursor.execute(re.sub(r":(one|two)\b", r"%(\1)s::text", statement), {"one": 17, "two": 4})
        counts = {}
        for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
            cursor.execute(f"SELECT count(*) FROM {table} WHERE run_uuid = md5('17-4')")
            counts[table] = cursor.fetchone()[0]
        cursor.execute("SELECT status FROM runs WHERE run_uuid = md5('17-4')")
        assert cursor.fetchone() == ("FINISHED",)
    connection.close()
    assert counts == {"runs": 1, "tags": 5, "params": 2, "metrics": 3, "latest_metrics": 3}


# The client's side


def test_a_path_without_its_ids() -> None:
    run, model = "0123456789abcdef" * 2, "m-" + "0123456789abcdef" * 2
    base = "http://127.0.0.1:8080/api/2.0"
    assert client_calls.route(f"{base}/mlflow/runs/get?run_id={run}") == "/api/2.0/mlflow/runs/get"
    assert (
        client_calls.route(f"{base}/mlflow/logged-models/{model}/tags")
        == "/api/2.0/mlflow/logged-models/ID/tags"
    )
    path = f"{base}/mlflow-artifacts/artifacts/17/models/{model}/artifacts/MLmodel"
    assert client_calls.route(path) == "/api/2.0/mlflow-artifacts/artifacts/ID/models/ID/artifacts/MLmodel"


def test_metrics_of_batches_differ() -> None:
    points = [(metric.key, metric.step) for number in range(3) for metric in client_calls.batch(100, number)]
    assert len(set(points)) == 300
    assert len({key for key, _ in points}) == 10


@pytest.fixture
def at_once() -> Iterator[str]:
    with canned_server() as url:
        yield url


def test_the_client_gets_every_answer_from_the_server_that_answers_at_once(at_once: str) -> None:
    found = client_process({"MLFLOW_TRACKING_URI": at_once, "MLFLOW_DISABLE_TELEMETRY": "true"}, "calls", "3")
    assert {call for call, times in found.items() if not isinstance(times, list)} == set()
    assert all(len(times) == 3 and min(times) > 0 for times in found.values())
    assert len(found) == 9


def test_the_server_that_answers_at_once_knows_what_it_does_not_know() -> None:
    assert canned.answer("/api/2.0/mlflow/runs/get?run_id=1").startswith(b"HTTP/1.1 200 OK\r\n")
    assert canned.answer("/api/3.0/mlflow/server-info").startswith(b"HTTP/1.1 200 OK\r\n")
    assert canned.answer("/api/2.0/mlflow/runs/other").startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_a_client_process_that_fails_says_why(at_once: str) -> None:
    with pytest.raises(RuntimeError, match="the client ended with 1"):
        client_process({"MLFLOW_TRACKING_URI": at_once}, "calls", "many")


def test_a_call_that_a_server_does_not_have_is_told_and_no_figure_is_made_up() -> None:
    from mlflow.exceptions import MlflowException

    def call(number: int) -> None:
        if number == 2:
            raise MlflowException("ENDPOINT_NOT_FOUND: no\nmore")

    assert client_calls.ms_of(5, call) == "ENDPOINT_NOT_FOUND: no"


# The load generator (Go is in the image that builds it, not on every machine)


class Recorder(BaseHTTPRequestHandler):
    """Answers as MLflow does, and as the test wants."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet
    seen: list[tuple[str, dict[str, Any], str | None]]
    answer: Callable[[int], str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        route = self.path.removeprefix("/api/2.0/mlflow/")
        self.seen.append((route, body, self.headers["Authorization"]))
        what = type(self).answer(len(self.seen))
        if what == "close":
            self.close_connection = True
            return
        headers = {"X-Request-Id": "1"}
        text = json.dumps({"run": {"info": {"run_id": "r1"}}} if route == "runs/create" else {}).encode()
        if route == "runs/log-metric":
            headers["X-Answered-By"] = "fastpath"
        self.send_response(200 if what in {"ok", "chunked"} else int(what))
        for name, value in headers.items():
            self.send_header(name, value)
        if what == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"1\r\n%s\r\n%x;x=y\r\n%s\r\n0\r\n\r\n" % (text[:1], len(text) - 1, text[1:]))
            return
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def recorder(answer: Callable[[int], str]) -> Iterator[tuple[int, list[Any]]]:
    handler = type("Handler", (Recorder,), {"seen": [], "answer": staticmethod(answer)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], handler.seen
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("load") / "load"
    subprocess.run(
        [str(Path(sys.executable).with_name("go")), "build", "-o", str(program), "."],
        cwd=ROOT / "benchmarks" / "load",
        env={**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
        check=True,
    )
    return program


def generate(load: Path, port: int, *, clients: int = 1, runs: int = 3, **environment: str) -> dict[str, Any]:
    """Log so many runs by each client; return what the load generator says of that."""
    options = ("-experiment", "7", "-clients", str(clients), "-runs", str(runs))
    return said_by([str(load), "-target", f"127.0.0.1:{port}", *options], environment)


def said_by(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


class Store(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kept: dict[str, bytes]
    cut: int
    """So many bytes are missing in what is given out."""

    def do_PUT(self) -> None:
        self.kept[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200 if self.headers["Authorization"] == "Basic abc" else 401, b"{}")

    def do_GET(self) -> None:
        self._answer(200, self.kept[self.path][self.cut :])

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def transferred(
    size: int, names: list[list[str]], *, authorization: str = "Basic abc", cut: int = 0
) -> tuple[dict[str, Any], dict[str, bytes]]:
    handler = type("Handler", (Store,), {"kept": {}, "cut": cut})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    addresses = [[f"{base}/{one}?x=1" for one in some] for some in names]
    given = {"put": addresses, "get": addresses, "headers": {"Authorization": authorization}, "size": size}
    try:
        return transfers.transfers(given), handler.kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("size", [1, transfers.BLOCK, 2 * transfers.BLOCK + 17])
def test_files_go_up_and_come_back_whole_on_each_connection(size: int) -> None:
    found, kept = transferred(size, [["a", "b"], ["c", "d"]])
    assert {name: len(body) for name, body in kept.items()} == {f"/{name}?x=1": size for name in "abcd"}
    for method in ("put", "get"):
        assert len(found[method]["seconds"]) == 4
        assert 0 < max(found[method]["seconds"]) <= found[method]["elapsed"]


def test_a_transfer_that_is_refused_or_comes_short_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="PUT: 401"):
        transferred(10, [["a"]], authorization="Basic wrong")
    with pytest.raises(RuntimeError, match="GET: 9 bytes of 10"):
        transferred(10, [["a"]], cut=1)


FLOW = ["runs/create", *["runs/log-parameter"] * 2, *["runs/log-metric"] * 3, "runs/set-tag", "runs/update"]


@pytest.mark.parametrize("way", ["ok", "chunked"])
def test_the_load_is_whole_runs_of_eight_requests(load: Path, way: str) -> None:
    with recorder(lambda _: way) as (port, seen):
        found = generate(load, port, LOAD_AUTHORIZATION="Basic abc")
    assert (found["errors"], found["first_error"]) == ({}, "")
    assert found["runs"] == found["ok"]["runs/create"] == 3
    assert (found["answered"], found["fast"]) == (24, 9)  # the metrics
    assert found["requests"] == found["measured"] == len(seen) == sum(found["ok"].values()) == 24
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert [route for route, *_ in seen] == FLOW * 3
    assert {authorization for *_, authorization in seen} == {"Basic abc"}
    created = seen[0][1]
    assert created["experiment_id"] == "7"
    tags = {tag["key"] for tag in created["tags"]}
    assert tags == {"mlflow.user", "mlflow.source.name", "mlflow.source.type"}
    assert {body["run_id"] for route, body, _ in seen if route != "runs/create"} == {"r1"}


def test_the_load_counts_every_failed_request_by_its_kind(load: Path) -> None:
    answers = {3: "500", 5: "close", 9: "429"}
    with recorder(lambda number: answers.get(number, "ok")) as (port, seen):
        found = generate(load, port)
    assert found["errors"] == {"500": 1, "closed": 1, "429": 1}
    assert found["runs"] == 1  # the third: requests of the first failed, and the second was not created
    assert found["requests"] == len(seen) == 8 + 1 + 8
    assert found["answered"] == sum(found["ok"].values()) == len(seen) - 3
    assert found["measured"] == len(seen) - 1  # what was closed has no latency
    assert "runs/log-parameter: 500" in found["first_error"]


def test_many_clients_each_log_their_runs(load: Path) -> None:
    with recorder(lambda _: "ok") as (port, seen):
        found = generate(load, port, clients=20, runs=2)
    assert (found["errors"], found["runs"], found["requests"]) == ({}, 40, 320)
    assert len(seen) == 320


def test_without_a_login_none_is_sent(load: Path) -> None:
    with recorder(lambda _: "ok") as (port, seen):
        generate(load, port, runs=1)
    assert {authorization for *_, authorization in seen} == {None}


def test_nobody_there_is_an_error_and_not_a_rate(load: Path) -> None:
    with recorder(lambda _: "ok") as (port, _):
        pass  # nobody listens there any more
    found = generate(load, port, clients=2)
    assert (found["runs"], found["measured"], found["ok"]) == (0, 0, {})
    assert (found["errors"], found["requests"]) == ({"refused": 6}, 6)


def test_the_load_ends_by_the_clock_and_waits_for_what_is_under_way(load: Path) -> None:
    clock = ("-clients", "3", "-seconds", "0.3", "-warm", "0.1")
    with recorder(lambda _: "ok") as (port, seen):
        found = said_by([str(load), "-target", f"127.0.0.1:{port}", *clock], {})
    assert found["errors"] == {}
    assert found["measured"] <= found["requests"] == len(seen) == sum(found["ok"].values())
