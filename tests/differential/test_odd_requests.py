"""Random sequences of requests over all routes, plain and odd fields mixed."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kit.differential import EXPERIMENT, Pair, Step, either

RUN, SECOND = "<run 1>", "<run 2>"
NUMBERS = [0, 1, 2, -1, 5, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 0.5, 1.0, 1e308, 1e-320, -0.0]
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([*NUMBERS, float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(
        ["", " ", "1", "1.0", "NaN", "Infinity", "a", "a/b", "../a", "ü", "🎉", "a\0", "\ud800", "null"]
    ),
    st.sampled_from([[], {}, [None], [1], {"key": "a", "value": "b"}, [{"key": "a"}]]),
    st.text(max_size=12),
)


def mostly(plain: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return what is plain nine times in ten. An odd one alone decides about a request."""
    return st.integers(0, 9).flatmap(lambda dice: ODD if dice == 9 else plain)


runs = mostly(st.sampled_from([RUN, RUN, RUN, SECOND]))
keys = mostly(st.sampled_from(["a", "b", "a/b", "c d", "ü", "k" * 250]))
texts = mostly(st.sampled_from(["", "v", "w", "größe 🎉", "v" * 5000, "v" * 6001, "v" * 8001, "'\"\\\n"]))
names = mostly(st.sampled_from(["first", "other", "", "n" * 250, "n" * 260, "🎉"]))
times = mostly(st.sampled_from([0, 1, 1700000000000, 1700000000001]))
steps_of_a_metric = mostly(st.sampled_from([0, 1, 2, -1, 2**40]))
values = mostly(st.sampled_from([0, 1, 0.5, -0.5, 1e300, 3, -0.0, 2**53 + 1]))
tag_keys = mostly(st.sampled_from(["a", "b", "mlflow.user", "mlflow.note.content", "mlflow.runName", "ü"]))


def fields(required: dict[str, Any], **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with these fields, in one of twenty without one or with one more."""
    plain = st.fixed_dictionaries(required, optional=optional)

    def spoil(given_fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        less = st.sampled_from([*required]).map(
            lambda name: {key: value for key, value in given_fields.items() if key != name}
        )
        more = st.sampled_from(["x", "runId", "run_uuid", "experimentId", "model_id"]).flatmap(
            lambda name: ODD.map(lambda value: {**given_fields, name: value})
        )
        return st.integers(0, 19).flatmap(
            lambda dice: less if dice == 19 else more if dice == 18 else st.just(given_fields)
        )

    return plain.flatmap(spoil)


pair_of = fields({"key": keys, "value": texts})
tag_of = fields({"key": tag_keys, "value": texts})
point = fields({"key": keys, "value": values, "timestamp": times, "step": steps_of_a_metric})
BODIES: dict[str, st.SearchStrategy[Any]] = {
    "runs/create": fields(
        {
            "experiment_id": mostly(st.just(EXPERIMENT)),
            "start_time": times,
            "user_id": mostly(st.sampled_from(["ada", ""])),
        },
        run_name=names,
        tags=mostly(st.lists(tag_of, max_size=4)),
    ),
    "runs/update": fields(
        {"run_id": runs},
        run_uuid=st.just(RUN),
        status=mostly(st.sampled_from(["RUNNING", "FINISHED", "FAILED", "SCHEDULED", "KILLED", 3])),
        end_time=times,
        run_name=names,
    ),
    "runs/log-metric": fields(
        {"run_id": runs, "key": keys, "value": values, "timestamp": times},
        step=steps_of_a_metric,
        run_uuid=st.just(RUN),
    ),
    "runs/log-parameter": fields({"run_id": runs, "key": keys, "value": texts}, run_uuid=st.just(RUN)),
    "runs/set-tag": fields({"run_id": runs, "key": tag_keys, "value": texts}, run_uuid=st.just(RUN)),
    "runs/log-batch": fields(
        {"run_id": runs},
        metrics=mostly(st.lists(point, max_size=6)),
        params=mostly(st.lists(pair_of, max_size=4, unique_by=lambda given_pair: str(given_pair.get("key")))),
        tags=mostly(st.lists(tag_of, max_size=4)),
    ),
    "runs/search": fields(
        {"experiment_ids": mostly(st.just([EXPERIMENT]))},
        run_view_type=mostly(st.sampled_from(["ALL", "ACTIVE_ONLY", "DELETED_ONLY"])),
        filter=mostly(
            st.sampled_from(["", "metrics.a > 0", "params.b = 'v'", "tags.a LIKE 'v%'", "metrics.a != 1"])
        ),
        max_results=mostly(st.just(100)),
    ),
    "runs/delete": st.fixed_dictionaries({"run_id": st.sampled_from([RUN, SECOND])}),
    "runs/restore": st.fixed_dictionaries({"run_id": st.sampled_from([RUN, SECOND])}),
    "runs/delete-tag": st.fixed_dictionaries({"run_id": st.just(RUN), "key": tag_keys}),
}
OFTEN = [route for route in BODIES if not route.startswith("runs/delete") and route != "runs/restore"]


def spelled(body: Any) -> st.SearchStrategy[bytes]:
    """Return a body's texts: nearly always as clients write it."""
    text = json.dumps(body).encode()
    raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    odd = [
        raw,
        b" " + text,
        text[:-1],
        text + b"x",
        text.replace(b'"a"', b'"\\u0061"'),
        json.dumps(body, indent=2).encode(),
    ]
    return st.integers(0, 19).flatmap(lambda dice: st.sampled_from(odd) if dice == 19 else st.just(text))


def request_of(route: str) -> st.SearchStrategy[Step]:
    """Return requests to a route that writes or searches."""
    return (
        BODIES[route].flatmap(spelled).map(lambda body: either(route, body, sort_runs=route == "runs/search"))
    )


reads = st.sampled_from([RUN, SECOND]).map(lambda run: either("runs/get", query=f"run_id={run}"))
requests = st.one_of(
    *(request_of(route) for route in OFTEN),
    st.sampled_from([route for route in BODIES if route not in OFTEN]).flatmap(request_of),
    reads,
)


def test_odd_requests(pair: Pair) -> None:
    examples = {"ci": 200}.get(os.environ.get("HYPOTHESIS_PROFILE", "ci"), 5000)
    before = dict(pair.answered)

    # A failure is told as it came: making it smaller takes hundreds of sequences, and the steps are few.
    @settings(
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
    )
    @given(steps=st.lists(requests, min_size=1, max_size=8))
    def check(steps: list[Step]) -> None:
        pair.play([*steps, either("runs/get", query="run_id=<run 1>")])

    check()
    if pair.tells:
        fast, fallback = (pair.answered[who] - before[who] for who in ("fast", "fallback"))
        assert fast > fallback / 2
        assert fallback > 0
