"""An SFT as a server keeps it in memory: checked once, packed, and unpacked in a few hundredths of a second.

Indices are kept as gaps and values as they are, both packed by pcodec: about 32 bits an entry in place of 64, so that
the SFTs of forty languages fit beside the base. Packing loses nothing: what comes out are the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pcodec import ChunkConfig, standalone
from torch import Tensor

from ltsft.files import load_sft
from ltsft.sft import SFT, BaseRef, Diff, Kind

__all__ = ["PackedSFT", "pack_sft"]

_CHUNK = 1 << 20  # entries that are packed and unpacked at once
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class PackedSFT:
    """A checked SFT, packed.

    Attributes:
        kind: "language" or "task".
        title: what to call it in messages.
        labels: of its head.
        head: its head, whole.
        base: the base that it belongs to.
        shapes: of each parameter of its diffs, in the order of the names.
        counts: size of the support in each.
        size_bytes: what the packed diffs take.
    """

    kind: Kind
    title: str
    subject: str
    labels: tuple[str, ...]
    head: Mapping[str, Tensor]
    base: BaseRef
    shapes: Mapping[str, tuple[int, ...]]
    counts: tuple[int, ...]
    gaps: tuple[bytes, ...]
    values: tuple[bytes, ...]

    @property
    def size_bytes(self) -> int:
        """What the packed diffs take."""
        return sum(map(len, self.gaps)) + sum(map(len, self.values))

    @property
    def support_size(self) -> int:
        """Number of weights in the support."""
        return sum(self.counts)

    def unpack(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Give indices and values of all parameters, one after the other.

        Returns:
            Flat indices, each within its parameter, int32; values, float32. Both have `support_size` entries.
        """
        indices = np.empty(self.support_size, np.int32)
        values = np.empty(self.support_size, np.float32)
        done = _POOL.submit(_unpack, self.values, values)
        _unpack(self.gaps, indices)
        at = 0
        for count in self.counts:
            np.cumsum(indices[at : at + count], out=indices[at : at + count])
            at += count
        done.result()
        return indices, values

    def to_sft(self) -> SFT:
        """Give the SFT."""
        indices, values = map(torch.from_numpy, self.unpack())
        diffs = {
            name: Diff(indices=i, values=v, shape=self.shapes[name])
            for name, i, v in zip(
                self.shapes, indices.split(list(self.counts)), values.split(list(self.counts)), strict=True
            )
        }
        return SFT(
            kind=self.kind,
            subject=self.subject,
            base=self.base,
            diffs=diffs,
            head=self.head,
            labels=self.labels,
            maskable=sum(prod(shape) for shape in self.shapes.values()),
        )


def pack_sft(folder: str | Path) -> PackedSFT:
    """Read, check and pack an SFT folder.

    Raises:
        SFTFileError: something is missing or wrong.
    """
    sft = load_sft(folder)
    names = sorted(sft.diffs)
    gaps = [np.diff(sft.diffs[name].indices.numpy(), prepend=np.int32(0)) for name in names]
    values = [sft.diffs[name].values.numpy() for name in names]
    return PackedSFT(
        kind=sft.kind,
        title=sft.title,
        subject=sft.subject,
        labels=sft.labels,
        head=dict(sft.head),
        base=sft.base,
        shapes={name: sft.diffs[name].shape for name in names},
        counts=tuple(len(value) for value in values),
        gaps=_pack(np.concatenate(gaps) if gaps else np.empty(0, np.int32)),
        values=_pack(np.concatenate(values) if values else np.empty(0, np.float32)),
    )


_POOL = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ltsft-unpack")


def _pack(whole: Array) -> tuple[bytes, ...]:
    return tuple(
        bytes(standalone.simple_compress(whole[at : at + _CHUNK], ChunkConfig())) for at in range(0, len(whole), _CHUNK)
    )


def _unpack(packed: tuple[bytes, ...], out: Array) -> None:
    for number, chunk in enumerate(packed):
        standalone.simple_decompress_into(chunk, out[number * _CHUNK : (number + 1) * _CHUNK])
