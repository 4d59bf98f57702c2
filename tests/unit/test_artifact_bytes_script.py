"""nginx/artifacts/artifacts.js in Node: names, signatures and headers against botocore's and MLflow's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from kit.fake_host import ROOT

FOLDER = ROOT / "nginx/artifacts"
ROUTE = "/api/2.0/mlflow-artifacts/artifacts/"
RUN = f"12/{'0a' * 16}/artifacts/"
KEY = {"access_key": "nginx0123", "secret_key": "secret/with+signs="}
MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
SIMPLE = [
    *(
        "a.txt",
        "model/MLmodel",
        "model/python_env.yaml",
        "two words.txt",
        "a+b=c.bin",
        "me@home.json",
        "_x-y_",
    ),
    *(
        "UPPER.PNG",
        "a.tar.gz",
        "table.csv.gz",
        "x.tgz",
        "page.html",
        "figure.svg",
        "script.mjs",
        "s.JS",
        "a.b.c",
    ),
    *(
        "no-extension",
        "data.parquet",
        "weights.safetensors",
        "a..b",
        "k" * 255,
        "/".join("k" * 200),
        "0",
        "-rf",
    ),
    *("constructor", "x.constructor", "toString", "__proto__", "MLproject", "mlmodel", "a.py3", "README"),
]
"""Names that nginx handles, below a run's folder."""
ODD = [
    *(
        "",
        "a/",
        "/a",
        "a//b",
        ".",
        "..",
        "a/..",
        "a/../b",
        "./a",
        ".hidden",
        "a.",
        "a ",
        " a",
        "a/.b",
        "...",
        "a/ /b",
    ),
    *(
        "é.txt",
        "日本語.txt",
        "a%b",
        "a?b",
        "a#b",
        "a;b",
        "a:b",
        "a\\b",
        "a\nb",
        "a\0b",
        "a\x7fb",
        "a*b",
        "~a",
        "a&b",
    ),
    *(
        "a'b",
        'a"b',
        "<a>",
        "a|b",
        "$(id)",
        "`id`",
        "{a}",
        "[a]",
        "(a)",
        "a!b",
        "a,b",
        "k" * 256,
        "/".join("k" * 500),
    ),
    *("x__XLDIR__", "x__XLDIR__/y", "__XLDIR__", "C:x", "\u202e.txt"),
]
"""Names that are MLflow's to judge."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The table of media types, as the build of nginx's image makes it."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "media_types.py")], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the script under a name that Node takes for a module."""
    assert shutil.which("node"), "no Node: ./stack test installs it for root; else apt-get install nodejs"
    folder: Path = tmp_path_factory.mktemp("script")
    (folder / "artifacts.mjs").write_text((FOLDER / "artifacts.js").read_text())
    return folder


def run(script: Path, expression: str, **given: Any) -> Any:
    """Return what a JavaScript expression over `script` (the module) and the given values is."""
    code = (
        "const script = (await import('./artifacts.mjs')).default;"
        "const given = JSON.parse((await import('fs')).readFileSync(0));"
        f"const result = {expression};"
        "console.log(JSON.stringify(result));"
    )
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code],
        cwd=script,
        input=json.dumps(given),
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def paths_of(script: Path, targets: list[str]) -> list[str]:
    return run(script, "given.targets.map(script.pathOf)", targets=targets)


def signed_by_botocore(method: str, host: str, uri: str) -> str:
    request = AWSRequest(method, f"http://{host}{uri}", headers={"host": host})
    request.headers["X-Amz-Content-SHA256"] = "UNSIGNED-PAYLOAD"
    request.context["timestamp"] = MOMENT.strftime("%Y%m%dT%H%M%SZ")
    request.headers["X-Amz-Date"] = request.context["timestamp"]
    signer = SigV4Auth(Credentials(KEY["access_key"], KEY["secret_key"]), "s3", "us-east-1")
    signer._normalize_url_path = lambda path: path  # type: ignore[method-assign]  # S3 takes it as it is
    signer.payload = lambda _: "UNSIGNED-PAYLOAD"  # type: ignore[method-assign]
    signature = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    scope = "20260102/us-east-1/s3/aws4_request"
    return (
        f"AWS4-HMAC-SHA256 Credential={KEY['access_key']}/{scope}, "
        f"SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={signature}"
    )


