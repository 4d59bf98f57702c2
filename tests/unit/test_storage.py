"""The bucket: many prefixes listed together give exactly what each would give alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from stackops.errors import FailedError
from stackops.storage import Bucket

WRITTEN = datetime(2026, 11, 21, tzinfo=UTC)


class FakeS3:
    """Lists keys in order, a page at a time, as S3 does."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = sorted(keys)
        self.calls = 0

    def list_objects_v2(self, Bucket: str, StartAfter: str, MaxKeys: int) -> dict[str, Any]:
        self.calls += 1
        found = [key for key in self.keys if key > StartAfter]
        page = [{"Key": key, "Size": len(key), "LastModified": WRITTEN} for key in found[:MaxKeys]]
        return {"Contents": page, "IsTruncated": len(found) > MaxKeys}


OWNERS = st.text("ab1-", min_size=1, max_size=3)


@given(
    keys=st.sets(st.builds("{}/{}".format, OWNERS, st.text("xy/", min_size=1, max_size=3)), max_size=60),
    owners=st.sets(OWNERS, max_size=12),
)
def test_prefixes_listed_together_give_what_each_gives_alone(keys: set[str], owners: set[str]) -> None:
    prefixes = sorted(f"{owner}/" for owner in owners)
    s3 = FakeS3(list(keys))
    found = list(Bucket(s3, "bucket").below(prefixes))
    expected = [
        (prefix, key, len(key), WRITTEN)
        for prefix in prefixes
        for key in sorted(keys)
        if key.startswith(prefix)
    ]
    assert sorted(found) == sorted(expected)
    assert s3.calls <= len(prefixes) + 1


def test_neighbours_share_a_call_and_a_desert_is_crossed_in_small_steps() -> None:
    keys = [f"{owner:05}/{number}" for owner in range(1000) for number in range(10)]
    s3 = FakeS3(keys)
    assert len(list(Bucket(s3, "bucket").below([f"{owner:05}/" for owner in range(1000)]))) == 10_000
    assert s3.calls == 10
    s3 = FakeS3(keys)
    assert len(list(Bucket(s3, "bucket").below(["00000/", "00500/", "00999/"]))) == 30
    assert s3.calls <= 4


class Refusing:
    """Deletes what it is told, unless a key is not for XML, or nothing may be deleted."""

    def __init__(self, code: str = "MalformedXML") -> None:
        self.code = code
        self.deleted: list[str] = []

    def delete_objects(self, Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:
        keys = [each["Key"] for each in Delete["Objects"]]
        if self.code == "AccessDenied" or any(not key.isprintable() for key in keys):
            raise ClientError({"Error": {"Code": self.code, "Message": "no"}}, "DeleteObjects")
        self.deleted += keys
        return {}


def test_a_key_that_s3_cannot_read_does_not_keep_its_neighbours() -> None:
    s3 = Refusing()
    assert set(Bucket(s3, "bucket").delete(["a", "b\x01", "c"])) == {"b\x01"}
    assert s3.deleted == ["a", "c"]


def test_a_store_that_refuses_everything_is_asked_once() -> None:
    with pytest.raises(FailedError, match="objects cannot be deleted"):
        Bucket(Refusing("AccessDenied"), "bucket").delete(["a", "b"])
