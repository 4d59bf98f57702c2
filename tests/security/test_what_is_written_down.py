"""No secret, password or token stands in a log, the audit log, docker inspect or a command line.

The name puts this module last: the secrets that all other tests handed out are looked for.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Mapping
from urllib.parse import quote

import requests

from kit.door import basic, container, docker, image_of, send, user
from kit.stack import Stack, poll

SHORTEST = 12
"""Characters. What is shorter would be found by chance; no secret of the stack is."""
READ_SECRETS = """
cd /secrets/source
for name in *; do cat "$name"; echo; done
cat /secrets/nginx/door_key; echo
cat /secrets/nginx/key.pem
"""


def secret_values(stack: Stack) -> set[str]:
    """Return the secrets of the volume, line by line, and what tests gave to users."""
    said = stack.compose(
        *("run", "--rm", "--no-deps", "-T", "--entrypoint", "sh", "secrets", "-c", READ_SECRETS)
    ).stdout
    lines = {line for line in said.splitlines() if line and "PRIVATE KEY" not in line}
    assert stack.password in lines
    assert len(lines) >= 12
    return lines | stack.handed_out | {stack.authorization.split()[1]}


def written(values: Iterable[str]) -> set[str]:
    """Return the values as they might be written: plain, in base64, in an address, in JSON."""
    found = set()
    for value in values:
        found |= {value, quote(value, safe=""), value.replace('"', '\\"')}
        found.add(base64.b64encode(value.encode()).decode().rstrip("="))
    return {text for text in found if len(text) >= SHORTEST}


def of_project(stack: Stack) -> list[str]:
    """Return the ids of all containers of the stack, and of those that tests run beside it."""
    return docker("ps", "--all", "--quiet", "--filter", f"name={stack.project}").split()


def places(stack: Stack) -> dict[str, str]:
    """Return the text of each place where a secret must not stand."""
    found = {"audit": stack.compose("exec", "-T", "cron", "sh", "-c", "cat /audit/*/*.jsonl").stdout}
    for one in of_project(stack):
        found[f"log {one}"] = docker("logs", one)
        found[f"inspect {one}"] = docker("inspect", one)
        if stack.inspect(one)["State"]["Running"]:
            found[f"processes {one}"] = docker("top", one, "-o", "pid,args")
    for service in ("nginx", "auth", "mlflow", "fastpath", "postgres", "minio", "scripts"):
        image = image_of(stack, service)
        found[f"image {service}"] = docker("inspect", image) + docker("history", "--no-trunc", image)
    return found


def leaks(texts: Mapping[str, str], values: Iterable[str]) -> set[str]:
    """Return the places that hold one of the values. Which one is not said: it is a secret."""
    wanted = written(values)
    return {place for place, text in texts.items() if any(value in text for value in wanted)}


def test_a_secret_in_any_of_the_places_would_be_found(stack: Stack) -> None:
    canary = secrets.token_hex(16)
    login = {"Authorization": stack.authorization}
    send(stack.port, "GET", f"/canary/{canary}", **login)
    deleted = stack.post("/api/2.0/mlflow/runs/delete", json={"run_id": canary})
    assert deleted.status_code == 404
    networks = [f"{stack.project}_default"]
    options = ["--env", f"CANARY={base64.b64encode(canary.encode()).decode()}"]
    command = ("/usr/bin/python3", "-c", "import signal; signal.pause()", canary)
    with container(image_of(stack, "mlflow"), *command, networks=networks, options=options) as name:
        (beside,) = docker("ps", "--quiet", "--filter", f"name={name}").split()
        nginx = stack.container("nginx")[: len(beside)]
        found = poll(
            lambda: f"log {nginx}" in (seen := leaks(places(stack), {canary})) and seen,
            seconds=30,
            what="the canary is in the log",
        )
    assert {"audit", f"log {nginx}", f"inspect {beside}", f"processes {beside}"} <= found
    assert leaks({"a": f"x{basic('admin', canary).split()[1]}x"}, {basic("admin", canary).split()[1]}) == {
        "a"
    }


def test_no_secret_is_written_down(stack: Stack) -> None:
    wrong, mistyped, hook = (secrets.token_hex(12) for _ in range(3))
    with user(stack, "heidi") as heidi:
        right = basic("heidi", heidi.password)
        requests.get(f"{stack.url}/version", auth=heidi, timeout=30)
        for authorization in (basic("heidi", wrong), f"Bearer {wrong}", f"Bearer mlf_{wrong}", wrong):
            send(stack.port, "GET", "/version", Authorization=authorization)
        for path in ("/version", "/no-such", "/api/2.0/mlflow/runs/get"):
            send(stack.port, "GET", f"{path}?token={mistyped}", Authorization=right)
        send(stack.port, "GET", "/version", Authorization=right, authorization=right)  # twice: 400
        send(stack.port, "GET", "/version", Authorization=right + wrong * 4000)  # too long: 400
        send(stack.port, "GET", "/version", Authorization=f"{right}\0")
        send(stack.port, "GET", "/version", Authorization=right, Cookie=f"session={wrong}", X_Api_Key=wrong)
        send(stack.port, "POST", "/version", Authorization=right, Content_Length="x")
        made = stack.post(
            "/api/2.0/mlflow/webhooks",
            json={
                "name": "hook",
                "url": "https://hooks.example/x",
                "secret": hook,
                "events": [{"entity": "REGISTERED_MODEL", "action": "CREATED"}],
            },
        )
        assert made.status_code in {200, 400}, made.text
    values = secret_values(stack) | {wrong, mistyped, hook, basic("heidi", wrong).split()[1]}
    texts = places(stack)
    assert "GET /version" in "".join(text for place, text in texts.items() if place.startswith("log"))
    assert leaks(texts, values) == set()
    door_log = stack.compose("logs", "nginx", "auth").stdout
    assert "Basic " not in door_log
    assert "Authorization" not in door_log


def test_no_secret_stands_in_what_the_stack_prints(stack: Stack) -> None:
    """status, metrics and the rendered configuration are pasted into tickets."""
    texts = {
        "status": stack.verb("status", check=False).stdout,
        "metrics": stack.verb("metrics").stdout,
        "compose config": stack.compose("config").stdout,
        "users": stack.verb("user", "list", "--json").stdout,
        "audit": stack.verb("audit", "--json", "--since", "1d").stdout,
        "door": stack.compose("exec", "-T", "nginx", "nginx", "-T", "-c", "/opt/nginx/nginx.conf").stdout,
    }
    assert all(texts.values())
    assert leaks(texts, secret_values(stack)) == set()
    hashes = stack.compose(
        *("run", "--rm", "--no-deps", "-T", "--entrypoint", "sh", "secrets", "-c", "cat /secrets/auth/*")
    ).stdout.split()
    assert leaks(texts, {word for word in hashes if "$2" in word}) == set()