def test_simple_names_are_taken_as_they_are_decoded_once(script: Path) -> None:
    sent = [ROUTE + RUN + quote(name) for name in SIMPLE]
    assert paths_of(script, sent) == [RUN + name for name in SIMPLE]
    sent = ["/ajax-api" + target.removeprefix("/api") for target in sent]
    assert paths_of(script, sent) == [RUN + name for name in SIMPLE]
    in_full = [ROUTE + RUN + "".join(f"%{ord(letter):02x}" for letter in name) for name in ("a.txt", "b c")]
    assert paths_of(script, in_full) == [RUN + "a.txt", RUN + "b c"]


def test_a_simple_name_means_the_same_to_mlflow(script: Path) -> None:
    from mlflow.utils.uri import validate_path_is_safe

    from stackserver.handover import is_simple
    from stackserver.names import what_is_wrong

    for name in SIMPLE:
        assert validate_path_is_safe(RUN + name) == RUN + name
        assert what_is_wrong(RUN + name, is_file=True) is None
        assert is_simple(RUN + name)


def test_odd_names_are_left_to_mlflow(script: Path) -> None:
    sent = [ROUTE + RUN + quote(name, safe="/") for name in ODD]
    assert dict(zip(ODD, paths_of(script, sent), strict=True)) == dict.fromkeys(ODD, "")


@pytest.mark.parametrize(
    "target",
    [
        f"{ROUTE}{RUN}a.txt?path=x",
        f"{ROUTE}{RUN}a.txt?",
        f"{ROUTE}{RUN}a.txt#x",
        f"{ROUTE}{RUN}a%2fb",
        f"{ROUTE}{RUN}a%252e",
        f"{ROUTE}{RUN}%zz",
        f"{ROUTE}{RUN}%",
        f"{ROUTE}{RUN}%ff%fe",
        f"{ROUTE}{RUN}%c0%ae",
        f"{ROUTE}{RUN}a%00",
        f"/{ROUTE}{RUN}a.txt",
        f"{ROUTE}/{RUN}a.txt",
        f"http://host{ROUTE}{RUN}a.txt",
        ROUTE.replace("api", "API") + RUN + "a.txt",
        ROUTE.replace("mlflow", "%6dlflow") + RUN + "a.txt",
        "/api/2.0/mlflow-artifacts/artifacts",
        ROUTE,
        f"{ROUTE}a.txt",
        f"{ROUTE}12/a.txt",
        f"{ROUTE}{RUN.rstrip('/')}",
        f"{ROUTE}x/{'0a' * 16}/artifacts/a.txt",
        f"{ROUTE}12/{'0A' * 16}/artifacts/a.txt",
        f"{ROUTE}12/{'0a' * 16}/other/a.txt",
        f"{ROUTE}12/models/{'0a' * 16}/artifacts/a.txt",
        f"{ROUTE}.stack/ready/x",
    ],
)
def test_an_odd_target_is_left_to_mlflow(script: Path, target: str) -> None:
    assert paths_of(script, [target]) == [""]


def test_the_folders_of_models_and_traces_are_known(script: Path) -> None:
    places = [f"1/models/m-{'0a' * 16}/artifacts/MLmodel", f"1/traces/tr-{'0a' * 16}/artifacts/traces.json"]
    assert paths_of(script, [ROUTE + place for place in places]) == places


@pytest.mark.parametrize(
    ("method", "path", "headers", "planned"),
    [
        ("GET", "p", {}, "read"),
        ("HEAD", "p", {}, "read"),
        ("GET", "p", {"contentLength": "0"}, "read"),
        ("GET", "p", {"contentLength": "5"}, ""),
        ("GET", "p", {"transferEncoding": "chunked"}, ""),
        ("GET", "", {}, ""),
        ("PUT", "p", {"contentLength": "0"}, "small"),
        ("PUT", "p", {"contentLength": str(256 << 10)}, "small"),
        ("PUT", "p", {"contentLength": str((256 << 10) + 1)}, "write"),
        ("PUT", "p", {"contentLength": str(5 << 30)}, "write"),
        ("PUT", "p", {"contentLength": str((5 << 30) + 1)}, ""),
        ("PUT", "p", {"contentLength": "9" * 40}, ""),
        ("PUT", "p", {"contentLength": "1e3"}, ""),
        ("PUT", "p", {"contentLength": "5", "transferEncoding": "chunked"}, ""),
        ("PUT", "p", {"transferEncoding": "chunked"}, ""),
        ("PUT", "p", {}, ""),
        *(
            (method, "p", {"contentLength": "0"}, "")
            for method in ("POST", "DELETE", "PATCH", "OPTIONS", "get")
        ),
    ],
)
def test_only_plain_reads_and_uploads_of_a_known_length_are_taken(
    script: Path, method: str, path: str, headers: dict[str, str], planned: str
) -> None:
    found = run(
        script,
        "script.planFor(given.method, given.path, given.headers)",
        method=method,
        path=path,
        headers=headers,
    )
    assert found == planned


