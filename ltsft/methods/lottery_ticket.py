"""LT-SFT (Ansell et al., ACL 2022): the K weights that moved furthest in a full phase, trained from the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ltsft.config import LT_SFT
from ltsft.methods.mask import select_magnitude
from ltsft.methods.method import SupportMethod

if TYPE_CHECKING:
    from ltsft.config import Recipe


class LotteryTicket(SupportMethod):
    """Full phase, the K weights that moved furthest, rewind, sparse phase."""

    name: ClassVar[str] = LT_SFT
    summary: ClassVar[str] = "the K weights that moved furthest in a full phase, trained from the base"

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
        """Select those that moved furthest."""
        return select_magnitude(now, start, k, taken=taken)


class TaskOnly(LotteryTicket):
    """LT-SFT without a language part: the task SFT is learnt on the base and used on the base, in every language."""

    name: ClassVar[str] = "task_only"
    summary: ClassVar[str] = "as lt_sft, without language SFTs"
    has_languages: ClassVar[bool] = False
