"""The bytes behind a location, which is a local path or a URL, through fsspec: streamed, unpacked, hashed, fetched.

What a file means is for `ltsft/data/sources.py`; here it is bytes. Reading a URL survives a connection that breaks: it
goes on where it was, after checking that the bytes before are still the same.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock

from ltsft.data.packings import GZIP_MAGIC, HEAD_BYTES, packing_problem
from ltsft.errors import SourceError

CHUNK_BYTES = 1024 * 1024
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1.0
SILENCE_SECONDS = 60.0
"""A server that sends nothing for so long counts as gone."""


def is_url(location: str) -> bool:
    """Whether a location is a URL rather than a local path."""
    return "://" in location


def shown(location: str) -> str:
    """Give a location as it may be shown: of a URL, without user, password and query, which may hold secrets."""
    if not is_url(location):
        return location
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_bytes(location: str) -> Iterator[bytes]:
    """Read the content of a file in chunks, unpacked if it is gzip.

    Args:
        location: local path or URL.

    Yields:
        Chunks of at most 1 MiB, none of them empty.

    Raises:
        SourceError: if the file is missing, cannot be read, is cut off or damaged, is packed in another way, or is no
            text but an archive, a document or a picture.
    """
    head, chunks = _peek(read_stored(location))
    if head.startswith(GZIP_MAGIC):
        head, chunks = _peek(_unpack(head, chunks, location))
        if head.startswith(GZIP_MAGIC):
            raise SourceError(f"{shown(location)} is packed with gzip twice; unpack it once")
    problem = packing_problem(head)
    if problem:
        raise SourceError(f"{shown(location)} {problem}")
    if head:
        yield head
    yield from chunks


def _peek(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Take enough chunks off to tell what the file is."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD_BYTES:
            break
    return head, chunks


def read_stored(location: str) -> Iterator[bytes]:
    """Read a file in chunks as it is stored.

    Args:
        location: local path or URL.

    Yields:
        Chunks of at most 1 MiB, none of them empty.

    Raises:
        SourceError: if the file is missing or cannot be read.
    """
    return _read_url(location) if is_url(location) else _read_local(location)


def hash_bytes(location: str) -> str:
    """Hash a file as it is stored.

    A local file's hash is remembered in this process for as long as its size and its time of change stay the same.

    Args:
        location: local path or URL.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Raises:
        SourceError: if the file is missing or cannot be read.
    """
    if is_url(location):
        return _hash(location)
    try:
        status = Path(location).stat()
    except OSError as error:
        raise SourceError(_local_problem(location, error)) from error
    return _hash_local(location, status.st_size, status.st_mtime_ns)


def hub_fingerprint(location: str) -> str:
    """Hash what an ``hf:`` location names.

    Args:
        location: ``OWNER/NAME?split=...&revision=COMMIT``, or ``/FOLDER?split=...``.

    Returns:
        SHA-256 as 64 hexadecimal digits: of the name with its commit, or of all files of the folder.

    Raises:
        SourceError: if the folder cannot be read.
    """
    path, _, query = location.partition("?")
    digest = hashlib.sha256(query.encode() if path.startswith("/") else location.encode())
    if path.startswith("/"):
        root = Path(path)
        files = sorted(file for file in root.rglob("*") if file.is_file() and ".cache" not in file.parts)
        if not files:
            raise SourceError(f"there are no files in {path}; mend the path or set data_root")
        for file in files:
            digest.update(f"{file.relative_to(root).as_posix()}\0{hash_bytes(str(file))}\0".encode())
    return digest.hexdigest()


def fetch_origin(origin: str, path: str) -> None:
    """Fetch a file once; do nothing if it is there.

    Args:
        origin: URL to fetch.
        path: where the file goes; if its name ends in ``.gz`` and the origin is not gzip, it is packed, always to the
            same bytes.

    Raises:
        SourceError: if the origin cannot be read to its end, or the folder cannot be written.
    """
    target = Path(path)
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.exists():
                _download(origin, target)
    except OSError as error:
        raise SourceError(
            f"{target} is missing and cannot be fetched from {shown(origin)}: {error}; make its folder writable, or "
            "put the file there by other means"
        ) from error


def _download(origin: str, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            _write(read_stored(origin), file, packed=target.suffix == ".gz")
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except SourceError as error:
        raise SourceError(f"{target} is missing and cannot be fetched from its origin: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _write(chunks: Iterator[bytes], file: IO[bytes], *, packed: bool) -> None:
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(GZIP_MAGIC):
            break
    if not packed or head.startswith(GZIP_MAGIC):
        file.write(head)
        file.writelines(chunks)
        return
    # no name and no time in the header: the same content gives the same bytes, hence the same fingerprint
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packer:
        packer.write(head)
        for chunk in chunks:
            packer.write(chunk)


def _read_local(location: str) -> Iterator[bytes]:
    try:
        with Path(location).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise SourceError(_local_problem(location, error)) from error


def _local_problem(location: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no file {location}; mend the path, set data_root, or give the source an origin to fetch from"
    if isinstance(error, IsADirectoryError):
        return f"{location} is a folder; a source names one file, and several sources make a list"
    return f"{location} cannot be read: {error.strerror or error}"


def _read_url(location: str) -> Iterator[bytes]:
    """Read a URL; when the connection breaks, open it again, skip what was read and go on."""
    digest = hashlib.sha256()  # of what was passed on
    done = 0
    failures = 0
    while True:
        try:
            for chunk in _skip(_open_url(location), done, digest.digest(), location):
                digest.update(chunk)
                done += len(chunk)
                failures = 0
                yield chunk
            return
        except SourceError:
            raise
        except Exception as raised:  # each storage library has its own errors; all of them become ours here
            error = _unmask(raised)
            failures += 1
            if failures >= ATTEMPTS or not _may_pass(error):
                raise SourceError(_url_problem(location, error, done)) from error
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (failures - 1))


def _open_url(location: str) -> Iterator[bytes]:
    """Read a URL once from its start; errors are the storage library's."""
    import fsspec

    if location.startswith(("http://", "https://")):
        import aiohttp

        # the library's default ends every download after five minutes
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
        options: dict[str, Any] = {"client_kwargs": {"timeout": timeout}}
        # one request from start to end; not packed for the way, so that what arrives is what is stored
        how: dict[str, Any] = {"block_size": 0, "headers": {"Accept-Encoding": "identity"}}
    else:
        # a new connection each time: credentials and endpoint are those of the environment now
        options, how = {"skip_instance_cache": True}, {"block_size": 5 * CHUNK_BYTES}
    filesystem, path = fsspec.core.url_to_fs(location, **options)
    expected = filesystem.info(path).get("size")
    if "headers" in how:
        how["size"] = expected  # or it would be asked for again
    received = 0
    with filesystem.open(path, "rb", **how) as file:
        while chunk := file.read(CHUNK_BYTES):
            received += len(chunk)
            yield chunk
    if expected is not None and received != expected:
        raise ConnectionError(f"{received} bytes arrived of {expected}")


