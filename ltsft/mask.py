"""Choosing a support: which K weights an SFT may train."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from ltsft.errors import ConfigError


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
    moves: Mapping[str, Tensor], k: int, *, taken: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Select the K weights that moved furthest (Ansell et al. 2022, section 3).

    Exactly K are selected. Equal moves are settled by the order of the parameters in `moves`, then by the lower flat
    index, so the result is the same on every run.

    Args:
        moves: value minus base value of each maskable parameter, any shape, float; finite.
        k: number of weights to select, over all parameters.
        taken: masks of weights that are selected already and do not count: bool tensors of the shapes in `moves`.

    Returns:
        Bool masks of the shapes in `moves`, True = may train; `taken` is not included.

    Raises:
        ConfigError: fewer than K weights are left to choose from.

    Example:
        >>> select_magnitude({"w": torch.tensor([0.1, -0.5, 0.5, 0.2])}, 2)["w"].tolist()
        [False, True, True, False]
    """
    names = list(moves)
    sizes = [moves[name].numel() for name in names]
    flat = torch.cat([moves[name].detach().reshape(-1).abs().float().cpu() for name in names])
    free = flat.numel()
    if taken is not None:
        already = torch.cat([taken[name].reshape(-1).cpu() for name in names])
        flat[already] = -1.0
        free -= int(already.sum())
    if not 1 <= k <= free:
        raise ConfigError(f"cannot select {k} weights: {free} are left to choose from; lower the density")
    threshold = torch.kthvalue(flat, flat.numel() - k + 1).values
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    chosen[ties[: k - int(chosen.sum())]] = True
    parts = chosen.split(sizes)
    return {name: part.reshape(moves[name].shape) for name, part in zip(names, parts, strict=True)}
