"""Artifacts: what is uploaded through nginx and MLflow to MinIO comes back, or is refused plainly."""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import uuid
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import yaml
from mlflow.exceptions import MlflowException
from PIL import Image

from kit.stack import Stack

MEGABYTE = 1 << 20
ARTIFACTS_ROUTE = "/api/2.0/mlflow-artifacts/artifacts"
INNER_NAMES = ("minio", ":9000", ":5000", "X-Amz-", "http://", "https://", "s3://")


def write_random(path: Path, size: int) -> str:
    """Write `size` bytes that no compression shortens, the same each time; return their sha256."""
    block = bytearray(random.Random(size).randbytes(4 * MEGABYTE))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number, start in enumerate(range(0, size, len(block))):
            block[:8] = number.to_bytes(8, "big")  # no two blocks are equal
            part = memoryview(block)[: size - start]
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def raw_path(run: mlflow.entities.Run, name: str) -> str:
    """The path of a run's artifact on the raw route."""
    return f"{ARTIFACTS_ROUTE}/{run.info.artifact_uri.removeprefix('mlflow-artifacts:/')}/{quote(name)}"


def process_ids(container: str) -> set[str]:
    """Return the ids of a container's gunicorn processes, as the host counts them."""
    text = subprocess.run(
        ["docker", "top", container, "-o", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[0] for line in text.splitlines() if "gunicorn" in line}


@pytest.fixture
def run(experiment_id: str) -> Iterator[mlflow.entities.Run]:
    """An active run."""
    with mlflow.start_run() as run:
        yield run


@pytest.fixture
def count_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list of "METHOD path" of each request that this process really sends from now on."""
    sent: list[str] = []
    putrequest = HTTPConnection.putrequest

    def counted(self: HTTPConnection, method: str, url: str, *arguments: object, **keywords: object) -> None:
        sent.append(f"{method} {url}")
        putrequest(self, method, url, *arguments, **keywords)

    monkeypatch.setattr(HTTPConnection, "putrequest", counted)
    return sent


@pytest.mark.parametrize("size", [0, 1, 100 * MEGABYTE], ids=["0 bytes", "1 byte", "100 MB"])
def test_a_file_comes_back_with_the_same_sha256(run: mlflow.entities.Run, tmp_path: Path, size: int) -> None:
    source = tmp_path / "weights.bin"
    digest = write_random(source, size)
    mlflow.log_artifact(source, "some/folder")
    copy = Path(
        mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="some/folder/weights.bin")
    )
    assert copy.stat().st_size == size
    assert sha256_of(copy) == digest


@pytest.mark.long
def test_a_file_of_2_gb_passes_while_mlflow_stays_under_its_memory_limit(
    stack: Stack, run: mlflow.entities.Run, tmp_path: Path
) -> None:
    container = stack.container("mlflow")
    before = stack.inspect(container)
    assert 0 < before["HostConfig"]["Memory"] <= 2048 * MEGABYTE
    workers = process_ids(container)
    source = tmp_path / "large.bin"
    digest = write_random(source, 2048 * MEGABYTE)
    mlflow.log_artifact(source)
    source.unlink()
    copy = Path(
        mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/large.bin", dst_path=str(tmp_path))
    )
    assert copy.stat().st_size == 2048 * MEGABYTE
    assert sha256_of(copy) == digest
    copy.unlink()

    after = stack.inspect(container)
    assert after["State"]["OOMKilled"] is False
    assert after["State"]["StartedAt"] == before["State"]["StartedAt"]
    assert after["RestartCount"] == before["RestartCount"]
    assert process_ids(container) == workers  # none was killed and replaced


def test_a_csv_gz_comes_back_still_compressed_and_byte_identical(
    stack: Stack, run: mlflow.entities.Run, tmp_path: Path
) -> None:
    source = tmp_path / "wine.csv.gz"
    source.write_bytes(gzip.compress(b"alcohol;cultivar\n" + b"12.5;a\n" * 5000, mtime=0))
    mlflow.log_artifact(source)
    copy = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=source.name))
    assert copy.read_bytes() == source.read_bytes()
    for path, parameters in [
        (raw_path(run, source.name), {}),
        ("/get-artifact", {"run_id": run.info.run_id, "path": source.name}),
    ]:
        answer = stack.get(path, params=parameters, headers={"Accept-Encoding": "gzip"})
        assert answer.status_code == 200
        assert answer.content == source.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "two words.txt",
        "Größe über alles.txt",
        "a+b=c & d.txt",
        "100%.txt",
        "日本語.txt",
        "[x] {y} 'z'.txt",
        "folder with space/ä+ö.txt",
    ],
)
def test_a_file_keeps_its_unusual_name(
    client: mlflow.MlflowClient, run: mlflow.entities.Run, name: str
) -> None:
    folder = name.rpartition("/")[0]
    mlflow.log_text(f"content of {name}", name)
    assert [file.path for file in client.list_artifacts(run.info.run_id, folder or None)] == [name]
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}") == f"content of {name}"


def test_a_folder_is_uploaded_listed_and_downloaded_whole(
    client: mlflow.MlflowClient, run: mlflow.entities.Run, tmp_path: Path
) -> None:
    files = {"top.txt": "1", "sub/middle.txt": "22", "sub/deep/bottom.txt": "333"}
    for name, text in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    mlflow.log_artifacts(tmp_path / "source", "data")

    def listed(folder: str | None) -> dict[str, tuple[bool, int | None]]:
        return {
            file.path: (file.is_dir, file.file_size)
            for file in client.list_artifacts(run.info.run_id, folder)
        }

    assert listed(None) == {"data": (True, None)}
    assert listed("data") == {"data/sub": (True, None), "data/top.txt": (False, 1)}
    assert listed("data/sub") == {"data/sub/deep": (True, None), "data/sub/middle.txt": (False, 2)}
    assert listed("data/nothing") == {}
    copy = Path(client.download_artifacts(run.info.run_id, "data", str(tmp_path)))
    copies = {str(path.relative_to(copy)): path.read_text() for path in copy.rglob("*") if path.is_file()}
    assert copies == files


@pytest.mark.long
def test_a_folder_of_1200_files_is_listed_completely(
    client: mlflow.MlflowClient, run: mlflow.entities.Run, tmp_path: Path
) -> None:
    names = [f"{number:04}.txt" for number in range(1200)]  # S3 lists 1000 at once
    for name in names:
        (tmp_path / name).write_text(name)
    mlflow.log_artifacts(tmp_path, "many")
    assert [file.path for file in client.list_artifacts(run.info.run_id, "many")] == [
        f"many/{name}" for name in names
    ]


def test_a_second_upload_replaces_the_first(run: mlflow.entities.Run) -> None:
    mlflow.log_text("first", "note.txt")
    mlflow.log_text("second", "note.txt")
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/note.txt") == "second"


def test_texts_and_dicts_come_back(run: mlflow.entities.Run) -> None:
    mlflow.log_text("Grüße\n", "notes/hello.txt")
    mlflow.log_dict({"größe": [1, 2.5, None]}, "config.json")
    mlflow.log_dict({"größe": [1, 2.5, None]}, "config.yaml")
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/notes/hello.txt") == "Grüße\n"
    assert mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/config.json") == {"größe": [1, 2.5, None]}
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml")
    assert yaml.safe_load(text) == {"größe": [1, 2.5, None]}


def test_an_image_comes_back_pixel_by_pixel(run: mlflow.entities.Run) -> None:
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    mlflow.log_image(pixels, "picture.png")
    copy = mlflow.artifacts.load_image(f"{run.info.artifact_uri}/picture.png")
    assert np.array_equal(np.asarray(copy.convert("RGB")), pixels)


def test_images_of_a_time_series_are_stored_per_step(
    client: mlflow.MlflowClient, run: mlflow.entities.Run
) -> None:
    for step in range(3):
        mlflow.log_image(Image.new("RGB", (8, 8), (step, 0, 0)), key="sample", step=step)
    mlflow.flush_artifact_async_logging()
    names = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    for step in range(3):
        assert len([name for name in names if f"+step+{step}+" in name and name.endswith(".png")]) == 1


def test_a_matplotlib_figure_is_stored_as_picture_and_as_page(
    run: mlflow.entities.Run, tmp_path: Path
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4, 3), dpi=100)
    axes.plot([1, 2, 3], [1, 4, 9])
    mlflow.log_figure(figure, "plots/curve.png", save_kwargs={"bbox_inches": None})
    mlflow.log_figure(figure, "plots/curve.svg")
    pyplot.close(figure)
    assert mlflow.artifacts.load_image(f"{run.info.artifact_uri}/plots/curve.png").size == (400, 300)
    assert "<svg" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/plots/curve.svg")


def test_a_table_grows_and_loads_back(client: mlflow.MlflowClient, run: mlflow.entities.Run) -> None:
    mlflow.log_table({"question": ["Größe?"], "score": [0.5]}, "answers.json")
    mlflow.log_table(pd.DataFrame({"question": ["Farbe?", "Preis?"], "score": [1.0, 0.0]}), "answers.json")
    table = mlflow.load_table("answers.json", run_ids=[run.info.run_id], extra_columns=["run_id"])
    assert table["question"].tolist() == ["Größe?", "Farbe?", "Preis?"]
    assert table["score"].tolist() == [0.5, 1.0, 0.0]
    assert set(table["run_id"]) == {run.info.run_id}
    assert "answers.json" in client.get_run(run.info.run_id).data.tags["mlflow.loggedArtifacts"]


def test_a_deleted_artifact_is_gone_and_its_neighbour_stays(
    stack: Stack, client: mlflow.MlflowClient, run: mlflow.entities.Run
) -> None:
    for name in ["data/old.txt", "data/older/one.txt", "data/keep.txt"]:
        mlflow.log_text(name, name)
    session = stack.session()
    for name in ["data/old.txt", "data/older"]:
        assert session.delete(stack.url + raw_path(run, name), timeout=30).status_code == 200
    assert [file.path for file in client.list_artifacts(run.info.run_id, "data")] == ["data/keep.txt"]
    assert client.list_artifacts(run.info.run_id, "data/older") == []


def test_a_missing_artifact_is_a_404_on_both_routes(stack: Stack, run: mlflow.entities.Run) -> None:
    for answer in [
        stack.get(raw_path(run, "no such file.txt")),
        stack.get("/get-artifact", params={"run_id": run.info.run_id, "path": "no such file.txt"}),
    ]:
        assert answer.status_code == 404
        assert answer.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"
        assert "no such file.txt" in answer.json()["message"]


def test_the_client_asks_once_for_a_missing_artifact(
    run: mlflow.entities.Run, tmp_path: Path, count_requests: list[str]
) -> None:
    repository = mlflow.store.artifact.artifact_repository_registry.get_artifact_repository(
        run.info.artifact_uri
    )
    count_requests.clear()
    with pytest.raises((MlflowException, requests.HTTPError), match=r"no-such-file|404"):
        repository.download_artifacts("no-such-file.txt", str(tmp_path))
    downloads = [line for line in count_requests if "no-such-file" in line and "?" not in line]
    assert len(downloads) == 1, count_requests


def test_a_file_that_the_client_would_split_goes_through_the_server_whole(
    run: mlflow.entities.Run, tmp_path: Path, count_requests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "1")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(5 * MEGABYTE))
    source = tmp_path / "weights.bin"
    digest = write_random(source, 12 * MEGABYTE)
    mlflow.log_artifact(source)
    copy = mlflow.artifacts.download_artifacts(
        f"{run.info.artifact_uri}/weights.bin", dst_path=str(tmp_path / "copy")
    )
    assert sha256_of(Path(copy)) == digest
    assert [line for line in count_requests if "mpu" in line or "presigned" in line] == []
    transfers = [line for line in count_requests if line.endswith("/weights.bin")]
    assert [line.split()[0] for line in transfers] == ["PUT", "GET"]


@pytest.mark.parametrize("api", ["api", "ajax-api"])
def test_the_server_advertises_no_transfers_past_itself(stack: Stack, api: str) -> None:
    answer = stack.get(f"/{api}/3.0/mlflow/server-info")
    assert answer.status_code == 200
    assert answer.json()["multipart_uploads_enabled"] is False
    assert answer.json()["multipart_downloads_enabled"] is False


@pytest.mark.parametrize("api", ["api", "ajax-api"])
def test_no_route_hands_out_an_address_behind_the_door(
    stack: Stack, run: mlflow.entities.Run, api: str
) -> None:
    mlflow.log_text("here", "file.txt")
    root = run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
    by_run = {"run_id": run.info.run_id, "path": "file.txt"}
    upload = {"path": f"{root}/file.txt", "num_parts": 2}
    answers = [
        stack.post(f"/{api}/2.0/mlflow-artifacts/mpu/create/{root}", json=upload),
        stack.get(f"/{api}/2.0/mlflow-artifacts/presigned/{root}/file.txt"),
        stack.post(f"/{api}/2.0/mlflow/artifacts/presigned-upload-url", json=by_run),
        stack.post(f"/{api}/2.0/mlflow/artifacts/presigned-download-url", json=by_run),
    ]
    for answer in answers:
        assert 400 <= answer.status_code < 600, answer.url
        assert [name for name in INNER_NAMES if name in answer.text] == [], answer.url


def test_a_download_never_leads_elsewhere(stack: Stack, run: mlflow.entities.Run) -> None:
    mlflow.log_text("here", "file.txt")
    for path, parameters in [
        (raw_path(run, "file.txt"), {}),
        ("/get-artifact", {"run_id": run.info.run_id, "path": "file.txt"}),
    ]:
        answer = stack.get(path, params=parameters, allow_redirects=False)
        assert (answer.status_code, answer.text) == (200, "here")
        assert "Location" not in answer.headers
        assert answer.headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "path",
    [
        "../../../../etc/passwd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%252e%252e%252fetc%252fpasswd",
        "x/../../../secrets/mlflow/pgpass",
        "x/%2e%2e/%2e%2e/%2e%2e/secrets/mlflow/pgpass",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "file:%2f%2f%2fetc%2fpasswd",
    ],
)
def test_a_path_that_leaves_the_store_is_refused(stack: Stack, run: mlflow.entities.Run, path: str) -> None:
    session = stack.session()
    routes = [
        f"{ARTIFACTS_ROUTE}/{path}",
        f"/ajax{ARTIFACTS_ROUTE[1:]}/{path}".replace("/ajaxapi", "/ajax-api"),
        f"/get-artifact?run_id={run.info.run_id}&path={path}",
        f"{ARTIFACTS_ROUTE}?path={path}",
        f"/api/2.0/mlflow/artifacts/list?run_id={run.info.run_id}&path={path}",
    ]
    for route in routes:
        prepared = session.prepare_request(requests.Request("GET", stack.url + route))
        prepared.url = stack.url + route  # requests would tidy the dots away
        answer = session.send(prepared, timeout=30)
        assert answer.status_code in {400, 404}, (route, answer.status_code, answer.text)
        assert "root:" not in answer.text
        assert "mlflow:" not in answer.text.replace("mlflow-artifacts:", "")


def test_backslashes_lead_nowhere(stack: Stack, run: mlflow.entities.Run) -> None:
    for route in [f"{ARTIFACTS_ROUTE}/", f"/get-artifact?run_id={run.info.run_id}&path="]:
        answer = stack.get(route + "..%5c..%5cetc%5cpasswd")
        assert answer.status_code >= 400
        assert "root:" not in answer.text


def test_an_upload_cannot_leave_the_store(stack: Stack, run: mlflow.entities.Run) -> None:
    name = f"escaped-{uuid.uuid4().hex}.txt"
    session = stack.session()
    for path in [f"%2e%2e/%2e%2e/{name}", f"..%2f..%2f{name}", f"%2ftmp%2f{name}", f"%252e%252e%252f{name}"]:
        prepared = session.prepare_request(requests.Request("PUT", f"{stack.url}/", data=b"x"))
        prepared.url = f"{stack.url}{ARTIFACTS_ROUTE}/{path}"
        assert 400 <= session.send(prepared, timeout=30).status_code < 500, path
    names = stack.compose("exec", "-T", "minio", "find", "/data", "-name", f"*{name}*").stdout
    assert names == ""


@pytest.mark.parametrize(
    "place", ["file:///secrets/mlflow", "/secrets/mlflow", "ftp://auth:8090/x", "s3://other"]
)
def test_no_record_makes_the_server_open_another_place(stack: Stack, experiment_id: str, place: str) -> None:
    with mlflow.start_span("spy") as span:
        pass
    mlflow.flush_trace_async_logging()
    # MLflow's client refuses to set this tag; its server does not.
    stack.session().patch(
        f"{stack.url}/api/3.0/mlflow/traces/{span.trace_id}/tags",
        json={"key": "mlflow.artifactLocation", "value": place},
        timeout=30,
    ).raise_for_status()
    query = {"request_id": span.trace_id, "path": str(uuid.uuid4())}
    answer = stack.get("/ajax-api/2.0/mlflow/get-trace-artifact", params=query)
    assert answer.status_code == 400
    assert "own storage" in answer.text or "does not connect" in answer.text
