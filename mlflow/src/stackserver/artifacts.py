"""The artifact repository behind the proxied artifact routes: S3, through this server only.

It takes the place of MLflow's own for the scheme `s3` (an entry point wins over a built-in,
mlflow/store/artifact/artifact_repository_registry.py of 3.17.2) and differs in eight ways:

- It has none of the Multipart and Presigned mixins. MLflow would otherwise advertise
  presigned transfers to the internal endpoint, which clients cannot reach: downloads hang
  for minutes, and `.gz` files come back decompressed.
- A missing object is RESOURCE_DOES_NOT_EXIST (404) instead of a 500, which clients
  retry for four minutes.
- A name that the storage does not take is INVALID_PARAMETER_VALUE (400), for the same reason.
- A folder is not downloaded: the raw route would fetch a whole run to answer nothing.
- A bucket without room is a StorageFullError (507, said by tempspace.py) instead of a 500.
- It opens the stack's own bucket and prefix only (locations.py).
- Its client has short timeouts and follows rotated credentials.
- Where nginx moves the bytes it only says that the object is there (handover.py).
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boto3.exceptions import S3UploadFailedError
from botocore.client import BaseClient
from botocore.exceptions import ClientError, ReadTimeoutError
from mlflow.environment_variables import MLFLOW_S3_ENDPOINT_URL
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

from stackserver.audit import overwritten
from stackserver.handover import handover, is_simple
from stackserver.locations import refuse_place
from stackserver.storage import LOOK_TIMEOUT_SECONDS
from stackserver.storage import s3_client as new_s3_client
from stackserver.tempspace import StorageFullError

DESTINATION_VARIABLE = "_MLFLOW_SERVER_ARTIFACT_DESTINATION"
"""How serve.py tells MLflow the root of all artifacts (mlflow.server itself imports this module)."""
UNFIT_NAMES = frozenset(
    {
        *("XMinioInvalidObjectName", "XMinioInvalidResourceName", "XMinioParentIsObject"),
        *("XMinioObjectExistsAsDirectory", "KeyTooLongError", "InvalidArgument", "InvalidURI", "400"),
    }
)
"""What a storage answers to a key that it cannot have, or not beside those that it has."""
MISSING = frozenset({"404", "NoSuchKey"})
"""What a storage answers where there is no such object."""
STORAGE_FULL = ("XMinioStorageFull", "no space left on device")
"""What MinIO answers to an upload for which its drive has no room, before and while it writes."""


class StackS3ArtifactRepository(ArtifactRepository):
    """S3 artifacts that are moved by the server itself.

    Everything is delegated to MLflow's S3 repository; not inherited, because the mixins
    that must not show are among its base classes.
    """

    def __init__(self, artifact_uri: str, *arguments: Any, **keywords: Any) -> None:
        destination = os.environ.get(DESTINATION_VARIABLE)
        if destination and not f"{artifact_uri}/".startswith(f"{destination}/"):
            refuse_place(artifact_uri)
        super().__init__(artifact_uri, *arguments, **keywords)
        self._s3 = _FastFailingS3(artifact_uri, *arguments, **keywords)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Store a local file under its own name in `artifact_path`."""
        asked = handover.get()
        if asked is not None and asked.only_look:
            path = posixpath.join(artifact_path or "", os.path.basename(local_file))
            asked.absent = not self._s3.is_there(path)
            return
        self._s3.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Store the files of a local folder in `artifact_path`."""
        self._s3.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list:
        """Return the files and folders of `path` as MLflow's FileInfo records."""
        return self._s3.list_artifacts(path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete the objects of `artifact_path`."""
        self._s3.delete_artifacts(artifact_path)

    def upload_archived_trace_data_bytes(self, data: bytes) -> None:
        """Store the data of an archived trace."""
        self._s3.upload_archived_trace_data_bytes(data)

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        """Return the local path of a downloaded file (without `dst_path`: or folder, as MLflow does).

        A file is fetched at once, without MLflow's listing before it. Raise
        MlflowException with RESOURCE_DOES_NOT_EXIST if there is no such object, and with
        INVALID_PARAMETER_VALUE if it is a folder.
        """
        if not dst_path or not artifact_path:
            return self._s3.download_artifacts(artifact_path, dst_path)
        local_path = os.path.join(dst_path, *artifact_path.split("/"))
        os.makedirs(os.path.dirname(local_path), exist_ok=True)
        if self._hand_over(artifact_path, local_path):
            return local_path
        try:
            self._s3._download_file(artifact_path, local_path)
        except MlflowException:
            if not self._s3.list_artifacts(artifact_path):
                raise
            message = f"'{artifact_path}' is a folder: list it, then download its files."
            raise MlflowException(message, error_code=INVALID_PARAMETER_VALUE) from None
        return local_path

    def _hand_over(self, artifact_path: str, local_path: str) -> bool:
        """Leave an empty file in the object's place and return True, if nginx moves its bytes.

        MLflow makes the headers of its answer by the file's name. What is not there is MLflow's to say.
        """
        asked = handover.get()
        destination = os.environ.get(DESTINATION_VARIABLE)
        if asked is None or asked.only_look or not destination:
            return False
        path = posixpath.join(self.artifact_uri, artifact_path).removeprefix(f"{destination}/")
        if not is_simple(path) or not self._s3.is_there(artifact_path):
            return False
        Path(local_path).touch()
        asked.path = path
        return True

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._s3._download_file(remote_file_path, local_path)


def _code(error: BaseException | None) -> str | None:
    """Return the code of the storage's answer. boto3 wraps the answer to an upload in another error."""
    answer = error.__context__ if isinstance(error, S3UploadFailedError | MlflowException) else error
    return answer.response.get("Error", {}).get("Code") if isinstance(answer, ClientError) else None


def _unfit(name: str) -> MlflowException:
    return MlflowException(f"'{name}' cannot be the name of an artifact.", error_code=INVALID_PARAMETER_VALUE)


@contextmanager
def _said_plainly(name: str) -> Iterator[None]:
    """Raise what the storage says of a name as MLflow's own errors, and a full bucket as its own."""
    try:
        yield
    except (ClientError, S3UploadFailedError) as error:
        if any(words in str(error) for words in STORAGE_FULL):
            raise StorageFullError(errno.ENOSPC, "the object storage is full") from error
        if _code(error) in UNFIT_NAMES:
            raise _unfit(name) from error
        raise


def _is_there(bucket: str, key: str) -> bool:
    """Return whether there is an object.

    Raise ClientError if the storage does not say so or the contrary, and MlflowException with
    TEMPORARILY_UNAVAILABLE if it says nothing soon.
    """
    client = new_s3_client(MLFLOW_S3_ENDPOINT_URL.get(), read_timeout_seconds=LOOK_TIMEOUT_SECONDS)
    try:
        client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if _code(error) not in MISSING:
            raise
        return False
    except ReadTimeoutError as error:
        message = "The object storage does not say now whether there is such an artifact. Try again."
        raise MlflowException(message, error_code=TEMPORARILY_UNAVAILABLE) from error
    return True


class _FastFailingS3(S3ArtifactRepository):
    """MLflow's S3 repository with our client, and a 404 for what is missing."""

    def _get_s3_client(self) -> BaseClient:
        return new_s3_client(MLFLOW_S3_ENDPOINT_URL.get())

    def is_there(self, artifact_path: str) -> bool:
        """Return whether there is an object. Raise MlflowException for a name that cannot be one."""
        bucket, root = self.parse_s3_compliant_uri(self.artifact_uri)
        with _said_plainly(artifact_path):
            return _is_there(bucket, posixpath.join(root, artifact_path))

    def _upload_file(self, s3_client: BaseClient, local_file: str, bucket: str, key: str) -> None:
        replaced = overwritten.get()
        with _said_plainly(key):
            if replaced is not None and _is_there(bucket, key):
                replaced.append(key)
            super()._upload_file(s3_client, local_file, bucket, key)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        try:
            with _said_plainly(remote_file_path):
                super()._download_file(remote_file_path, local_path)
        except ClientError as error:
            if _code(error) not in MISSING:
                raise
            name = posixpath.basename(remote_file_path)
            message = f"The artifact '{name}' does not exist at '{remote_file_path}'."
            raise MlflowException(message, error_code=RESOURCE_DOES_NOT_EXIST) from error

    def _iterate_s3_paginated_results(self, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
        try:
            yield from super()._iterate_s3_paginated_results(bucket, prefix)
        except MlflowException as error:
            if _code(error) in UNFIT_NAMES:
                raise _unfit(prefix) from error
            raise

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        with _said_plainly(artifact_path or ""):
            super().delete_artifacts(artifact_path)
