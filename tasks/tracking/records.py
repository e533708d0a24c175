"""What a run in MLflow says, without MLflow: the names of the tags, and the values that go in and come out.

A run carries ``ltsft.key`` (the hash that determines the product), ``ltsft.kind``, ``ltsft.subject``, ``ltsft.base``,
``ltsft.parents`` and ``ltsft.parts`` (everything that determines the key, as JSON, over as many tags as it needs).
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltsft.canonical import canonical_json

if TYPE_CHECKING:
    from mlflow.entities import Run

    from tasks.tracking.inputs import DataInput

KEY, KIND, SUBJECT, BASE, PARENTS = "ltsft.key", "ltsft.kind", "ltsft.subject", "ltsft.base", "ltsft.parents"
PARTS, FAILURE, FAILURE_TYPE, ATTEMPTS = "ltsft.parts", "ltsft.failure", "ltsft.failure_type", "ltsft.attempts"
FLOW_RUN = "ltsft.flow_run"
NOT_FINITE = "ltsft.not_finite"
DESCRIPTION = "ltsft.description"
PARENT_RUN, NOTE, COMMIT, DIRTY = (
    "mlflow.parentRunId",
    "mlflow.note.content",
    "mlflow.source.git.commit",
    "mlflow.source.git.dirty",
)
_TAG_LENGTH = 5000  # characters; MLflow 3 allows 8000, older servers 5000, and both cut longer ones without a word
_PARAM_LENGTH = 6000


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """The run of a product that is about to be made.

    Attributes:
        name: shown in MLflow, such as ``language fo``.
        kind: such as ``language``, ``task``, ``cell``, ``matrix``.
        subject: what it is about, the same from one version of the product to the next.
        key: the hash that determines the product.
        parts: everything that determines the key; any JSON values.
        tags: more tags.
        params: the recipe; nested mappings become dotted names. Parameters that a resumed run has already stay.
        description: what people read on the run's page, in Markdown.
        inputs: the data that it reads.
    """

    name: str
    kind: str
    subject: str
    key: str
    parts: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    inputs: Sequence[DataInput] = ()

    @property
    def all_tags(self) -> dict[str, str]:
        """The tags by which it is found, and the others."""
        return {
            **self.tags,
            **split_text(PARTS, canonical_json(self.parts)),
            **{KEY: self.key, KIND: self.kind, SUBJECT: self.subject},
            **({DESCRIPTION: self.description, NOTE: self.description} if self.description else {}),
        }


@dataclass(frozen=True)
class FinishedRun:
    """A product that exists: a FINISHED run.

    Args:
        run_id: id of the run.
        key: the hash that determines the product.
        kind: such as ``language``, ``task``, ``cell``, ``matrix``.
        subject: what it is about, such as ``language fo``; the same from one version of the product to the next.
        parts: everything that determines the key, so that a change can be explained.
        metrics: the last value of each metric.
        params: the parameters of the run.
        tags: all other tags.
        artifact_uri: root of the artifacts.
        start: when the run was opened (UTC).
        end: when it finished (UTC).
    """

    run_id: str
    key: str
    kind: str
    subject: str
    parts: Mapping[str, Any]
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    artifact_uri: str
    start: datetime
    end: datetime

    @classmethod
    def of(cls, run: Run) -> FinishedRun:
        """Read it from a run."""
        tags = dict(run.data.tags)
        return cls(
            run_id=run.info.run_id,
            key=tags.get(KEY, ""),
            kind=tags.get(KIND, ""),
            subject=tags.get(SUBJECT, ""),
            parts=json.loads(join_text(PARTS, tags) or "{}"),
            metrics=dict(run.data.metrics),
            params=dict(run.data.params),
            tags={name: value for name, value in tags.items() if not name.startswith(PARTS)},
            artifact_uri=run.info.artifact_uri,
            start=from_milliseconds(run.info.start_time),
            end=from_milliseconds(run.info.end_time),
        )


@dataclass(frozen=True)
class FailedRun:
    """The newest attempt at a subject, when that attempt FAILED."""

    run_id: str
    key: str
    subject: str
    reason: str
    error_type: str
    end: datetime

    @classmethod
    def of(cls, run: Run) -> FailedRun:
        """Read it from a run."""
        tags = run.data.tags
        return cls(
            run_id=run.info.run_id,
            key=tags.get(KEY, ""),
            subject=tags[SUBJECT],
            reason=tags.get(FAILURE, ""),
            error_type=tags.get(FAILURE_TYPE, ""),
            end=from_milliseconds(run.info.end_time),
        )


@dataclass(frozen=True)
class OpenRun:
    """A run that is not ended, and the id of Prefect's flow run that opened it; empty where there was none."""

    run_id: str
    subject: str
    flow_run: str


@dataclass(frozen=True)
class Child:
    """A finished run to put under a parent in one go, such as a cell that an earlier matrix already scored."""

    name: str
    kind: str
    subject: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def flatten_params(params: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Give nested parameters dotted names: ``{"full": {"epochs": 1}}`` is ``{"full.epochs": "1"}``.

    None is ``none``; a list is JSON; a value that MLflow would cut is cut with a mark (``ltsft.parts`` has it whole).
    """
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat.update(flatten_params(value, prefix=f"{prefix}{name}."))
        else:
            text = "none" if value is None else value if isinstance(value, str) else canonical_json(value)
            flat[f"{prefix}{name}"] = _shorten(text, _PARAM_LENGTH)
    return flat


def git_tags(folder: Path, commit: str | None = None) -> dict[str, str]:
    """Give the tags that say which code ran: the checkout's commit and whether files differ from it.

    Args:
        folder: the working folder.
        commit: used where the folder is not a checkout, such as in an image.
    """
    command = ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {COMMIT: commit} if commit else {}
    lines = shown.splitlines()
    found = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if found == "(initial)":
        return {COMMIT: commit} if commit else {}
    return {COMMIT: found, DIRTY: str(any(not line.startswith("#") for line in lines)).lower()}


def split_text(name: str, text: str) -> dict[str, str]:
    """Spread a text over as many tags as it needs: ``name``, ``name.1``, ``name.2``."""
    pieces = [text[i : i + _TAG_LENGTH] for i in range(0, len(text), _TAG_LENGTH)]
    return {name if i == 0 else f"{name}.{i}": piece for i, piece in enumerate(pieces)}


def join_text(name: str, tags: Mapping[str, str]) -> str:
    """Put together what `split_text` spread; the empty text where there is none."""
    text, i = tags.get(name, ""), 1
    while f"{name}.{i}" in tags:
        text, i = text + tags[f"{name}.{i}"], i + 1
    return text


def from_milliseconds(milliseconds: int | None) -> datetime:
    """Turn MLflow's milliseconds since 1970 into a time in UTC."""
    return datetime.fromtimestamp((milliseconds or 0) / 1000, UTC)


def cut_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Shorten, with a mark, the values that MLflow would cut without one."""
    return {name: _shorten(value, _TAG_LENGTH) for name, value in tags.items()}


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 12] + " … (cut)"


def user_name() -> str:
    """Give the name that MLflow shows as who ran it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
