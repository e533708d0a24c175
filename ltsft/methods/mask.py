"""Choosing a support: which K weights an SFT may train."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ltsft.errors import ConfigError, TrainingError


def support_size(*, density: float | None = None, size: int | None = None, maskable: int) -> int:
    """Give K for a density or a number: floor(density * maskable), at least one.

    The density is taken as the decimal number that is written: 0.29 of 100 weights are 29, not the 28 of binary floats.

    Raises:
        ConfigError: neither or both are given, or K would exceed the number of maskable weights.
    """
    if (density is None) == (size is None):
        raise ConfigError("give either density, in (0, 1], or size, the number of weights")
    if density is not None and not 0 < density <= 1:
        raise ConfigError(f"density must be in (0, 1], got {density}")
    k = size if size is not None else max(1, int(Fraction(str(density)) * maskable)) if density is not None else 0
    if not 1 <= k <= maskable:
        raise ConfigError(f"size must be between 1 and the {maskable} maskable weights, got {k}")
    return k


def select_magnitude(
    now: Mapping[str, Tensor], start: Mapping[str, Tensor], k: int, *, taken: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Select the K weights that moved furthest from where they started (Ansell et al. 2022, section 3).

    Exactly K are selected. Equal moves are settled by the order of the parameters in `now`, then by the lower flat
    index, so the result is the same on every run.

    A radix select over the bit patterns of ``|now - start|``, which order as the numbers do: one pass counts the upper
    halves, one the lower halves of those in the bucket where the K-th lies, and one collects. The moves are computed
    chunk by chunk in each pass and never held; a parameter is asked for once in a pass, so both mappings may read
    from a file.

    Args:
        now: each maskable parameter as it is, any shape, float, any device.
        start: the same parameters as they were.
        k: number of weights to select, over all parameters.
        taken: flat indices, strictly increasing, of weights that are selected already and do not count, by name.

    Returns:
        The support of each parameter: strictly increasing flat indices, int32, on the CPU; without `taken`.

    Raises:
        ConfigError: fewer than K weights are left to choose from.
        TrainingError: a weight is not finite.

    Example:
        >>> now, start = {"w": torch.tensor([0.1, -0.5, 0.5, 0.2])}, {"w": torch.zeros(4)}
        >>> select_magnitude(now, start, 2)["w"].tolist()
        [1, 2]
    """
    held = {name: indices.cpu().numpy() for name, indices in (taken or {}).items()}
    free = sum(p.numel() for p in now.values()) - sum(indices.size for indices in held.values())
    if not 1 <= k <= free:
        raise ConfigError(f"cannot select {k} weights: {free} are left to choose from; lower the density")
    stream = _MoveStream(now, start, held)
    upper, missing = _kth(stream.count(_upper_halves, _BUCKETS), k)
    lower, missing = _kth(stream.count(lambda bits: _lower_halves(bits, upper), 2 * _BUCKETS), missing)
    threshold = upper << 16 | lower
    chosen = stream.map(lambda bits: (_above(bits, threshold), int(np.count_nonzero(bits == threshold))))
    quotas = {}  # of the ties, by number of the chunk
    for number, (_, count) in sorted(chosen.items()):
        quotas[number] = min(count, missing)
        missing -= quotas[number]
    with_ties = {number for number, quota in quotas.items() if quota}
    ties = stream.map(lambda bits: np.flatnonzero(bits == threshold).astype(np.int32), only=with_ties)
    support: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in now}
    for number, (above, _) in sorted(chosen.items()):
        name, offset = stream.places[number]
        if number in with_ties:
            above = np.sort(np.concatenate([above, ties[number][: quotas[number]]]))
        support[name].append(above + np.int32(offset))
    return {name: torch.from_numpy(np.concatenate([_NONE, *pieces])) for name, pieces in support.items()}


_CHUNK = 2**17
"""Weights at a time: half a megabyte, which stays in a core's cache through all operations on it."""

_BUCKETS = 2**15
"""Values of the upper half of a float32 that is not negative."""

_NOT_FINITE = 0x7F80
"""The lowest upper half of those that are infinite or NaN."""

