"""A small scikit-learn model: logged, registered, loaded by MLflow's client, and every HTTP call of that."""

from __future__ import annotations

from typing import Any

from figures import Measure, Measured
from rows.row import Bench, Options, Row, client_process

MEASURES = (Measure("ms", "less"), Measure("HTTP calls", "less"), Measure("ms in HTTP calls", "less"))


def _steps(options: Options) -> list[Any]:
    del options
    return [None]


def measure(bench: Bench, name: str, step: None) -> dict[str, Measured]:
    """Do it once."""
    del step
    found = client_process(bench.server(name).client_environment, "models")
    measured = {}
    for case, one in found.items():
        if isinstance(one, str):
            measured[case] = Measured(note=one)
            continue
        calls = one["calls"]
        values = {
            "ms": one["ms"],
            "HTTP calls": float(len(calls)),
            "ms in HTTP calls": sum(call["ms"] for call in calls),
        }
        measured[case] = Measured(values, calls=calls)
    return measured


MODELS = Row(
    name="models",
    title="A model of scikit-learn, by MLflow's client",
    servers=("ours", "stock", "stockuv"),
    measures=MEASURES,
    steps=_steps,
    measure=measure,
    lists_calls=True,
)
