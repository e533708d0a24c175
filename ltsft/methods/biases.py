"""BitFit (Ben Zaken et al., ACL 2022): the biases of the encoder are trained and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ltsft.methods.method import SupportMethod

if TYPE_CHECKING:
    from ltsft.base import Roles
    from ltsft.config import Recipe


class Biases(SupportMethod):
    """The support is every bias, those of layer norms included; K is their number, whatever the density says."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "every bias of the encoder"
    phases: ClassVar[tuple[str, ...]] = ("sparse",)
    has_rounds: ClassVar[bool] = False
    has_norm_biases: ClassVar[bool] = True

    def follows_density(self, recipe: Recipe) -> bool:
        """No: K is what it is."""
        return False

    def size(self, roles: Roles, recipe: Recipe) -> int:
        """Give the number of weights in biases that are not frozen."""
        return sum(p.numel() for name, p in roles.maskable.items() if is_bias(name))

    def select(
        self,
        now: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
        k: int,
        *,
        taken: Mapping[str, Tensor],
        recipe: Recipe,
        seed: int,
    ) -> dict[str, Tensor]:
        """Select all biases that are not taken: in a second round there are none left."""
        return {
            name: torch.arange(p.numel() if is_bias(name) and not taken[name].numel() else 0, dtype=torch.int32)
            for name, p in now.items()
        }


def is_bias(name: str) -> bool:
    """Say whether a parameter is a bias, by the last part of its name."""
    return name.rpartition(".")[2] == "bias"
