"""The artifact repository of the server: nothing presigned, 404 for what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import (
    MultipartDownloadMixin,
    MultipartUploadMixin,
    PresignedUploadMixin,
)

from stackserver import artifacts
from stackserver.artifacts import StackS3ArtifactRepository
from stackserver.audit import overwritten
from stackserver.tempspace import StorageFullError


class FakeS3:
    """The two calls of boto3's client that a download makes, over a dictionary."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.error_code = "404"

    def download_file(self, bucket: str, key: str, filename: str) -> None:
        if key not in self.objects:
            raise ClientError({"Error": {"Code": self.error_code}}, "HeadObject")
        Path(filename).write_bytes(self.objects[key])

    def get_paginator(self, _name: str) -> FakeS3:
        return self

    def paginate(self, Bucket: str, Prefix: str, **_: str) -> list[dict]:
        found = [
            {"Key": key, "Size": len(body)} for key, body in self.objects.items() if key.startswith(Prefix)
        ]
        return [{"Contents": found}]

    def head_object(self, Bucket: str, Key: str) -> None:
        if Key not in self.objects:
            raise ClientError({"Error": {"Code": "404"}}, "HeadObject")

    def upload_file(self, Filename: str, Bucket: str, Key: str, ExtraArgs: dict) -> None:
        try:
            raise ClientError({"Error": {"Code": self.error_code}}, "PutObject")
        except ClientError as error:  # as boto3 does, without "from"
            raise S3UploadFailedError(f"Failed to upload {Filename} to {Bucket}/{Key}: {error}")  # noqa: B904


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> FakeS3:
    fake = FakeS3({"artifacts/1/run/artifacts/a.txt": b"hello"})
    monkeypatch.setattr(artifacts, "new_s3_client", lambda _endpoint, **_: fake)
    return fake


@pytest.fixture
def repository() -> StackS3ArtifactRepository:
    return StackS3ArtifactRepository("s3://mlflow/artifacts")


@pytest.mark.parametrize("words", ["XMinioStorageFull", "cause(no space left on device)"])
def test_a_full_bucket_is_told_from_other_failures(
    repository: StackS3ArtifactRepository, s3: FakeS3, tmp_path: Path, words: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("hello")
    s3.error_code = words
    with pytest.raises(StorageFullError):
        repository.log_artifact(str(path))
    s3.error_code = "AccessDenied"
    with pytest.raises(S3UploadFailedError):
        repository.log_artifact(str(path))


def test_nothing_about_it_lets_mlflow_advertise_direct_transfers(
    repository: StackS3ArtifactRepository,
) -> None:
    for mixin in (MultipartUploadMixin, MultipartDownloadMixin, PresignedUploadMixin):
        assert not isinstance(repository, mixin)


def test_a_file_is_downloaded_to_its_place(
    repository: StackS3ArtifactRepository, s3: FakeS3, tmp_path: Path
) -> None:
    path = repository.download_artifacts("1/run/artifacts/a.txt", str(tmp_path))
    assert Path(path).read_bytes() == b"hello"


def test_a_missing_file_is_a_404(repository: StackS3ArtifactRepository, s3: FakeS3, tmp_path: Path) -> None:
    with pytest.raises(MlflowException) as error:
        repository.download_artifacts("1/run/artifacts/b.txt", str(tmp_path))
    assert error.value.get_http_status_code() == 404
    assert error.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_a_refused_key_is_not_taken_for_a_missing_file(
    repository: StackS3ArtifactRepository, s3: FakeS3, tmp_path: Path
) -> None:
    s3.error_code = "403"
    with pytest.raises(ClientError):
        repository.download_artifacts("1/run/artifacts/b.txt", str(tmp_path))


def test_a_folder_is_not_downloaded(
    repository: StackS3ArtifactRepository, s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository._s3, "list_artifacts", lambda _path: [FileInfo("d/a.txt", False, 1)])
    with pytest.raises(MlflowException, match="'d' is a folder") as error:
        repository.download_artifacts("d", str(tmp_path))
    assert error.value.get_http_status_code() == 400
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", ["XMinioInvalidResourceName", "KeyTooLongError", "XMinioParentIsObject"])
def test_a_name_that_the_storage_does_not_take_is_a_400(
    repository: StackS3ArtifactRepository, s3: FakeS3, tmp_path: Path, code: str
) -> None:
    s3.error_code = code
    (tmp_path / "a.txt").write_text("x")
    for action in (
        lambda: repository.log_artifact(str(tmp_path / "a.txt"), "1/run/artifacts"),
        lambda: repository.download_artifacts("1/run/artifacts/b.txt", str(tmp_path / "copy")),
    ):
        with pytest.raises(MlflowException, match="cannot be the name of an artifact") as error:
            action()
        assert error.value.get_http_status_code() == 400


def test_an_upload_over_what_cannot_be_seen_is_an_error_and_not_a_new_object(
    repository: StackS3ArtifactRepository, s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(Bucket: str, Key: str) -> None:
        raise ClientError({"Error": {"Code": "403"}}, "HeadObject")

    monkeypatch.setattr(s3, "head_object", refused)
    (tmp_path / "a.txt").write_text("new")
    token = overwritten.set([])
    try:
        with pytest.raises(ClientError, match="HeadObject"):
            repository.log_artifact(str(tmp_path / "a.txt"), "1/run/artifacts")
    finally:
        overwritten.reset(token)


def test_an_upload_over_an_object_is_noted_for_the_audit_log(
    repository: StackS3ArtifactRepository, s3: FakeS3, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("new")
    (tmp_path / "b.txt").write_text("new")
    token = overwritten.set([])
    try:
        for name in ("a.txt", "b.txt"):
            with pytest.raises(S3UploadFailedError):  # the fake stores nothing
                repository.log_artifact(str(tmp_path / name), "1/run/artifacts")
        assert overwritten.get() == ["artifacts/1/run/artifacts/a.txt"]
    finally:
        overwritten.reset(token)
