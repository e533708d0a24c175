"""Checkpoints off the node: what a training needs to go on is copied to S3 while it runs, and fetched by a new pod.

    checkpoints/<key>/files/<sha256>       the files, each once however many checkpoints have it
    checkpoints/<key>/0000000001.json      one checkpoint: its key and its files with their SHA-256; written last

The two newest checkpoints are kept. A checkpoint that does not prove to be what it says, or that belongs to another
key, is refused, and the one before is taken.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from ltsft.errors import InterruptedTraining, ServiceError, StoredFileError
from ltsft.training import checkpoint_files, checkpoint_progress
from tasks.storage import Bucket, hash_file

KEPT = 2
LOOK_SECONDS = 1.0
AWAY_SECONDS = 30.0
_LOG = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one key in S3; as a context manager it copies new ones there while the block runs.

    On leaving it copies once more if the training was asked to stop; not after an error, and not after success.

    Args:
        bucket: where checkpoints are.
        key: of the product.
        folder: where the training writes.
        check: raises if the key is no longer ours; asked before each write.
    """

    def __init__(self, bucket: Bucket, key: str, folder: Path, *, check: Callable[[], None] = lambda: None) -> None:
        self._bucket = bucket / "checkpoints" / key
        self._key = key
        self._folder = folder
        self._check = check
        self._saved: tuple[str, ...] = ()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"checkpoints {key[:12]}", daemon=True)

    def restore(self) -> int | None:
        """Put the newest whole checkpoint into the folder, unless the folder is as far already.

        Returns:
            The number of the checkpoint that was fetched, or None.

        Raises:
            ServiceError: S3 cannot be reached.
        """
        for number in sorted(self._numbers(), reverse=True):
            try:
                manifest = self._read(number)
                if checkpoint_progress(manifest["files"]) <= checkpoint_progress(_names(self._folder)):
                    return None
                self._fetch(manifest["files"])
            except _RefusedError as refused:
                _LOG.warning(
                    "checkpoint %d of key %s is refused: %s; taking the one before", number, self._key, refused
                )
                continue
            self._saved = _names(self._folder)
            return number
        return None

    def save(self) -> None:
        """Copy what the training needs to go on; does nothing if that is there already.

        Raises:
            ServiceError: S3 cannot be reached, or the key is no longer ours.
        """
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".copying-") as frozen:
            names = _freeze(self._folder, Path(frozen))
            if not names or names == self._saved:
                return
            self._check()
            there = {PurePosixPath(entry.name).name for entry in self._bucket.entries("files")}
            files = {}
            for name in names:
                digest = hash_file(Path(frozen, name))
                if digest not in there:
                    self._bucket.upload(Path(frozen, name), f"files/{digest}")
                files[name] = {"sha256": digest, "size_bytes": Path(frozen, name).stat().st_size}
        self._check()
        numbers = self._numbers()
        number = max(numbers, default=0) + 1
        manifest = {"key": self._key, "saved": time.time(), "files": files}
        self._bucket.put(_manifest_name(number), json.dumps(manifest).encode(), if_absent=True)
        self._saved = names
        self._remove_old([*numbers, number])

    def remove(self) -> None:
        """Remove all checkpoints of the key: the product is made."""
        names = [entry.name for entry in self._bucket.entries()]
        self._bucket.delete(sorted(names, key=lambda name: "/" in name))  # manifests first

    def __enter__(self) -> Checkpoints:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if isinstance(error, InterruptedTraining):
            try:
                self.save()
            except ServiceError as away:
                _LOG.warning("the last checkpoint could not be copied: %s", away)

    def _follow(self) -> None:
        pause = LOOK_SECONDS
        while not self._over.wait(pause):
            pause = LOOK_SECONDS
            try:
                if _names(self._folder) != self._saved:
                    self.save()
            except FileNotFoundError:  # removed by the training while it was looked at; the next one is near
                continue
            except ServiceError as error:
                _LOG.warning("a checkpoint could not be copied, trying again: %s", error)
                pause = AWAY_SECONDS

    def _numbers(self) -> list[int]:
        stems = [PurePosixPath(entry.name).stem for entry in self._bucket.entries() if entry.name.endswith(".json")]
        return [int(stem) for stem in stems if stem.isdecimal()]

    def _read(self, number: int) -> dict[str, Any]:
        stored = self._bucket.get(_manifest_name(number))
        try:
            manifest: dict[str, Any] = json.loads(stored.data) if stored is not None else {}
        except ValueError as error:
            raise _RefusedError(f"its list of files is not readable: {error}") from error
        if manifest.get("key") != self._key:
            raise _RefusedError(f"it says that it belongs to key {manifest.get('key')}")
        for name in manifest.get("files", {}):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise _RefusedError(f"it names a file outside its folder: {name}")
        return manifest

    def _fetch(self, files: dict[str, Any]) -> None:
        """Fetch all files beside the folder, then put them in place of what is there."""
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".fetching-") as fetched:
            for name, facts in files.items():
                try:
                    self._bucket.download(f"files/{facts['sha256']}", Path(fetched, name), sha256=facts["sha256"])
                except StoredFileError as error:
                    raise _RefusedError(str(error)) from error
            for path in checkpoint_files(self._folder):
                path.unlink()
            for name in files:
                target = self._folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                Path(fetched, name).replace(target)

    def _remove_old(self, numbers: list[int]) -> None:
        old, kept = sorted(numbers)[:-KEPT], sorted(numbers)[-KEPT:]
        if not old:
            return
        used = set()
        for number in kept:
            stored = self._bucket.get(_manifest_name(number))
            used |= {facts["sha256"] for facts in json.loads(stored.data)["files"].values()} if stored else set()
        files = [e.name for e in self._bucket.entries("files") if PurePosixPath(e.name).name not in used]
        self._bucket.delete([*map(_manifest_name, old), *files])


class _RefusedError(Exception):
    """A checkpoint is not what it should be."""


def _manifest_name(number: int) -> str:
    return f"{number:010d}.json"


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(folder)) for path in checkpoint_files(folder)))


def _freeze(folder: Path, frozen: Path) -> tuple[str, ...]:
    """Link the files into another folder: the training replaces and removes files, but never writes into one."""
    names = _names(folder)
    for name in names:
        target = frozen / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, target)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            shutil.copyfile(folder / name, target)
    return names
