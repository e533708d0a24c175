"""The word embedding of a resident base: composed row by row, as texts ask for rows, and never written.

The word embedding is half of the weights of a multilingual encoder, and a batch looks at a few hundred of its rows. A
switch therefore leaves it alone: when a batch looks rows up, those are taken from the base and what the parts bring to
them is added, by the composition's own rule. The sums have the same bits as in a matrix that is composed whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding as look_up
from transformers import PreTrainedModel

from ltsft.base import encoder_parameters
from ltsft.composition import Contribution, Rule
from ltsft.serving.packed import Array, PackedColumn, unpack_columns
from ltsft.sft import Diff

__all__ = ["ComposedRows", "RowDiffs", "word_embedding"]

_ENTRY_BYTES = 8
_BLOCK_ROWS = 16_384
"""Rows that are unpacked together: half a million entries at mBERT's size, half a millisecond. With smaller blocks the
calls take longer than the numbers, as the words of a language are all over the vocabulary."""


class RowDiffs:
    """The diff of a matrix, packed by blocks of rows; blocks are unpacked when one of their rows is asked for.

    Args:
        diff: of the matrix, checked.
        block_rows: rows in a block.
    """

    def __init__(self, diff: Diff, *, block_rows: int = _BLOCK_ROWS) -> None:
        rows, self._width = diff.shape
        self._block_rows = block_rows
        indices, values = diff.indices.numpy(), diff.values.numpy()
        starts = range(0, rows * self._width, block_rows * self._width)
        cuts = [*np.searchsorted(indices, np.array(starts, np.int32)).tolist(), indices.size]
        self._indices: list[PackedColumn] = []
        self._values: list[PackedColumn] = []
        for start, low, high in zip(starts, cuts, cuts[1:], strict=False):
            self._indices.append(PackedColumn.of(indices[low:high] - np.int32(start)))
            self._values.append(PackedColumn.of(values[low:high]))
        self._unpacked: dict[int, tuple[Array, Array]] = {}
        self.largest = float(np.abs(values).max()) if values.size else 0.0
        """Largest absolute value of the diff."""

    @property
    def packed_bytes(self) -> int:
        """What is always in memory."""
        return sum(column.size_bytes for column in (*self._indices, *self._values))

    @property
    def unpacked_bytes(self) -> int:
        """What is unpacked now takes."""
        return sum(indices.size for indices, _ in self._unpacked.values()) * _ENTRY_BYTES

    def drop(self) -> None:
        """Forget what was unpacked."""
        self._unpacked = {}

    def entries(self, rows: Array) -> tuple[Tensor, Tensor]:
        """Give what the diff brings to some rows.

        Args:
            rows: numbers of rows, strictly increasing, int64.

        Returns:
            Where its entries lie among these rows, laid end to end, (k,) int64, strictly increasing; and their values,
            (k,) float32.
        """
        of_row = rows // self._block_rows
        blocks, firsts = np.unique(of_row, return_index=True)
        self._unpack(blocks.tolist())
        places, values = [], []
        for block, low, high in zip(blocks.tolist(), firsts, [*firsts[1:], rows.size], strict=True):
            indices, own = self._unpacked[block]
            begins = (rows[low:high] - block * self._block_rows) * self._width
            cuts = np.searchsorted(indices, np.stack([begins, begins + self._width]).astype(np.int32))
            counts = cuts[1] - cuts[0]
            ends = np.cumsum(counts)
            taken = np.arange(ends[-1]) + np.repeat(cuts[0] - (ends - counts), counts)
            shifts = np.arange(low, high) * self._width - begins
            places.append(indices[taken] + np.repeat(shifts, counts))
            values.append(own[taken])
        return torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(values))

    def _unpack(self, blocks: Sequence[int]) -> None:
        new = {
            block: (np.empty(self._values[block].count, np.int32), np.empty(self._values[block].count, np.float32))
            for block in blocks
            if block not in self._unpacked
        }
        if not new:
            return
        columns = [(self._values[block], values) for block, (_, values) in new.items()]
        unpack_columns([*columns, *((self._indices[block], indices) for block, (indices, _) in new.items())])
        self._unpacked |= new


class ComposedRows:
    """A word embedding that gives the rows of a composition, while its weights stay those of the base.

    Args:
        embedding: of the resident model; it is hooked.
        rule: of compositions.
    """

    def __init__(self, embedding: nn.Embedding, rule: Rule) -> None:
        self._rule = rule
        self._parts: tuple[tuple[RowDiffs, float], ...] = ()
        embedding.register_forward_hook(self._composed)

    def compose(self, parts: Sequence[tuple[RowDiffs, float]]) -> None:
        """Give the rows of base + these diffs with their weights from now on; of the base if there are none."""
        self._parts = tuple(parts)

    def _composed(self, embedding: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        if not self._parts:
            return output
        weights: Any = embedding.weight
        rows, places = torch.unique(given[0], return_inverse=True)  # (u,), and ids' own shape
        table: Tensor = weights.detach()[rows]  # (u, width), a copy
        numbers = rows.numpy()
        self._rule(table.view(-1), [Contribution(*diffs.entries(numbers), weight) for diffs, weight in self._parts])
        return look_up(places, table)


def word_embedding(model: PreTrainedModel) -> tuple[str, nn.Embedding] | None:
    """Give the word embedding of a model's encoder with its name there, if it can be composed row by row."""
    encoder: Any = model.base_model
    found = encoder.get_input_embeddings()
    if type(found) is not nn.Embedding or found.max_norm is not None:
        return None
    names = [name for name, parameter in encoder_parameters(model).items() if parameter is found.weight]
    is_plain = found.weight.dtype == torch.float32 and found.weight.device.type == "cpu"
    return (names[0], found) if len(names) == 1 and is_plain else None
