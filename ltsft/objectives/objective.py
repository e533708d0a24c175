"""What a model learns: how rows become batches, which head, which score. One file for each objective."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Generator, Tensor, nn

from ltsft.base import Base
from ltsft.config import Source, TargetTask
from ltsft.data import OnError, Sentence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Belief = tuple[float, Tensor]
"""What a model believes: a weight and log-probabilities, (items, outcomes), of the answers to each item."""


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on examples.

    Attributes:
        score: higher is better: accuracy for tagging, minus the loss for masked LM.
        metrics: named figures, `loss` among them (nats) and, of a target task, `size`: how many units were scored.
        outcomes: for each sentence, in their order, (numerator, denominator): the score is the sum of the first over
            the sum of the second. For accuracy these are (correct, counted), for an F1 (2 x hits, found + looked for).
            Empty where that has no meaning.
    """

    score: float
    metrics: dict[str, float]
    outcomes: tuple[tuple[float, float], ...] = field(default=(), repr=False)


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


class TargetObjective(Objective, Protocol):
    """What the loop needs to know of a target task's objective besides: its data, its gate and how its score is called.

    An example has an attribute `sentence`, the number of the row that it was made from.

    Attributes:
        metric: what the score is, for people: "accuracy", "LAS".
        unit: what is counted, in the plural: "words".
        shown: metrics that stand beside the score in the matrix, each with its title.
        measures: measures of labelled data (`ltsft.data.labelled_measures`) that apply, beyond those that always do.
        background: the label that does not count when the most frequent one is looked for; none if empty.
        example: the class of the examples; if all its fields are whole numbers and tuples of them, they are kept in
            files.
    """

    metric: ClassVar[str]
    unit: ClassVar[str]
    shown: ClassVar[dict[str, str]]
    measures: ClassVar[frozenset[str]]
    background: ClassVar[str]
    example: ClassVar[type]

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str], max_length: int) -> None: ...

    @classmethod
    def problems(cls, target: TargetTask) -> list[str]:
        """Say what of a target task in the project file this objective cannot work with, and what it allows."""
        ...

    @classmethod
    def label_set(cls, target: TargetTask) -> tuple[str, ...]:
        """Give the labels of the head, in the order of its outputs; empty for a head without labels."""
        ...

    @classmethod
    def new_model(cls, base: Base, labels: Sequence[str], *, seed: int) -> PreTrainedModel:
        """Load the base with a new head for these labels, initialised from the seed."""
        ...

    @classmethod
    def read(cls, target: TargetTask, source: Source, *, on_error: OnError | None = None) -> Iterator[Any]:
        """Read the rows of a source; malformed ones go to `on_error`, or end the reading where there is none."""
        ...

    @classmethod
    def texts(cls, row: Any) -> tuple[str, ...]:
        """Give the texts of a row that must not be in the raw text of its language."""
        ...

    @classmethod
    def sentence(cls, row: Any) -> Sentence:
        """Give what the validation gate looks at."""
        ...

    def examples(self, rows: Iterable[Any]) -> list[Any]:
        """Turn rows into examples.

        Raises:
            SourceError: a label is not in the label set.
        """
        ...

    def words(self, example: Any) -> list[tuple[int, int]]:
        """Give the sub-words of each word that augmentation may change, as (first, last + 1), in order."""
        ...

    def respelled(self, example: Any, words: Sequence[tuple[int, ...]]) -> Any:
        """Give an example with these sub-words for its `words`, one entry each; all else is as before."""
        ...

    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Run a model on a batch; give the scores that loss and beliefs are made of, in float32."""
        ...

    def loss_of(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor]) -> Tensor:
        """Give what `loss` gives, from the scores."""
        ...

    def beliefs(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor], stretches: Tensor) -> list[Belief]:
        """Give what is believed of each item; consistency compares it between an example and its augmentation.

        Args:
            scores: from `scores`.
            batch: what they are of.
            stretches: for each sub-word the number of its stretch of characters, (batch, length), -1 in padding: what
                an example and its augmentation have in common where answers are places.
        """
        ...

    @classmethod
    def majority(cls, rows: Iterable[Any]) -> str | None:
        """Give the most frequent answer of training rows; None where always giving one answer has no meaning."""
        ...

    def majority_score(self, answer: str, examples: Sequence[Any]) -> float:
        """Score always giving one answer."""
        ...
