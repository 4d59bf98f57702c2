"""The audit log: what becomes a line, what is counted, what is kept."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stackops import audit
from stackops.errors import OperationError
from stackserver.audit import AuditLayer, AuditLog, overwritten

API = "/api/2.0/mlflow"


def ask(
    folder: Path,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    query: str = "",
    status: int = 200,
    replaced: str = "",
    log: AuditLog | None = None,
) -> list[dict[str, Any]]:
    """Send a request through the layer; return the lines that are there afterwards."""
    log = log or AuditLog(folder)

    async def app(_: Any, receive: Any, send: Any) -> None:
        await receive()
        if replaced:
            overwritten.get().append(replaced)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [
            (b"x-forwarded-user", b"ada"),
            (b"x-real-ip", b"10.0.0.7"),
            (b"x-request-id", b"r-1"),
        ],
    }
    asyncio.run(AuditLayer(app, log)(scope, receive, send))
    log.flush()
    return lines(folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("audit-*")) for line in path.open()]


@pytest.mark.parametrize(
    ("method", "path", "body", "objects"),
    [
        ("POST", f"{API}/runs/delete", {"run_id": "r"}, {"run_id": "r"}),
        ("POST", f"{API}/runs/restore", {"run_id": "r"}, {"run_id": "r"}),
        ("POST", f"{API}/experiments/delete", {"experiment_id": "7"}, {"experiment_id": "7"}),
        ("POST", f"{API}/registered-models/create", {"name": "m", "tags": [{"key": "k"}]}, {"name": "m"}),
        ("POST", f"{API}/registered-models/alias", {"name": "m", "alias": "a", "version": "3"}, None),
        ("DELETE", f"{API}/registered-models/alias", {"name": "m", "alias": "a"}, None),
        ("POST", f"{API}/model-versions/transition-stage", {"name": "m", "stage": "Production"}, None),
        ("DELETE", f"{API}/logged-models/m-1", {}, {}),
        ("POST", "/api/3.0/mlflow/traces/delete-traces", {"request_ids": ["tr-1", "tr-2"]}, None),
        ("POST", "/api/2.0/mlflow/webhooks", {"name": "w", "secret": "hush"}, {"name": "w"}),
        ("POST", "/api/3.0/mlflow/gateway/secrets/create", {"secret_name": "s", "value": "hush"}, None),
        ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/1/r/artifacts/a", {}, {"path": "1/r/artifacts/a"}),
        (
            "POST",
            "/ajax-api/3.0/mlflow/users/permissions/grant",
            {"username": "bob", "resource_type": "experiment", "resource_id": "7", "permission": "EDIT"},
            None,
        ),
        ("POST", "/api/3.0/mlflow/roles/create", {"name": "team", "workspace": "default"}, None),
        ("POST", "/api/3.0/mlflow/roles/assign", {"username": "bob", "role_id": 3}, None),
        ("DELETE", "/api/3.0/mlflow/roles/delete", {"role_id": 3}, None),
        ("DELETE", "/api/3.0/mlflow/roles/permissions/remove", {"role_permission_id": 9}, None),
        (
            "POST",
            "/api/3.0/mlflow/roles/permissions/add",
            {"role_id": 3, "resource_type": "experiment", "resource_pattern": "*", "permission": "READ"},
            None,
        ),
        (
            "PATCH",
            f"{API}/users/update-password",
            {"username": "bob", "password": "hush"},
            {"username": "bob"},
        ),
        ("POST", "/ajax-api/9.9/mlflow/something/new", {"name": "x"}, {"name": "x"}),
    ],
)
def test_a_change_is_a_line_with_its_objects_and_without_its_content(
    tmp_path: Path, method: str, path: str, body: dict, objects: dict | None
) -> None:
    (line,) = ask(tmp_path, method, path, json.dumps(body).encode())
    if objects is None:
        objects = {name: value for name, value in body.items() if name != "value"}
    assert line["objects"] == objects
    assert (line["user"], line["address"], line["request"], line["status"]) == ("ada", "10.0.0.7", "r-1", 200)
    assert line["event"].startswith(method)
    assert "hush" not in json.dumps(line)


def test_names_may_come_in_the_query(tmp_path: Path) -> None:
    (line,) = ask(tmp_path, "DELETE", f"{API}/registered-models/alias", query="name=m&alias=champion&x=y")
    assert line["objects"] == {"name": "m", "alias": "champion"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{API}/runs/get"),
        ("POST", f"{API}/runs/search"),
        ("POST", "/graphql"),
        ("POST", "/v1/traces"),
        ("POST", "/api/3.0/mlflow/traces/search"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/r/artifacts/new"),
        ("POST", "/ajax-api/3.0/mlflow/ui-telemetry"),
    ],
)
def test_what_reads_and_what_is_new_is_no_line(tmp_path: Path, method: str, path: str) -> None:
    assert ask(tmp_path, method, path, b"{}") == []


def test_an_artifact_that_is_written_over_is_a_line(tmp_path: Path) -> None:
    (line,) = ask(
        tmp_path, "PUT", "/api/2.0/mlflow-artifacts/artifacts/1/r/artifacts/a", b"secret text", replaced="k"
    )
    assert (line["event"], line["objects"]) == ("overwrite", {"path": "1/r/artifacts/a"})


def test_what_a_run_logs_is_counted(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    batch = {"run_id": "r", "metrics": [{"key": "a", "value": 1}] * 3, "params": [{"key": "p"}], "tags": []}
    for path, body in (
        ("runs/log-batch", batch),
        ("runs/log-metric", {"run_id": "r", "key": "a", "value": 0.123456}),
        ("runs/log-parameter", {"run_id": "r", "key": "p", "value": "hush"}),
        ("runs/set-tag", {"run_id": "r", "key": "t", "value": "hush"}),
    ):
        log_only = AuditLog(tmp_path)
        log_only._counts = log._counts
        log_only.flush = lambda: None  # type: ignore[method-assign]
        assert ask(tmp_path, "POST", f"{API}/{path}", json.dumps(body).encode(), log=log_only) == []
    assert ask(tmp_path, "POST", f"{API}/runs/log-metric", b'{"run_id": "r"}', status=400, log=log)
    (line,) = lines(tmp_path)
    del line["time"]
    assert line == {
        "event": "logged",
        "user": "ada",
        "run_id": "r",
        "requests": 4,
        "metrics": 4,
        "params": 2,
        "tags": 1,
    }


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b'"x"', b"\xff\xfe", b"{" * 3000])
def test_any_body_is_a_line(tmp_path: Path, body: bytes) -> None:
    (line,) = ask(tmp_path, "POST", f"{API}/runs/delete", body, status=400)
    assert (line["status"], line["objects"]) == (400, {})


def test_a_full_volume_stops_no_request(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert ask(tmp_path / "missing", "POST", f"{API}/runs/delete", b'{"run_id": "r"}') == []
    assert '"run_id": "r"' in capsys.readouterr().err


def test_long_values_are_cut(tmp_path: Path) -> None:
    body = {"name": "x" * 9999, "run_id": "r", "experiment_ids": [str(number) for number in range(99)]}
    (line,) = ask(tmp_path, "POST", f"{API}/runs/delete", json.dumps(body).encode())
    assert len(json.dumps(line)) < 2000


# Reading and keeping.


def put(volume: Path, writer: str, name: str, *found: dict[str, Any]) -> Path:
    path = volume / writer / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in found))
    return path


def test_lines_of_all_writers_come_in_order(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    today, earlier = f"{now:%Y-%m-%d}", f"{now - timedelta(days=1):%Y-%m-%d}"

    def line(hours: float, user: str, event: str) -> dict[str, Any]:
        return {"time": (now - timedelta(hours=hours)).isoformat(), "user": user, "event": event}

    put(tmp_path, "mlflow", f"audit-{today}.jsonl", line(1, "ada", "b"), line(0, "bob", "c"))
    put(tmp_path, "stack", f"audit-{earlier}.jsonl", line(24, "ada", "a"), line(47, "ada", "old"))
    put(tmp_path, "nginx", f"access-{today}.jsonl", line(1, "ada", "GET /"))
    with (tmp_path / "mlflow" / f"audit-{today}.jsonl").open("a") as file:
        file.write('{"time": "cut o')
    since = audit.parse_since("25h")
    assert [each["event"] for each in audit.read(tmp_path, since)] == ["a", "b", "c"]
    assert [each["event"] for each in audit.read(tmp_path, since, user="ada")] == ["a", "b"]
    assert [each["event"] for each in audit.read(tmp_path, since, words="c")] == ["c"]
    assert [each["event"] for each in audit.read(tmp_path, since, requests=True)] == ["GET /"]
    assert "bob  c" in audit.text_of(list(audit.read(tmp_path, since))[-1])


def test_days_are_compressed_and_then_deleted(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    paths = {
        age: put(
            tmp_path,
            "mlflow",
            f"audit-{now - timedelta(days=age):%Y-%m-%d}.jsonl",
            {"time": (now - timedelta(days=age)).isoformat(), "event": str(age)},
        )
        for age in (0, 1, 5, 6)
    }
    (tmp_path / "mlflow/notes.txt").write_text("not ours")
    assert audit.clean(tmp_path, 5)["compressed"] == 2
    assert paths[0].exists()
    assert not paths[1].exists()
    assert json.loads(gzip.decompress(Path(f"{paths[5]}.gz").read_bytes()))["event"] == "5"
    assert {path.name for path in (tmp_path / "mlflow").iterdir()} == {
        *(paths[0].name, f"{paths[1].name}.gz", f"{paths[5].name}.gz", "notes.txt")
    }
    since = now - timedelta(days=9)
    assert [line["event"] for line in audit.read(tmp_path, since)] == ["5", "1", "0"]
    assert audit.clean(tmp_path, 5) == {
        "compressed": 0,
        "deleted": 0,
        "bytes": audit.clean(tmp_path, 5)["bytes"],
    }


@pytest.mark.parametrize("text", ["", "x", "0d", "999999d", "-1d", "2w", "yesterday", "1d2h"])
def test_a_moment_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OperationError, match="--since is"):
        audit.parse_since(text)


def test_moments(tmp_path: Path) -> None:
    assert audit.parse_since("2026-11-21T08:00") == datetime(2026, 11, 21, 8, tzinfo=UTC)
    assert audit.parse_since("2026-11-21T01:00+05:00").date() == datetime(2026, 11, 20, tzinfo=UTC).date()
    assert abs(audit.parse_since("2d") - datetime.now(UTC) + timedelta(days=2)) < timedelta(minutes=1)


def test_a_line_cannot_look_like_two() -> None:
    line = {"time": "2026-11-21T09:00:00", "user": "eve", "event": "GET /x\n2026-11-21  ada  \x1b[31m"}
    assert audit.text_of(line).isprintable()


def test_camel_case_and_long_bodies_hide_nothing(tmp_path: Path) -> None:
    (line,) = ask(tmp_path, "POST", "/api/3.0/mlflow/traces/delete-traces", b'{"requestIds": ["tr-1"]}')
    assert line["objects"] == {"request_ids": ["tr-1"]}
    padded = json.dumps({"pad": "x" * (2 << 20), "run_id": "r"}).encode()
    *_, line = ask(tmp_path, "POST", f"{API}/runs/delete", padded)
    assert line["objects"] == {"run_id": "r"}


def test_json_in_a_json_string_is_counted(tmp_path: Path) -> None:
    body = json.dumps(json.dumps({"runId": "r", "metrics": [1, 2], "params": "x"})).encode()
    (line,) = ask(tmp_path, "POST", f"{API}/runs/log-batch", body)
    assert (line["run_id"], line["metrics"], line.get("params", 0)) == ("r", 2, 0)


def test_each_writer_has_a_folder_of_its_own_and_all_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = {}
    monkeypatch.setattr(audit.os, "chown", lambda path, uid, gid: owners.update({path.name: (uid, gid)}))
    audit.make_folders(tmp_path)
    assert owners == {name: (uid, 10001) for name, uid in audit.WRITERS.items()}
    day = datetime.now(UTC)
    moments = iter(day.replace(microsecond=0) + timedelta(seconds=number) for number in range(4))
    logs = {name: AuditLog(tmp_path / name, lambda: next(moments)) for name in ("mlflow", "fastpath")}
    for number, name in enumerate(("mlflow", "fastpath", "mlflow", "fastpath")):
        logs[name].count("ada", f"run-{number}", requests=1)
        logs[name].flush()
    found = list(audit.read(tmp_path, day - timedelta(minutes=1), user="ada"))
    assert [line["run_id"] for line in found] == ["run-0", "run-1", "run-2", "run-3"]
