"""The manifest of an SFT folder, `sft.json`: its fields, and what is refused when one is read.

Nothing in it is trusted: it says what the tensor file must hold, never where to find it. Its seal, a hash over all
other fields, tells a damaged manifest from a sound one; like the hash of the tensor file it guards against accidents,
not against someone who means harm, which is why every field is checked as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ltsft.config import LT_SFT
from ltsft.errors import SFTFileError
from ltsft.precision import numerics_of
from ltsft.sft.sft import MAX_PARAMETER_SIZE

FORMAT_VERSION = 2
"""The format that is written and read. Version 1, whose tensors were not packed, was never released."""

MAX_EXPANSION = 64
"""Times its size that a tensor file may unpack to, beyond `FREE_EXPANSION`: a small file cannot ask for all memory."""

FREE_EXPANSION = 2**30
"""Bytes that any tensor file may unpack to."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=500)]
Count = Annotated[int, Field(ge=0)]
Shape = tuple[Count, ...]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BaseEntry(_Part):
    """The base that the SFT belongs to."""

    id: str
    revision: str | None
    fingerprint: str
    tokenizer_fingerprint: str
    golden: tuple[tuple[str, tuple[int, ...]], ...] = ()


class DiffEntry(_Part):
    """One parameter of the diffs: how many weights of it are in the support."""

    name: Name
    shape: Shape
    support_size: Count

    @model_validator(mode="after")
    def _fits(self) -> DiffEntry:
        size = prod(self.shape)
        if size > MAX_PARAMETER_SIZE:
            raise ValueError(f"{self.name}: shape {list(self.shape)} has more than {MAX_PARAMETER_SIZE} weights")
        if self.support_size > size:
            raise ValueError(f"{self.name}: support_size {self.support_size} exceeds the {size} weights of its shape")
        return self


class HeadEntry(_Part):
    """One parameter of the head, or one tensor of an adapter: what is stored whole."""

    name: Name
    shape: Shape
    dtype: Literal["float32", "float16", "bfloat16"]


class PackingEntry(_Part):
    """How the diffs are packed in the tensor file."""

    codec: Literal["pcodec"]
    chunk: Literal[1048576]
    values: Literal["float32", "bfloat16"]
    gap_bytes: tuple[Count, ...]
    value_bytes: tuple[Count, ...]


class FileEntry(_Part):
    """What the bytes of the tensor file must be."""

    size_bytes: Count
    sha256: Digest


class Manifest(_Part):
    """All of `sft.json`."""

    format_version: Literal[2]
    kind: Literal["language", "task"]
    language: str | None = None
    target_task: str | None = None
    source_languages: tuple[str, ...] = ()
    method: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}$")] = LT_SFT
    base: BaseEntry
    labels: tuple[str, ...]
    density: Annotated[float, Field(ge=0)]
    support_size: Count
    maskable: Count
    diffs: tuple[DiffEntry, ...]
    head: tuple[HeadEntry, ...]
    adapter: tuple[HeadEntry, ...] = ()
    packing: PackingEntry
    tensor_file: FileEntry
    details: dict[str, Any]
    seal: Digest

    @property
    def subject(self) -> str:
        """The language of a language SFT, the target task of a task SFT."""
        return (self.language if self.kind == "language" else self.target_task) or ""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        if not self.subject:
            field = "language" if self.kind == "language" else "target_task"
            raise ValueError(f"a {self.kind} SFT must name its {field}")
        for entries in (self.diffs, self.head, self.adapter):
            seen: set[str] = set()
            for entry in entries:
                if entry.name in seen:
                    raise ValueError(f"parameter {entry.name} is listed more than once")
                seen.add(entry.name)
        total = sum(entry.support_size for entry in self.diffs)
        if total != self.support_size:
            raise ValueError(f"support_size is {self.support_size} but the parameters' add up to {total}")
        if total > self.maskable:
            raise ValueError(f"support_size {total} exceeds the {self.maskable} maskable weights")
        if 8 * total > FREE_EXPANSION + MAX_EXPANSION * self.tensor_file.size_bytes:
            raise ValueError(f"support_size {total} cannot come from {self.tensor_file.size_bytes} bytes of tensors")
        density = total / self.maskable if self.maskable else 0.0
        if density != self.density:
            raise ValueError(f"density is {self.density} but support_size / maskable is {density}")
        numerics_of(self.details)
        return self


def seal_manifest(content: Mapping[str, Any]) -> str:
    """Return the hash that a manifest carries: SHA-256 over all its other fields, whatever their order and spacing."""
    fields = {name: value for name, value in content.items() if name != "seal"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, allow_nan=False).encode()).hexdigest()


def parse_manifest(text: bytes, file: Path) -> Manifest:
    """Parse and check a manifest.

    Args:
        text: The bytes of the file.
        file: Where they came from, for messages.

    Returns:
        The manifest, which agrees with itself.

    Raises:
        SFTFileError: It is not JSON, of an unknown format version, or a field is missing, unknown or of a wrong value;
            every wrong field is named.
    """
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SFTFileError(f"{file} is not a manifest: {error}; fetch or save the SFT again") from error
    if not isinstance(content, dict):
        raise SFTFileError(f"{file} is not a manifest: expected a JSON object, got {type(content).__name__}")
    version = content.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise SFTFileError(
            f"{file}: format_version {version!r} is unknown; this version of ltsft reads {FORMAT_VERSION}: update ltsft"
        )
    try:
        # From JSON and not from the parsed object, so that lists may become tuples in strict mode.
        manifest = Manifest.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise SFTFileError(f"{file} is not a valid manifest: {_listed(error)}") from error
    if manifest.seal != seal_manifest(content):
        raise SFTFileError(f"{file} was damaged or changed after it was written: its seal does not fit; fetch it again")
    return manifest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return content


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _listed(error: ValidationError) -> str:
    problems = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(step) for step in problem["loc"])
        problems.append(f"{place}: {problem['msg']}" if place else problem["msg"])
    return "; ".join(problems)
