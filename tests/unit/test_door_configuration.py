"""The door as start.sh renders it, read by gixy: each finding is mended or has its reason here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kit.backups import program
from kit.fake_host import ROOT

ACCEPTED = {
    # Names with a hash anywhere in them: any anchor would be wrong. A short path, no nested repeats.
    ("unanchored_regex", "70-ui.conf"),
    # A gateway's stream (SSE) must trickle. Behind a login, and gateways are off unless asked for.
    ("proxy_buffering_off", "50-mlflow.conf"),
    # Files of this image on its own disk, a few stat() calls beside a request's milliseconds; try_files
    # stands for `return`, which would answer before the login is checked.
    ("try_files_is_evil_too", "25-plain-http.conf"),
}
MODES = [
    {},
    {"PUBLIC_URL": "http://mlflow.example.com", "TRUSTED_PROXIES": "10.0.0.5,192.168.0.0/16"},
    {"TLS_MODE": "self-signed"},
    {"TLS_MODE": "files", "PUBLIC_URL": "https://mlflow.example.com"},
    {"TLS_MODE": "acme", "PUBLIC_URL": "https://mlflow.example.com:8443"},
    {"AUTHORIZATION": "rbac"},
    {"FASTPATH": "off"},
    {"ARTIFACT_BYTES": "nginx", "S3_ENDPOINT_URL": "http://minio:9000"},
    {"ARTIFACT_BYTES": "nginx", "S3_ENDPOINT_URL": "http://minio:9000", "AUTHORIZATION": "rbac"},
]
BYTES = {"ARTIFACT_BYTES": "nginx", "S3_ENDPOINT_URL": "http://minio:9000"}
KEY = "0123456789abcdef" * 4


def start(folder: Path, settings: dict[str, str], key: str = KEY) -> subprocess.CompletedProcess:
    """Run nginx/start.sh with all paths below a folder and a fake nginx."""
    door = folder / "door"
    if key:
        (folder / "secrets/nginx").mkdir(parents=True)
        (folder / "secrets/nginx/door_key").write_text(key)
        (folder / "secrets/nginx/storage.json").write_text("{}")
    (folder / "audit/nginx").mkdir(parents=True)
    shutil.copytree(ROOT / "nginx", door)
    (door / "mime.types").write_text("types { text/html html; }\n")
    for path in (*door.rglob("*.conf"), *door.rglob("*.inc"), door / "start.sh"):
        text = path.read_text().replace("/etc/nginx/mime.types", f"{door}/mime.types")
        text = text.replace("/secrets/", f"{folder}/secrets/").replace("/audit/", f"{folder}/audit/")
        path.write_text(text.replace("/opt/nginx", str(door)).replace("/tmp/nginx", f"{folder}/rendered"))
    program(folder / "bin", "nginx", "")
    # No file and no day is followed: the loop would outlive the test.
    program(folder / "bin", "sleep", "exit 1")
    return subprocess.run(
        ["sh", str(door / "start.sh")],
        env={"PATH": f"{folder}/bin:/usr/bin:/bin", **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def render(folder: Path, settings: dict[str, str]) -> Path:
    """Run nginx/start.sh and return the main file."""
    done = start(folder, settings)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "door/nginx.conf"


def findings(main_file: Path) -> set[tuple[str, str]]:
    done = subprocess.run(
        [sys.executable, "-m", "gixy", "--format", "json", str(main_file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr  # 2: it could not read the configuration
    return {(found["plugin"], Path(found["file"]).name) for found in json.loads(done.stdout)}


@pytest.mark.parametrize("settings", MODES, ids=lambda settings: " ".join(settings.values()) or "defaults")
def test_gixy_finds_nothing_in_the_doors_configuration_but_what_has_its_reason(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    assert findings(render(tmp_path, settings)) == ACCEPTED


def test_gixy_would_find_something(tmp_path: Path) -> None:
    main_file = render(tmp_path, {})
    (main_file.parent / "server.d/99-bad.conf").write_text("location /files { alias /srv/; }\n")
    assert ("alias_traversal", "99-bad.conf") in findings(main_file)


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        ({}, True),
        ({"FASTPATH": "on", "AUTHORIZATION": "roles"}, True),
        ({"FASTPATH": "off"}, False),
        ({"FASTPATH": "on", "AUTHORIZATION": "rbac"}, False),  # it knows nothing of those permissions
    ],
)
def test_the_fast_path_has_routes_where_it_may_answer_and_else_leaves_no_trace(
    tmp_path: Path, settings: dict[str, str], there: bool
) -> None:
    main_file = render(tmp_path, settings)
    rendered = {
        part: (tmp_path / f"rendered/fastpath-{part}.conf").read_text() for part in ("http", "server")
    }
    folder = main_file.parent / "fastpath"
    assert all((folder / f"{part}.conf").is_file() for part in rendered)
    assert rendered == {part: f"include {folder}/{part}.conf;" if there else "" for part in rendered}
    assert all(
        f"include {tmp_path}/rendered/fastpath-{part}.conf;" in main_file.read_text() for part in rendered
    )


@pytest.mark.parametrize(("authorization", "shown"), [("", ""), ("roles", ""), ("rbac", KEY)])
def test_the_key_of_the_door_is_for_nginx_alone_and_only_where_it_is_used(
    tmp_path: Path, authorization: str, shown: str
) -> None:
    render(tmp_path, {"AUTHORIZATION": authorization})
    rendered = tmp_path / "rendered/door.conf"
    assert rendered.read_text() == f'map "" $door_key {{ default "{shown}"; }}\n'
    assert rendered.stat().st_mode & 0o077 == 0
    others = [path for path in tmp_path.rglob("*.conf") if path != rendered]
    assert others
    assert not [path for path in others if KEY in path.read_text()]


@pytest.mark.parametrize(
    ("settings", "key", "says"),
    [
        ({"AUTHORIZATION": "none"}, KEY, "AUTHORIZATION is 'none'"),
        ({"FASTPATH": "yes"}, KEY, "FASTPATH is 'yes'"),
        ({"FASTPATH": "no", "AUTHORIZATION": "rbac"}, KEY, "FASTPATH is 'no'"),
        ({"AUTHORIZATION": "rbac"}, "", "door_key cannot be read"),
        ({"ARTIFACT_BYTES": "on"}, KEY, "ARTIFACT_BYTES is 'on'"),
        (BYTES, "", "storage.json cannot be read"),
    ],
)
def test_a_door_that_could_not_say_who_comes_does_not_open(
    tmp_path: Path, settings: dict[str, str], key: str, says: str
) -> None:
    done = start(tmp_path, settings, key)
    assert done.returncode == 78
    assert says in done.stderr
    assert "fix: " in done.stderr


def test_artifacts_go_through_mlflow_as_ever_unless_nginx_is_asked_to_move_them(tmp_path: Path) -> None:
    for number, (settings, included) in enumerate(
        [
            ({}, "mlflow.conf"),
            ({"ARTIFACT_BYTES": "mlflow", "S3_ENDPOINT_URL": "http://minio:9000"}, "mlflow.conf"),
            (BYTES, "routes.conf"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        render(folder, settings)
        rendered = (folder / "rendered/artifacts.conf").read_text()
        assert rendered == f"include {folder}/door/artifacts/{included};\n"
        asks_njs = "js_" in (folder / "rendered/settings.conf").read_text()
        loads_njs = "load_module" in (folder / "rendered/modules.conf").read_text()
        assert asks_njs == loads_njs == (included == "routes.conf")


@pytest.mark.parametrize(
    "endpoint", ["", "https://s3.example.com", "http://s3.example.com/path", "http://x;y"]
)
def test_a_storage_that_nginx_cannot_reach_is_left_to_mlflow(tmp_path: Path, endpoint: str) -> None:
    done = start(tmp_path, {"ARTIFACT_BYTES": "nginx", "S3_ENDPOINT_URL": endpoint})
    assert done.returncode == 0
    assert "artifacts go through MLflow" in done.stderr
    assert "mlflow.conf" in (tmp_path / "rendered/artifacts.conf").read_text()


def locations(text: str) -> dict[str, str]:
    """Return the body of each location by its name; none has another inside."""
    return dict(re.findall(r"^location ([^{]+?) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))


def test_what_asks_for_no_login_cannot_be_asked_for_by_a_client() -> None:
    found = locations((ROOT / "nginx/artifacts/routes.conf").read_text())
    assert len(found) > 15
    for name, body in found.items():
        inside = name.startswith("@") or "internal;" in body
        asks_itself = "auth_request /_artifact" in body and name.startswith("@")
        assert inside == ("auth_request off;" in body or asks_itself), name


def test_only_mlflows_answer_about_an_artifact_sends_a_request_on() -> None:
    """Everywhere else X-Accel-Redirect is passed over: a location's own list replaces the general one."""
    general = (ROOT / "nginx/artifacts/http.conf").read_text()
    assert re.search(r"^proxy_ignore_headers X-Accel-Redirect ", general, re.MULTILINE)
    lists = {}
    for path in (*(ROOT / "nginx/server.d").glob("*.conf"), *(ROOT / "nginx").rglob("*.inc")):
        lists[path.name] = re.findall(r"proxy_ignore_headers ([^;]+);", path.read_text())
    assert {name: found for name, found in lists.items() if found} == {"00-gates.conf": ["Set-Cookie Vary"]}
    routes = locations((ROOT / "nginx/artifacts/routes.conf").read_text())
    open_to_it = {name for name, body in routes.items() if "proxy_ignore_headers" in body}
    assert open_to_it == {name for name, body in routes.items() if "set $artifact_bytes nginx;" in body}
    assert open_to_it == {
        "~ ^/(get-artifact|model-versions/get-artifact)$",
        r"~ ^/ajax-api/2\.0/mlflow/logged-models/[^/]+/artifacts/files$",
        "@artifact_asked_for",
    }


