"""SFTs as a server keeps them: checked once, packed, and unpacked when their turn comes.

Indices are kept as gaps and values as they are, both packed by pcodec: about 32 bits an entry in place of 64, so that
the SFTs of forty languages fit beside the base. Nothing is lost: what comes out are the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pcodec import standalone

from ltsft.packing import CHUNK, pack
from ltsft.sft import SFT, Diff

__all__ = ["PackedDiffs", "Unpacked", "pack_sft"]

_ENTRY_BYTES = 8  # unpacked: an int32 and a float32
_POOL = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ltsft-unpack")
Array = npt.NDArray[Any]


class PackedDiffs(Mapping[str, Diff]):
    """The diffs of an SFT, packed; looking one up unpacks all of them, and `drop` forgets what was unpacked.

    Args:
        diffs: checked diffs by parameter name.
    """

    def __init__(self, diffs: Mapping[str, Diff]) -> None:
        names = sorted(diffs)
        self._shapes = {name: diffs[name].shape for name in names}
        self._counts = [diffs[name].support_size for name in names]
        gaps = [np.diff(diffs[name].indices.numpy(), prepend=np.int32(0)) for name in names]
        values = [diffs[name].values.numpy() for name in names]
        self._gaps = tuple(pack(np.concatenate(gaps) if gaps else np.empty(0, np.int32)))
        self._values = tuple(pack(np.concatenate(values) if values else np.empty(0, np.float32)))
        self._unpacked: dict[str, Diff] | None = None
        self.largest = max((float(np.abs(value).max()) for value in values if len(value)), default=0.0)
        """Largest absolute value of the diffs."""

    @property
    def packed_bytes(self) -> int:
        """What is always in memory."""
        return sum(map(len, self._gaps)) + sum(map(len, self._values))

    @property
    def unpacked_bytes(self) -> int:
        """What unpacking takes besides."""
        return sum(self._counts) * _ENTRY_BYTES

    def unpack(self) -> None:
        """Unpack, unless that is done: indices in one thread, values in another."""
        if self._unpacked is not None:
            return
        total = sum(self._counts)
        indices, values = np.empty(total, np.int32), np.empty(total, np.float32)
        rest = _POOL.submit(_unpack, self._values, values)
        _unpack(self._gaps, indices)
        at = 0
        for count in self._counts:
            np.cumsum(indices[at : at + count], out=indices[at : at + count])
            at += count
        rest.result()
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


def pack_sft(sft: SFT) -> SFT:
    """Give the same SFT with its diffs packed."""
    return replace(sft, diffs=PackedDiffs(sft.diffs), head={n: v.clone() for n, v in sft.head.items()}, details={})


class Unpacked:
    """Which packed SFTs are unpacked: those of the last switches, as many as a budget allows.

    Args:
        budget_bytes: for unpacked diffs; what is in place stays unpacked whatever it takes.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._order: OrderedDict[int, PackedDiffs] = OrderedDict()

    def use(self, sfts: Iterable[SFT]) -> None:
        """Unpack these, and drop those that were used longest ago and do not fit any more."""
        wanted = [sft.diffs for sft in sfts if isinstance(sft.diffs, PackedDiffs)]
        for diffs in wanted:
            self._order[id(diffs)] = diffs
            self._order.move_to_end(id(diffs))
        kept = {id(diffs) for diffs in wanted}
        total = sum(diffs.unpacked_bytes for diffs in self._order.values())
        for number, diffs in list(self._order.items()):
            if total <= self._budget:
                break
            if number not in kept:
                diffs.drop()
                del self._order[number]
                total -= diffs.unpacked_bytes
        for diffs in wanted:
            diffs.unpack()

    @property
    def unpacked_bytes(self) -> int:
        """What unpacked diffs take now."""
        return sum(diffs.unpacked_bytes for diffs in self._order.values())


def _unpack(packed: tuple[bytes, ...], out: Array) -> None:
    for number, chunk in enumerate(packed):
        standalone.simple_decompress_into(chunk, out[number * CHUNK : (number + 1) * CHUNK])
