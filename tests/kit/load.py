"""Clients that create runs and log to them without ever trying again, and remember what they heard."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from types import TracebackType

import requests

from kit.stack import Stack

API = "/api/2.0/mlflow"


class Load:
    """Some clients, each with a connection of its own, from `with` until its end."""

    def __init__(self, stack: Stack, experiment_id: str, clients: int = 8) -> None:
        self._stack = stack
        self._experiment_id = experiment_id
        self.prefix = f"load-{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(clients)]
        self.heard: Counter[int] = Counter()
        """Answers by status; 0 stands for a connection that broke."""
        self.created: dict[str, int] = {}
        """The status that each run's creation was answered with, by the run's name."""
        self.logged: dict[str, set[int]] = {}
        """Steps that were acknowledged, by the run's id."""

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def acknowledged(self) -> int:
        """The number of good answers so far."""
        return self.heard[200]

    def _work(self, client: int) -> None:
        session = self._stack.session()
        number = 0
        while not self._stop.is_set():
            name = f"{self.prefix}-{client}-{number}"
            number += 1
            run_id = self._create(session, name)
            for step in range(5 if run_id else 0):
                body = {"run_id": run_id, "key": "k", "value": step, "timestamp": 1, "step": step}
                if self._post(session, "runs/log-metric", body).status_code == 200:
                    self.logged.setdefault(run_id, set()).add(step)

    def _create(self, session: requests.Session, name: str) -> str:
        started = int(time.time() * 1000)
        body = {"experiment_id": self._experiment_id, "run_name": name, "start_time": started, "tags": []}
        answer = self._post(session, "runs/create", body)
        self.created[name] = answer.status_code
        return answer.json()["run"]["info"]["run_id"] if answer.status_code == 200 else ""

    def _post(self, session: requests.Session, name: str, body: dict[str, object]) -> requests.Response:
        try:
            answer = session.post(f"{self._stack.url}{API}/{name}", json=body, timeout=60)
        except requests.RequestException:
            answer = requests.Response()
            answer.status_code = 0
        self.heard[answer.status_code] += 1
        return answer

    def assert_each_is_there_once(self) -> None:
        """What was acknowledged is there, once; what was not is there once or not at all."""
        found = self._stack.psql(
            f"SELECT name, count(*) FROM runs WHERE name LIKE '{self.prefix}-%' GROUP BY 1"
        )
        rows = dict(line.rsplit("|", 1) for line in found.splitlines())
        assert {name: count for name, count in rows.items() if count != "1"} == {}
        assert {name for name, status in self.created.items() if status == 200} <= set(rows)
        points = self._stack.psql(
            "SELECT run_uuid, string_agg(step::text, ',') FROM metrics JOIN runs USING (run_uuid)"
            f" WHERE name LIKE '{self.prefix}-%' GROUP BY 1"
        )
        stored = {
            run_id: {int(step) for step in steps.split(",")}
            for run_id, steps in (line.split("|") for line in points.splitlines())
        }
        missing = {run_id: steps - stored.get(run_id, set()) for run_id, steps in self.logged.items()}
        assert {run_id: steps for run_id, steps in missing.items() if steps} == {}
