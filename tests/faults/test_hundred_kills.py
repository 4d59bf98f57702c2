"""A hundred kill -9 while clients log everything that a client can log: nothing acknowledged is lost.

`STACK_KILLS` and `STACK_KILLS_SEED` in the environment change number and order.
"""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from kit.stack import Stack, poll

KILLS = int(os.environ.get("STACK_KILLS", "100"))
SEED = int(os.environ.get("STACK_KILLS_SEED", "20261121"))
SERVICES = ("postgres", "minio", "mlflow", "fastpath", "nginx", "backup")
CLIENTS = 3


@dataclass
class Acknowledged:
    """What one run was told is stored."""

    params: dict[str, str] = field(default_factory=dict)
    steps: set[int] = field(default_factory=set)
    artifacts: dict[str, str] = field(default_factory=dict)
    """Path of an artifact: SHA-256 of its bytes."""


class Client:
    """Logs run after run, and remembers what was acknowledged."""

    def __init__(self, url: str, seed: int) -> None:
        self._client = MlflowClient(tracking_uri=url)
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._log)
        self.runs: dict[str, Acknowledged] = {}
        self.count = 0
        self.errors: list[str] = []

    def stop(self) -> None:
        self._stop.set()

    def _log(self) -> None:
        while not self._stop.is_set():
            try:
                self._log_run()
            except Exception as error:  # noqa: BLE001  what a client sees is the result
                self.errors.append(repr(error)[:300])

    def _log_run(self) -> None:
        client, run_id = self._client, self._client.create_run("0").info.run_id
        known = self.runs[run_id] = Acknowledged()
        self.count += 1
        for number in range(10):
            if self._stop.is_set():
                return
            value = self._random.randbytes(16).hex()
            client.log_batch(
                run_id,
                params=[Param(f"param-{number}", value)],
                metrics=[Metric("point", step, 0, step) for step in range(number * 10, number * 10 + 10)],
            )
            known.params[f"param-{number}"] = value
            known.steps.update(range(number * 10, number * 10 + 10))
            text = self._random.randbytes(self._random.choice([100, 20_000, 400_000])).hex()
            client.log_text(run_id, text, f"artifact-{number}.txt")
            known.artifacts[f"artifact-{number}.txt"] = hashlib.sha256(text.encode()).hexdigest()
            self.count += 12

    def lost(self, folder: Path) -> list[str]:
        """Return a line for each acknowledged thing that the server does not have now."""
        missing = []
        for run_id, known in self.runs.items():
            data = self._client.get_run(run_id).data
            steps = {point.step for point in self._client.get_metric_history(run_id, "point")}
            missing += [
                f"{run_id} {name}" for name, value in known.params.items() if data.params.get(name) != value
            ]
            missing += [f"{run_id} step {step}" for step in known.steps - steps]
            for name, digest in known.artifacts.items():
                path = Path(self._client.download_artifacts(run_id, name, str(folder)))
                if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                    missing.append(f"{run_id} {name}")
                path.unlink()
        return missing


def kill_and_recover(stack: Stack, service: str) -> float:
    """kill -9 a service's first process; return the seconds until it and the whole stack are well again."""
    container = stack.container(service)
    restarts = stack.inspect(container)["RestartCount"]
    started = time.monotonic()
    stack.kill_container(container)

    def restarted() -> bool:
        facts = stack.inspect(container)
        return facts["RestartCount"] > restarts and facts["State"]["Status"] == "running"

    poll(restarted, seconds=90, what=f"Docker restarts {service}", interval=0.05)
    if service == "backup":  # no client sees it: it is well when the log is received again
        since = time.time()
        poll(lambda: receives(stack, since), seconds=90, what="the log is received again", interval=0.1)
    else:
        poll(stack.is_ready, seconds=90, what="/health is 200", interval=0.05)
    return time.monotonic() - started


def receives(stack: Stack, since: float) -> bool:
    """Return whether the service backup has said after a moment that it receives the log."""
    script = (
        "import json, sys; value = json.load(open('/backups/state/log.json'));"
        " sys.exit(not (value.get('receiving') and value['at'] > float(sys.argv[1])))"
    )
    command = ("exec", "-T", "backup", "python3", "-c", script, str(since))
    return stack.compose(*command, check=False).returncode == 0


def log_on(clients: list[Client]) -> None:
    """Wait until the clients have got some more acknowledged."""
    wanted = sum(client.count for client in clients) + 24
    poll(lambda: sum(client.count for client in clients) > wanted, seconds=300, what="the clients log")


@pytest.mark.long
def test_a_hundred_kills_lose_nothing_acknowledged(stack: Stack, tmp_path: Path) -> None:
    chosen = [SERVICES[number % len(SERVICES)] for number in range(KILLS)]
    random.Random(SEED).shuffle(chosen)
    clients = [Client(stack.url, SEED + number) for number in range(CLIENTS)]
    times: dict[str, list[float]] = {service: [] for service in SERVICES}
    started = time.monotonic()
    for client in clients:
        client.thread.start()
    try:
        for service in chosen:
            log_on(clients)
            times[service].append(kill_and_recover(stack, service))
    finally:
        for client in clients:
            client.stop()
        for client in clients:
            client.thread.join()
    stack.wait_ready()
    lost = [line for client in clients for line in client.lost(tmp_path)]
    count = sum(client.count for client in clients)
    errors = [error for client in clients for error in client.errors]
    every = [seconds for service in SERVICES for seconds in times[service]]
    parts = ", ".join(
        f"{service} {statistics.median(values):.1f}/{max(values):.1f}"
        for service, values in times.items()
        if values
    )
    print(
        f"\n| {KILLS} kill -9 in {(time.monotonic() - started) / 60:.0f} min, {CLIENTS} clients, seed {SEED}"
        f" | {count} acknowledged, {len(lost)} lost, {len(errors)} errors at clients"
        f" | back in {statistics.median(every):.1f} s (p50), {max(every):.1f} s (max); {parts} |"
    )
    assert lost == []
    # A door killed in the middle of an answer: MLflow's client does not repeat what has begun to arrive.
    assert [error for error in errors if "Connection broken" not in error] == []
    poll(
        lambda: stack.verb("backup", "status", check=False).returncode == 0,
        seconds=120,
        what="the backup is well",
    )
