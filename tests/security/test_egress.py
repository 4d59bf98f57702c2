"""What a container reaches, tried from inside of it: neither the internet nor the host, but for the door."""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit.door import docker, stack_networks
from kit.stack import Stack

INSIDE = ("postgres", "minio", "mlflow", "fastpath", "auth", "backup", "cron")
ELSEWHERE = "198.51.100.1"  # TEST-NET-2 of RFC 5737: in nobody's network


# Each try in the background: what is not reached hangs.
PROBE = """
for target in "$@"; do
    ( timeout 4 bash -c "exec 3<>/dev/tcp/${target%:*}/${target#*:}" 2>/dev/null && echo "$target" ) &
done
( timeout 8 getent hosts example.com >/dev/null && echo example.com ) &
wait
"""


def reached(stack: Stack, service: str, *targets: str) -> set[str]:
    """Return what is reached from inside a service's container: "address:port", or a name of the world."""
    done = stack.compose("exec", "-T", service, "bash", "-c", PROBE, "probe", *targets)
    return set(done.stdout.split())


@pytest.fixture
def service_of_the_host() -> Iterator[int]:
    """A port that something of this machine listens on, at all its addresses."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        yield listener.getsockname()[1]


def addresses_of_the_host(stack: Stack, port: int) -> set[str]:
    """Return the addresses of this machine that answer on a port, and the gateways of the stack."""
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    found = {address for address in own if ":" not in address and answers(address, port)}
    for name in stack_networks(stack):
        (facts,) = json.loads(docker("network", "inspect", name))
        found |= {config["Gateway"] for config in facts["IPAM"]["Config"] if config.get("Gateway")}
    return found


def answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=5):
            return True
    except OSError:
        return False


def test_services_reach_their_neighbours_and_nothing_else(stack: Stack, service_of_the_host: int) -> None:
    addresses = addresses_of_the_host(stack, service_of_the_host)
    targets = [f"{address}:{service_of_the_host}" for address in addresses] + [f"{ELSEWHERE}:443"]
    neighbour = "minio:9000"  # or the rest would prove nothing
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda service: reached(stack, service, neighbour, *targets), INSIDE)
        assert dict(zip(INSIDE, found, strict=True)) == {service: {neighbour} for service in INSIDE}


def test_the_door_alone_is_in_a_network_with_the_host(stack: Stack, service_of_the_host: int) -> None:
    """Known, docs/security.md: Docker publishes its port there. It also shows that the probe works."""
    outside, _ = stack_networks(stack)
    gateway = docker("network", "inspect", outside, "--format", "{{(index .IPAM.Config 0).Gateway}}").strip()
    target = f"{gateway}:{service_of_the_host}"
    assert target in reached(stack, "nginx", target)


def test_the_host_has_no_address_in_the_network_of_the_services(stack: Stack) -> None:
    """So its local users do not reach the database by its address either."""
    _, inside = stack_networks(stack)
    (facts,) = json.loads(docker("network", "inspect", inside))
    assert facts["Internal"] is True
    (network,) = [ipaddress.ip_network(config["Subnet"]) for config in facts["IPAM"]["Config"]]
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    assert [address for address in own if ipaddress.ip_address(address) in network] == []
