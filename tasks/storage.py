"""S3 and whatever speaks like it. This is the only file that imports boto3.

`Bucket` is a bucket with a prefix. Files go up in parts, each with its SHA-256, and carry the SHA-256 of the whole,
which is checked when they come down; a download that breaks goes on where it was. A put can be conditional: only where
nothing is yet (`if_absent`), or only in place of what was read (`if_match`). That is what leases and the publishing of
a product rest on: of two that write at once, one is told `ConflictError`.

The client is botocore's: address and credentials come from the environment (``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``, a role, ...); throttling, 5xx and broken connections are tried again with
growing, random pauses. boto3 is imported when the first request is made.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ltsft.errors import ConfigError, ConflictError, ServiceError, StoredFileError

PART_BYTES = 32 * 1024 * 1024
THREADS = 4
ATTEMPTS = 8
"""Tries of one request, the first included; with the pauses between them about a minute."""
_LONGEST_PAUSE_SECONDS = 10.0
_DELETE_BATCH = 1000  # S3's limit for one request
_SHA256 = "sha256"


@dataclass(frozen=True)
class Entry:
    """An object as a listing shows it; the name is relative to the bucket's prefix."""

    name: str
    size_bytes: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class Stored:
    """The content of a small object, and the mark that tells this version from others.

    Attributes:
        data: the content.
        etag: of this version.
        age_seconds: how long ago it was written when it was read, by the clock of S3; None if S3 did not say.
    """

    data: bytes
    etag: str
    age_seconds: float | None = None


