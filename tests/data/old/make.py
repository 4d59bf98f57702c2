"""Make a fixture: what a real server of an old MLflow left in PostgreSQL and beside it.

`python tests/data/old/make.py 2.22.5` makes tests/data/old/2.22.5/ with

- database.sql.gz: pg_dump of the database,
- artifacts.tar.gz: the artifacts, named relative to the artifact root,
- expected.json: what the old client read back from the old server just before,
- packages.txt: what was installed.

It needs Docker, the stack's PostgreSQL image and a package index. The PostgreSQL is a
container of its own, the server listens on 127.0.0.1; both are gone afterwards.
"""

from __future__ import annotations

import argparse
import gzip
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PINS = (
    "setuptools<80",  # pkg_resources
    "numpy<2",
    "sqlalchemy<2.1",  # 2.1 has another default driver, and no class that 2.22 and 3.1 import
    "opentelemetry-api==1.30.0",  # with a newer one traces of 2.22 stay IN_PROGRESS
    "opentelemetry-sdk==1.30.0",
    "psycopg2-binary",
    "scikit-learn",
)
START_SECONDS = 90


def run(*words: str | Path, **keywords: object) -> str:
    """Run a command; return its output. Raise CalledProcessError."""
    return subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE, **keywords).stdout.strip()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def install(version: str, work: Path) -> Path:
    """Return the Python of a virtual environment with that MLflow; one that is there is used again."""
    folder = work / f"venv-{version}"
    python = folder / "bin" / "python"
    if not (folder / "bin" / "mlflow").exists():
        run(sys.executable, "-m", "venv", folder)
        run(python, "-m", "pip", "install", "--quiet", f"mlflow=={version}", *PINS)
    return python


@contextmanager
def postgres(image: str, work: Path) -> Iterator[tuple[str, str]]:
    """Run a throwaway PostgreSQL; yield its container's name and the URI of its database."""
    password, port, name = secrets.token_hex(16), free_port(), f"old-mlflow-{os.getpid()}"
    with tempfile.TemporaryDirectory(dir=work) as folder:
        Path(folder).chmod(0o755)
        for role in ("mlflow", "stackops"):
            (Path(folder) / f"{role}_password").write_text(password)
        mounts = (
            "--volume",
            f"{folder}:/secrets/postgres:ro",
            "--tmpfs",
            "/run/postgresql:uid=10001,gid=10001",
        )
        run(
            "docker",
            "run",
            "--detach",
            "--rm",
            "--name",
            name,
            "--publish",
            f"127.0.0.1:{port}:5432",
            *mounts,
            image,
        )
        try:
            wait_for_postgres(name)
            yield name, f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{port}/mlflow"
        finally:
            run("docker", "rm", "--force", "--volumes", name)


def wait_for_postgres(name: str) -> None:
    """Return when the database answers. Raise TimeoutError."""
    deadline = time.monotonic() + START_SECONDS
    command = (
        "docker",
        "exec",
        name,
        "psql",
        "-h",
        "/run/postgresql",
        "-U",
        "postgres",
        "-d",
        "mlflow",
        "-c",
        "select 1",
    )
    while subprocess.run(command, capture_output=True, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.5)


def environment() -> dict[str, str]:
    """Return this process's environment without what would send a client or server elsewhere."""
    foreign = ("MLFLOW_", "PG", "PYTHON", "VIRTUAL_ENV", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "GIT_PYTHON_REFRESH": "quiet"}


@contextmanager
def server(python: Path, database_uri: str, artifacts: Path, log: Path) -> Iterator[str]:
    """Run the old server with its artifacts proxied to a folder; yield its address."""
    port = free_port()
    command = [
        *(
            str(python),
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ),
        *(
            "--backend-store-uri",
            database_uri,
            "--artifacts-destination",
            str(artifacts),
            "--serve-artifacts",
        ),
    ]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=log.parent, env=environment(), stdout=output, stderr=output)
        try:
            wait_for_server(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def wait_for_server(url: str, process: subprocess.Popen) -> None:
    """Return when the server answers. Raise RuntimeError."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start; see its log") from None
            time.sleep(0.5)


def compress(target: Path, content: bytes) -> None:
    """Write content gzipped, without a time in it."""
    target.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))


def pack(folder: Path, target: Path) -> None:
    """Write the files of a folder as a gzipped tar, named relative to the folder, sorted."""
    with tempfile.TemporaryFile() as plain:
        with tarfile.open(fileobj=plain, mode="w") as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    entry = tarfile.TarInfo(str(path.relative_to(folder)))
                    entry.size = path.stat().st_size
                    with path.open("rb") as content:
                        archive.addfile(entry, content)
        plain.seek(0)
        compress(target, plain.read())


def make(version: str, work: Path, image: str) -> None:
    """Make the fixture of one version."""
    work.mkdir(parents=True, exist_ok=True)
    python, target = install(version, work), HERE / version
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder, postgres(image, work) as (container, uri):
        artifacts, inside = Path(folder) / "artifacts", {"cwd": folder, "env": environment()}
        artifacts.mkdir()
        for script in ("fill.py", "reading.py"):  # the path of the one is in the tags of the runs
            shutil.copy(HERE / script, folder)
        with server(python, uri, artifacts, work / f"server-{version}.log") as url:
            run(python, "fill.py", url, **inside)
            run(python, "reading.py", url, target / "expected.json", **inside)
        dump = run(
            *("docker", "exec", container, "pg_dump", "-h", "/run/postgresql", "-U", "postgres"),
            *("--no-owner", "--no-privileges", "mlflow"),
        )
        compress(target / "database.sql.gz", dump.encode())
        pack(artifacts, target / "artifacts.tar.gz")
    (target / "packages.txt").write_text(run(python, "-m", "pip", "freeze") + "\n")
    for path in sorted(target.iterdir()):
        print(f"{path.stat().st_size:8} {path.relative_to(HERE)}")


def main() -> None:
    """Read the arguments and make the fixture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version")
    # Its path is in the stack traces that the fixtures hold: not one that says something of a machine.
    parser.add_argument("--work", type=Path, default=Path("/tmp/old-mlflow"))
    parser.add_argument("--postgres-image", default="mlflow-stack/postgres:latest")
    arguments = parser.parse_args()
    make(arguments.version, arguments.work.resolve(), arguments.postgres_image)


if __name__ == "__main__":
    main()
