"""The fast path in the stack, with real clients: what it answers, what it leaves, and what its end harms."""

from __future__ import annotations

import json
import re
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import mlflow
import pytest
import requests
from mlflow.entities import Metric, Param, RunTag

from kit.door import docker, read_answer, user
from kit.load import API, Load
from kit.people import add, bearer
from kit.stack import Stack, poll

COUNTER = re.compile(r"^mlflow_fastpath_requests_total\{(.*)\} (\S+)$", re.MULTILINE)
WRITES = {
    "runs/create": {"experiment_id": "0", "run_name": "x", "start_time": 1, "tags": []},
    "runs/update": {"run_id": "0" * 32, "status": "FINISHED", "end_time": 1},
    "runs/log-metric": {"run_id": "0" * 32, "key": "k", "value": 1, "timestamp": 1, "step": 0},
    "runs/log-parameter": {"run_id": "0" * 32, "key": "k", "value": "v"},
    "runs/log-batch": {"run_id": "0" * 32, "params": [{"key": "k", "value": "v"}]},
    "runs/set-tag": {"run_id": "0" * 32, "key": "k", "value": "v"},
    "experiments/create": {"name": "x"},
}


def is_fast(answer: requests.Response) -> bool:
    """Return whether the fast path gave this good answer."""
    assert answer.status_code == 200, answer.text
    return answer.headers.get("X-Answered-By") == "fastpath"


def answers_fast(stack: Stack) -> bool:
    return is_fast(stack.get(f"{API}/experiments/get?experiment_id=0"))


@pytest.fixture(autouse=True)
def the_fast_path_is_there_before_and_after(stack: Stack) -> Iterator[None]:
    poll(lambda: answers_fast(stack), seconds=60, what="the fast path answers")
    yield
    stack.wait_ready()
    poll(lambda: answers_fast(stack), seconds=60, what="the fast path answers again")


def counted(stack: Stack, outcome: str) -> dict[str, float]:
    """Return the fast path's count of an outcome by route."""
    text = stack.verb("metrics").stdout
    assert "mlflow_fastpath_unexpected_total 0.0" in text.splitlines()
    found: dict[str, float] = {}
    for labels, value in COUNTER.findall(text):
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if named["outcome"] == outcome:
            found[named["route"]] = found.get(named["route"], 0) + float(value)
    return found


def use_everything(client: mlflow.MlflowClient) -> str:
    """Do what each fast route is for, by MLflow's client; return the run's id."""
    name = f"fast-{uuid.uuid4().hex[:8]}"
    experiment_id = client.create_experiment(name)
    assert client.get_experiment(experiment_id).name == name
    assert client.get_experiment_by_name(name).experiment_id == experiment_id
    run_id = client.create_run(experiment_id, run_name="a run").info.run_id
    client.log_metric(run_id, "loss", 0.5, step=3)
    client.log_param(run_id, "rate", "0.1")
    client.set_tag(run_id, "note", "grün")
    client.log_batch(
        run_id,
        metrics=[Metric("loss", 0.25, 1, 4), Metric("other", 7, 1, 0)],
        params=[Param("depth", "3")],
        tags=[RunTag("more", "tags")],
    )
    client.set_terminated(run_id)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 0.25, "other": 7}
    assert run.data.params == {"rate": "0.1", "depth": "3"}
    assert {"note": "grün", "more": "tags"}.items() <= run.data.tags.items()
    assert [found.info.run_id for found in client.search_runs([experiment_id])] == [run_id]
    return run_id


def test_every_fast_route_is_answered_fast_for_mlflows_own_client(
    stack: Stack, client: mlflow.MlflowClient
) -> None:
    before = counted(stack, "fast")
    use_everything(client)
    after = counted(stack, "fast")
    routes = {*WRITES, "runs/search", "runs/get", "experiments/get", "experiments/get-by-name"}
    assert {route for route in routes if after.get(route, 0) <= before.get(route, 0)} == set()


