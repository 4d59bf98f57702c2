"""A client that logs while something happens to the server."""

from __future__ import annotations

import threading
import time
from types import TracebackType

import mlflow

from kit.door import Door
from kit.stack import Stack, poll


class Writer:
    """A client that logs metric points one after the other and remembers what was acknowledged."""

    def __init__(self, stack: Stack | Door) -> None:
        self._client = mlflow.MlflowClient(tracking_uri=stack.url)
        self.run_id = self._client.create_run(experiment_id="0").info.run_id
        self.acknowledged: list[int] = []
        self.acknowledged_at: list[float] = []
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        step = 0
        while not self._stop.is_set():
            try:
                self._client.log_metric(self.run_id, "point", step, step=step)
                self.acknowledged.append(step)
                self.acknowledged_at.append(time.monotonic())
            except Exception as error:  # noqa: BLE001  what a client sees is the result
                self.failed.append(repr(error)[:300])
                time.sleep(0.2)
            step += 1

    def goes_on(self, points: int = 20, seconds: float = 240) -> None:
        """Wait until that many points more are acknowledged."""
        wanted = len(self.acknowledged) + points
        poll(lambda: len(self.acknowledged) >= wanted, seconds=seconds, what="the client logs")

    def assert_nothing_lost(self) -> None:
        """Every call was acknowledged, and what was acknowledged is there."""
        assert self.failed == []
        assert set(self.acknowledged) <= self.stored()

    def stored(self) -> set[int]:
        """The steps that the server has now."""
        return {point.step for point in self._client.get_metric_history(self.run_id, "point")}
