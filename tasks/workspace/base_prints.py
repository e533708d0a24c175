"""The fingerprints of a base, remembered for as long as its files look the same: reading it takes seconds and torch.

What is remembered stands in the project's store and can be deleted at any time. A base of the hub is remembered only
where its revision is a commit, which cannot change.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from ltsft.atomic import write_whole

FILE = "base-fingerprints.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class BasePrints:
    """SHA-256 of the encoder, of the masked-LM head and of the tokenizer of a base, and how many positions it has."""

    encoder: str
    head: str
    tokenizer: str
    positions: int | None


def base_prints(base: str, revision: str | None, store: Path, read: Callable[[], BasePrints]) -> BasePrints:
    """Give what is remembered of a base, else read it and remember that.

    Args:
        base: a folder, or a hub id.
        revision: of a hub id.
        store: the project's store folder.
        read: reads the base.
    """
    stamp = _stamp(base, revision)
    if stamp is None:
        return read()
    file = store / FILE
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return BasePrints(**known["fingerprints"])
    except (OSError, ValueError, TypeError, KeyError):  # not there, or not ours: it is written anew
        pass
    found = read()
    if _stamp(base, revision) == stamp:
        write_whole(file, json.dumps({"stamp": stamp, "fingerprints": asdict(found)}).encode())
    return found


def _stamp(base: str, revision: str | None) -> str | None:
    """Say what determines the fingerprints, as it can be told without reading the base."""
    folder = Path(base)
    if folder.is_dir():
        stats = ((f.name, f.stat()) for f in sorted(folder.iterdir()) if f.is_file())
        files = [[name, s.st_size, s.st_mtime_ns, s.st_ino, s.st_ctime_ns] for name, s in stats]
        told: list[object] = [str(folder.absolute()), files]
    elif revision is not None and _COMMIT.fullmatch(revision):
        told = [base, revision]
    else:
        return None
    versions = [version(package) for package in ("transformers", "tokenizers", "ltsft")]
    return hashlib.sha256(json.dumps([told, versions]).encode()).hexdigest()
