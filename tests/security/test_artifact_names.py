"""Names of artifacts that try to leave their run, or that no storage can hold."""

from __future__ import annotations

import uuid
from urllib.parse import quote

import mlflow
import pytest

from kit import stored
from kit.people import bearer
from kit.stack import Stack, poll
from kit.wire import Wire

RAW = "/api/2.0/mlflow-artifacts/artifacts"
UPLOAD = "/ajax-api/2.0/mlflow/upload-artifact"
LEAVING = (
    *("../x", "..%2fx", "%2e%2e/x", "%2e%2e%2fx", "..%252fx", "%252e%252e%252fx", "%25252e%25252e%25252fx"),
    *("a/../../x", "a/..%2f..%2fx", "../../{other}/artifacts/x", "..%2f..%2f{other}%2fartifacts%2fx"),
    *("..%5cx", "..%255cx", "%2e%2e%5c..%5cx", "....//x", "..;/x", ".%2e/x", "..%00/x", "..%0a/x", "%0a../x"),
    *(
        "%c0%ae%c0%ae/x",
        "..%c0%afx",
        "%ef%bc%8e%ef%bc%8e%2fx",
        "..%ef%bc%8fx",
        "%e2%80%a5/x",
        "%uff0e%uff0e/x",
    ),
    *(
        "%2fetc/passwd",
        "//etc/passwd",
        "%2f%2fetc/passwd",
        "%252fetc/passwd",
        "~root/x",
        "C:%5cx",
        "%5c%5chost%5cx",
    ),
    *(
        "file:%2f%2f%2fetc%2fpasswd",
        "file:..%2f..%2fx",
        "s3:%2f%2fother%2fx",
        "mlflow-artifacts:%2f{other}%2fx",
    ),
    *(
        "runs:%2f{other}%2fx",
        "http:%2f%2f127.0.0.1:5000%2fx",
        "{other}",
        "..%2f{other}.txt",
        "..%3f%2fx",
        "..%23%2fx",
    ),
)
"""As they stand behind the run's own address; {other} is the id of another run."""
ODD = (
    *(
        "a%00b",
        "%00",
        "a%0ab",
        "a%0d%0ab",
        "%0a",
        "%0d%0aX-A:%20b",
        "a%09b",
        "%20",
        "%20a%20",
        "%7f",
        "%1b%5b31m",
    ),
    *(
        "%ff%fe",
        "%c3%28",
        "%ed%a0%80",
        "caf%c3%a9",
        "cafe%cc%81",
        "%ef%ac%81",
        "%e2%80%ae.txt",
        "%f0%9f%90%8d",
    ),
    *(
        "a%3fb",
        "a%23b",
        "a;b",
        "a%25b",
        "a%2525b",
        "a%2541b",
        "a*b",
        "a%22b",
        "a%7cb",
        "a%3cb%3e",
        "a%5cb",
        "a:b",
        "a&b=c",
    ),
    *(
        ".",
        "a/.",
        "./a",
        ".hidden",
        "a.",
        "a%20/b",
        "a//b",
        "a/",
        "/",
        "-rf",
        "$(id)",
        "%60id%60",
        "%7b%7b1%7d%7d",
    ),
    *("%" + "25" * 12 + "41", "//[x", "%2f%2f[x", "..."),
    *("con", "nul.txt", "__pycache__", "%2ametadata.json", "xl.meta", ".minio.sys/x", "part.1", "x__XLDIR__"),
)
LENGTHS = {
    "255 bytes": "k" * 255,
    "256 bytes": "k" * 256,
    "200 letters of four bytes": quote("\U0001f40d" * 200),
    "2 KB": "k" * 2048,
    "2 KB in 16 folders": "/".join(["k" * 127] * 16),
    "900 bytes in 6 folders": "/".join(["k" * 149] * 6),
    "500 folders": "/".join("k" * 500),
    "20 KB": "k" * 20_000,
}
CONFLICTS = ("file", "file/below", "folder/below", "folder")
"""A file where there is a folder, and the other way round."""


