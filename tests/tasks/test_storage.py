"""S3 over HTTP: whole files, conditional writes, and bad days."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_proxy import CUT, LOST, UNAVAILABLE, FaultyProxy

from ltsft.errors import ConfigError, ConflictError, ServiceError
from tasks import storage
from tasks.storage import Bucket, hash_file

pytestmark = pytest.mark.integration


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts as small as S3 allows, so that a small file has several."""
    monkeypatch.setattr(storage, "PART_BYTES", 5 * 1024 * 1024)
    return storage.PART_BYTES


def big_file(folder: Path, size: int, seed: int = 0) -> Path:
    file = folder / f"big-{seed}.bin"
    file.write_bytes(random.Random(seed).randbytes(size))
    return file


def test_a_file_in_parts_comes_back_the_same_and_tells_its_hash(
    bucket: Bucket, tmp_path: Path, small_parts: int
) -> None:
    file = big_file(tmp_path, 2 * small_parts + 17)

    digest = bucket.upload(file, "sft/big.bin")
    bucket.download("sft/big.bin", tmp_path / "back" / "big.bin")

    assert digest == hash_file(file) == bucket.digest("sft/big.bin")
    assert (tmp_path / "back" / "big.bin").read_bytes() == file.read_bytes()
    assert [(e.name, e.size_bytes) for e in bucket.entries("sft")] == [("sft/big.bin", 2 * small_parts + 17)]
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["big.bin"]


def test_of_two_writers_one_is_told_and_the_first_stays(bucket: Bucket) -> None:
    bucket.put("manifest.json", b"one", if_absent=True)

    with pytest.raises(ConflictError, match=r"manifest\.json was written by somebody else"):
        bucket.put("manifest.json", b"two", if_absent=True)
    bucket.put("manifest.json", b"one", if_absent=True)  # the same again is what a repeated request does

    assert bucket.get("manifest.json").data == b"one"


def test_of_many_writers_at_once_exactly_one_wins(bucket: Bucket) -> None:
    def write(number: int) -> bool:
        try:
            bucket.put("claim", f"{number}".encode(), if_absent=True)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(16)))

    assert sum(won) == 1
    assert bucket.get("claim").data == str(won.index(True)).encode()


def test_a_large_file_is_not_put_over_another_one(bucket: Bucket, tmp_path: Path, small_parts: int) -> None:
    first, second = big_file(tmp_path, small_parts + 1, seed=1), big_file(tmp_path, small_parts + 1, seed=2)
    bucket.upload(first, "file", if_absent=True)

    with pytest.raises(ConflictError):
        bucket.upload(second, "file", if_absent=True)
    bucket.upload(first, "file", if_absent=True)

    assert bucket.digest("file") == hash_file(first)
    uploads = storage._client().list_multipart_uploads(Bucket=bucket.bucket)
    assert not uploads.get("Uploads"), "an upload that was refused must not leave its parts behind"


def test_a_replacement_needs_the_version_that_was_read(bucket: Bucket) -> None:
    etag = bucket.put("lease", b"a")
    bucket.put("lease", b"b", if_match=etag)

    with pytest.raises(ConflictError):
        bucket.put("lease", b"c", if_match=etag)
    assert bucket.get("lease").data == b"b"


def test_a_damaged_object_is_refused_by_name(bucket: Bucket, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    good = bucket.upload(file, "weights")
    bucket.put("weights", b"wreights")

    with pytest.raises(ServiceError, match=r"s3://.*/weights is damaged: its SHA-256 is"):
        bucket.download("weights", tmp_path / "back", sha256=good)
    assert not (tmp_path / "back").exists()


def test_every_third_request_refused_and_downloads_cut_lose_nothing(
    s3: str, at: Callable[[str], None], tmp_path: Path, small_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_LONGEST_PAUSE_SECONDS", 0.05)
    cuts = iter([True, True])

    def fault(number: int, method: str, path: str) -> str | None:
        if number % 3 == 0:
            return UNAVAILABLE
        return CUT if method == "GET" and "big" in path and next(cuts, False) else None

    with FaultyProxy(s3, fault) as proxy:
        at(proxy.url)
        bucket = Bucket("s3://bad-days/some/prefix")
        bucket.create(expire_days={})
        file = big_file(tmp_path, 2 * small_parts + 1)
        bucket.upload(file, "big")
        bucket.put("manifest", b"x", if_absent=True)
        bucket.download("big", tmp_path / "back")
        shown = [entry.name for entry in bucket.entries()]
        faults = {fault for _, _, fault in proxy.requests}

    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert shown == ["big", "manifest"]
    assert faults == {UNAVAILABLE, CUT, None}


def test_a_lost_answer_to_a_conditional_write_is_not_taken_for_a_lost_race(s3: str, at: Callable[[str], None]) -> None:
    at(s3)
    Bucket("s3://lost-answers").create(expire_days={})
    with FaultyProxy(s3, lambda number, method, path: LOST if number == 1 else None) as proxy:
        at(proxy.url)
        Bucket("s3://lost-answers").put("manifest", b"mine", if_absent=True)
        writes = [method for method, _, _ in proxy.requests].count("PUT")

    assert writes == 2, "the first answer is lost and the request is sent again"


def test_a_store_that_is_away_is_told_with_what_to_check(
    at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    at("http://127.0.0.1:9")

    with pytest.raises(ServiceError, match=r"S3 could not write s3://gone/x: .*check AWS_ENDPOINT_URL"):
        Bucket("s3://gone").put("x", b"")


def test_setting_up_twice_changes_nothing_the_second_time(s3: str, at: Callable[[str], None]) -> None:
    at(s3)
    bucket = Bucket("s3://fresh/prefix")

    first = bucket.create(expire_days={"leases": 7})

    assert len(first) == 2
    assert bucket.create(expire_days={"leases": 7}) == []
    assert len(bucket.create(expire_days={"leases": 8})) == 1


def test_an_address_that_is_not_s3_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"an S3 location is s3://bucket or s3://bucket/prefix, got 'https://x'"):
        Bucket("https://x")
