"""Tokenised sentences kept in a file, so that a test set is tokenised once and not for each cell that it scores."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ltsft.objectives.token_classification import TaggedPiece

VERSION = 1
"""Version of the file, part of its name."""


def cached_pieces(folder: Path, key: str, make: Callable[[], Sequence[TaggedPiece]]) -> list[TaggedPiece]:
    """Give the pieces of a key from their file, or make them and write it.

    Args:
        folder: where the files are; made if it is missing. Whoever writes a file replaces it whole.
        key: a hash of everything that determines the pieces: data, tokenizer, labels, longest piece.
        make: gives the pieces where there is no file, or one that cannot be read.
    """
    file = folder / f"{key}.v{VERSION}.safetensors"
    try:
        return _read(file)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):
        pieces = list(make())
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{uuid.uuid4().hex}.partial"
    try:
        _write(pieces, fresh)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
    return pieces


def _write(pieces: Sequence[TaggedPiece], file: Path) -> None:
    rows = {
        "sentence": [piece.sentence for piece in pieces],
        "words": [piece.words for piece in pieces],
        "length": [len(piece.input_ids) for piece in pieces],
        "input_ids": [i for piece in pieces for i in piece.input_ids],
        "labels": [label for piece in pieces for label in piece.labels],
    }
    save_file({name: torch.tensor(row, dtype=torch.int32) for name, row in rows.items()}, file)


def _read(file: Path) -> list[TaggedPiece]:
    rows = {name: row.tolist() for name, row in load_file(file).items()}
    spans = list(pairwise(accumulate(rows["length"], initial=0)))
    if not len(rows["input_ids"]) == len(rows["labels"]) == sum(rows["length"]):
        raise ValueError(f"{file} does not agree with itself")
    return [
        TaggedPiece(sentence, tuple(rows["input_ids"][low:high]), tuple(rows["labels"][low:high]), words)
        for sentence, words, (low, high) in zip(rows["sentence"], rows["words"], spans, strict=True)
    ]
