"""Folders and small files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["flush_folder", "fresh_folder", "write_whole"]


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """Make a hidden folder beside one that is to be written; it is gone afterwards unless it was renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_whole(file: Path, content: bytes) -> None:
    """Write a small file: a reader sees all of it or what was there before, and two writers do not meet."""
    fresh = file.parent / f".{file.name}.{uuid.uuid4().hex}.partial"
    try:
        fresh.write_bytes(content)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
