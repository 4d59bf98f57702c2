"""What must agree between files of this repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pinned(requirements: str, package: str) -> str:
    match = re.search(rf"^{package}==(\S+)", (ROOT / requirements).read_text(), re.MULTILINE)
    assert match, f"{requirements} does not pin {package}"
    return match[1]


def test_server_page_and_tests_use_the_same_mlflow() -> None:
    versions = {name: pinned(f"{name}/requirements.txt", "mlflow") for name in ("mlflow", "nginx", "tests")}
    assert set(versions.values()) == {"3.17.2"}


def test_every_locked_package_has_hashes() -> None:
    for path in ROOT.glob("*/requirements.txt"):
        text = path.read_text()
        pins = re.findall(r"^\S+==.*$", text, re.MULTILINE)
        assert pins
        assert all(line.endswith("\\") for line in pins), path


def test_locks_name_no_index() -> None:
    assert not [path for path in ROOT.glob("*/requirements.txt") if "://" in path.read_text()]


def test_the_config_folder_ships_no_secret() -> None:
    command = ["git", "ls-files", "config"]
    tracked = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert {Path(name).name for name in tracked} <= {"README.md", "retention.toml.example"}


def test_no_dockerfile_needs_a_registry_or_a_newer_frontend() -> None:
    for path in ROOT.glob("*/Dockerfile"):
        text = path.read_text()
        assert "# syntax=" not in text, path
        assert "<<" not in text, path
        sources = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
        stages = set(re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE))
        assert set(sources) <= {"${BASE_IMAGE}", "${ROOT_IMAGE}"} | stages, path
