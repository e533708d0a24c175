"""Exporting a release: to a Hugging Face folder, to ONNX, to S3, to the hub, or all that is live as a bundle."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ltsft.base import Base, load_base
from ltsft.composition import COMPOSITION_FILE, composed, export_composition
from ltsft.errors import ConfigError, ReleaseError
from ltsft.objectives import OBJECTIVES
from ltsft.release import Composition, Release, Slot, UnreadableRelease, export_onnx, load_parts, push_folder
from ltsft.serving import Bundle
from ltsft.sft import MANIFEST_FILE
from tasks.releases.composing import compose_recipe
from tasks.releases.registry import Registry
from tasks.storage import Bucket
from tasks.workspace import Workspace

__all__ = ["export_release", "push_folder", "write_bundle"]

_KINDS = "hf, onnx, s3://bucket/prefix or hub:OWNER/NAME"


def export_release(
    workspace: Workspace, language: str, target_task: str, *, to: str, folder: Path | None, version: int | None
) -> str:
    """Write a composed model to where something else takes it from.

    Args:
        workspace: the project.
        language: of the release.
        target_task: of the release.
        to: ``hf`` or ``onnx`` (into `folder`), ``s3://bucket/prefix`` or ``hub:OWNER/NAME``.
        folder: for ``hf`` and ``onnx``.
        version: which one; the live one without it, and what is scored now if nothing is live.

    Returns:
        What was written, in words.

    Raises:
        ConfigError: `to` is none of these, or the folder is missing or too much.
        ReleaseError: there is no such version, or it belongs to another base.
        CompositionError: the folder is in use, or the ONNX model gives other logits.
        ServiceError: a service refused or could not be reached.
    """
    needs_folder = to in ("hf", "onnx")
    if not needs_folder and not to.startswith(("s3://", "hub:")):
        raise ConfigError(f"--to must be {_KINDS}, got {to!r}")
    if needs_folder != (folder is not None):
        raise ConfigError(f"--to {to} {'needs a folder: name it last' if needs_folder else 'takes no folder'}")
    registry = Registry(workspace.tracker, workspace.project.name)
    composition, named = _chosen(workspace, registry, Slot(language, target_task), version)
    if to == "onnx" and folder is not None:
        difference = _to_onnx(workspace, registry, composition, folder)
        return f"{named} to {folder} as ONNX (outputs as in PyTorch within {difference:.1e})"
    if folder is not None:
        own_head = _to_folder(workspace, registry, composition, folder)
        told = f" ({own_head}: no Auto class loads it, its README.md says what does)" if own_head else ""
        return f"{named} to {folder}{told}"
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "export")
        _to_folder(workspace, registry, composition, whole)
        if to.startswith("hub:"):
            return f"{named} to {push_folder(whole, to.removeprefix('hub:'))}"
        _upload(whole, Bucket(to))
        return f"{named} to {to}"


def write_bundle(workspace: Workspace, folder: Path) -> str:
    """Write everything that is live into a release bundle; give what was written, in words.

    A release that cannot be read is left out and named.

    Raises:
        ReleaseError: nothing is live, or nothing that is can be read.
        ServiceError: the registry is away.
    """
    registry = Registry(workspace.tracker, workspace.project.name)
    live = registry.live()
    if not live:
        raise ReleaseError("nothing is released; ltsft promote releases what is scored")
    whole = [release for release in live.values() if isinstance(release, Release)]
    bad = {slot: each for slot, each in live.items() if isinstance(each, UnreadableRelease)}
    left = "".join(f"; left out: {slot} version {each.version}: {each.reason}" for slot, each in bad.items())
    if not whole:
        raise ReleaseError(f"nothing that is released can be read{left}")
    Bundle(folder).write(whole, registry)
    return f"{len(whole)} releases to {folder}{left}"


def _chosen(workspace: Workspace, registry: Registry, slot: Slot, version: int | None) -> tuple[Composition, str]:
    number = version if version is not None else registry.champion(slot)
    if number is None:
        return compose_recipe(workspace, slot), f"{slot} (not released)"
    known = {found.number: found for found in registry.versions(slot)}
    if number not in known:
        allowed = ", ".join(map(str, known)) or "none"
        raise ReleaseError(f"{slot} has no version {number}; there are {allowed}")
    return known[number].composition, f"{slot} version {number}"


def _to_folder(workspace: Workspace, registry: Registry, composition: Composition, folder: Path) -> str | None:
    """Write a Hugging Face folder; name the head if it is not one of transformers' own."""
    base = _base_of(workspace, composition)
    parts = load_parts(composition, registry)
    model = OBJECTIVES[composition.objective].new_model(base, composition.labels, seed=0)
    export_composition(model, base.tokenizer, parts, folder, base=base.ref, rule=composition.rule)
    own_head: str | None = getattr(model.config, "ltsft_head", None)
    return own_head


def _to_onnx(workspace: Workspace, registry: Registry, composition: Composition, folder: Path) -> float:
    base = _base_of(workspace, composition)
    parts = load_parts(composition, registry)
    model = OBJECTIVES[composition.objective].new_model(base, composition.labels, seed=0)
    with composed(model, parts, base=base.ref, rule=composition.rule):
        return export_onnx(model, base.tokenizer, folder)


def _base_of(workspace: Workspace, composition: Composition) -> Base:
    """Give the base of a composition: the project's, or the one it was made with where that has changed since."""
    if workspace.base.ref.fingerprint == composition.base.fingerprint:
        return workspace.base
    base = load_base(composition.base.location, composition.base.revision)
    if base.ref.fingerprint != composition.base.fingerprint:
        raise ReleaseError(
            f"{composition.slot} belongs to the base with fingerprint {composition.base.fingerprint}, but "
            f"{composition.base.location} is {base.ref.fingerprint}; put that base back, or promote anew"
        )
    return base


def _upload(folder: Path, bucket: Bucket) -> None:
    """Send a folder to S3; what says that it is whole comes last."""
    last = (MANIFEST_FILE, COMPOSITION_FILE)
    for file in sorted(folder.rglob("*"), key=lambda file: (file.name in last, file)):
        if file.is_file():
            bucket.upload(file, file.relative_to(folder).as_posix())