MANY_RUNS = """
INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,
        source_version, lifecycle_stage, artifact_uri, experiment_id)
    SELECT replace(gen_random_uuid()::text, '-', ''), 'run ' || n, 'UNKNOWN', '', '', 'ada', 'FINISHED', n,
        '', 'active', 'mlflow-artifacts:/n', {0}
    FROM generate_series(1, 4000) AS n;
INSERT INTO params (run_uuid, key, value)
    SELECT run_uuid, 'long', repeat('ab ', 600) FROM runs WHERE experiment_id = {0} AND start_time <= 4000
"""
MANY_GONE = """
DELETE FROM params USING runs
    WHERE params.run_uuid = runs.run_uuid AND experiment_id = {0} AND start_time <= 4000;
DELETE FROM runs WHERE experiment_id = {0} AND start_time <= 4000
"""


def test_the_calls_of_notebooks_are_answered_fast(stack: Stack, experiment_id: str) -> None:
    """mlflow.log_metrics names the run in each point, mlflow.search_runs asks for 10,000 runs at once."""
    stack.psql_script(MANY_RUNS.format(experiment_id))
    try:
        before = counted(stack, "fallback")
        with mlflow.start_run() as run:
            mlflow.log_params({"a": 1, "b": None})
            for step in range(3):
                mlflow.log_metrics({"loss": 1 / (step + 1), "accuracy": step}, step=step)
        found = mlflow.search_runs()  # 8 MB
        assert len(found) == 4001
        assert found["run_id"][0] == run.info.run_id
        assert found["metrics.accuracy"][0] == 2
        assert set(found["params.long"][1:]) == {"ab " * 600}
        assert mlflow.search_runs(filter_string=f"tags.mlflow.parentRunId = '{run.info.run_id}'").empty
        assert counted(stack, "fallback") == before
    finally:
        stack.psql_script(MANY_GONE.format(experiment_id))


