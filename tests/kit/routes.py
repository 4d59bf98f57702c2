"""MLflow's own routes, as the server in its container lists them, and other spellings of a path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from kit.stack import Stack

# The settings of the running server are not in the environment of an exec, and the URL maps do
# not depend on them.
LIST = """
import json
from mlflow.server import app as flask_app
from mlflow.server.fastapi_app import app as fastapi_app
routes = [[method, rule.rule] for rule in flask_app.url_map.iter_rules() for method in rule.methods]
routes += [[m.upper(), path] for path, ms in fastapi_app.openapi()["paths"].items() for m in ms]
print(json.dumps(routes))
"""
PARAMETER = re.compile(r"<[^>]+>|\{[^}]+\}")


def of(stack: Stack) -> frozenset[tuple[str, str]]:
    """Return (method, path) of each route of the server; parameters are filled with `dummy`.

    The name of an MCP server has a slash, so those routes come with `dummy/dummy` as well.
    """
    done = stack.compose("exec", "-T", "mlflow", "python", "-W", "ignore", "-c", LIST)
    found = {(method, rule) for method, rule in json.loads(done.stdout.splitlines()[-1])}
    found |= {(method, rule.replace("{name}", "{name}/{name}")) for method, rule in found}
    return frozenset((method, PARAMETER.sub("dummy", rule)) for method, rule in found)


def spellings(path: str, host: str) -> Iterator[str]:
    """Yield request targets that a sloppy reader takes for `path`; the path itself is the first.

    The path begins with a slash and is not "/" alone; `host` is what the door is reached by.
    """
    folder, _, last = path.rpartition("/")
    letter = next(index for index, character in enumerate(path) if character.isalpha())
    yield path
    yield f"http://{host}{path}"
    yield f"http://other.example{path}"
    yield f"/{path}"
    yield path.replace("/", "//")
    yield f"/.{path}"
    yield f"/x/..{path}"
    yield f"/%2e{path}"
    yield f"/x/%2e%2e{path}"
    yield f"/health/..{path}"
    yield f"/health/..%2f{path[1:]}"
    yield f"/health/%2e%2e%2f{path[1:]}"
    yield f"/health/..;{path}"
    yield f"/health#/..{path}"
    yield f"/static-files/..{path}"
    yield f"/health%00{path}"
    yield f"{path}/"
    yield f"{path}//"
    yield f"{path}/."
    yield f"{path}/x/.."
    yield f"{path}."
    yield f"{path}%20"
    yield f"{path}%09"
    yield f"{path}%0a"
    yield f"{path}%00"
    yield f"{path};"
    yield f"{path};x=/health"
    yield f"{path}?"
    yield f"{path}?/health"
    yield f"{path}%3f/health"
    yield f"{path}#"
    yield f"{path}%23"
    yield f"{path}%2f"
    yield f"{path}.json"
    yield f"{folder}%2f{last}"
    yield f"{folder}%5c{last}"
    yield f"{folder}%252f{last}"
    yield f"{folder}%ef%bc%8f{last}"  # a slash of full width
    yield f"{folder}%c0%af{last}"  # a slash in two bytes
    yield f"{path[:letter]}%{ord(path[letter]):02x}{path[letter + 1 :]}"
    yield f"{path[:letter]}%25{ord(path[letter]):02x}{path[letter + 1 :]}"
    yield path.upper()
    yield folder + "/" + last.swapcase()
    yield folder.swapcase() + "/" + last


SPELLINGS = len(list(spellings("/a/b", "host")))
