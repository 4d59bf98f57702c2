"""Restore of a million metric points and 10,000 artifacts, against pg_restore and a plain copy.

Usage: .venv/bin/python benchmarks/restore.py [--rounds 5] [--points 1000000] [--objects 10000]

Works on a throwaway project. Both ways start from the same data and run one after the other
in each round, each in a container of the same image:

ours   the steps of ./stack restore that move data: lay out, recover, compare nothing more than
       a restore does (every table's digest), and put back what the (emptied) bucket lacks
plain  pg_restore (two jobs) of a custom-format dump into an empty database, and a copy of
       the objects' files into the emptied bucket by the same rclone
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

from common import parser, spread, throwaway
from kit.stack import Stack, poll

OPS = ("run", "--rm", "--no-deps", "-T")
BUCKET = "store:mlflow/artifacts/bench"
RCLONE = (
    "export RCLONE_CONFIG=/dev/null RCLONE_CONFIG_STORE_TYPE=s3 RCLONE_CONFIG_STORE_PROVIDER=Minio"
    " RCLONE_CONFIG_STORE_ENV_AUTH=true RCLONE_CONFIG_STORE_ENDPOINT=http://minio:9000"
    " AWS_SHARED_CREDENTIALS_FILE=/secrets/backup/aws_credentials RCLONE_TRANSFERS=8; rclone --quiet "
)


def seconds(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def shell(stack: Stack, service: str, command: str) -> str:
    """Run a command in a throwaway container of a service."""
    return stack.compose(*OPS, "--entrypoint", "sh", service, "-ec", command, timeout=3600).stdout


def fill(stack: Stack, points: int, objects: int) -> None:
    """Write the points by SQL and the objects (10 kB each) by rclone."""
    stack.psql(  # MLflow makes it when somebody asks for it
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace)"
        " VALUES (0, 'Default', 'mlflow-artifacts:/0', 'active', 'default') ON CONFLICT DO NOTHING"
    )
    stack.psql(
        "INSERT INTO runs (run_uuid, name, status, start_time, lifecycle_stage, artifact_uri, experiment_id)"
        " SELECT md5(i::text), 'run' || i, 'FINISHED', 0, 'active', 'mlflow-artifacts:/0/x', 0"
        f" FROM generate_series(1, {max(points // 1000, 1)}) AS i"
    )
    stack.psql(
        "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)"
        " SELECT 'loss', random(), i, md5((1 + i / 1000)::text), i % 1000, false"
        f" FROM generate_series(0, {points - 1}) AS i"
    )
    shell(
        stack,
        "ops",
        f"mkdir -p /tmp/bench; cd /tmp/bench; for i in $(seq {objects}); do"
        f" head -c 10000 /dev/urandom >$i; done; {RCLONE} copy /tmp/bench {BUCKET}",
    )


def empty_bucket(stack: Stack) -> None:
    shell(stack, "ops", f"{RCLONE} delete {BUCKET}")


def ours(stack: Stack, set_id: str) -> float:
    stack.compose("stop", "backup", "postgres")
    database = ("restore", "database", "--set", set_id, "--own-moment")
    spent = seconds(lambda: stack.compose(*OPS, "restore", *database, timeout=3600))
    stack.compose("up", "--detach", "--wait", "--no-deps", "postgres")
    empty_bucket(stack)
    return spent + seconds(lambda: stack.compose(*OPS, "ops", "restore", "objects", timeout=3600))


def plain(stack: Stack) -> float:
    stack.psql("DROP DATABASE IF EXISTS plain", "postgres")
    stack.psql("CREATE DATABASE plain", "postgres")
    load = "pg_restore -h /run/postgresql -U postgres -d plain --no-owner --jobs 2 /tmp/bench.dump"
    spent = seconds(lambda: stack.compose("exec", "-T", "postgres", "sh", "-c", load, timeout=3600))
    empty_bucket(stack)
    copy = f"{RCLONE} copy /backups/objects/current/artifacts/bench {BUCKET}"
    return spent + seconds(lambda: shell(stack, "ops", copy))


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--points", type=int, default=1_000_000)
    arguments_of.add_argument("--objects", type=int, default=10_000)
    arguments = arguments_of.parse_args()
    with throwaway("restore") as stack:
        poll(stack.sets, seconds=120, what="a set")
        stack.compose("stop", "nginx", "mlflow", "cron")
        fill(stack, arguments.points, arguments.objects)
        made = json.loads(stack.verb("backup", "run", "--full", "--json").stdout)
        rounds: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(arguments.rounds):
            dump = "pg_dump -h /run/postgresql -U postgres --format=custom mlflow >/tmp/bench.dump"
            stack.compose("exec", "-T", "postgres", "sh", "-c", dump, timeout=3600)
            rounds["plain"].append(plain(stack))
            rounds["ours"].append(ours(stack, made["set"]))
            print({name: round(spent[-1], 1) for name, spent in rounds.items()}, flush=True)
        for name, spent in rounds.items():
            print(spread(name, spent, "s"))
        ratio = statistics.median(rounds["plain"]) / statistics.median(rounds["ours"])
        print(f"plain / ours {ratio:.2f}; {made}")


if __name__ == "__main__":
    main()
