"""Many clients at once: everything arrives, and exactly once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest
from mlflow.entities import Metric, Param

from kit.stack import Stack

PROCESSES = 16
RUNS_OF_A_PROCESS = 2
STEPS = 10
THREADS = 40

CLIENT_SCRIPT = f"""
import sys
import mlflow

experiment_name, number = sys.argv[1:]
mlflow.set_experiment(experiment_name)
print("ready", flush=True)
sys.stdin.readline()
for count in range({RUNS_OF_A_PROCESS}):
    name = f"{{number}}-{{count}}"
    with mlflow.start_run(run_name=name):
        mlflow.log_params({{"process": number, "count": count}})
        for step in range({STEPS}):
            mlflow.log_metric("loss", int(number) * 1000 + step, step=step)
        mlflow.set_tag("client", name)
        mlflow.log_text(f"written by {{name}}", "note.txt")
"""


@pytest.fixture
def start_client(stack: Stack) -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts one client process; those still running are ended."""
    started: list[subprocess.Popen] = []

    def start(*arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT_SCRIPT, *arguments],
            env={
                **os.environ,
                **stack.client_environment,
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_sixteen_processes_log_into_one_experiment_and_nothing_is_lost_or_doubled(
    client: mlflow.MlflowClient, experiment_id: str, start_client: Callable[..., subprocess.Popen]
) -> None:
    experiment_name = client.get_experiment(experiment_id).name
    processes = [start_client(experiment_name, str(number)) for number in range(PROCESSES)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, outputs

    runs = client.search_runs([experiment_id], max_results=1000)
    expected = {f"{number}-{count}" for number in range(PROCESSES) for count in range(RUNS_OF_A_PROCESS)}
    assert sorted(run.info.run_name for run in runs) == sorted(expected)
    for run in runs:
        number, count = run.info.run_name.split("-")
        assert run.info.status == "FINISHED"
        assert run.data.params == {"process": number, "count": count}
        assert run.data.tags["client"] == run.info.run_name
        history = client.get_metric_history(run.info.run_id, "loss")
        points = sorted((point.step, point.value) for point in history)
        assert points == [(step, int(number) * 1000 + step) for step in range(STEPS)]
        note = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/note.txt")
        assert note == f"written by {run.info.run_name}"


def all_at_once(work: Callable[[int], None]) -> None:
    """Call `work` with 0 to 39 in as many threads, which begin together; raise what they raise."""
    together = threading.Barrier(THREADS)

    def wait_and_work(number: int) -> None:
        together.wait(timeout=60)
        work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(wait_and_work, range(THREADS)))


def batch_of(number: int) -> dict[str, list]:
    """Return the metrics and params that thread `number` logs: 200 points, 10 params."""
    return {
        "metrics": [Metric(f"loss {number}", number + step / 100, 1000 + step, step) for step in range(200)],
        "params": [Param(f"param {number}.{count}", str(count)) for count in range(10)],
    }


def assert_batch_is_there(client: mlflow.MlflowClient, run_id: str, number: int) -> None:
    history = client.get_metric_history(run_id, f"loss {number}")
    assert [(point.step, point.value) for point in history] == [
        (step, number + step / 100) for step in range(200)
    ]


def test_forty_threads_log_batches_into_runs_of_their_own(
    client: mlflow.MlflowClient, experiment_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ids = [client.create_run(experiment_id).info.run_id for _ in range(THREADS)]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # an error must show
    all_at_once(lambda number: client.log_batch(run_ids[number], **batch_of(number)))
    for number, run_id in enumerate(run_ids):
        assert_batch_is_there(client, run_id, number)
        assert len(client.get_run(run_id).data.params) == 10


def test_forty_threads_log_batches_into_one_run(
    client: mlflow.MlflowClient, experiment_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = client.create_run(experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    all_at_once(lambda number: client.log_batch(run_id, **batch_of(number)))
    data = client.get_run(run_id).data
    assert data.metrics == {f"loss {number}": number + 1.99 for number in range(THREADS)}
    assert data.params == {
        f"param {number}.{count}": str(count) for number in range(THREADS) for count in range(10)
    }
    for number in range(THREADS):
        assert_batch_is_there(client, run_id, number)
