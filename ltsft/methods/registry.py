"""The methods by name. Another one is a file beside this and a line here (docs/methods.md)."""

from __future__ import annotations

from ltsft.methods import Method
from ltsft.methods.lottery_ticket import LotteryTicket

METHODS: dict[str, Method] = {method.name: method for method in (LotteryTicket(),)}
