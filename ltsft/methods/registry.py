"""The methods by name. Another one is a file beside this and a line here (docs/methods.md)."""

from __future__ import annotations

from ltsft.errors import ConfigError
from ltsft.methods import SupportMethod
from ltsft.methods.biases import Biases
from ltsft.methods.denoised import Denoised
from ltsft.methods.dense import Dense
from ltsft.methods.lottery_ticket import LotteryTicket, TaskOnly
from ltsft.methods.random_support import RandomSupport

METHODS: dict[str, SupportMethod] = {
    method.name: method for method in (LotteryTicket(), RandomSupport(), Denoised(), Biases(), Dense(), TaskOnly())
}


def method_named(name: str) -> SupportMethod:
    """Give a method.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}; allowed are {', '.join(METHODS)}")
    return METHODS[name]
