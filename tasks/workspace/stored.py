"""The SFTs of a project that are stored: what there is, and where."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote, urlsplit

from ltsft.config import LT_SFT
from tasks.workspace.workspace import SFT_FOLDER, Workspace


@dataclass(frozen=True)
class StoredSFT:
    """An SFT on record.

    Attributes:
        subject: such as ``language fo`` or ``task pos en seed 1``.
        learnt: when its run ended (UTC).
        density: share of the maskable weights in its support; 0 for an adapter.
        folder: where it is, a path or an address in S3.
        run_id: its run in MLflow.
    """

    subject: str
    learnt: datetime
    density: float
    folder: str
    run_id: str


def stored_sfts(workspace: Workspace) -> list[StoredSFT]:
    """List the newest SFT of each subject that was learnt by the project's method, sorted by subject.

    Raises:
        ServiceError: MLflow cannot be reached.
    """
    newest: dict[str, StoredSFT] = {}
    for record in workspace.tracker.records():  # newest first
        method = record.parts.get("method", LT_SFT)
        if record.kind not in ("language", "task") or method != workspace.project.method:
            continue
        place = record.artifact_uri
        folder = unquote(urlsplit(place).path) if place.startswith("file:") else place
        density = record.metrics.get("sparsity.density", 0.0)
        found = StoredSFT(record.subject, record.end, density, f"{folder}/{SFT_FOLDER}", record.run_id)
        newest.setdefault(record.subject, found)
    return [newest[subject] for subject in sorted(newest)]
