"""What the door costs and holds: the login per request, guesses per minute, honest requests under flood.

Usage: .venv/bin/python benchmarks/door.py [--rounds 5] [--seconds 5]

Needs `wrk` (Debian package) and a host that reaches container addresses (Linux). Works on a throwaway
project. For the cost of the login a second nginx of the same image has auth_request taken out; both
are asked by turns, past Docker's proxy: for a file of nginx's own, which is the worst case, and for
a small answer of MLflow's. Guesses come from a process of their own.
"""

from __future__ import annotations

import multiprocessing
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from common import parser, throwaway
from kit.door import Door, docker, door, send, set_user, stack_networks
from kit.flood import Flood
from kit.people import add
from kit.stack import ROOT, Stack

CONNECTIONS = 8
PATHS = {"a file of nginx": "/stack-ui/page.js", "MLflow's /version": "/version"}
MANY = [f"198.51.100.{number}" for number in range(1, 201)]
GUESSING_SECONDS = 120


@dataclass(frozen=True)
class Load:
    """What wrk measured."""

    per_second: float
    p50_ms: float


def in_ms(text: str) -> float:
    """Return milliseconds of "123.00us", "1.20ms" or "1.00s"."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def load(url: str, authorization: str, seconds: int) -> Load:
    """Ask for a URL over eight connections as often as possible."""
    said = subprocess.run(
        [
            *("wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s"),
            *("--latency", "--header", f"Authorization: {authorization}", url),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "Non-2xx" in said:
        raise RuntimeError(said)
    p50 = re.search(r"50%\s+(\S+)", said)
    rate = re.search(r"Requests/sec:\s+(\S+)", said)
    return Load(float(rate[1]), in_ms(p50[1]))


def address_of(container: str) -> str:
    """Return the address of a container in the network `door`."""
    template = "{{range $name, $net := .NetworkSettings.Networks}}{{$name}} {{$net.IPAddress}}\n{{end}}"
    lines = docker("inspect", container, "--format", template).splitlines()
    return next(line.split()[1] for line in lines if line.split()[0].endswith("_door"))


@contextmanager
def without_login(stack: Stack) -> Iterator[Door]:
    """The same nginx with auth_request off."""
    gates = (ROOT / "nginx/server.d/00-gates.conf").read_text()
    names = re.findall(r"^auth_request_set \$(\w+) ", gates, flags=re.MULTILINE)
    assert "login_user" in names
    gates = re.sub(r"^auth_request(_set)? .*;$", "", gates, flags=re.MULTILINE)
    unset = "".join(f'set ${name} "";\n' for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gates.conf"
        path.write_text(unset + gates)
        Path(folder).chmod(0o755)
        path.chmod(0o644)
        mount = f"--volume={path}:/opt/nginx/server.d/00-gates.conf:ro"
        with door(stack, stack_networks(stack), more=[mount]) as opened:
            yield opened


def cost_of_login(stack: Stack, rounds: int, seconds: int) -> None:
    """Print requests/s and p50 with and without auth_request."""
    token = f"Bearer {add(stack, 'bench', 'reader')}"
    with door(stack, stack_networks(stack)) as closed, without_login(stack) as opened:
        doors = {"with": closed, "without": opened}
        for what, path in PATHS.items():
            found: dict[str, list[Load]] = {"with": [], "without": []}
            for number in range(rounds):
                for name in sorted(doors, reverse=bool(number % 2)):
                    url = f"http://{address_of(doors[name].name)}:8080{path}"
                    found[name].append(load(url, token, seconds))
            p50 = {name: statistics.median(one.p50_ms for one in all_) for name, all_ in found.items()}
            rate = {name: statistics.median(one.per_second for one in all_) for name, all_ in found.items()}
            # Eight connections share the time: a request alone costs an eighth of what each waits.
            alone = (1 / rate["with"] - 1 / rate["without"]) * 1000
            print(
                f"| login, {what} | {rate['without']:,.0f}/s without, {rate['with']:,.0f}/s with"
                f" ({1 - rate['with'] / rate['without']:.1%} less); p50 {p50['without']:.2f} and"
                f" {p50['with']:.2f} ms; {alone:.3f} ms a request |",
                flush=True,
            )


@dataclass(frozen=True)
class Guessing:
    """A flood in a process of its own."""

    port: int
    addresses: list[str]
    names: list[str]

    def run(self, seconds: float, out: multiprocessing.Queue) -> None:
        """Guess for some seconds; put the statuses and the seconds into the queue."""
        with Flood(self.port, self.names, self.addresses) as flood:
            time.sleep(seconds)
        out.put((dict(flood.statuses), flood.seconds))

    @contextmanager
    def meanwhile(self, seconds: float) -> Iterator[multiprocessing.Queue]:
        """Guess while the block runs, and yield where the result will be."""
        out: multiprocessing.Queue = multiprocessing.Queue()
        process = multiprocessing.Process(target=self.run, args=(seconds, out))
        process.start()
        try:
            yield out
        finally:
            process.join()


def guesses_per_minute(stack: Stack) -> None:
    """Print how many passwords one address gets checked for one user."""
    guessing = Guessing(stack.port, [""] * 4, ["victim", "victim"])
    with guessing.meanwhile(GUESSING_SECONDS) as out:
        statuses, seconds = out.get()
    # Every third guess is at an unknown name, which is answered 401 as well and never checked.
    print(f"| guesses, one address | {statuses} in {seconds:.0f} s |", flush=True)


def p95(url: str, seconds: int) -> float:
    """Return the 95th percentile of a logged-in user's requests, in ms."""
    session = requests.Session()
    session.trust_env = False
    session.auth = ("honest", "a good password")
    session.get(f"{url}/version", timeout=60)
    found = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        started = time.monotonic()
        assert session.get(f"{url}/version", timeout=60).status_code == 200
        found.append((time.monotonic() - started) * 1000)
        time.sleep(0.01)
    return statistics.quantiles(found, n=20)[-1]


