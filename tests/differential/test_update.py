"""runs/update."""

from __future__ import annotations

from typing import Any

from kit.differential import Pair, Step, cases, fast, slow

END = 1700000001234
R = "<run 1>"
GET = fast("runs/get", query="run_id=<run 1>")


def update(how: Any = fast, **given: Any) -> Step:
    """Return a runs/update of the case's run."""
    return how("runs/update", {"run_id": R, **given})


def raw(fields: str, how: Any = slow) -> Step:
    """Return a runs/update with these fields after the run's id."""
    return how("runs/update", ('{"run_id": "<run 1>", ' + fields + "}").encode())


PLAIN = {
    "as the Python client ends a run": [update(status="FINISHED", end_time=END), GET],
    "as the Python client, with null": [update(slow, status="FINISHED", end_time=END, run_name=None), GET],
    "with run_uuid": [update(run_uuid=R, status="FINISHED", end_time=END), GET],
    "status alone": [update(status="FAILED"), GET],
    "end time alone": [update(end_time=END), GET],
    "name alone": [update(slow, run_name="renamed"), GET],
    "all": [update(slow, status="KILLED", end_time=END, run_name="renamed"), GET],
    "nothing": [update(fast), GET],
    "running": update(status="RUNNING"),
    "scheduled": update(status="SCHEDULED"),
    "ended and running again": [
        update(status="FINISHED", end_time=END),
        update(status="RUNNING"),
        update(status="FAILED", end_time=END + 5),
        GET,
    ],
    "the same twice": [update(status="FINISHED", end_time=END), update(status="FINISHED", end_time=END), GET],
    "renamed twice": [update(slow, run_name="b"), update(slow, run_name="c"), GET],
    "renamed after its name tag was set": [
        slow("runs/set-tag", {"run_id": R, "key": "mlflow.runName", "value": "by tag"}),
        update(slow, run_name="by update"),
        GET,
    ],
    "renamed after its name tag was deleted": [
        slow("runs/delete-tag", {"run_id": R, "key": "mlflow.runName"}),
        GET,
        update(slow, run_name="again"),
        GET,
    ],
    "ajax twin": fast(
        "runs/update", {"run_id": R, "status": "FINISHED", "end_time": END}, prefix="/ajax-api/2.0/mlflow/"
    ),
}

ODD = {
    "status absent": update(end_time=END),
    "status null": update(slow, status=None, end_time=END),
    "status empty": update(slow, status=""),
    "status in lower case": update(slow, status="finished"),
    "status unknown": update(slow, status="DONE"),
    "status with a blank": update(slow, status="FINISHED "),
    "status a number": [update(slow, status=3), GET],
    "status a number in quotes": update(slow, status="3"),
    "status an unknown number": update(slow, status=17),
    "status 0": update(slow, status=0),
    "status a float": update(slow, status=3.0),
    "status a broken float": update(slow, status=3.5),
    "status true": update(slow, status=True),
    "status a list": update(slow, status=["FINISHED"]),
    "end time 0": [update(fast, end_time=0), GET],
    "end time null": update(slow, end_time=None, status="FINISHED"),
    "end time in quotes": update(slow, end_time=str(END)),
    "end time empty": update(slow, end_time=""),
    "end time a word": update(slow, end_time="now"),
    "end time a whole float": update(slow, end_time=float(END)),
    "end time a broken float": update(slow, end_time=0.5),
    "end time negative": [update(fast, end_time=-1), GET],
    "end time before the start": [update(end_time=5), GET],
    "end time int64 max": [update(fast, end_time=9223372036854775807), GET],
    "end time beyond int64": update(slow, end_time=9223372036854775808),
    "end time 1e3": raw('"end_time": 1e3'),
    "end time 1e400": raw('"end_time": 1e400', slow),
    "end time true": update(slow, end_time=True),
    "end time a list": update(slow, end_time=[]),
    "name empty": [update(slow, run_name=""), GET],
    "name null": [update(slow, run_name=None), GET],
    "name a number": update(slow, run_name=5),
    "name blank": [update(slow, run_name=" "), GET],
    "name of 250": update(slow, run_name="n" * 250),
    "name of 251": update(slow, run_name="n" * 251),
    "name of 5000": update(slow, run_name="n" * 5000),
    "name of 8000": update(slow, run_name="n" * 8000),
    "name of 9000": update(slow, run_name="n" * 9000),
    "name of emoji": [update(slow, run_name="🎉" * 50), GET],
    "name with NUL": update(slow, run_name="a\0b"),
    "name with a lone surrogate": raw('"run_name": "\\ud800"', slow),
    "name with slashes": update(slow, run_name="../a//b"),
    "unknown key": update(slow, lifecycle_stage="deleted"),
    "camel case": slow("runs/update", {"runId": R, "endTime": END, "runName": "camel", "status": "FINISHED"}),
    "both spellings": update(slow, end_time=END, endTime=END),
    "run_uuid only": [slow("runs/update", {"run_uuid": R, "status": "FINISHED"}), GET],
    "run_uuid of another": [
        slow("runs/update", {"run_id": R, "run_uuid": "0" * 32, "status": "FINISHED"}),
        GET,
    ],
    "run_id of another": slow("runs/update", {"run_id": "0" * 32, "run_uuid": R, "status": "FINISHED"}),
    "run_id empty and run_uuid": slow("runs/update", {"run_id": "", "run_uuid": R, "status": "FINISHED"}),
    "key twice": [raw('"status": "FAILED", "status": "FINISHED"', fast), GET],
    "key twice, last null": [raw('"status": "FAILED", "status": null'), GET],
    "key twice, first wrong": [raw('"status": "x", "status": "FINISHED"', fast), GET],
}


@cases(PLAIN)
def test_plain_updates(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)


@cases(ODD)
def test_odd_updates(pair: Pair, steps: list[Step]) -> None:
    pair.play(steps)