def names(other: str) -> list[str]:
    """Return all names, as they are written in a request's target."""
    return [*(name.format(other=other) for name in LEAVING), *ODD, *LENGTHS.values(), *CONFLICTS]


@pytest.fixture
def two_runs() -> tuple[mlflow.entities.Run, mlflow.entities.Run]:
    """A run to write to, and another one with an artifact, in an experiment of their own."""
    experiment = mlflow.create_experiment(f"names-{uuid.uuid4().hex[:8]}")
    with mlflow.start_run(experiment_id=experiment) as other:
        mlflow.log_text("other", "x.txt")
    with mlflow.start_run(experiment_id=experiment) as own:
        mlflow.log_text("own", "x.txt")
    return own, other


def files_of_the_copy(stack: Stack, prefix: str) -> int:
    """Return how many files the service backup has of the objects below a prefix."""
    script = (
        f"find /backups/objects/current/artifacts/{prefix} -type f ! -name '*.stack-part' -printf x | wc -c"
    )
    return int(stack.compose("exec", "-T", "backup", "sh", "-c", script).stdout)


@pytest.mark.parametrize("route", ["raw", "upload-artifact"])
def test_no_name_leaves_its_run_and_none_is_a_500(
    stack: Stack,
    tokens: dict[str, str],
    two_runs: tuple[mlflow.entities.Run, mlflow.entities.Run],
    route: str,
    figures: dict[str, str],
) -> None:
    own, other = two_runs
    prefix = own.info.artifact_uri.removeprefix("mlflow-artifacts:/")
    before = stored.objects(stack)
    writer, reader = bearer(tokens["writer"]), bearer(tokens["reader"])
    found: dict[str, tuple[int, ...]] = {}
    with Wire(stack.port) as wire:
        for name in names(other.info.run_id):
            content = name[:100].encode()
            if route == "raw":
                target = f"{RAW}/{prefix}/{name}"
                upload = wire.ask("PUT", target, writer, content)
            else:
                target = f"/get-artifact?run_id={own.info.run_id}&path={quote(name, safe='%')}"
                where = f"{UPLOAD}?run_uuid={own.info.run_id}&path={quote(name, safe='%')}"
                upload = wire.ask("POST", where, {**writer, "Content-Type": "text/plain"}, content)
            download = wire.ask("GET", target, reader)
            listed = wire.ask("GET", f"{RAW}?path={prefix}/{quote(name, safe='%/')}", reader)
            found[name] = (upload.status, download.status, listed.status)
            if upload.status == 200 == download.status:
                assert download.body == content, name
    after = stored.objects(stack)
    new = {key for key in after if after[key] != before.get(key)}
    assert {key for key in new if not key.startswith(f"artifacts/{prefix}/")} == set()
    assert {key for key in before if key not in after} == set()
    assert {name: statuses for name, statuses in found.items() if max(statuses) >= 500} == {}
    poll(
        lambda: files_of_the_copy(stack, prefix) == len([key for key in after if f"/{prefix}/" in key]),
        seconds=90,
        what="each of them is in the backup's copy of the objects",
    )
    accepted = [name for name, statuses in found.items() if statuses[0] == 200]
    assert len(new) >= 20
    figures[f"names of artifacts, {route}"] = (
        f"{len(found)} tried, {len(accepted)} stored, none outside of the run"
    )


@pytest.mark.parametrize(
    "name", ["../x.txt", "..%2fx.txt", "..%252fx.txt", "%252e%252e/x.txt", "x/../../x.txt"]
)
@pytest.mark.parametrize("route", [f"{RAW}?path=", "/api/2.0/mlflow/artifacts/list?run_id={run}&path="])
def test_no_list_leaves_its_run(
    stack: Stack,
    tokens: dict[str, str],
    two_runs: tuple[mlflow.entities.Run, mlflow.entities.Run],
    route: str,
    name: str,
) -> None:
    own, _ = two_runs
    with Wire(stack.port) as wire:
        answer = wire.ask("GET", route.format(run=own.info.run_id) + name, bearer(tokens["reader"]))
    assert answer.status == 400
    assert b"files" not in answer.body