def test_a_look_at_an_upload_carries_who_it_is_as_every_request_does() -> None:
    """Its location repeats the lines of upstream-headers.inc that say it."""
    routes = locations((ROOT / "nginx/artifacts/routes.conf").read_text())
    said = re.findall(
        r"^proxy_set_header (X-\S+) (\S+);$", (ROOT / "nginx/upstream-headers.inc").read_text(), re.MULTILINE
    )
    who = {name: value for name, value in said if name not in {"X-Forwarded-Proto", "X-Forwarded-Host"}}
    assert who.pop("X-Artifact-Bytes") == "$artifact_bytes"
    assert len(who) >= 7
    for name, value in who.items():
        assert f"proxy_set_header {name} {value};" in routes["= /_artifact_allowed"], name


def test_nothing_that_a_client_sends_reaches_the_storage_but_its_range_and_its_body() -> None:
    texts = {path.name: path.read_text() for path in (ROOT / "nginx/artifacts").iterdir()}
    assert "proxy_pass_request_headers off;" in texts["store.inc"]
    sent = set()
    for name in ("store.inc", "read.inc", "write.inc"):
        sent |= set(re.findall(r"proxy_set_header \S+ (\$\w+);", texts[name]))
    for body in locations(texts["routes.conf"]).values():
        if re.search(r"(store|read|write)\.inc", body):
            sent |= set(re.findall(r"proxy_set_header \S+ (\$\w+);", body))
    assert sent == {
        *("$store", "$artifact_date", "$artifact_authorization", "$artifact_there_authorization"),
        *("$artifact_range", "$artifact_stored_type", "$artifact_stored_encoding"),
    }
