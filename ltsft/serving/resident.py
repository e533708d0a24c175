"""The resident encoder: compositions take turns in one set of weights, and each is there whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from transformers import PreTrainedModel

from ltsft.compose import composed
from ltsft.serving.packed import PackedSFT
from ltsft.sft import BaseRef

PackedPart = tuple[PackedSFT, float]


class Resident:
    """One encoder and the composition that is in place."""

    def __init__(self, model: PreTrainedModel, base: BaseRef) -> None:
        self._model = model
        self._base = base
        self._stack = ExitStack()
        self._placed: tuple[tuple[PackedPart, ...], str] = ((), "sum")

    def check(self, parts: Sequence[PackedPart], *, rule: str) -> None:
        """Check that parts fit the encoder; touches nothing."""

    def switch(self, parts: tuple[PackedPart, ...], *, rule: str) -> bool:
        """Put a composition in place; says whether another one was there."""
        if self._placed == (parts, rule):
            return False
        self._stack.close()
        self._placed = ((), "sum")
        self._stack = ExitStack()
        self._stack.enter_context(
            composed(self._model, [(p.to_sft(), w) for p, w in parts], base=self._base, rule=rule, heads=False)
        )
        self._placed = (parts, rule)
        return True
