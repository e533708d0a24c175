"""Full fine-tuning: every maskable weight is trained, and the dense differences are composed.

What LT-SFT is to be better than: nothing keeps two dense differences from each other's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ltsft.methods.method import SupportMethod

if TYPE_CHECKING:
    from ltsft.base import Roles
    from ltsft.config import Recipe


class Dense(SupportMethod):
    """Full phase alone; the support is every maskable weight."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "every maskable weight: a dense difference, as large as the base, at density 1"
    phases: ClassVar[tuple[str, ...]] = ("full",)
    has_rounds: ClassVar[bool] = False

    def follows_density(self, recipe: Recipe) -> bool:
        """No: K is what it is."""
        return False

    def size(self, roles: Roles, recipe: Recipe) -> int:
        """Give the number of maskable weights, whatever the density says."""
        return roles.size

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
        """Select everything that is not taken."""
        return {
            name: torch.arange(0 if taken[name].numel() else p.numel(), dtype=torch.int32) for name, p in now.items()
        }
