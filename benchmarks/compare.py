"""This stack against stock MLflow and FastTrackML, on one machine in the same minutes: ./stack bench.

Usage: .venv/bin/python benchmarks/compare.py [ROW ...] [--rounds 5] [--quick] [--long] [--save docs]
       .venv/bin/python benchmarks/compare.py --from build/bench/DATE.json [--and ANOTHER.json] [--save docs]

The servers take turns within each round, and each round begins with another one. Prints tables;
saves them, with every sample, in build/bench/. Exit status 1 if a measurement failed, 2 for wrong words.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import requests

import common  # noqa: F401  # the path to the kit of the tests
import peers
import processes
import report
from figures import Measured, Sample, sample
from kit.stack import ROOT
from rows import ROWS, flow
from rows.row import Bench, Options, Row

FAILURES = (AssertionError, RuntimeError, ValueError, OSError, requests.RequestException)
"""What a measurement may raise and the others go on. (CalledProcessError is no RuntimeError.)"""
One = TypeVar("One")


def turned(names: Sequence[One], number: int) -> list[One]:
    """Return a list that begins with another one in each round: nobody is always first.

    >>> turned("abc", 4)
    ['b', 'c', 'a']
    """
    start = number % len(names) if names else 0
    return [*names[start:], *names[:start]]


def order(row: Row, options: Options) -> Iterator[tuple[int, Any, str]]:
    """Return round, step and server of each measurement of a row, in their order."""
    for number in range(options.rounds):
        for step in row.steps(options):
            for server in turned(row.servers, number):
                yield number, step, server


def measured(bench: Bench, row: Row, server: str, step: Any) -> dict[str, Measured]:
    """Measure once; a measurement that fails is a sample without values that says why."""
    try:
        with bench.peers.alone(server):
            return row.measure(bench, server, step)
    except (*FAILURES, subprocess.SubprocessError) as error:
        print(f"{row.name}, {server}, {step}: {error!r}", file=sys.stderr, flush=True)
        return {f"step {step}": Measured(errors={"failed": 1}, note=f"failed: {error!r}"[:300])}


def measure_row(bench: Bench, row: Row, samples: list[Sample]) -> None:
    """Measure a row: all rounds, all steps, all servers. What is found is added to `samples`."""
    row.prepare(bench)
    for number, step, server in order(row, bench.options):
        load_average = os.getloadavg()[0]
        for case, found in measured(bench, row, server, step).items():
            where = {"row": row.name, "case": case, "server": server, "round": number}
            one = sample(found, **where, load_average=load_average)
            samples.append(one)
            values = ", ".join(f"{name} {value:.5g}" for name, value in one.values.items())
            print(f"round {number + 1}: {row.name}, {case}, {server}: {values or one.note}", file=sys.stderr)


def compare(rows: Sequence[Row], options: Options) -> dict[str, Any]:
    """Start everything, measure the rows, remove everything; return the run as it was saved.

    What was measured is saved also if it is broken off.
    """
    wanted = [name for name in peers.PEERS if any(name in row.peers for row in rows)]
    samples: list[Sample] = []
    memory: dict[str, float] = {}
    date = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        with peers.running("compare", wanted) as running, tempfile.TemporaryDirectory() as folder:
            bench = Bench(running, options, peers.load_generator(running.stack, Path(folder)), set())
            flow.warm(bench)
            for row in rows:
                measure_row(bench, row, samples)
            for name in running.servers:
                used = sum(processes.memory_mb(running.groups(name)).values())
                memory |= {name: used} if used else {}  # root alone may look
    finally:
        run = report.run_of(
            samples, options, machine=peers.machine(), memory_mb=memory, date=date, revision=revision()
        )
        if samples:
            print(f"saved: {report.save(run, ROWS).relative_to(ROOT)}", file=sys.stderr)
    return run


def revision() -> str:
    """Return the checkout's revision, marked where files differ from it; "unknown" without git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; end with status 2 if they are off."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; without: all")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, one round")
    parser.add_argument("--long", action="store_true", help="also a million runs")
    parser.add_argument("--save", choices=["docs"], help="write the figures into docs/performance.md")
    parser.add_argument(
        *("--from", "--and"),
        dest="files",
        type=Path,
        action="append",
        help="a saved run, instead of measuring; with --and FILE another one, of other rows",
    )
    arguments = parser.parse_args(words)
    if unknown := [name for name in arguments.rows if name not in ROWS]:
        parser.error(f"no row of the name {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds takes a whole number from 1")
    return arguments


def main() -> int:
    arguments = parse()
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    if arguments.files:
        runs = [json.loads(file.read_text()) for file in arguments.files]
    else:
        chosen = [row for name, row in ROWS.items() if not arguments.rows or name in arguments.rows]
        runs = [compare(chosen, Options(rounds, arguments.quick, arguments.long))]
    if arguments.save == "docs":
        report.save_docs(runs, ROWS)
    print("\n".join(report.markdown(run, ROWS) for run in runs))
    return 1 if any("failed" in one["errors"] for run in runs for one in run["samples"]) else 0


if __name__ == "__main__":
    sys.exit(main())
