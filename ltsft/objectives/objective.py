"""What a model learns: how rows become batches, which head, which score. One file for each objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Generator, Tensor, nn

from ltsft.base import Base
from ltsft.config import Precision, Source, TargetTask
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


class Objective(ABC):
    """What training and the matrix need to know of an objective.

    The last methods are hooks: a training tells them where it is. Most objectives have no use for them, and inherit
    that they do nothing.
    """

    labels: tuple[str, ...]

    @abstractmethod
    def build_model(self, base: Base, *, seed: int) -> PreTrainedModel:
        """Load the base with the head of this objective, a new head initialised from the seed."""

    @abstractmethod
    def lengths(self, examples: Sequence[Any]) -> list[int] | None:
        """Give the sub-words of each example, for batches of like length; None if all are equally long."""

    @abstractmethod
    def collate(self, examples: Sequence[Any], generator: Generator) -> dict[str, Tensor]:
        """Make a batch; whatever is random in it comes from the generator."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Give the mean loss of a batch, a scalar in nats."""

    @abstractmethod
    def evaluate(self, model: PreTrainedModel, examples: Sequence[Any]) -> Evaluation:
        """Score a model in evaluation mode; the same inputs give the same figures."""

    def order(self, examples: Sequence[Any], batches: int, size: int, *, seed: int) -> Tensor | None:
        """Say which example comes when, where it is not simply shuffled anew in each epoch.

        Args:
            examples: all of them.
            batches: how many there are.
            size: examples in a batch.
            seed: settles all of it.

        Returns:
            Numbers of examples, (batches x size,), int64; None: shuffled, in batches of like length.
        """
        return None

    def begin_phase(self, phase: str) -> None:  # noqa: B027 - a hook
        """Take note that a phase begins: "head", "full" or "sparse"."""

    def before_batch(self, batch: Mapping[str, Tensor]) -> None:  # noqa: B027 - a hook
        """Change what has to be changed before anything looks at the weights for this batch."""

    def before_step(self) -> None:  # noqa: B027 - a hook
        """Undo what `before_batch` did: the optimizer is about to step. It may be called more than once."""

    def keep_first_stage(self, model: nn.Module, precision: Precision) -> nn.Module | None:
        """Keep a frozen copy of the model as the full phase left it, if the sparse phase compares with that.

        Returns:
            The copy, for objectives that wrap this one; None if there is none.
        """
        return None

    def drop_first_stage(self) -> None:  # noqa: B027 - a hook
        """Let go of the copy: the sparse phase is over."""

    def figures(self) -> dict[str, float]:
        """Give what was measured, by name, since this was last asked."""
        return {}


class TargetObjective(Objective):
    """What the loop needs to know of a target task's objective besides: its data, its gate and how its score is called.

    An example has the attributes `sentence`, the number of the row that it was made from, and `input_ids`.

    Args:
        tokenizer: the base's tokenizer.
        labels: the label set, in the order of the head's outputs.
        max_length: sub-words in an example.

    Attributes:
        metric: what the score is, for people: "accuracy", "LAS".
        unit: what is counted, in the plural: "words".
        shown: metrics that stand beside the score in the matrix, each with its title.
        measures: measures of labelled data (`ltsft.data.labelled_measures`) that apply, beyond those that always do.
        background: the label that does not count when the most frequent one is looked for; none if empty.
        example: the class of the examples; if all its fields are whole numbers and tuples of them, they are kept in
            files.
        reader: how it is served: the place of its reader (`ltsft.serving.answers.Reader`), as ``module:class``. It is
            named, not imported: what serves stands above what is learnt. If empty, it is scored and not released.
    """

    metric: ClassVar[str]
    unit: ClassVar[str]
    shown: ClassVar[Mapping[str, str]] = {}
    measures: ClassVar[frozenset[str]]
    background: ClassVar[str] = ""
    example: ClassVar[type]
    reader: ClassVar[str] = ""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str] = (), max_length: int) -> None:
        self.labels = tuple(labels)
        self._tokenizer = tokenizer
        self._max_length = max_length

    @classmethod
    @abstractmethod
    def problems(cls, target: TargetTask) -> list[str]:
        """Say what of a target task in the project file this objective cannot work with, and what it allows."""

    @classmethod
    @abstractmethod
    def label_set(cls, target: TargetTask) -> tuple[str, ...]:
        """Give the labels of the head, in the order of its outputs; empty for a head without labels."""

    @classmethod
    @abstractmethod
    def new_model(cls, base: Base, labels: Sequence[str], *, seed: int) -> PreTrainedModel:
        """Load the base with a new head for these labels, initialised from the seed."""

    @classmethod
    @abstractmethod
    def read(cls, target: TargetTask, source: Source, *, on_error: OnError | None = None) -> Iterator[Any]:
        """Read the rows of a source; malformed ones go to `on_error`, or end the reading where there is none."""

    @classmethod
    @abstractmethod
    def texts(cls, row: Any) -> tuple[str, ...]:
        """Give the texts of a row that must not be in the raw text of its language."""

    @classmethod
    @abstractmethod
    def sentence(cls, row: Any) -> Sentence:
        """Give what the validation gate looks at."""

    @abstractmethod
    def examples(self, rows: Iterable[Any]) -> list[Any]:
        """Turn rows into examples.

        Raises:
            SourceError: a label is not in the label set.
        """

    @abstractmethod
    def words(self, example: Any) -> list[tuple[int, int]]:
        """Give the sub-words of each word that augmentation may change, as (first, last + 1), in order."""

    @abstractmethod
    def respelled(self, example: Any, words: Sequence[tuple[int, ...]]) -> Any:
        """Give an example with these sub-words for its `words`, one entry each; all else is as before."""

    @abstractmethod
    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Run a model on a batch; give the scores that loss and beliefs are made of, in float32."""

    @abstractmethod
    def loss_of(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor]) -> Tensor:
        """Give the mean loss of a batch from its scores, a scalar in nats."""

    @abstractmethod
    def beliefs(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor], stretches: Tensor) -> list[Belief]:
        """Give what is believed of each item; consistency compares it between an example and its augmentation.

        Args:
            scores: from `scores`.
            batch: what they are of.
            stretches: for each sub-word the number of its stretch of characters, (batch, length), -1 in padding: what
                an example and its augmentation have in common where answers are places.
        """

    def build_model(self, base: Base, *, seed: int) -> PreTrainedModel:
        """Load the base with a new head, initialised from the seed."""
        return self.new_model(base, self.labels, seed=seed)

    def lengths(self, examples: Sequence[Any]) -> list[int] | None:
        """Give the sub-words of each example."""
        return [len(example.input_ids) for example in examples]

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Give the mean loss of a batch, a scalar in nats; see `loss_of`."""
        return self.loss_of(self.scores(model, batch), batch)

    @classmethod
    def majority(cls, rows: Iterable[Any]) -> str | None:
        """Give the most frequent answer of training rows; None where always giving one answer has no meaning."""
        return None

    def majority_score(self, answer: str, examples: Sequence[Any]) -> float:
        """Score always giving one answer."""
        return 0.0
