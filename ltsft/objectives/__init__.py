"""What a model learns: how rows become batches, which head, which score. One file for each objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Generator, Tensor, nn
from transformers import PreTrainedModel

from ltsft.base import Base


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on examples.

    Attributes:
        score: higher is better: accuracy for tagging, minus the loss for masked LM.
        metrics: named figures, `loss` among them (nats).
        outcomes: for each sentence, (correct, counted); empty where that has no meaning.
    """

    score: float
    metrics: dict[str, float]
    outcomes: tuple[tuple[int, int], ...] = field(default=(), repr=False)


class Objective(Protocol):
    """What train.py and the matrix need to know of an objective."""

    labels: tuple[str, ...]

    def build_model(self, base: Base, *, seed: int) -> PreTrainedModel:
        """Load the base with the head of this objective, a new head initialised from the seed."""
        ...

    def lengths(self, examples: Sequence[Any]) -> list[int] | None:
        """Give the sub-words of each example, for batches of like length; None if all are equally long."""
        ...

    def collate(self, examples: Sequence[Any], generator: Generator) -> dict[str, Tensor]:
        """Make a batch; whatever is random in it comes from the generator."""
        ...

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Give the mean loss of a batch, a scalar in nats."""
        ...

    def evaluate(self, model: PreTrainedModel, examples: Sequence[Any]) -> Evaluation:
        """Score a model in evaluation mode; the same inputs give the same figures."""
        ...
