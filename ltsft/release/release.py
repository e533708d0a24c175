"""What is released: a composition by its recipe, never a copy of the base, and where a server gets releases from.

A *composition* names the base by its fingerprints and each SFT by its key and the hash of its tensors, with the weights
and the rule. Its key is a hash of all that; two compositions with one key give the same model, bit for bit. A *release*
is a version of a (language, target task) in the registry: a number and a composition.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field
from pydantic import ValidationError as PydanticError

from ltsft.canonical import hash_json
from ltsft.composition import Part
from ltsft.errors import ReleaseError
from ltsft.sft import BaseRef, Kind, load_sft, read_manifest

__all__ = [
    "ComposedBase",
    "ComposedPart",
    "Composition",
    "Release",
    "ReleaseSource",
    "Slot",
    "UnreadableRelease",
    "load_parts",
    "parse_composition",
]

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ComposedBase(_Frozen):
    """The base of a composition. The fingerprints decide; the rest says where to look for it."""

    id: str = Field(min_length=1, max_length=500, description="hub id, or name of the folder")
    revision: str | None = Field(default=None, max_length=200)
    location: str = Field(
        min_length=1, max_length=1000, description="hub id, or the folder on the machine that made it"
    )
    fingerprint: Digest
    tokenizer_fingerprint: Digest

    @property
    def ref(self) -> BaseRef:
        """The identity that SFTs are bound to."""
        return BaseRef(self.id, self.revision, self.fingerprint, self.tokenizer_fingerprint)


class ComposedPart(_Frozen):
    """One SFT of a composition."""

    kind: Kind
    subject: str = Field(min_length=1, max_length=200, description="as in MLflow, such as `language fo`")
    key: Digest = Field(description="of the product: the hash of everything that determines it")
    sha256: Digest = Field(description="of its tensor file: the very bytes that went through the gates")
    run_id: str = Field(pattern=r"^[0-9a-zA-Z]{1,64}$", description="the MLflow run that holds its folder")
    weight: float | dict[str, float] = Field(default=1.0, description="of its diffs; or by part of the network")


class Composition(_Frozen):
    """The recipe of a composed model, with what an answer needs to be read: labels and lengths."""

    format_version: Literal[1] = 1
    language: Name
    target_task: Name
    objective: Name
    labels: tuple[str, ...] = Field(description="of the head, in the order of its outputs; none where it has none")
    max_length: int = Field(ge=8, le=100_000, description="sub-words in a piece, as in training")
    base: ComposedBase
    takes_pairs: bool = Field(default=False, description="whether it classifies pairs of texts")
    rule: Name = "sum"
    parts: tuple[ComposedPart, ...] = Field(min_length=1)

    @property
    def key(self) -> str:
        """SHA-256 over what determines the model and its answers: not where its parts are found."""
        content = self.model_dump(mode="json")
        for part in content["parts"]:
            del part["run_id"]
        for name in ("id", "revision", "location"):
            del content["base"][name]
        if not self.takes_pairs:  # compositions made before there were pairs keep their keys
            del content["takes_pairs"]
        return hash_json(content)

    @property
    def slot(self) -> Slot:
        """Which (language, target task) it answers for."""
        return Slot(self.language, self.target_task)

    def to_json(self) -> str:
        """Write it as JSON, the same text each time."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


class Slot(NamedTuple):
    """A (language, target task): what has one live release at a time."""

    language: str
    target_task: str

    def __str__(self) -> str:
        return f"{self.target_task} {self.language}"


@dataclass(frozen=True)
class Release:
    """A version of a (language, target task)."""

    version: int
    composition: Composition
    since: datetime | None = None

    @property
    def slot(self) -> Slot:
        """Which (language, target task) it answers for."""
        return self.composition.slot


@dataclass(frozen=True)
class UnreadableRelease:
    """A version that is released, but of which the record is gone or damaged.

    Attributes:
        version: its number.
        reason: what is wrong with it, in words.
    """

    version: int
    reason: str


class ReleaseSource(Protocol):
    """Where a server learns what is released, and gets the SFTs from: a registry, or a bundle on disk."""

    def live(self) -> Mapping[Slot, Release | UnreadableRelease]:
        """Give what is released now; one that cannot be read does not hide the others.

        Raises:
            ServiceError: the source is away.
        """
        ...

    def fetch(self, part: ComposedPart) -> Path:
        """Give the folder of an SFT.

        Raises:
            ServiceError: the source is away, or has no such SFT.
        """
        ...


def parse_composition(text: str | bytes, *, place: str, key: str | None = None) -> Composition:
    """Parse a composition and check it.

    Args:
        text: JSON.
        place: where it came from, for messages.
        key: the key that it must have.

    Raises:
        ReleaseError: it is not JSON, a field is missing, unknown or of a wrong value, or it has another key.
    """
    try:
        composition = Composition.model_validate_json(text)
    except PydanticError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)
        )
        raise ReleaseError(f"{place} is not a valid composition: {problems}") from error
    if key is not None and composition.key != key:
        raise ReleaseError(f"{place} was damaged or changed: its key is {composition.key}, not {key}; promote it again")
    return composition


def load_parts(composition: Composition, source: ReleaseSource) -> list[Part]:
    """Fetch and check the SFTs of a composition.

    Raises:
        ReleaseError: an SFT is not the one that was released.
        SFTFileError: an SFT is damaged.
        ServiceError: the source is away.
    """
    parts: list[Part] = []
    for part in composition.parts:
        folder = source.fetch(part)
        check_part(part, folder)
        parts.append((load_sft(folder), part.weight))
    return parts


def check_part(part: ComposedPart, folder: Path) -> None:
    """Check that a folder holds the SFT that was released, by its manifest alone.

    Raises:
        ReleaseError: it is another one.
        SFTFileError: it has no sound manifest.
    """
    manifest: dict[str, Any] = read_manifest(folder)
    found = manifest["tensor_file"]["sha256"]
    if found != part.sha256 or manifest["kind"] != part.kind:
        raise ReleaseError(
            f"{folder} is not the {part.subject} that was released: its tensors have SHA-256 {found}, the composition "
            f"says {part.sha256}; fetch it again, or promote what is there now"
        )
