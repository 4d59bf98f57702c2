"""A setting that Compose reads stands in .env.example, with its type, and in the documentation."""

from __future__ import annotations

import re

import pytest

from kit.fake_host import ROOT
from stackops import audit, secrets

COMPOSE_FILES = [ROOT / "docker-compose.yml", *sorted(ROOT.glob("compose/*.yml"))]
EXAMPLE = (ROOT / ".env.example").read_text()
KNOWN_BY_EXAMPLE = set(re.findall(r"^#([A-Z][A-Z0-9_]*)=", EXAMPLE, re.MULTILINE))
USED_BY_COMPOSE = sorted(
    {name for file in COMPOSE_FILES for name in re.findall(r"\$\{(\w+)", file.read_text())}
)


def test_compose_reads_settings() -> None:
    assert {"HTTP_PORT", "BIND_ADDRESS", "IMAGE_TAG"} <= set(USED_BY_COMPOSE)


@pytest.mark.parametrize("name", USED_BY_COMPOSE)
def test_a_variable_of_compose_stands_in_the_example(name: str) -> None:
    assert name in KNOWN_BY_EXAMPLE


def test_every_setting_stands_in_the_documentation() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    missing = [name for name in sorted(KNOWN_BY_EXAMPLE | set(USED_BY_COMPOSE)) if f"`{name}`" not in page]
    assert missing == []


@pytest.mark.parametrize("name", sorted(KNOWN_BY_EXAMPLE))
def test_the_default_in_the_example_is_the_default_of_compose(name: str) -> None:
    (shown,) = re.findall(rf"^#{name}=(.*)$", EXAMPLE, re.MULTILINE)
    pattern = rf"\$\{{{name}:-([^}}]*)\}}"
    used = {default for file in COMPOSE_FILES for default in re.findall(pattern, file.read_text())}
    # An empty default is one that the server or ./stack fills in, and the example may show it.
    assert used - {""} <= {shown}


def test_every_variable_of_the_example_has_a_type_that_the_check_knows() -> None:
    lines = EXAMPLE.splitlines()
    shell = (ROOT / "scripts/host/check-settings.sh").read_text()
    known_types = set(re.findall(r"^ {8}([a-z]+)\) (?!echo)", shell, re.MULTILINE))
    for number, line in enumerate(lines):
        if re.match(r"#[A-Z][A-Z0-9_]*=", line):
            type_line = re.fullmatch(r"# \[([a-z]+)\]", lines[number - 1])
            assert type_line, f"{line}: the line above it is no type"
            assert type_line[1] in known_types, line
    explained = set(re.findall(r"^ {8}([a-z]+)\) echo", shell, re.MULTILINE))
    assert explained == known_types


def test_no_line_of_the_example_is_switched_on() -> None:
    assert [line for line in EXAMPLE.splitlines() if line and not line.startswith("#")] == []


def test_a_user_has_the_same_number_wherever_it_is_named() -> None:
    """In its image, as the owner of its secrets and audit folder, and of the volume of its socket."""
    uid = secrets.CONSUMER_UIDS["fastpath"]
    assert audit.WRITERS["fastpath"] == uid
    own = (ROOT / "mlflow/Dockerfile").read_text()
    assert f"useradd --uid {uid} --gid {uid} " in own
    assert f"USER {uid}:{uid}" in own
    assert f"--owner={uid} --group={uid} --mode=0755 /run/fastpath" in (ROOT / "nginx/Dockerfile").read_text()
    for name in ("nginx", "mlflow"):
        assert audit.WRITERS[name] == secrets.CONSUMER_UIDS[name]