def test_signatures_are_botocores(script: Path) -> None:
    names = [*SIMPLE, "é ü/日本語.txt", "a'b(c)!*~.txt", "a&b=c$d;e:f,g@h"]
    for method in ("GET", "HEAD", "PUT"):
        found = run(
            script,
            "given.paths.map((path) => { const uri = script.objectUri('/mlflow/artifacts', path);"
            " return [uri, script.authorization(given.method, 'minio:9000', uri,"
            " script.stamp(new Date(given.moment)), given.key)]; })",
            paths=[RUN + name for name in names],
            method=method,
            moment=MOMENT.isoformat(),
            key=KEY,
        )
        uris = [quote(f"/mlflow/artifacts/{RUN}{name}", safe="/~") for name in names]
        assert found == [[uri, signed_by_botocore(method, "minio:9000", uri)] for uri in uris]


def test_types_and_names_of_downloads_are_mlflows(script: Path, table: dict[str, Any]) -> None:
    from mlflow.server.handlers import _content_disposition_attachment
    from mlflow.utils.mime_type_utils import _guess_mime_type

    names = [name.rpartition("/")[2] for name in SIMPLE]
    names += [f"x{extension}" for extension in table["types"]]
    names += [
        f"x{extension}{encoding}" for extension in (".csv", ".tar", ".x") for encoding in table["encodings"]
    ]
    names += [f"x{extension}" for extension in table["suffixes"]]
    found = run(
        script,
        "given.names.map((name) => [script.contentType(name, given.table), script.disposition(name)])",
        names=names,
        table=table,
    )
    expected = [(_guess_mime_type(name), _content_disposition_attachment(name)) for name in names]
    scripts = ("javascript", "ecmascript", "livescript")
    for name, got, (media_type, disposition) in zip(names, found, expected, strict=True):
        # A script is text at this door (nginx/http.d/artifacts.conf).
        shown = "text/plain" if media_type.endswith(scripts) else media_type
        assert got == [shown, disposition], name


def test_what_is_stored_beside_an_object_is_what_mlflow_stores(script: Path, table: dict[str, Any]) -> None:
    from mimetypes import guess_type

    names = [name.rpartition("/")[2] for name in SIMPLE] + [
        "a.csv.gz",
        "b.tar.bz2",
        "c.svgz",
        "d.taz",
        "e.txt.Z",
    ]
    found = run(
        script, "given.names.map((name) => script.guess(name, given.table))", names=names, table=table
    )
    expected = [guess_type(name) for name in names]
    assert [(got["type"] or None, got["encoding"] or None) for got in found] == expected


def test_the_list_of_text_files_is_mlflows(script: Path) -> None:
    from mlflow.utils.mime_type_utils import get_text_extensions

    assert run(script, "script.TEXT") == get_text_extensions()


def test_nginx_keeps_in_memory_what_the_script_calls_small(script: Path) -> None:
    routes = (ROOT / "nginx/artifacts/routes.conf").read_text()
    small = routes[routes.index("location @artifact_small {") :].split("\n}\n")[0]
    kilobytes = {int(found) for found in re.findall(r"client_(?:body_buffer|max_body)_size (\d+)k;", small)}
    ((limit,),) = [kilobytes]
    for size, planned in ((limit << 10, "small"), ((limit << 10) + 1, "write")):
        headers = {"contentLength": str(size)}
        found = run(script, "script.planFor('PUT', 'p', given.headers)", headers=headers)
        assert found == planned
