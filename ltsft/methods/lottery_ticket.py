"""LT-SFT (Ansell et al., ACL 2022): the K weights that moved furthest in a full phase, trained from the base."""

from __future__ import annotations

from typing import ClassVar

from ltsft.methods import LT_SFT, Method


class LotteryTicket(Method):
    """Full phase, the K weights that moved furthest, rewind, sparse phase."""

    name: ClassVar[str] = LT_SFT
