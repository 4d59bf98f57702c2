"""Services that are stopped, frozen or cut off for a while: clients' own retries carry it over."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import mlflow
import pytest

from kit.door import disconnected, docker
from kit.stack import Stack, poll
from kit.writer import Writer


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


def cut_off(stack: Stack, service: str) -> AbstractContextManager[None]:
    return disconnected(f"{stack.project}_default", stack.container(service), service)


@pytest.mark.parametrize(
    ("away", "service"),
    [(stopped, "postgres"), (frozen, "postgres"), (cut_off, "mlflow")],
    ids=["stopped database", "frozen database", "cut off server"],
)
def test_logging_goes_on_when_what_was_away_is_back(stack: Stack, away: type, service: str) -> None:
    with Writer(stack) as writer:
        writer.goes_on()
        with away(stack, service):
            stack.wait_not_ready()
        writer.goes_on()
    writer.assert_nothing_lost()
    stack.wait_ready()


def test_the_stacks_own_database_is_used_though_it_is_cut_off_from_the_network(stack: Stack) -> None:
    """A socket has no network; that of the operator's own database: test_external_postgres.py."""
    with Writer(stack) as writer, cut_off(stack, "postgres"):
        writer.goes_on()
        assert stack.is_ready()
        stack.get("/api/2.0/mlflow/registered-models/search").raise_for_status()
    writer.assert_nothing_lost()


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
            stack.wait_not_ready()
        before = len(digests)
        poll(lambda: len(digests) > before + 5, seconds=240, what="uploads work again")
    finally:
        stop.set()
        thread.join()
    assert failed == []
    for name, digest in digests.items():
        path = Path(client.download_artifacts(run_id, name, str(tmp_path)))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
