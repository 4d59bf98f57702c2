"""Purging deleted runs with artifacts for good: `./stack cleanup purge` against `mlflow gc`.

Usage: .venv/bin/python benchmarks/retention.py [--rounds 5] [--runs 2000]

Works on a throwaway project that also has 20,000 logged models and 5,000 registered versions,
which stay. Each round makes three equal sets of deleted runs (a param, ten
metric points, three tags and two artifacts each) and lets each way free one, the first way
by turns; a third set's objects are listed and deleted without a look at the database, which is
the storage's own limit. All times include the start of their process in a running container;
peak memory is the process's own (VmHWM).
"""

from __future__ import annotations

import hashlib
import statistics
import time

from common import parser, spread, throwaway
from kit import history
from kit.stack import Stack

GC = """
import resource, runpy, sys
from stackserver.settings import read_settings
sys.argv = ["mlflow", "gc", "--backend-store-uri", read_settings().database_uri,
    "--artifacts-destination", "s3://mlflow/artifacts", "--tracking-uri", "http://127.0.0.1:5000"]
try:
    runpy.run_module("mlflow", run_name="__main__")
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
PURGE = """
import resource, sys
from stackops import cli
sys.argv = ["stackops", "cleanup", "purge", "--json"]
try:
    cli.main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

BUCKET = """
import os, resource
from concurrent.futures import ThreadPoolExecutor
from stackops.settings import read_settings
from stackops.storage import open_bucket
bucket = open_bucket(read_settings(os.environ))
keys = [key for key, _ in bucket.objects("artifacts/0/")]
with ThreadPoolExecutor(8) as pool:
    assert not any(pool.map(bucket.delete, [keys[start : start + 250] for start in range(0, len(keys), 250)]))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def make(stack: Stack, label: str, runs: int) -> None:
    """Make runs that were deleted ten days ago."""
    ids = [hashlib.md5(f"{label} {number}".encode()).hexdigest() for number in range(runs)]
    history.bulk(stack, "0", ids)
    stack.psql(
        "UPDATE runs SET lifecycle_stage = 'deleted',"
        " deleted_time = ((extract(epoch FROM now()) - 864000) * 1000)::bigint"
        " WHERE lifecycle_stage = 'active'"
    )
    stack.verb("cleanup", "list")  # they are known now
    history.forget_that_it_is_new(stack)
    stack.psql("VACUUM ANALYZE")
    stack.psql("CHECKPOINT")


def ballast(stack: Stack) -> None:
    """Make what stays: models of runs that are not deleted, a quarter of them registered."""
    stack.psql_script(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
        " VALUES (0, 'Default', 'mlflow-artifacts:/0', 'active', 'default') ON CONFLICT DO NOTHING;"
        "INSERT INTO logged_models (model_id, experiment_id, name, artifact_location,"
        " creation_timestamp_ms, last_updated_timestamp_ms, status, lifecycle_stage)"
        " SELECT 'm-' || i, 0, 'm', 'mlflow-artifacts:/0/models/m-' || i || '/artifacts/', 1, 1, 2, 'active'"
        " FROM generate_series(1, 20000) AS i;"
        "INSERT INTO registered_models (name, workspace) VALUES ('ballast', 'default');"
        "INSERT INTO model_versions (name, version, workspace, source, current_stage, creation_time,"
        " last_updated_time, status)"
        " SELECT 'ballast', i, 'default', 'models:/m-' || i, 'None', 1, 1, 'READY'"
        " FROM generate_series(1, 5000) AS i;"
    )


def left(stack: Stack) -> tuple[int, int]:
    """Return the runs and objects that are still there."""
    found = history.History(stack)
    return int(stack.psql("SELECT count(*) FROM runs")), len(found.objects())


def timed(stack: Stack, service: str, script: str) -> tuple[float, int]:
    """Run a script in a service's container; return its seconds and peak memory in MB."""
    extra = ("-e", "RETENTION_PURGE_AFTER_DAYS=1")
    started = time.monotonic()
    done = stack.compose("exec", "-T", *extra, service, "python", "-c", script, timeout=3600)
    return time.monotonic() - started, int(done.stdout.split()[-1])


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--runs", type=int, default=2000)
    arguments = arguments_of.parse_args()
    ways = {"gc": ("mlflow", GC), "purge": ("cron", PURGE), "bucket": ("cron", BUCKET)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, int] = dict.fromkeys(ways, 0)
    with throwaway("retention") as stack:
        ballast(stack)
        for number in range(arguments.rounds):
            for name in list(ways) if number % 2 else list(reversed(ways)):
                make(stack, f"{number} {name}", arguments.runs)
                stack.verb("backup", "run")
                stack.verb("backup", "verify")
                before = left(stack)
                spent, peak = timed(stack, *ways[name])
                if name == "bucket":
                    timed(stack, *ways["purge"])  # the rows
                after = left(stack)
                assert after[0] == 0, (name, before, after)
                seconds[name].append(spent)
                memory[name] = max(memory[name], peak)
                print(f"{name}: {spent:.1f} s, {peak} MB, runs and objects {before}, {after}", flush=True)
    for name, values in seconds.items():
        print(spread(name, values, f"s, peak {memory[name]} MB,"))
    print(f"purge / bucket {statistics.median(seconds['purge']) / statistics.median(seconds['bucket']):.1f}")
    print(f"gc / purge {statistics.median(seconds['gc']) / statistics.median(seconds['purge']):.1f}")


if __name__ == "__main__":
    main()
