"""Measure what a person waits for: starts, rebuilds, and what the idle stack takes.

Usage: .venv/bin/python benchmarks/start_times.py [--rounds 5] [--cold-build]

Works on a throwaway project beside a user's stack. --cold-build also empties Docker's whole
build cache and removes this project's images first: minutes, and every later build of
anything on this machine starts cold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from kit.stack import Stack, free_port  # noqa: E402


def seconds(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout


def idle_memory_mb(stack: Stack) -> dict[str, float]:
    units = {"KiB": 1 / 1024, "MiB": 1, "GiB": 1024}
    memory = {}
    for line in docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}").splitlines():
        name, used = line.split()[:2]
        if name.startswith(stack.project):
            number, unit = used[:-3], used[-3:]
            memory[name.removeprefix(f"{stack.project}-").rsplit("-", 1)[0]] = float(number) * units[unit]
    return memory


def busy_cores(seconds: int = 60) -> float:
    """Return how many cores of the machine work, on average, while nobody asks for anything."""

    def busy() -> float:
        user, nice, system, _, _, interrupts, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
        return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")

    before = busy()
    time.sleep(seconds)
    return (busy() - before) / seconds


def image_sizes_mb(tag: str) -> tuple[dict[str, float], float]:
    """Return each image's size, and the size of all together with shared layers once."""
    sizes: dict[str, float] = {}
    layers: dict[str, float] = {}
    for name in ("scripts", "postgres", "minio", "mlflow", "fastpath", "auth", "nginx"):
        image = f"mlflow-stack/{name}:{tag}"
        facts = json.loads(docker("image", "inspect", image))[0]
        sizes[name] = facts["Size"] / 1e6
        history = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}", image)
        filled = [int(size) / 1e6 for size in reversed(history.split()) if int(size)]
        layers.update(zip(facts["RootFS"]["Layers"], filled, strict=False))
    return sizes, sum(layers.values())


def make_cold(stack: Stack) -> None:
    """Remove this project's images and Docker's build cache."""
    stack.remove()
    for image in docker("images", "--quiet", "--filter", "reference=mlflow-stack/*").split():
        subprocess.run(["docker", "rmi", "--force", image], capture_output=True, check=False)
    docker("builder", "prune", "--all", "--force")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold-build", action="store_true")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        settings_file = Path(folder) / "env"
        settings_file.write_text("")
        stack = Stack("stackbench", free_port(), settings_file, "bench")
        rows: list[tuple[str, str]] = []
        others = busy_cores()
        try:
            if arguments.cold_build:
                make_cold(stack)
                cold = seconds(lambda: stack.verb("up", timeout=3600))
                rows.append(("cold `./stack up`: base image, build, start", f"{cold:.0f} s"))
            stack.verb("up")

            def rounds(action: Callable[[], object], before: Callable[[], object]) -> str:
                taken = []
                for _ in range(arguments.rounds):
                    before()
                    taken.append(seconds(action))
                return f"{statistics.median(taken):.1f} s [{min(taken):.1f}-{max(taken):.1f}]"

            def start() -> None:
                stack.compose("up", "--detach", "--wait", "--no-build")

            rows.append(
                ("empty volumes to healthy", rounds(start, lambda: stack.compose("down", "--volumes")))
            )
            rows.append(("start with data, after `down`", rounds(start, lambda: stack.compose("down"))))
            rows.append(("`./stack up` when all runs", rounds(lambda: stack.verb("up"), lambda: None)))

            probe = ROOT / "mlflow" / "src" / "stackserver" / "benchmark_probe.py"
            try:

                def change() -> None:
                    probe.write_text(f'"""{time.time()}"""\n')

                rebuild = rounds(lambda: stack.compose("build", "mlflow"), change)
            finally:
                probe.unlink(missing_ok=True)
            rows.append(("rebuild after a change of our Python code", rebuild))

            stack.verb("up")
            time.sleep(60)
            rows.append(("idle processor time", f"{(busy_cores() - others) * 100:.0f} % of a core"))
            memory = idle_memory_mb(stack)
            parts = ", ".join(f"{name} {value:.0f}" for name, value in sorted(memory.items()))
            rows.append(("idle memory", f"{sum(memory.values()):.0f} MB ({parts})"))
            sizes, together = image_sizes_mb(stack.image_tag)
            parts = ", ".join(f"{name} {value:.0f}" for name, value in sizes.items())
            rows.append(("images on disk, shared layers once", f"{together:.0f} MB ({parts})"))
        finally:
            stack.remove()
    print(f"Medians of {arguments.rounds} rounds [range].\n\n| what | measured |\n| --- | --- |")
    for what, measured in rows:
        print(f"| {what} | {measured} |")


if __name__ == "__main__":
    main()
