"""Batches for scoring: examples of like length, a bounded number of sub-words at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

SUBWORDS_AT_ONCE = 4096
ENOUGH_AT_ONCE = 1024
"""Sub-words that keep a processor busy: a larger group is closed before more than PADDING of it would be padding."""
PADDING = 0.05


class Sized(Protocol):
    """An example: sub-words, and the number of the sentence that they are of."""

    @property
    def sentence(self) -> int: ...  # noqa: D102
    @property
    def input_ids(self) -> tuple[int, ...]: ...  # noqa: D102


Example = TypeVar("Example", bound=Sized)


def like_lengths(examples: Sequence[Example], *, subwords_at_once: int = SUBWORDS_AT_ONCE) -> Iterator[list[Example]]:
    """Group examples of like length, each group at most so many sub-words with padding, one example at least."""
    chunk: list[Example] = []
    real = 0
    for example in sorted(examples, key=lambda e: (len(e.input_ids), e.sentence)):
        real += len(example.input_ids)
        size = (len(chunk) + 1) * len(example.input_ids)
        is_wasteful = size > ENOUGH_AT_ONCE and size - real > PADDING * size
        if chunk and (size > subwords_at_once or is_wasteful):
            yield chunk
            chunk, real = [], len(example.input_ids)
        chunk.append(example)
    if chunk:
        yield chunk


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Put rows of numbers into a tensor, filled up at their ends: (rows, longest), int64."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.int64)


def attention(rows: Sequence[Sequence[int]]) -> Tensor:
    """Give the attention mask of padded rows: 1 where there is a sub-word, (rows, longest), int64."""
    return padded([[1] * len(row) for row in rows], 0)
