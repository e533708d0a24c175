"""Classification of a sentence or of a pair of sentences: sentiment, entailment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ltsft.base import Base
from ltsft.config import Source, TargetTask
from ltsft.data import RECORDS, OnError, RowError, Sentence, read_records
from ltsft.errors import SourceError
from ltsft.objectives.demands import columns_within, count_labels, schemes_within
from ltsft.objectives.lengths import attention, like_lengths, padded
from ltsft.objectives.objective import Belief, Evaluation, TargetObjective
from ltsft.objectives.spans import spliced, words_by_marks
from ltsft.objectives.token_classification import most_frequent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COLUMNS = {"text": "text", "label": "label"}
"""What the columns are called unless the project file says otherwise; `pair`, the second text, has no default."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """One text, or a pair of texts, with its label.

    Attributes:
        text: the text, or the first of the pair.
        pair: the second text; None for a single one.
        label: the label.
        line: number of its line in the file, from 1.
        source: the source that it was read from, for messages.
    """

    text: str
    pair: str | None
    label: str
    line: int
    source: str


@dataclass(frozen=True)
class ClassifiedText:
    """A text or a pair as sub-words.

    Attributes:
        sentence: number of the row.
        input_ids: sub-words with special tokens.
        type_ids: which of the two texts a sub-word is of, where the tokenizer says it; empty where it does not.
        label: number of the label.
    """

    sentence: int
    input_ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    label: int


class Classification(TargetObjective):
    """Give each text, or each pair of texts, one label.

    Args:
        tokenizer: the base's tokenizer.
        labels: the label set, in the order of the head's outputs.
        max_length: sub-words in an example; longer ones lose the end of the longer text.
    """

    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "rows"
    shown: ClassVar[dict[str, str]] = {"macro_f1": "macro-F1"}
    measures: ClassVar[frozenset[str]] = frozenset({"empty_text_share", "long_sentence_share"})
    example: ClassVar[type] = ClassifiedText
    reader: ClassVar[str] = "ltsft.serving.readers.texts:TextReader"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str], max_length: int) -> None:
        super().__init__(tokenizer, labels=labels, max_length=max_length)
        self._number = {label: i for i, label in enumerate(self.labels)}

    @classmethod
    def problems(cls, target: TargetTask) -> list[str]:
        """Two labels at least; records, and columns that are known."""
        columns = columns_within(target, COLUMNS, ["pair"])
        return [*count_labels(target, 2), *schemes_within(target, tuple(RECORDS)), *columns]

    @classmethod
    def label_set(cls, target: TargetTask) -> tuple[str, ...]:
        """The labels that the project file declares."""
        return target.labels

    @classmethod
    def new_model(cls, base: Base, labels: Sequence[str], *, seed: int) -> PreTrainedModel:
        """Load the base with a new classifier of sequences."""
        return base.sequence_classifier(labels, seed=seed)

    @classmethod
    def read(cls, target: TargetTask, source: Source, *, on_error: OnError | None = None) -> Iterator[TextRow]:
        """Read texts or pairs with their labels."""
        columns = COLUMNS | target.columns
        for record in read_records(source, on_error=on_error):
            try:
                label = record.text(columns["label"])
                pair = record.text(columns["pair"]) if "pair" in columns else None
                text = record.text(columns["text"])
            except RowError as error:
                if on_error is None:
                    raise
                on_error(error)
                continue
            yield TextRow(text, pair, target.relabel.get(label, label), record.line, record.source)

    @classmethod
    def texts(cls, row: TextRow) -> tuple[str, ...]:
        """The text, or both of the pair."""
        return (row.text,) if row.pair is None else (row.text, row.pair)

    @classmethod
    def sentence(cls, row: TextRow) -> Sentence:
        """All words and the label; an empty text is a problem."""
        words = [word for text in cls.texts(row) for word in text.split()]
        empty = [name for name, text in (("text", row.text), ("pair", row.pair)) if text == ""]
        problems = {"empty_text_share": f"{' and '.join(empty)} empty in {' | '.join(cls.texts(row))}"} if empty else {}
        return Sentence(PurePosixPath(row.source).name, row.line, words, (row.label,), problems)

    def examples(self, rows: Iterable[TextRow]) -> list[ClassifiedText]:
        """Turn rows into examples.

        Raises:
            SourceError: a label is not in the label set.
        """
        made = []
        for number, row in enumerate(rows):
            if row.label not in self._number:
                raise SourceError(
                    f"{row.source}:{row.line}: label {row.label!r} is not in the label set ({', '.join(self.labels)})"
                )
            encoded = self._tokenizer(row.text, row.pair, truncation="longest_first", max_length=self._max_length)
            types = encoded.get("token_type_ids", ())
            made.append(ClassifiedText(number, tuple(encoded["input_ids"]), tuple(types), self._number[row.label]))
        return made

    @classmethod
    def majority(cls, rows: Iterable[TextRow]) -> str | None:
        """Give the most frequent label; of equally frequent ones the first in the alphabet."""
        return most_frequent((row.label,) for row in rows)

    def majority_score(self, answer: str, examples: Sequence[ClassifiedText]) -> float:
        """Give the accuracy of always answering the same."""
        right = sum(example.label == self._number[answer] for example in examples)
        return right / max(1, len(examples))

    def collate(self, examples: Sequence[ClassifiedText], generator: Generator) -> dict[str, Tensor]:
        """Pad to the longest.

        `input_ids`, `attention_mask` and, where there are, `token_type_ids` are (batch, length), `labels` (batch,).
        """
        rows = [e.input_ids for e in examples]
        pad: int = self._tokenizer.pad_token_id
        batch = {"input_ids": padded(rows, pad), "attention_mask": attention(rows)}
        if examples[0].type_ids:
            batch["token_type_ids"] = padded([e.type_ids for e in examples], 0)
        return {**batch, "labels": torch.tensor([e.label for e in examples])}

    def words(self, example: ClassifiedText) -> list[tuple[int, int]]:
        """Give the sub-words of each word, as (first, last + 1), by the marks of the tokenizer."""
        return words_by_marks(self._tokenizer, example.input_ids)

    def respelled(self, example: ClassifiedText, words: Sequence[tuple[int, ...]]) -> ClassifiedText:
        """Give the example with other sub-words for its words."""
        spans = self.words(example)
        types = [
            [example.type_ids[a]] * len(word) for (a, _), word in zip(spans, words, strict=True) if example.type_ids
        ]
        ids = spliced(example.input_ids, spans, words)
        return replace(example, input_ids=ids, type_ids=spliced(example.type_ids, spans, types) if types else ())

    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Give the logits, (batch, labels), in float32."""
        return (self._logits(model, batch),)

    def loss_of(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor]) -> Tensor:
        """Give the mean cross-entropy, in nats."""
        return functional.cross_entropy(scores[0], batch["labels"])

    def beliefs(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor], stretches: Tensor) -> list[Belief]:
        """Give the log-probabilities of the labels of each example."""
        return [(1.0, functional.log_softmax(scores[0], dim=-1))]

    @staticmethod
    def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits: Tensor = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return logits.float()

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, examples: Sequence[ClassifiedText]) -> Evaluation:
        """Give the accuracy, and beside it the mean over labels of their F1."""
        device = next(model.parameters()).device
        answers: dict[int, tuple[int, int]] = {}
        loss = 0.0
        for chunk in like_lengths(examples):
            batch = {k: v.to(device) for k, v in self.collate(chunk, torch.Generator()).items()}
            logits = self._logits(model, batch)
            loss += float(functional.cross_entropy(logits, batch["labels"], reduction="sum"))
            for example, answer in zip(chunk, logits.argmax(-1).tolist(), strict=True):
                answers[example.sentence] = (example.label, answer)
        ordered = [answers[i] for i in sorted(answers)]
        count = max(len(ordered), 1)
        accuracy = sum(gold == answer for gold, answer in ordered) / count
        metrics = {
            "accuracy": accuracy,
            "macro_f1": macro_f1(ordered),
            "loss": loss / count,
            "size": float(len(ordered)),
        }
        return Evaluation(accuracy, metrics, tuple((int(gold == answer), 1) for gold, answer in ordered))


def macro_f1(answers: Sequence[tuple[int, int]]) -> float:
    """Average the F1 of the labels that occur among gold labels or answers, (gold, answer) each; 0 without any."""
    gold, found = Counter(g for g, _ in answers), Counter(a for _, a in answers)
    hits = Counter(g for g, a in answers if g == a)
    scores = [2 * hits[label] / (gold[label] + found[label]) for label in gold.keys() | found.keys()]
    return sum(scores) / len(scores) if scores else 0.0