def honest_under_flood(stack: Stack, rounds: int, seconds: int) -> None:
    """Print the honest user's p95 with nobody guessing, and with guesses of one and of 200 addresses."""
    network, _ = stack_networks(stack)
    gateway = docker("network", "inspect", network, "--format", "{{(index .IPAM.Config 0).Gateway}}").strip()
    with door(stack, stack_networks(stack), TRUSTED_PROXIES=gateway) as opened:
        names = ["victim", "honest"]
        floods = {
            "nobody": None,
            "16 of the same address": Guessing(opened.port, [""] * 16, names),
            "200 addresses": Guessing(opened.port, MANY, names),
        }
        found: dict[str, list[float]] = {name: [] for name in floods}
        guessed: dict[str, str] = {}
        for number in range(rounds):
            for name in sorted(floods, reverse=bool(number % 2)):
                guessing = floods[name]
                if guessing is None:
                    found[name].append(p95(opened.url, seconds))
                    continue
                with guessing.meanwhile(seconds + 1) as out:
                    found[name].append(p95(opened.url, seconds))
                    statuses, taken = out.get()
                guessed[name] = f"{sum(statuses.values()) / taken:,.0f} guesses/s"
        for name, values in found.items():
            ratio = statistics.median(values) / statistics.median(found["nobody"])
            print(
                f"| p95 of an honest user, guessing: {name} | {statistics.median(values):.1f} ms"
                f" [{min(values):.1f}-{max(values):.1f}], {ratio:.1f} times; {guessed.get(name, '')} |",
                flush=True,
            )


def main() -> None:
    arguments_of = parser(__doc__)
    arguments_of.add_argument("--seconds", type=int, default=5)
    arguments = arguments_of.parse_args()
    print("| what | measured |\n| --- | --- |")
    with throwaway("door") as stack:
        for name in ("victim", "honest"):
            set_user(stack, name, "a good password")
        assert send(stack.port, "GET", "/version", Authorization=stack.authorization).status == 200
        cost_of_login(stack, arguments.rounds, arguments.seconds)
        honest_under_flood(stack, arguments.rounds, arguments.seconds)
        guesses_per_minute(stack)


if __name__ == "__main__":
    main()
