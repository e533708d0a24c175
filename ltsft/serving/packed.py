"""SFTs as a server keeps them: checked once, packed, and unpacked when their turn comes.

Indices are kept as distances and values as they are, both packed by pcodec: about 32 bits an entry in place of 64 (17
where the SFT was stored with bfloat16 values), so that the SFTs of forty languages fit beside the base. Nothing is
lost: what comes out are the same bits. The diff of the word embedding, half of an SFT, is kept by rows:
`ltsft.serving.rows`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pcodec import standalone

from ltsft.sft import Diff, pack

__all__ = ["CHUNK", "Array", "PackedColumn", "PackedDiffs", "Unpackable", "Unpacked", "unpack_columns"]

CHUNK = 2**18
"""Numbers that are unpacked at a time: a megabyte, which stays in the cache meanwhile."""

_ENTRY_BYTES = 8  # unpacked: an int32 and a float32
_POOL = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ltsft-unpack")
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PackedColumn:
    """A row of int32 or float32 numbers, packed.

    Attributes:
        chunks: pcodec streams.
        count: how many numbers.
        is_short: whether they are floats whose lower halves are zero, as bfloat16 leaves them, and only the upper
            halves are in the chunks.
    """

    chunks: tuple[bytes, ...]
    count: int
    is_short: bool = False

    @classmethod
    def of(cls, numbers: Array) -> PackedColumn:
        """Pack values, (n,) float32, or indices, (n,) int32, that increase within each parameter."""
        if numbers.dtype == np.int32:
            return cls(tuple(pack(numbers, chunk=CHUNK, is_increasing=True)), numbers.size)
        bits = numbers.view(np.uint32)
        if not np.bitwise_and(bits, 0xFFFF).any():
            return cls(tuple(pack((bits >> 16).astype(np.uint16), chunk=CHUNK)), numbers.size, is_short=True)
        return cls(tuple(pack(numbers, chunk=CHUNK)), numbers.size)

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return sum(map(len, self.chunks))

    def unpack_chunk(self, number: int, out: Array) -> None:
        """Write the numbers of one chunk to their places in a row of their dtype, shape (n,)."""
        part = out[number * CHUNK : (number + 1) * CHUNK]
        if self.is_short:
            upper = np.empty(part.size, np.uint16)
            standalone.simple_decompress_into(self.chunks[number], upper)
            np.left_shift(upper, 16, out=part.view(np.uint32), dtype=np.uint32)
        else:
            standalone.simple_decompress_into(self.chunks[number], part)


def unpack_columns(columns: Iterable[tuple[PackedColumn, Array]]) -> None:
    """Unpack columns into rows of their dtype, shape (n,) each; two threads take chunk after chunk."""
    chunks = iter([(column, number, out) for column, out in columns for number in range(len(column.chunks))])
    rest = _POOL.submit(_unpack_each, chunks)
    try:
        _unpack_each(chunks)
    finally:
        rest.result()


def _unpack_each(chunks: Iterator[tuple[PackedColumn, int, Array]]) -> None:
    for column, number, out in chunks:
        column.unpack_chunk(number, out)


class PackedDiffs(Mapping[str, Diff]):
    """The diffs of an SFT, packed; looking one up unpacks all of them, and `drop` forgets what was unpacked.

    Args:
        diffs: checked diffs by parameter name.
    """

    def __init__(self, diffs: Mapping[str, Diff]) -> None:
        names = sorted(diffs)
        self._shapes = {name: diffs[name].shape for name in names}
        self._counts = [diffs[name].support_size for name in names]
        indices = [diffs[name].indices.numpy() for name in names]
        values = [diffs[name].values.numpy() for name in names]
        self._indices = PackedColumn.of(np.concatenate(indices) if indices else np.empty(0, np.int32))
        self._values = PackedColumn.of(np.concatenate(values) if values else np.empty(0, np.float32))
        self._unpacked: dict[str, Diff] | None = None
        self.largest = max((float(np.abs(value).max()) for value in values if len(value)), default=0.0)
        """Largest absolute value of the diffs."""

    @property
    def packed_bytes(self) -> int:
        """What is always in memory."""
        return self._indices.size_bytes + self._values.size_bytes

    @property
    def unpacked_bytes(self) -> int:
        """What unpacking takes besides."""
        return sum(self._counts) * _ENTRY_BYTES

    def unpack(self) -> None:
        """Unpack, unless that is done."""
        if self._unpacked is not None:
            return
        total = sum(self._counts)
        indices, values = np.empty(total, np.int32), np.empty(total, np.float32)
        unpack_columns([(self._values, values), (self._indices, indices)])
        columns = (torch.from_numpy(column).split(self._counts) for column in (indices, values))
        self._unpacked = {
            name: Diff(indices=i, values=v, shape=shape)
            for (name, shape), i, v in zip(self._shapes.items(), *columns, strict=True)
        }

    def drop(self) -> None:
        """Forget what was unpacked."""
        self._unpacked = None

    def __getitem__(self, name: str) -> Diff:
        if name not in self._shapes:
            raise KeyError(name)
        self.unpack()
        found = self._unpacked or {}
        return found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class Unpackable(Protocol):
    """What is kept packed and can be unpacked for a while."""

    @property
    def unpacked_bytes(self) -> int: ...  # noqa: D102

    def unpack(self) -> None: ...  # noqa: D102

    def drop(self) -> None: ...  # noqa: D102


class Unpacked:
    """What is unpacked: that of the last switches, as much as a budget allows.

    Args:
        budget_bytes: for what is unpacked; what is in place stays unpacked whatever it takes.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._order: OrderedDict[int, Unpackable] = OrderedDict()

    def use(self, wanted: Iterable[Unpackable]) -> None:
        """Unpack these, and drop those that were used longest ago and do not fit any more."""
        wanted = list(wanted)
        for one in wanted:
            self._order[id(one)] = one
            self._order.move_to_end(id(one))
        kept = {id(one) for one in wanted}
        total = self.unpacked_bytes
        for number, one in list(self._order.items()):
            if total <= self._budget:
                break
            if number not in kept:
                total -= one.unpacked_bytes
                one.drop()
                del self._order[number]
        for one in wanted:
            one.unpack()

    @property
    def unpacked_bytes(self) -> int:
        """What is unpacked now takes."""
        return sum(one.unpacked_bytes for one in self._order.values())
