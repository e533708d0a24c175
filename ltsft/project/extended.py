"""A project file and those that it extends, as one tree whose folders start from the file that names them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from ltsft.errors import ConfigError
from ltsft.project.tree import read_tree

__all__ = ["StoreBefore", "moved_store", "read_extended"]


class StoreBefore(NamedTuple):
    """The folder of a store as a file writes it, where that is now, and where it was looked for once."""

    written: str = ""
    now: str = ""


def read_extended(path: Path, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], StoreBefore]:
    """Read a project file, and below it the one that it extends, by the rules of JSON Merge Patch (RFC 7396).

    Args:
        path: the file.
        below: the files that led to it, each extending the next.

    Returns:
        The tree, with folders that start from the file that names them, and what the store's folder was once.

    Raises:
        ConfigError: as of `read_tree`; or files extend one another in a circle.
    """
    here = path.absolute()
    if here in below:
        raise ConfigError(f"extends: {path} extends itself, by way of {', '.join(str(file) for file in below)}")
    own = read_tree(path)
    extended = own.pop("extends", None)
    if extended is None:
        return own, _start_from(here.parent, own, own.get("name", "project"))
    if not isinstance(extended, str) or not extended.strip() or "://" in extended:
        raise ConfigError(f"{path}: extends: must be the path of another project file, got {extended!r}")
    raw, was = read_extended(Path(_below(here.parent, extended)), (*below, here))
    if isinstance(own.get("store"), dict) and "folder" in own["store"]:
        was = _start_from(here.parent, own, "")
    elif isinstance(own.get("data_root"), str):
        own["data_root"] = _below(here.parent, own["data_root"])
    return _patched(raw, own), was


def _patched(value: Any, patch: Any) -> Any:
    """Merge mappings key by key; nothing (`null`) takes a key away, everything else takes the place of what was."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(value) if isinstance(value, dict) else {}
    for key, item in patch.items():
        if item is None:
            merged.pop(key, None)
        else:
            merged[key] = _patched(merged.get(key), item)
    return merged


def _start_from(here: Path, raw: dict[str, Any], name: Any) -> StoreBefore:
    """Let the folders that a file names start from where it lies."""
    root, store = raw.get("data_root"), raw.get("store", {})
    if isinstance(root, str) and root:
        raw["data_root"] = _below(here, root)
    if isinstance(store, dict):
        written = store.get("folder", f"work/{name}")
        if isinstance(written, str) and written:
            raw["store"] = {**store, "folder": _below(here, written)}
            return StoreBefore(written, raw["store"]["folder"])
    return StoreBefore()


def _below(folder: Path, place: str) -> str:
    """Start a relative path from a folder; a URL and `~` stay as they are."""
    return place if "://" in place or place.startswith("~") else os.path.normpath(folder / place)


def moved_store(folder: Path, was: StoreBefore) -> list[str]:
    """Find the record of a store that was looked for from the working folder, as it was once."""
    old = Path(os.path.abspath(was.written)) if was.written else folder  # noqa: PTH100 - without .. in it
    if old == folder or str(folder) != was.now or not _exists(old / "mlflow.db") or _exists(folder / "mlflow.db"):
        return []
    return [
        f"store.folder: {was.written} starts from the project file, where there is no record ({folder}); it started "
        f"from the working folder once, and a record is there: move it (mv {old} {folder}) or name it "
        f"(--set store.folder={old})"
    ]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
