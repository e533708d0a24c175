"""What lies between a request and its answer: an input becomes pieces for the model, its outputs become a result.

A *reader* does both for one kind of target task, whose objective names it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ltsft.errors import LtsftError
from ltsft.release import Composition
from ltsft.serving.limits import Limits
from ltsft.serving.results import Result
from ltsft.serving.words import split_words

__all__ = [
    "TOKENIZING",
    "Input",
    "OtherFormError",
    "Output",
    "Piece",
    "Prepared",
    "Reader",
    "RefusedInputError",
    "find_words",
    "refuse_form",
    "refuse_long",
]

TOKENIZING = threading.Lock()
"""Fast tokenizers keep padding and truncation as state: one thread at a time."""

Output = tuple[Tensor, ...]
"""What the model gives for one piece; which tensors is a matter of the reader."""


class RefusedInputError(LtsftError):
    """A text cannot be answered: it has no words, or is longer than the limits allow."""


class OtherFormError(LtsftError):
    """A target task takes another form of input: what is released for it decides, not the schema of requests."""


@dataclass(frozen=True)
class Input:
    """One text of a request, in the form that its target task takes: exactly one of these is given.

    Attributes:
        text: a raw text; the first of two with `pair`.
        words: a text that the caller has split.
        pair: the second text.
        question: a question, with `context`.
        context: the text that is to hold the answer.
    """

    text: str | None = None
    words: tuple[str, ...] | None = None
    pair: str | None = None
    question: str | None = None
    context: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Input:
        """Take the fields of a table's row; missing values (None, NaN) are left out."""
        texts = {name: row[name] for name in ("text", "pair", "question", "context") if isinstance(row.get(name), str)}
        words = row.get("words")
        split = None if words is None or isinstance(words, float | str) else tuple(map(str, words))
        return cls(words=split, **texts)

    @property
    def form(self) -> str:
        """Name what was given."""
        if self.words is not None:
            return "words"
        names = [name for name in ("text", "pair", "question", "context") if getattr(self, name) is not None]
        return " and ".join(names) or "nothing"

    @property
    def characters(self) -> int:
        """Length of all that was given."""
        texts = (self.text, self.pair, self.question, self.context, *(self.words or ()))
        return sum(len(text) for text in texts if text is not None)

    def as_row(self) -> dict[str, Any]:
        """Give what was given by name, words as a list."""
        row = {name: value for name, value in vars(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}


class Piece(Protocol):
    """What goes through the model as one row: an example of the objective, or like one."""

    @property
    def input_ids(self) -> tuple[int, ...]:
        """Sub-words with special tokens."""
        ...


@dataclass(frozen=True)
class Prepared:
    """An input that is ready for the model.

    Attributes:
        item: what was sent.
        pieces: what goes through the model; at least one.
        words: its words, where the target task is about words.
        spans: where each word stands in the text, (start, end) in characters; None where words were sent.
        is_cut: whether something was left out because it did not fit.
    """

    item: Input
    pieces: tuple[Any, ...]
    words: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] | None = None
    is_cut: bool = False


class Reader(Protocol):
    """What a server needs to know of an objective.

    Attributes:
        result: the class of its answers.
        forms: what an input may be, see `Input.form`.
        inputs: columns of a table of inputs, each with its type: `str`, `int`, `float`, ``[type]`` or ``{name: type}``.
        outputs: columns of a table of answers, likewise.
    """

    result: ClassVar[type[Result]]
    inputs: ClassVar[Mapping[str, Any]]
    outputs: ClassVar[Mapping[str, Any]]

    @property
    def forms(self) -> tuple[str, ...]: ...  # noqa: D102

    def __init__(self, tokenizer: PreTrainedTokenizerBase, composition: Composition, limits: Limits) -> None: ...

    def build_shell(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Build a model with the head of this objective; its weights are taken from elsewhere."""
        ...

    def prepare(self, item: Input) -> Prepared:
        """Turn an input into pieces.

        Raises:
            OtherFormError: it is of another form than the target task takes.
            RefusedInputError: it has no words, or is longer than the limits allow.
        """
        ...

    def forward(self, model: PreTrainedModel, pieces: Sequence[Any]) -> list[Output]:
        """Run the model on one batch and give the output of each piece; called in inference mode."""
        ...

    def read(self, prepared: Prepared, outputs: Sequence[Output]) -> Result:
        """Turn the outputs of the pieces of an input into its answer."""
        ...

    @staticmethod
    def asked(row: Any) -> Input:
        """Give what a labelled row of the objective asks."""
        ...

    @staticmethod
    def right(row: Any, answer: Mapping[str, Any]) -> tuple[float, float]:
        """Compare an answer, by the columns of `outputs`, with its labelled row, as the objective counts outcomes.

        Raises:
            ValueError: it is no answer to this row, and why.
        """
        ...


def refuse_form(item: Input, forms: tuple[str, ...]) -> None:
    """Refuse an input that is not of one of these forms."""
    if item.form not in forms:
        raise OtherFormError(f"this target task takes {' or '.join(forms)}, got {item.form}")


def find_words(
    item: Input, limits: Limits, language: str
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...] | None]:
    """Give the words of an input, and where they stand in its text; None for the latter where words were sent.

    Raises:
        RefusedInputError: it has no words or too many.
    """
    spans = None
    if item.words is not None:
        words = item.words
    else:
        text = item.text or ""
        spans = tuple(split_words(text, language))
        words = tuple(text[start:end] for start, end in spans)
    if not words:
        raise RefusedInputError("the text has no words")
    if len(words) > limits.max_words:
        raise RefusedInputError(f"the text has {len(words)} words, at most {limits.max_words} are allowed")
    return words, spans


def refuse_long(limits: Limits, max_length: int) -> None:
    """Refuse an input that is longer than the model takes, where the setting says so."""
    if limits.long_texts == "refuse":
        raise RefusedInputError(
            f"the text is longer than the {max_length} sub-words that the model takes; send it in parts"
        )