class Bucket:
    """A bucket with a prefix.

    Args:
        location: ``s3://bucket`` or ``s3://bucket/prefix``.

    Raises:
        ConfigError: the location is not such an address.
    """

    def __init__(self, location: str) -> None:
        parts = urlsplit(location)
        if parts.scheme != "s3" or not parts.netloc:
            raise ConfigError(f"an S3 location is s3://bucket or s3://bucket/prefix, got {location!r}")
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/")

    def __truediv__(self, folder: str) -> Bucket:
        """Give the same bucket with a longer prefix."""
        return Bucket(f"{self.location}/{folder.strip('/')}")

    @property
    def location(self) -> str:
        """The address, without a slash at its end."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def put(self, name: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Write a small object.

        Args:
            name: relative to the prefix.
            data: the content.
            if_absent: refuse if there is an object of this name.
            if_match: refuse unless the object still has this etag.

        Returns:
            The etag of what was written.

        Raises:
            ConflictError: the condition does not hold, because somebody else wrote first.
            ServiceError: the store cannot be reached or refuses.
        """
        condition = _condition(if_absent, if_match)
        with self._service("write", name):
            try:
                put = partial(
                    _client().put_object, Bucket=self.bucket, Key=self._key(name), Body=data,
                    ChecksumSHA256=_encoded(hashlib.sha256(data)), **condition,
                )  # fmt: skip
                return str(_in_turn(put)["ETag"])
            except Exception as error:
                if not _is_conflict(error):
                    raise
                # The answer to a first try may have been lost on the way: what is there may be ours.
                there = self.get(name)
                if there is not None and there.data == data:
                    return there.etag
                raise self._conflict(name) from error

    def get(self, name: str) -> Stored | None:
        """Read a small object; None if there is none."""
        for attempt in range(ATTEMPTS):
            with self._service("read", name):
                try:
                    answer = _client().get_object(Bucket=self.bucket, Key=self._key(name))
                    return Stored(answer["Body"].read(), str(answer["ETag"]), _age(answer))
                except Exception as error:
                    if _status(error) == 404:
                        return None
                    if not _is_cut(error) or attempt == ATTEMPTS - 1:
                        raise
            _pause(attempt)
        return None

    def head(self, name: str, size_bytes: int) -> bytes:
        """Read the beginning of an object; nothing if it is empty.

        Raises:
            StoredFileError: there is no such object.
            ServiceError: the store cannot be reached.
        """
        with self._service("read", name):
            try:
                answer = _client().get_object(
                    Bucket=self.bucket, Key=self._key(name), Range=f"bytes=0-{size_bytes - 1}"
                )
            except Exception as error:
                if _status(error) == 416:
                    return b""
                raise
            return answer["Body"].read()  # type: ignore[no-any-return]

    def upload(self, file: Path, name: str, *, if_absent: bool = False) -> str:
        """Write a file, in parts if it is large; readers see the whole or what was there before.

        Args:
            file: to be read; must not change meanwhile.
            name: relative to the prefix.
            if_absent: refuse if there is an object of this name with another content.

        Returns:
            SHA-256 of the file, as 64 hexadecimal digits.

        Raises:
            ConflictError: there is another object of this name already.
            ServiceError: the store cannot be reached or refuses.
        """
        size = file.stat().st_size
        digest = hash_file(file)
        with self._service("write", name):
            try:
                if size <= PART_BYTES:
                    checksum = _encoded(bytes.fromhex(digest))
                    with file.open("rb") as body:
                        _in_turn(
                            partial(
                                _client().put_object, Bucket=self.bucket, Key=self._key(name), Body=body,
                                ChecksumSHA256=checksum, Metadata={_SHA256: digest}, **_condition(if_absent, None),
                            )
                        )  # fmt: skip
                else:
                    self._upload_parts(file, name, size, digest, _condition(if_absent, None))
            except Exception as error:
                if not _is_conflict(error):
                    raise
                if self.digest(name) != digest:
                    raise self._conflict(name) from error
        return digest

    def digest(self, name: str) -> str | None:
        """Give the SHA-256 that an uploaded file carries; None if there is no such object, or it carries none."""
        with self._service("look at", name):
            try:
                answer = _client().head_object(Bucket=self.bucket, Key=self._key(name))
            except Exception as error:
                if _status(error) == 404:
                    return None
                raise
        return answer["Metadata"].get(_SHA256)  # type: ignore[no-any-return]

    def download(self, name: str, file: Path, *, sha256: str | None = None) -> None:
        """Fetch an object into a file, which is whole and checked or not there.

        Args:
            name: relative to the prefix.
            file: its folder is made.
            sha256: what the content must be; what the object says of itself without it.

        Raises:
            StoredFileError: there is no such object, or it is not what it should be.
            ServiceError: the store cannot be reached.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.part")
        with self._service("read", name):
            try:
                expected = self._download_parts(name, part)
                expected = sha256 or expected
                if expected is not None and (found := hash_file(part)) != expected:
                    raise StoredFileError(
                        f"{self.location}/{name} is damaged: its SHA-256 is {found}, it should be {expected}"
                    )
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """List the objects under a folder, in the order of their names."""
        start = self._key(f"{folder.strip('/')}/") if folder else f"{self.prefix}/".lstrip("/")
        with self._service("list", folder):
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
            for page in pages:
                for found in page.get("Contents", ()):
                    name = found["Key"][len(self.prefix) + 1 if self.prefix else 0 :]
                    yield Entry(name, found["Size"], found["ETag"], found["LastModified"])

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        keys = [{"Key": self._key(name)} for name in names]
        for i in range(0, len(keys), _DELETE_BATCH):
            with self._service("remove from", ""):
                batch = {"Objects": keys[i : i + _DELETE_BATCH], "Quiet": True}
                answer = _client().delete_objects(Bucket=self.bucket, Delete=batch)
                if answer.get("Errors"):
                    failed = answer["Errors"][0]
                    raise ServiceError(f"{self.location} could not remove {failed['Key']}: {failed.get('Message', '')}")

    def create(self, *, expire_days: Mapping[str, int]) -> list[str]:
        """Create the bucket if it is missing, and let old objects under some folders go by themselves.

        Args:
            expire_days: by folder under the prefix, the age at which its objects are removed.

        Returns:
            What was changed, in words; nothing if all was as it should be.
        """
        changed = []
        with self._service("set up", ""):
            if not self.exists():
                _client().create_bucket(Bucket=self.bucket, **_place())
                changed.append(f"created bucket {self.bucket}")
            if (rules := self.missing_rules(expire_days)) is not None:
                _client().put_bucket_lifecycle_configuration(
                    Bucket=self.bucket, LifecycleConfiguration={"Rules": rules}
                )
                changed.append(f"set the lifecycle of {', '.join(expire_days)} in {self.location}")
        return changed

    def exists(self) -> bool:
        """Whether the bucket exists."""
        with self._service("look at", ""):
            try:
                _client().head_bucket(Bucket=self.bucket)
            except Exception as error:
                if _status(error) == 404:
                    return False
                raise
        return True

    def missing_rules(self, expire_days: Mapping[str, int]) -> list[dict[str, Any]] | None:
        """Give the bucket's lifecycle rules as they should be; None if they are so already."""
        wanted = [
            {
                "ID": f"ltsft {self._key(folder)}",
                "Status": "Enabled",
                "Filter": {"Prefix": f"{self._key(folder)}/"},
                "Expiration": {"Days": days},
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
            }
            for folder, days in expire_days.items()
        ]
        with self._service("look at", ""):
            try:
                there = _client().get_bucket_lifecycle_configuration(Bucket=self.bucket)["Rules"]
            except Exception as error:
                if _status(error) != 404:
                    raise
                there = []
        by_id = {rule.get("ID"): rule for rule in there}
        if all(_covers(by_id.get(rule["ID"], {}), rule) for rule in wanted):
            return None
        names = {rule["ID"] for rule in wanted}
        return [*(rule for rule in there if rule.get("ID") not in names), *wanted]

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _conflict(self, name: str) -> ConflictError:
        return ConflictError(f"{self.location}/{name} was written by somebody else; nothing was overwritten")

    def _upload_parts(self, file: Path, name: str, size: int, digest: str, condition: dict[str, str]) -> None:
        where = {"Bucket": self.bucket, "Key": self._key(name)}
        started = _client().create_multipart_upload(**where, ChecksumAlgorithm="SHA256", Metadata={_SHA256: digest})
        where["UploadId"] = started["UploadId"]

        def send(number: int) -> dict[str, Any]:
            with file.open("rb") as opened:
                opened.seek((number - 1) * PART_BYTES)
                data = opened.read(PART_BYTES)
            checksum = _encoded(hashlib.sha256(data))
            answer = _client().upload_part(**where, PartNumber=number, Body=data, ChecksumSHA256=checksum)
            return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

        try:
            with ThreadPoolExecutor(THREADS) as pool:
                parts = list(pool.map(send, range(1, -(-size // PART_BYTES) + 1)))
            complete = _client().complete_multipart_upload
            _in_turn(partial(complete, **where, MultipartUpload={"Parts": parts}, **condition))
        except BaseException:
            with self._service("give up writing", name):
                _client().abort_multipart_upload(**where)
            raise

    def _download_parts(self, name: str, part: Path) -> str | None:
        """Fetch all ranges; give the SHA-256 that the object says it has."""
        where = {"Bucket": self.bucket, "Key": self._key(name)}
        head = _client().head_object(**where)
        size, etag = int(head["ContentLength"]), head["ETag"]
        with part.open("wb") as opened:
            opened.truncate(size)

        def fetch(start: int) -> None:
            end = min(start + PART_BYTES, size)
            failures = 0
            with part.open("r+b") as opened:
                opened.seek(start)
                while (at := opened.tell()) < end:
                    try:
                        answer = _client().get_object(**where, Range=f"bytes={at}-{end - 1}", IfMatch=etag)
                        for chunk in answer["Body"].iter_chunks(1024 * 1024):
                            opened.write(chunk)
                    except Exception as error:
                        failures = failures + 1 if opened.tell() == at else 1
                        if not _is_cut(error) or failures >= ATTEMPTS:
                            raise
                        _pause(failures)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fetch, range(0, size, PART_BYTES)))
        return head["Metadata"].get(_SHA256)  # type: ignore[no-any-return]

    @contextmanager
    def _service(self, action: str, name: str) -> Iterator[None]:
        """Turn whatever botocore raises into `ServiceError`."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        try:
            yield
        except (BotoCoreError, ClientError, HTTPClientError, OSError) as error:
            place = f"{self.location}/{name}".rstrip("/")
            why = _reason(error)
            if _status(error) == 404:
                raise StoredFileError(
                    f"there is no {place} ({why}); mend the address or run ltsft bootstrap"
                ) from error
            raise ServiceError(
                f"S3 could not {action} {place}: {why}; check AWS_ENDPOINT_URL, the credentials in AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY (or the role), and that the service is up"
            ) from error


def publish(bucket: Bucket, folder: Path, manifest: str | None) -> bool:
    """Write a folder's files, the manifest last and only if there is none: one product is published once.

    Args:
        bucket: with the prefix that the files get.
        folder: what is published.
        manifest: name of the file that makes the others a product; None if there is none.

    Returns:
        False if it had been published before; nothing was written then.
    """
    if manifest is not None and bucket.get(manifest) is not None:
        return False
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file.name == manifest):
        name = file.relative_to(folder).as_posix()
        bucket.upload(file, name, if_absent=name == manifest)
    return True


def fetch_folder(bucket: Bucket, path: str, target: Path) -> None:
    """Fetch an object, or all objects under a folder, each whole and checked.

    Raises:
        StoredFileError: there is nothing of this name, or it is damaged.
    """
    names = [entry.name for entry in bucket.entries(path)]
    if not names:
        bucket.download(path, target)
    for name in names:
        relative = PurePosixPath(name).relative_to(path)
        if ".." in relative.parts:
            raise StoredFileError(f"{bucket.location}/{name} has a name that leads out of its folder")
        bucket.download(name, target / relative)


def hash_file(file: Path) -> str:
    """Give the SHA-256 of a file, as 64 hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@cache
def _client() -> Any:
    import boto3
    from botocore.config import Config

    has_endpoint = bool(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
    config = Config(
        retries={"mode": "standard", "max_attempts": ATTEMPTS},  # waits a random time, twice as long each time
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=4 * THREADS,
        # Only Amazon has a name for each bucket in its DNS.
        s3={"addressing_style": "path" if has_endpoint else "auto"},
        # We send SHA-256 ourselves; the newer checksums of the SDK are unknown to some servers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    return session.client("s3", config=config, region_name=session.region_name or "us-east-1")


def _age(answer: Mapping[str, Any]) -> float | None:
    """Give how old an object was when S3 answered."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None or answer.get("LastModified") is None:
        return None
    return float((parsedate_to_datetime(date) - answer["LastModified"]).total_seconds())


def _place() -> dict[str, Any]:
    region = _client().meta.region_name
    return {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}


def _covers(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a rule says what is wanted; servers add fields of their own."""
    return all(
        _covers(there.get(name, {}), value) if isinstance(value, Mapping) else there.get(name) == value
        for name, value in wanted.items()
    )


def _condition(if_absent: bool, if_match: str | None) -> dict[str, str]:
    if if_absent:
        return {"IfNoneMatch": "*"}
    return {"IfMatch": if_match} if if_match is not None else {}


def _in_turn(put: Callable[[], Any]) -> Any:
    """Do a conditional put again when S3 says that another one is under way (409): after it, the answer is clear."""
    for attempt in range(ATTEMPTS):
        try:
            return put()
        except Exception as error:
            if _status(error) != 409 or attempt == ATTEMPTS - 1:
                raise
            _pause(attempt)
    return None


def _encoded(digest: Any) -> str:
    return base64.b64encode(digest if isinstance(digest, bytes) else digest.digest()).decode()


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, min(_LONGEST_PAUSE_SECONDS, 0.2 * 2**attempt)))


def _status(error: BaseException) -> int:
    response = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_conflict(error: Exception) -> bool:
    return _status(error) in (409, 412)


def _is_cut(error: Exception) -> bool:
    """Whether a body broke off; botocore tries requests again, but not the reading of what they gave."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    return isinstance(error, (HTTPClientError, IncompleteReadError, OSError)) or _status(error) >= 500


def _reason(error: BaseException) -> str:
    response = getattr(error, "response", None) or {}
    told = response.get("Error", {})
    if told:
        return f"{told.get('Code', '')}: {told.get('Message', '')}"
    return f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)
