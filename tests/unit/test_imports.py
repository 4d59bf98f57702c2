"""MLflow loads our artifact repository by its entry point while it is itself imported, by whomever."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.stack import ROOT

ENTRY_POINT = "[mlflow.artifact_repository]\ns3 = stackserver.artifacts:StackS3ArtifactRepository\n"
SHOW = """
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as registry
print(registry.get_registered_artifact_repositories()["s3"].__module__)
"""


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """A path with the entry point, as the image has it."""
    folder = tmp_path / "stackserver-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: stackserver\nVersion: 0\n")
    (folder / "entry_points.txt").write_text(ENTRY_POINT)
    return f"{tmp_path}:{ROOT / 'mlflow/src'}"


def test_the_entry_point_is_the_one_of_the_package() -> None:
    text = (ROOT / "mlflow/pyproject.toml").read_text()
    assert 's3 = "stackserver.artifacts:StackS3ArtifactRepository"' in text


@pytest.mark.parametrize("script", ["app.py", "prepare.py", "permissions_schema.py"])
def test_artifacts_are_served_by_our_repository_in_whatever_order_it_is_imported(
    installed: str, script: str
) -> None:
    tree = ast.parse((ROOT / "mlflow/src/stackserver" / script).read_text())
    imports = [ast.unparse(line) for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom)]
    assert any("stackserver" in line for line in imports)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*imports, SHOW])],
        env={**os.environ, "PYTHONPATH": installed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "stackserver.artifacts", done.stderr[-2000:]
