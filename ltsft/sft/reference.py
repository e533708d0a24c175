"""The reference implementation's format, `pytorch_diff.bin`: read without trusting it, and turned into an SFT.

The file is a pickle in a zip archive, as `torch.save` writes it (github.com/cambridgeltl/composable-sft):

    {"diffs": {parameter: {"size", "index_steps", "values"}}, "abs": {parameter: tensor}}

A diff's flat index counts its *first* dimension fastest (column-major); `index_steps` holds the first index and then
the distance from each to the next. Parameters under "abs" are stored whole. `torch_archive.py` does the unpickling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ltsft.errors import SFTFileError
from ltsft.sft.sft import MAX_PARAMETER_SIZE, SFT, BaseRef, Diff, Kind
from ltsft.sft.torch_archive import StoredTensor, TorchArchive

__all__ = ["REFERENCE_FILE", "ReferenceDiff", "convert_reference", "read_reference"]

REFERENCE_FILE = "pytorch_diff.bin"


@dataclass(frozen=True, eq=False)
class ReferenceDiff:
    """Hold what a reference file says, under the reference's full parameter names.

    Attributes:
        diffs: Diffs by full name, such as "bert.embeddings.word_embeddings.weight"; indices are row-major here.
        absolute: Parameters stored whole, float32, by full name, such as "classifier.weight".
        path: The file.
    """

    diffs: Mapping[str, Diff]
    absolute: Mapping[str, Tensor]
    path: Path


def read_reference(folder: str | Path) -> ReferenceDiff:
    """Read a reference SFT exactly, and without running what a pickle may ask for.

    Args:
        folder: The folder that holds `pytorch_diff.bin`, or that file.

    Returns:
        Its diffs and its whole parameters.

    Raises:
        SFTFileError: The file is missing, damaged, not of this format, or names a global that such a file does not
            need; the message names the file and the global or the parameter.
    """
    file = Path(folder)
    file = file / REFERENCE_FILE if file.is_dir() else file
    with TorchArchive(file) as archive:
        diffs, absolute = _sections(archive.content(), file)
        return ReferenceDiff(
            diffs={name: _diff(name, entry, archive) for name, entry in diffs.items()},
            absolute={name: _whole(name, entry, archive) for name, entry in absolute.items()},
            path=file,
        )


def convert_reference(
    folder: str | Path,
    *,
    base: BaseRef,
    kind: Kind,
    subject: str,
    labels: tuple[str, ...] | None = None,
    source_languages: tuple[str, ...] = (),
    prefix: str | None = None,
    model: PreTrainedModel | None = None,
) -> SFT:
    """Turn a reference SFT into one of ours.

    Diffs lose the encoder's prefix ("bert."); parameters stored whole become the head. All parameters that the
    reference lists count as maskable.

    Args:
        folder: The folder that holds `pytorch_diff.bin`.
        base: The base that the SFT was learnt on. The reference file does not say, so nothing can check it.
        kind: "language" or "task".
        subject: The language code or the target task.
        labels: Labels of the head; None takes them from `config.json` in the folder, where there is a classifier.
        source_languages: Languages whose labelled data a task SFT learnt from.
        prefix: The encoder's name inside the model; None takes the model's, or the first part that all diffs share.
        model: A model of the base; where given, names and shapes are checked against it.

    Returns:
        The SFT. Saved, it is an SFT folder like any other.

    Raises:
        SFTFileError: The file is refused, a diff lies outside the encoder, or it does not fit the model.
    """
    reference = read_reference(folder)
    if prefix is None:
        prefix = model.base_model_prefix if model is not None else _shared_prefix(reference)
    diffs = {}
    for name, diff in reference.diffs.items():
        if not name.startswith(f"{prefix}."):
            raise SFTFileError(
                f"{reference.path}: diff of {name} lies outside the encoder ({prefix}); an SFT's diffs belong to the "
                "encoder: name the encoder's prefix if it is another"
            )
        diffs[name.removeprefix(f"{prefix}.")] = diff
    if model is not None:
        _check_fit(reference, diffs, model)
    if labels is None:
        labels = _labels(reference.path.parent / "config.json", reference)
    return SFT(
        kind=kind,
        subject=subject,
        base=base,
        diffs=diffs,
        head=dict(reference.absolute),
        labels=labels,
        maskable=sum(diff.size for diff in diffs.values()),
        source_languages=source_languages,
        details={"converted_from": "composable-sft"},
    )


def _shared_prefix(reference: ReferenceDiff) -> str:
    first = sorted({name.partition(".")[0] for name in reference.diffs})
    if len(first) != 1:
        raise SFTFileError(
            f"{reference.path}: diffs begin with {', '.join(first) or 'nothing'}; give the encoder's prefix"
        )
    return first[0]


def _check_fit(reference: ReferenceDiff, diffs: Mapping[str, Diff], model: PreTrainedModel) -> None:
    encoder = {name: tuple(p.shape) for name, p in model.base_model.named_parameters(remove_duplicate=False)}
    for name, diff in diffs.items():
        if encoder.get(name) != diff.shape:
            raise SFTFileError(
                f"{reference.path}: diff of {name} has shape {list(diff.shape)}; the model's is "
                f"{list(encoder[name]) if name in encoder else 'not there'}: is it a model of the SFT's base?"
            )


def _labels(file: Path, reference: ReferenceDiff) -> tuple[str, ...]:
    """Return the labels of the config beside the file, if there are as many as the head has outputs."""
    outputs = {
        value.shape[0] for name, value in reference.absolute.items() if value.dim() == 1 and "classifier" in name
    }
    if not outputs or not file.is_file():
        return ()
    try:
        names = json.loads(file.read_text(encoding="utf-8"))["id2label"]
        labels = tuple(str(names[str(place)]) for place in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SFTFileError(f"{file}: id2label cannot be read ({error}); give labels") from error
    if len(labels) not in outputs:
        raise SFTFileError(f"{file}: {len(labels)} labels, but the head has {sorted(outputs)} outputs; give labels")
    return labels


def _sections(content: object, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not isinstance(content, dict) or not content.keys() <= {"diffs", "abs"} or "diffs" not in content:
        found = sorted(str(key) for key in content) if isinstance(content, dict) else type(content).__name__
        raise SFTFileError(
            f"{file}: expected the sections diffs and abs, found {found}; save it with a current composable-sft"
        )
    for name in ("diffs", "abs"):
        section = content.setdefault(name, {})
        if not isinstance(section, dict) or not all(isinstance(key, str) for key in section):
            raise SFTFileError(f"{file}: section {name} is not a table of parameters")
    for name in content["diffs"].keys() & content["abs"].keys():
        raise SFTFileError(f"{file}: {name} is both a diff and stored whole")
    return content["diffs"], content["abs"]


def _whole(name: str, entry: object, archive: TorchArchive) -> Tensor:
    if not isinstance(entry, StoredTensor):
        raise SFTFileError(f"{archive.file}: {name} is not a tensor")
    value = archive.tensor(entry, name).float()
    if not bool(torch.isfinite(value).all()):
        raise SFTFileError(f"{archive.file}: {name} holds values that are not finite")
    return value


def _diff(name: str, entry: object, archive: TorchArchive) -> Diff:
    if not isinstance(entry, dict) or entry.keys() != {"size", "index_steps", "values"}:
        raise SFTFileError(f"{archive.file}: diff of {name} must hold size, index_steps and values")
    shape, steps, described = entry["size"], entry["index_steps"], entry["values"]
    sides_are_sound = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
    if not sides_are_sound or prod(shape) > MAX_PARAMETER_SIZE:
        raise SFTFileError(f"{archive.file}: diff of {name} has size {shape!r}, which is not a parameter's shape")
    if not isinstance(described, StoredTensor) or not isinstance(steps, list) or described.shape != (len(steps),):
        raise SFTFileError(f"{archive.file}: diff of {name}: index_steps and values are not two rows of one length")
    flat = _row_major(name, steps, shape, archive.file)
    order = np.argsort(flat)
    diff = Diff(
        indices=torch.from_numpy(flat[order].astype(np.int32)),
        values=archive.tensor(described, name).float()[torch.from_numpy(order)],
        shape=shape,
    )
    problem = diff.problem()
    if problem:
        raise SFTFileError(f"{archive.file}: diff of {name}: {problem}")
    return diff


def _row_major(name: str, steps: list[Any], shape: tuple[int, ...], file: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Turn steps between column-major indices into row-major indices, in the order of the values."""
    size = prod(shape)
    if not all(type(step) is int and 0 <= step < size for step in steps) or 0 in steps[1:]:
        raise SFTFileError(f"{file}: diff of {name}: index_steps are not those of increasing indices below {size}")
    walked = np.cumsum(np.array(steps, dtype=np.int64))
    if len(walked) and int(walked[-1]) >= size:
        raise SFTFileError(f"{file}: diff of {name}: index {walked[-1]} is out of range: allowed are 0 to {size - 1}")
    if len(shape) < 2:
        return walked
    return np.ravel_multi_index(np.unravel_index(walked, shape, order="F"), shape)