def _skip(chunks: Iterable[bytes], count: int, expected: bytes, location: str) -> Iterator[bytes]:
    """Leave out the first bytes, which must be those that were read before."""
    digest = hashlib.sha256()
    left = count
    for chunk in chunks:
        digest.update(chunk[:left])
        fresh = chunk[left:]
        left -= len(chunk) - len(fresh)
        if left == 0 and expected != b"":
            if digest.digest() != expected:
                raise SourceError(f"{shown(location)} changed while it was read; run again to read the new file")
            expected = b""
        if fresh:
            yield fresh
    if left:
        raise SourceError(f"{shown(location)} became shorter while it was read; run again to read the new file")


def _unmask(error: Exception) -> Exception:
    """Give the reason of a missing file: for fsspec, a server that cannot be reached has no file either."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    is_reason = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return cause if is_reason else error


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: a broken or refused connection and an overloaded server, not a refusal."""
    status = getattr(error, "status", None)  # of aiohttp's response errors
    if isinstance(status, int) and status:
        return status >= 500 or status in (408, 429)
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return False
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or (
        library in ("aiohttp", "botocore") and "Credential" not in type(error).__name__
    )


def _url_problem(location: str, error: Exception, done: int) -> str:
    name = shown(location)
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return f"there is no file {name}; mend the URL"
    if isinstance(error, ImportError):
        return f"{name} needs a package that is not installed: {error}"
    if isinstance(error, ValueError):
        return f"{name} cannot be opened: {error}; allowed are a local path, https:// and s3://"
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__:
        return (
            f"{name} may not be read with the credentials of this environment; for s3:// set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (and AWS_ENDPOINT_URL for a server other than Amazon's)"
        )
    # a library's message may hold the whole URL with its query, so only its kind is told
    kind = f"{type(error).__name__}{f' {status}' if status else ''}"
    return f"{name} cannot be read ({kind} after {done} bytes, {ATTEMPTS} attempts); is the server up? Run again later"


def _unpack(head: bytes, chunks: Iterator[bytes], location: str) -> Iterator[bytes]:
    """Unpack gzip with a bounded buffer; several members one after the other are one file, as for gunzip."""
    unpacker = zlib.decompressobj(wbits=31)
    data = head
    is_inside = True  # within a member, rather than between two
    try:
        while True:
            while data:
                if not is_inside:
                    data = data.lstrip(b"\0")  # padding
                    if not data:
                        break
                    unpacker, is_inside = zlib.decompressobj(wbits=31), True
                unpacked = unpacker.decompress(data, CHUNK_BYTES)
                if unpacked:
                    yield unpacked
                if unpacker.eof:
                    data, is_inside = unpacker.unused_data, False
                else:
                    data = unpacker.unconsumed_tail
            data = next(chunks, b"")
            if not data:
                break
    except zlib.error as error:
        raise SourceError(f"{shown(location)} is damaged gzip: {error}; fetch or write the file again") from error
    if is_inside:
        raise SourceError(f"{shown(location)} is cut off: its gzip stream has no end; fetch or write the file again")


def _hash(location: str) -> str:
    digest = hashlib.sha256()
    for chunk in read_stored(location):
        digest.update(chunk)
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _hash_local(location: str, size_bytes: int, mtime_ns: int) -> str:
    """Hash a local file; size and time are there to be remembered by."""
    return _hash(location)
