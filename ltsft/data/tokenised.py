"""Tokenised examples kept in a file, so that a test set is tokenised once and not for each cell that it scores."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

VERSION = 2
"""Version of the file, part of its name."""

NUMBER, NUMBERS = "int", "tuple[int, ...]"


def cached_examples(folder: Path, key: str, make: Callable[[], Sequence[Any]], *, kind: type) -> Sequence[Any]:
    """Give the examples of a key from their file, or make them and write it.

    Args:
        folder: where the files are; made if it is missing. Whoever writes a file replaces it whole.
        key: a hash of everything that determines the examples: data, tokenizer, labels, longest example.
        make: gives the examples where there is no file, or one that cannot be read.
        kind: their class, a dataclass. If it holds anything but whole numbers and tuples of them, nothing is kept.
    """
    if not all(field.type in (NUMBER, NUMBERS) for field in fields(kind)):
        return make()
    file = folder / f"{key}.v{VERSION}.safetensors"
    try:
        return _read(file, kind)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):
        examples = list(make())
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{uuid.uuid4().hex}.partial"
    try:
        _write(examples, fresh, kind)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
    return examples


def _write(examples: Sequence[Any], file: Path, kind: type) -> None:
    rows: dict[str, list[int]] = {}
    for field in fields(kind):
        values = [getattr(example, field.name) for example in examples]
        if field.type == NUMBER:
            rows[field.name] = values
        else:
            rows[field.name] = [i for value in values for i in value]
            rows[f"{field.name}.length"] = [len(value) for value in values]
    save_file({name: torch.tensor(row, dtype=torch.int32) for name, row in rows.items()}, file)


def _read(file: Path, kind: type) -> list[Any]:
    rows = {name: row.tolist() for name, row in load_file(file).items()}
    columns = []
    for field in fields(kind):
        values = rows[field.name]
        if field.type == NUMBERS:
            bounds = list(accumulate(rows[f"{field.name}.length"], initial=0))
            if bounds[-1] != len(values):
                raise ValueError(f"{file} does not agree with itself")
            values = [tuple(values[low:high]) for low, high in pairwise(bounds)]
        columns.append(values)
    return [kind(*values) for values in zip(*columns, strict=True)]
