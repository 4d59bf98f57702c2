"""runs/get, experiments/get and experiments/get-by-name."""

from __future__ import annotations

from typing import Any

from kit.differential import Pair, Step, cases, fast, slow

RUN = {"get": [fast("runs/get", query="run_id=<run 1>")]}


@cases(RUN)
def test_runs_get(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)
