"""Numbers packed by pcodec: the supports as gaps, the values as they are, in chunks that are packed side by side.

    gap         the distance from one index of a parameter's support to the next, less one; of the first, the index
    chunk       `CHUNK` numbers, one after the other over all parameters: a pcodec stream of its own

Packing is exact. Gaps take what their entropy asks for (6 bits at 4 % density), values a little less than their float:
the exponents are alike, the mantissas random. What is unpacked is held against what is expected before it is used: a
damaged stream, or one that someone made to do harm, is an error and never more memory than was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

__all__ = ["CHUNK", "PackingError", "gaps_to_indices", "in_parallel", "indices_to_gaps", "pack", "unpack"]

CHUNK = 2**20
"""Numbers in a chunk."""

_LEVEL = 8
"""Of compression: the highest that costs no time in reading."""

Array = np.ndarray[Any, Any]
_Result = TypeVar("_Result")


class PackingError(ValueError):
    """Packed numbers are not what they should be; the message is the end of a sentence."""


def in_parallel(work: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """Do things that leave Python (pcodec, hashing, numpy) on as many threads as torch uses; give their results."""
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        return list(pool.map(lambda one: one(), work))


def pack(numbers: Array, *, chunk: int = CHUNK, is_increasing: bool = False) -> list[bytes]:
    """Pack numbers into streams.

    Args:
        numbers: shape (n,), of a dtype that pcodec knows.
        chunk: how many of them a stream holds.
        is_increasing: whether each is mostly a little larger than the one before: then the distances are packed.
    """
    delta = DeltaSpec.try_consecutive(1) if is_increasing else DeltaSpec.no_op()
    config = ChunkConfig(compression_level=_LEVEL, mode_spec=ModeSpec.classic(), delta_spec=delta)
    pieces = [numbers[low : low + chunk] for low in range(0, numbers.size, chunk)]
    return in_parallel([partial(standalone.simple_compress, piece, config) for piece in pieces])


def unpack(packed: memoryview, sizes: Sequence[int], count: int, dtype: type[np.generic]) -> list[Callable[[], Array]]:
    """Prepare the unpacking of numbers: one call for each chunk, in any order, on any thread.

    Args:
        packed: the streams, one after the other.
        sizes: bytes of each stream.
        count: how many numbers there are.
        dtype: of the numbers.

    Returns:
        Functions that each give one chunk, and raise `PackingError` where it is not sound.

    Raises:
        PackingError: the sizes do not fit.
    """
    chunks = -(-count // CHUNK)
    if len(sizes) != chunks or sum(sizes) != len(packed):
        raise PackingError(
            f"holds {len(packed)} bytes, but its {len(sizes)} chunks add up to {sum(sizes)}; "
            f"{count} numbers are {chunks} chunks"
        )
    spans = list(pairwise(accumulate(sizes, initial=0)))
    return [
        partial(_unpack_chunk, packed[low:high], number, min(CHUNK, count - number * CHUNK), dtype)
        for number, (low, high) in enumerate(spans)
    ]


def _unpack_chunk(stream: memoryview, number: int, count: int, dtype: type[np.generic]) -> Array:
    numbers = np.zeros(count, dtype=dtype)
    try:
        progress = standalone.simple_decompress_into(bytes(stream), numbers)
    except BaseException as error:
        if not isinstance(error, RuntimeError | TypeError | ValueError) and type(error).__name__ != "PanicException":
            raise
        raise PackingError(f"chunk {number} cannot be unpacked: {error}") from error
    if progress.n_processed != count or not progress.finished:
        raise PackingError(f"chunk {number} does not hold the {count} numbers that it should")
    return numbers


def indices_to_gaps(indices: Sequence[Array]) -> Array:
    """Turn the supports of parameters, strictly increasing int32 each, into one row of uint32 gaps."""
    gaps = np.empty(sum(support.size for support in indices), dtype=np.uint32)
    at = 0
    for support in indices:
        if support.size:
            gaps[at] = support[0]
            np.subtract(support[1:], support[:-1], out=gaps[at + 1 : at + support.size], casting="unsafe")
            gaps[at + 1 : at + support.size] -= 1
        at += support.size
    return gaps


def gaps_to_indices(gaps: Array, size: int) -> Array:
    """Turn the gaps of one parameter into its support, strictly increasing int32.

    Args:
        gaps: shape (k,), uint32.
        size: weights of the parameter.

    Raises:
        PackingError: the gaps lead beyond the parameter.
    """
    steps = gaps.astype(np.int64)
    steps[1:] += 1
    indices = np.cumsum(steps, out=steps)  # 2^31 gaps of less than 2^32 stay below 2^63
    if indices.size and indices[-1] >= size:
        raise PackingError(f"index {indices[-1]} is out of range: allowed are 0 to {size - 1}")
    return indices.astype(np.int32)