_NONE = np.zeros(0, dtype=np.int32)
_Result = TypeVar("_Result")


class _MoveStream:
    """The bit patterns of all moves, chunk by chunk, shared out over threads; int32, -1 for what is taken."""

    def __init__(
        self, now: Mapping[str, Tensor], start: Mapping[str, Tensor], taken: Mapping[str, np.ndarray[Any, Any]]
    ) -> None:
        self._now = now
        self._start = start
        self._taken = taken
        self.places: dict[int, tuple[str, int]] = {}  # name and first index of each chunk, by its number

    def count(self, look: Callable[[_Bits], Tensor], size: int) -> np.ndarray[Any, Any]:
        """Add up the counts that `look` gives for each chunk; the total has `size` entries."""
        total, lock = torch.zeros(size, dtype=torch.int64), Lock()

        def add(bits: _Bits) -> None:
            counts = look(bits)
            with lock:
                total.add_(counts)

        self.map(add)
        return total.numpy()

    def map(self, look: Callable[[_Bits], _Result], *, only: Container[int] | None = None) -> dict[int, _Result]:
        """Give what `look` says of each chunk, by number, or of some of them."""
        chunks, lock, results = self._chunks(only), Lock(), {}

        def work() -> None:
            buffer = np.empty(_CHUNK, dtype=np.float32)
            while True:
                with lock:
                    number, now, start, taken = next(chunks, (-1, _NONE, _NONE, _NONE))
                if number < 0:
                    return
                moves = np.subtract(now, start, out=buffer[: now.size])
                bits = np.abs(moves, out=moves).view(np.int32)
                bits[taken] = -1
                results[number] = look(bits)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for ended in [pool.submit(work) for _ in range(torch.get_num_threads())]:
                ended.result()
        return results

    def _chunks(self, only: Container[int] | None) -> Iterator[tuple[int, _Bits, _Bits, _Bits]]:
        number = 0
        for name in self._now:
            size = self._now[name].numel()
            offsets = range(0, size, _CHUNK)
            numbers = range(number, number + len(offsets))
            number += len(offsets)
            if only is not None and not any(n in only for n in numbers):
                continue
            now, start = _flat(self._now[name]), _flat(self._start[name])
            taken = self._taken.get(name, _NONE)
            cuts = np.searchsorted(taken, [*offsets, size])
            for place, (n, low) in enumerate(zip(numbers, offsets, strict=True)):
                if only is None or n in only:
                    self.places[n] = (name, low)
                    inside = taken[cuts[place] : cuts[place + 1]] - low
                    yield n, now[low : low + _CHUNK], start[low : low + _CHUNK], inside


_Bits = np.ndarray[Any, Any]


def _flat(weights: Tensor) -> _Bits:
    flat: _Bits = weights.detach().reshape(-1).to("cpu", torch.float32).numpy()
    return flat


def _upper_halves(bits: _Bits) -> Tensor:
    """Count the upper halves of what is not taken."""
    halves = bits >> 16
    if halves.size and halves.max() >= _NOT_FINITE:
        raise TrainingError("the full phase ended with weights that are not finite; lower its learning rate")
    if halves.size and halves.min() < 0:
        halves = halves[halves >= 0]
    return torch.bincount(torch.from_numpy(halves), minlength=_BUCKETS)


def _lower_halves(bits: _Bits, upper: int) -> Tensor:
    """Count the lower halves of those with this upper half."""
    inside = bits[(bits >= upper << 16) & (bits < upper + 1 << 16)] & 0xFFFF
    return torch.bincount(torch.from_numpy(inside), minlength=2 * _BUCKETS)


def _kth(counts: np.ndarray[Any, Any], k: int) -> tuple[int, int]:
    """Give the bucket that holds the k-th largest, and which of that bucket it is, from 1."""
    at_least = np.cumsum(counts[::-1])[::-1]
    bucket = int(np.flatnonzero(at_least >= k)[-1])
    return bucket, k - int(at_least[bucket] - counts[bucket])


def _above(bits: _Bits, threshold: int) -> _Bits:
    return np.flatnonzero(bits > threshold).astype(np.int32)
