"""Composition rules: what becomes of base weights where several SFTs reach them. One rule is one function here.

A rule sees the weights of one parameter and what each part brings to them. It changes the weights at the places of the
parts and nowhere else, in place: other threads may be at work on other places of the same tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["IN_SUCCESSION", "RULES", "Contribution", "Rule"]


@dataclass(frozen=True, eq=False)
class Contribution:
    """What one part of a composition brings to some weights.

    Attributes:
        places: Where its support lies among them, shape (k,), int64, strictly increasing.
        values: Its diff there, shape (k,), float32.
        weight: The part's weight.
    """

    places: Tensor
    values: Tensor
    weight: float

    @property
    def weighted(self) -> Tensor:
        """Its diff times its weight, shape (k,), float32."""
        return self.values if self.weight == 1.0 else self.values * self.weight


Rule = Callable[[Tensor, Sequence[Contribution]], None]
"""Takes base weights, (n,) float32, and what each part brings; changes the weights in place, at the places alone."""


def sum_diffs(weights: Tensor, pieces: Sequence[Contribution]) -> None:
    """Add the weighted diffs to the base weights in place, one part after the other, the last that is listed first.

    The rule of the paper (Ansell et al., ACL 2022, section 3.2). Float addition rounds, so the order decides the last
    bit: that is why it is part of the composition. The task SFT is listed last and so lies beneath the language's,
    which can be exchanged without touching it.

    Args:
        weights: Base weights, shape (n,), float32.
        pieces: What each part brings, in order.
    """
    for piece in reversed(pieces):
        weights.index_add_(0, piece.places, piece.weighted)


def elect_signs(weights: Tensor, pieces: Sequence[Contribution]) -> None:
    """Add the mean of those weighted diffs that have the elected sign (TIES-Merging, Yadav et al. 2023, section 3).

    The paper trims each diff to its largest entries, elects a sign for each weight, and takes the mean of the entries
    that have it. Here the support of an SFT is the trimming. The sign of the sum is elected: the direction with the
    greater mass. Entries of the other sign and entries of 0 are left out and do not count in the mean; where the sum
    is 0 there is no sign, and the weight stays that of the base. Where one part alone reaches, its whole diff is added.

    Args:
        weights: Base weights, shape (n,), float32.
        pieces: What each part brings, in order.
    """
    places, added, count = _agreeing(pieces)
    weights.index_add_(0, places, added / count.clamp(min=1))


def elect_signs_and_sum(weights: Tensor, pieces: Sequence[Contribution]) -> None:
    """Add the sum, instead of the mean, of those weighted diffs that have the elected sign.

    The paper merges models that each do a task; a language SFT and a task SFT each do a part of one, and were made to
    be added. This differs from the sum of all only where signs conflict.

    Args:
        weights: Base weights, shape (n,), float32.
        pieces: What each part brings, in order.
    """
    places, added, _ = _agreeing(pieces)
    weights.index_add_(0, places, added)


RULES: dict[str, Rule] = {"sum": sum_diffs, "ties": elect_signs, "ties_sum": elect_signs_and_sum}
"""The composition rules by name. A new rule is one function and one line here."""

IN_SUCCESSION = frozenset({sum_diffs})
"""Rules that do what they do for each part alone, the last that is listed first, on what the parts before it left."""


def _agreeing(pieces: Sequence[Contribution]) -> tuple[Tensor, Tensor, Tensor]:
    """Give all places in order, and there the sum and the number of the entries with the elected sign, (k,) each."""
    if not pieces:
        nothing = torch.empty(0)
        return nothing.long(), nothing, nothing
    places, rows = torch.unique(torch.cat([piece.places for piece in pieces]), return_inverse=True)
    entries = list(zip(rows.split([len(piece.places) for piece in pieces]), pieces, strict=True))
    mass, added, count = (torch.zeros(len(places), device=places.device) for _ in range(3))
    for row, piece in entries:
        mass.index_add_(0, row, piece.weighted)
    sign = mass.sign()
    for row, piece in entries:
        agrees = piece.weighted.sign() * sign[row] > 0
        added.index_add_(0, row, piece.weighted * agrees)
        count.index_add_(0, row, agrees.float())
    return places, added, count
