"""Services that are stopped, frozen or cut off for a while: clients' own retries carry it over."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest

from kit.door import docker
from kit.stack import Stack, poll
from kit.writer import Writer


def goes_on(writer: Writer, points: int = 20) -> None:
    before = len(writer.acknowledged)
    poll(lambda: len(writer.acknowledged) >= before + points, seconds=240, what="the client logs")


def wait_noticed(stack: Stack) -> None:
    poll(lambda: not stack.is_ready(), seconds=60, what="/health says that something is away")


@contextmanager
def stopped(stack: Stack, service: str) -> Iterator[None]:
    stack.compose("stop", service)
    try:
        yield
    finally:
        stack.compose("start", service)


@contextmanager
def frozen(stack: Stack, service: str) -> Iterator[None]:
    container = stack.container(service)
    docker("pause", container)
    try:
        yield
    finally:
        docker("unpause", container)


@contextmanager
def cut_off(stack: Stack, service: str) -> Iterator[None]:
    network, container = f"{stack.project}_default", stack.container(service)
    docker("network", "disconnect", network, container)
    try:
        yield
    finally:
        docker("network", "connect", "--alias", service, network, container)


@pytest.mark.parametrize(
    ("away", "service"),
    [(stopped, "postgres"), (frozen, "postgres"), (cut_off, "postgres"), (cut_off, "mlflow")],
    ids=["stopped database", "frozen database", "cut off database", "cut off server"],
)
def test_logging_goes_on_when_what_was_away_is_back(stack: Stack, away: type, service: str) -> None:
    with Writer(stack) as writer:
        goes_on(writer)
        with away(stack, service):
            wait_noticed(stack)
        goes_on(writer)
    writer.assert_nothing_lost()
    stack.wait_ready()


def test_uploads_wait_for_a_stopped_storage(stack: Stack, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    run_id = client.create_run("0").info.run_id
    digests: dict[str, str] = {}
    failed: list[str] = []
    stop = threading.Event()

    def upload() -> None:
        while not stop.is_set():
            text, name = os.urandom(50_000).hex(), f"{len(digests) + len(failed)}.txt"
            try:
                client.log_text(run_id, text, name)
                digests[name] = hashlib.sha256(text.encode()).hexdigest()
            except Exception as error:  # noqa: BLE001  what a client sees is the result
                failed.append(repr(error)[:300])

    thread = threading.Thread(target=upload)
    thread.start()
    try:
        poll(lambda: len(digests) > 5, seconds=60, what="uploads work")
        with stopped(stack, "minio"):
            wait_noticed(stack)
        before = len(digests)
        poll(lambda: len(digests) > before + 5, seconds=240, what="uploads work again")
    finally:
        stop.set()
        thread.join()
    assert failed == []
    for name, digest in digests.items():
        path = Path(client.download_artifacts(run_id, name, str(tmp_path)))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
