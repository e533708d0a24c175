"""Loops over the places of a support, for float32 weights on the CPU; importing this module compiles them.

Torch has a call for each, and together they take twice as long. Each loop is one step for whoever may be interrupted
between two lines of Python, and lets other threads run meanwhile. Nothing is checked here: places lie within `weights`,
strictly increasing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint32

__all__ = ["add", "put", "take"]

Array = np.ndarray[Any, Any]


@njit("float32(float32[::1], int32[::1], float32[::1])", nogil=True)
def take(weights: Array, places: Array, out: Array) -> np.floating[Any]:
    """Copy the weights at the places, (k,) int32, to `out`, (k,); give their largest absolute value, NaN if one is."""
    largest = np.float32(0)
    for i in range(places.size):
        weight = weights[uint32(places[i])]
        out[i] = weight
        size = abs(weight)
        if size > largest or size != size:
            largest = size
    return largest


@njit("void(float32[::1], int32[::1], float32[::1])", nogil=True)
def put(weights: Array, places: Array, values: Array) -> None:
    """Write values, (k,), to the places, (k,) int32."""
    for i in range(places.size):
        weights[uint32(places[i])] = values[i]


@njit("void(float32[::1], int32[::1], float32[::1], float32)", nogil=True)
def add(weights: Array, places: Array, values: Array, factor: float) -> None:
    """Add values, (k,), times a factor at the places, (k,) int32; the product is rounded before it is added."""
    for i in range(places.size):
        weights[uint32(places[i])] += values[i] * factor