def test_what_it_does_not_know_is_answered_by_mlflow_and_counted(stack: Stack, experiment_id: str) -> None:
    run_id = mlflow.MlflowClient().create_run(experiment_id).info.run_id
    body = {"run_id": run_id, "key": "k", "value": 1.5, "timestamp": 1, "step": 0}
    assert is_fast(stack.post(f"{API}/runs/log-metric", json=body))
    before = counted(stack, "fallback").get("runs/log-metric", 0)
    assert not is_fast(stack.post(f"{API}/runs/log-metric", json={**body, "step": 1, "dataset_name": ""}))
    assert counted(stack, "fallback")["runs/log-metric"] == before + 1
    points = mlflow.MlflowClient().get_metric_history(run_id, "k")
    assert [(point.step, point.value) for point in points] == [(0, 1.5), (1, 1.5)]
    missing = stack.get(f"{API}/runs/get?run_id={'0' * 32}")
    assert (missing.status_code, missing.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    assert "X-Answered-By" not in missing.headers


@pytest.mark.parametrize(("length", "blanks"), [(1_900, 0), (6_000, 0), (100, 3_000_000)])
def test_large_and_chunked_batches_reach_mlflow_whole(
    stack: Stack, experiment_id: str, length: int, blanks: int
) -> None:
    """200 KB, which the fast path is asked about and leaves; 600 KB and 3 MB, which it never sees."""
    client = mlflow.MlflowClient()
    for chunked in (False, True):
        run_id = client.create_run(experiment_id).info.run_id
        params = {f"param {number}": f"{number}".ljust(length, "x") for number in range(100)}
        pairs = json.dumps([{"key": key, "value": value} for key, value in params.items()])
        text = f'{{"unknown": "", "run_id": "{run_id}", {" " * blanks} "params": {pairs}}}'.encode()
        sent: Any = iter([text[:1000], text[1000:]]) if chunked else text
        headers = {"Content-Type": "application/json"}
        assert not is_fast(stack.post(f"{API}/runs/log-batch", data=sent, headers=headers))
        assert client.get_run(run_id).data.params == params


def test_without_the_service_everything_works_and_its_counts_are_in_the_audit_log(
    stack: Stack, client: mlflow.MlflowClient, experiment_id: str
) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    for step in range(7):
        client.log_metric(run_id, "loss", step, step=step)
    stack.compose("stop", "fastpath")
    try:
        assert not answers_fast(stack)
        use_everything(client)
        said = stack.verb("audit", "--since", "1h", "--json", "--user", "admin").stdout
        lines = [json.loads(line) for line in said.splitlines()]
        own = [line for line in lines if line["event"] == "logged" and line["run_id"] == run_id]
        assert sum(line["metrics"] for line in own) == 7
        created = [line for line in lines if line["event"] == "POST /experiments/create"]
        name = client.get_experiment(experiment_id).name
        assert [line["status"] for line in created if line["objects"]["name"] == name] == [200]
    finally:
        stack.compose("start", "fastpath")


def log_on(load: Load) -> None:
    """Wait until the clients have heard some more good answers."""
    wanted = load.acknowledged + 200
    poll(lambda: load.acknowledged > wanted, seconds=60, what="the clients log")


def test_a_kill_under_load_harms_only_what_was_under_way_and_nothing_is_done_twice(
    stack: Stack, experiment_id: str
) -> None:
    with Load(stack, experiment_id) as load:
        for _ in range(3):
            log_on(load)
            restarts = stack.inspect(stack.container("fastpath"))["RestartCount"]
            stack.kill("fastpath")
            log_on(load)
            poll(
                lambda restarts=restarts: (
                    stack.inspect(stack.container("fastpath"))["RestartCount"] > restarts
                ),
                seconds=60,
                what="Docker starts it again",
            )
            poll(lambda: answers_fast(stack), seconds=60, what="the fast path answers again")
    assert set(load.heard) <= {200, 503}, load.heard
    load.assert_each_is_there_once()


def test_a_stop_under_load_harms_no_request(stack: Stack, experiment_id: str) -> None:
    with Load(stack, experiment_id) as load:
        for _ in range(2):
            log_on(load)
            stack.compose("restart", "fastpath")
            log_on(load)
            poll(lambda: answers_fast(stack), seconds=60, what="the fast path answers again")
    assert set(load.heard) == {200}, load.heard
    load.assert_each_is_there_once()


def test_seven_hundred_who_come_while_it_is_busy_wait_for_it(stack: Stack) -> None:
    """A refused connection to it (its listener's queue was full) took the door from it for five seconds."""
    request = (
        f"GET {API}/experiments/get?experiment_id=0 HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{stack.port}\r\nAuthorization: {stack.authorization}\r\n\r\n"
    ).encode()
    stack.compose("restart", "fastpath")  # or connections that were kept open would do instead of new ones
    poll(lambda: answers_fast(stack), seconds=60, what="the fast path answers again")
    fast_path, nginx = stack.container("fastpath"), stack.container("nginx")
    with ExitStack() as opened:
        clients = [
            opened.enter_context(socket.create_connection(("127.0.0.1", stack.port), timeout=60))
            for _ in range(700)
        ]
        docker("pause", fast_path)
        try:
            for client in clients:
                client.sendall(request)
            poll(
                lambda: int(docker("exec", nginx, "grep", "-c", "/run/fastpath/", "/proc/net/unix")) >= 700,
                seconds=3,  # it refuses what is older than 4 s
                what="nginx has asked it for all of them",
            )
        finally:
            docker("unpause", fast_path)
        answers = [read_answer(client) for client in clients]
    assert Counter((answer.status, answer.headers["X-Answered-By"]) for answer in answers) == {
        (200, "fastpath"): 700
    }


def test_postgresql_restarted_under_load_loses_nothing_acknowledged(stack: Stack, experiment_id: str) -> None:
    with Load(stack, experiment_id) as load:
        log_on(load)
        stack.compose("restart", "postgres")
        stack.wait_ready()
        poll(lambda: answers_fast(stack), seconds=60, what="the fast path heals by itself")
        log_on(load)
    load.assert_each_is_there_once()


@contextmanager
def switched_off(stack: Stack) -> Iterator[None]:
    """FASTPATH=off, as the settings of the stack would say it."""
    up = ("up", "--detach", "--no-build", "--wait")
    stack.compose(*up, FASTPATH="off")
    try:
        yield
    finally:
        stack.compose(*up)


def test_switched_off_there_is_no_route_to_it(stack: Stack, client: mlflow.MlflowClient) -> None:
    configuration = ("exec", "-T", "nginx", "nginx", "-T", "-c", "/opt/nginx/nginx.conf")
    assert "unix:/run/fastpath/fast.sock" in stack.compose(*configuration).stdout
    with switched_off(stack):
        said = stack.compose(*configuration).stdout
        assert "server_name _;" in said
        assert "fast.sock" not in said
        assert not answers_fast(stack)
        use_everything(client)
        assert counted(stack, "fast") == {}
        assert "mlflow_fastpath_on 0.0" in stack.verb("metrics").stdout.splitlines()
        assert stack.verb("status").returncode == 0


def test_a_user_who_is_removed_is_refused_on_fast_routes_too(stack: Stack) -> None:
    session = requests.Session()
    session.trust_env = False
    url = f"{stack.url}{API}/experiments/get?experiment_id=0"
    with user(stack, "nora") as login:
        session.auth = login
        poll(lambda: is_fast(session.get(url, timeout=30)), seconds=10, what="nora is answered fast")
    poll(lambda: session.get(url, timeout=30).status_code == 401, seconds=10, what="nora is refused")
    for name, body in WRITES.items():
        assert session.post(f"{stack.url}{API}/{name}", json=body, timeout=30).status_code == 401


def test_a_reader_reads_fast_and_changes_nothing(stack: Stack) -> None:
    token = add(stack, "fast-reader", "reader")
    session = requests.Session()
    session.trust_env = False
    session.headers.update(bearer(token))
    try:
        assert is_fast(session.get(f"{stack.url}{API}/experiments/get?experiment_id=0", timeout=30))
        search = {"experiment_ids": ["0"], "max_results": 1}
        assert is_fast(session.post(f"{stack.url}{API}/runs/search", json=search, timeout=30))
        before = stack.psql("SELECT count(*) FROM runs"), stack.psql("SELECT count(*) FROM experiments")
        for prefix in ("/api", "/ajax-api"):
            for name, body in WRITES.items():
                refused = session.post(f"{stack.url}{prefix}/2.0/mlflow/{name}", json=body, timeout=30)
                assert refused.status_code == 403, name
                assert "this needs the role writer" in refused.text
        assert (
            stack.psql("SELECT count(*) FROM runs"),
            stack.psql("SELECT count(*) FROM experiments"),
        ) == before
    finally:
        stack.verb("user", "remove", "fast-reader")


def test_a_request_that_waited_too_long_is_not_begun(stack: Stack, experiment_id: str) -> None:
    """Past nginx, as a request that hung in the socket: its moment is older than nginx waits."""
    script = (
        "import http.client, json, socket, sys\n"
        "connection = http.client.HTTPConnection('x')\n"
        "connection.sock = socket.socket(socket.AF_UNIX)\n"
        "connection.sock.connect('/run/fastpath/fast.sock')\n"
        "headers = {'Content-Type': 'application/json', 'X-T': sys.argv[1], 'X-Forwarded-User': 'admin'}\n"
        "connection.request('POST', '/api/2.0/mlflow/runs/create', sys.argv[2], headers)\n"
        "print(connection.getresponse().status)\n"
    )
    name = f"late-{uuid.uuid4().hex[:8]}"
    body = json.dumps(
        {"experiment_id": experiment_id, "run_name": name, "start_time": 1, "tags": [], "user_id": "x"}
    )
    inside = ("exec", "-T", "fastpath", "python", "-c", script)
    assert stack.compose(*inside, f"{time.time() - 60:.3f}", body).stdout.strip() == "418"
    assert stack.psql(f"SELECT count(*) FROM runs WHERE name = '{name}'") == "0"
    assert stack.compose(*inside, f"{time.time():.3f}", body).stdout.strip() == "200"
    assert stack.psql(f"SELECT count(*) FROM runs WHERE name = '{name}'") == "1"
