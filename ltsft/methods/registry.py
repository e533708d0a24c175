"""The methods by name. Another one is a file beside this and a line here (docs/methods.md)."""

from __future__ import annotations

from ltsft.errors import ConfigError
from ltsft.methods.biases import Biases
from ltsft.methods.bottleneck import MadX
from ltsft.methods.denoised import Denoised
from ltsft.methods.dense import Dense
from ltsft.methods.lottery_ticket import LotteryTicket, TaskOnly
from ltsft.methods.low_rank import LowRank
from ltsft.methods.method import Method
from ltsft.methods.random_support import RandomSupport
from ltsft.sft import SFT

METHODS: dict[str, Method] = {
    method.name: method
    for method in (LotteryTicket(), RandomSupport(), Denoised(), Biases(), Dense(), TaskOnly(), LowRank(), MadX())
}


def method_named(name: str) -> Method:
    """Give a method.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}; allowed are {', '.join(METHODS)}")
    return METHODS[name]


def as_diffs(sft: SFT) -> SFT:
    """Give an SFT with diffs in place of an adapter, unless that is one that stays modules."""
    return method_named(sft.method).as_diffs(sft) if sft.adapter else sft
