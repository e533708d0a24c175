"""Token classification with word-level labels on the first sub-word: part-of-speech tagging."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ltsft.base import Base
from ltsft.config import Source, TargetTask
from ltsft.data import WORD_MEASURES, OnError, Sentence, TaggedRow, read_rows, read_tagged
from ltsft.errors import SourceError
from ltsft.objectives.demands import count_labels, no_columns, schemes_within
from ltsft.objectives.lengths import attention, like_lengths, padded
from ltsft.objectives.objective import Belief, Evaluation, TargetObjective
from ltsft.objectives.spans import spliced

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORE = -100
SUBWORDS_AT_ONCE = 4096


@dataclass(frozen=True)
class TaggedPiece:
    """A sentence, or a piece of a long one, as sub-words.

    Attributes:
        sentence: number of the sentence that it belongs to.
        input_ids: sub-words with special tokens.
        labels: the label at the first sub-word of each word, -100 elsewhere.
        words: words of the piece, those without a sub-word included.
    """

    sentence: int
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    words: int


class TokenClassification(TargetObjective):
    """Label each word, as in part-of-speech tagging: ``conllu:`` (its universal tags) or ``conll:`` (the last column).

    Args:
        tokenizer: the base's tokenizer.
        labels: the label set, in the order of the head's outputs.
        max_length: sub-words in a piece; a longer sentence is cut between words, and no word is lost.
    """

    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "words"
    measures: ClassVar[frozenset[str]] = WORD_MEASURES
    example: ClassVar[type] = TaggedPiece
    reader: ClassVar[str] = "ltsft.serving.readers.words:TokenReader"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str], max_length: int) -> None:
        super().__init__(tokenizer, labels=labels, max_length=max_length)
        self._number = {label: i for i, label in enumerate(self.labels)}

    @classmethod
    def problems(cls, target: TargetTask) -> list[str]:
        """Two labels at least; treebanks or columns."""
        return [*count_labels(target, 2), *schemes_within(target, ("conllu", "conll")), *no_columns(target)]

    @classmethod
    def label_set(cls, target: TargetTask) -> tuple[str, ...]:
        """The labels that the project file declares."""
        return target.labels

    @classmethod
    def new_model(cls, base: Base, labels: Sequence[str], *, seed: int) -> PreTrainedModel:
        """Load the base with a new classifier of sub-words."""
        return base.token_classifier(labels, seed=seed)

    @classmethod
    def read(cls, target: TargetTask, source: Source, *, on_error: OnError | None = None) -> Iterator[TaggedRow]:
        """Read sentences with a label for each word."""
        if source.scheme == "conllu":
            found: Iterator[TaggedRow] = (
                TaggedRow(row.words, row.upos, row.line, row.source, row.text)
                for row in read_rows(source, on_error=on_error)
            )
        else:
            found = read_tagged(source, on_error=on_error)
        for row in found:
            yield row.relabelled(target.relabel)

    @classmethod
    def texts(cls, row: TaggedRow) -> tuple[str, ...]:
        """The sentence."""
        return (row.text,)

    @classmethod
    def sentence(cls, row: TaggedRow) -> Sentence:
        """Words and their labels."""
        return Sentence(PurePosixPath(row.source).name, row.line, row.words, row.labels)

    def examples(self, rows: Iterable[TaggedRow]) -> list[TaggedPiece]:
        """Turn rows into pieces; see `encode`.

        Raises:
            SourceError: a label is not in the label set.
        """
        return self.encode((row.words, row.labels) for row in map(self._known, rows))

    def _known(self, row: TaggedRow) -> TaggedRow:
        for label in row.labels:
            if label not in self._number:
                raise SourceError(
                    f"{row.source}:{row.line}: label {label!r} is not in the label set ({', '.join(self.labels)})"
                )
        return row

    @classmethod
    def majority(cls, rows: Iterable[TaggedRow]) -> str | None:
        """Give the most frequent label; of equally frequent ones the first in the alphabet."""
        return most_frequent(row.labels for row in rows)

    def majority_score(self, answer: str, examples: Sequence[TaggedPiece]) -> float:
        """Give the accuracy of calling every word the same."""
        right = sum(piece.labels.count(self._number[answer]) for piece in examples)
        return right / max(1, sum(piece.words for piece in examples))

    def encode(self, sentences: Iterable[tuple[Sequence[str], Sequence[str]]]) -> list[TaggedPiece]:
        """Turn sentences, (words, labels) each, into pieces.

        Raises:
            SourceError: a label is not in the label set.
        """
        pieces = []
        for number, (words, labels) in enumerate(sentences):
            encoded = self._tokenizer([[w] for w in words], is_split_into_words=True, add_special_tokens=False)
            subwords = [ids[: self._max_length - 2] for ids in encoded["input_ids"]]
            for start, stop in self._cuts(subwords):
                pieces.append(self._piece(number, subwords[start:stop], labels[start:stop]))
        return pieces

    def _cuts(self, subwords: Sequence[Sequence[int]]) -> Iterable[tuple[int, int]]:
        start, length = 0, 0
        for i, ids in enumerate(subwords):
            if length + len(ids) > self._max_length - 2:
                yield start, i
                start, length = i, 0
            length += len(ids)
        if start < len(subwords):
            yield start, len(subwords)

    def _piece(self, sentence: int, subwords: Sequence[Sequence[int]], labels: Sequence[str]) -> TaggedPiece:
        ids: list[int] = [self._tokenizer.cls_token_id]
        targets = [IGNORE]
        for word, label in zip(subwords, labels, strict=True):
            if label not in self._number:
                raise SourceError(f"label {label!r} is not in the label set ({', '.join(self.labels)})")
            ids += word
            targets += [self._number[label], *[IGNORE] * (len(word) - 1)] if word else []
        ids.append(self._tokenizer.sep_token_id)
        targets.append(IGNORE)
        return TaggedPiece(sentence, tuple(ids), tuple(targets), len(subwords))

    def collate(self, examples: Sequence[TaggedPiece], generator: Generator) -> dict[str, Tensor]:
        """Pad to the longest: `input_ids`, `attention_mask` and `labels`, all (batch, length)."""
        rows = [e.input_ids for e in examples]
        pad: int = self._tokenizer.pad_token_id
        labels = padded([e.labels for e in examples], IGNORE)
        return {"input_ids": padded(rows, pad), "attention_mask": attention(rows), "labels": labels}

    def words(self, example: TaggedPiece) -> list[tuple[int, int]]:
        """Give the sub-words of each word that has one, as (first, last + 1)."""
        firsts = [place for place, label in enumerate(example.labels) if label != IGNORE]
        return list(pairwise([*firsts, len(example.input_ids) - 1])) if firsts else []

    def respelled(self, example: TaggedPiece, words: Sequence[tuple[int, ...]]) -> TaggedPiece:
        """Give the piece with other sub-words for its words; the label goes to the first of each."""
        spans = self.words(example)
        labels = [(example.labels[a], *[IGNORE] * (len(word) - 1)) for (a, _), word in zip(spans, words, strict=True)]
        ids = spliced(example.input_ids, spans, words)
        return replace(example, input_ids=ids, labels=spliced(example.labels, spans, labels))

    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Give the logits, (batch, length, labels), in float32."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return (logits.float(),)

    def beliefs(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor], stretches: Tensor) -> list[Belief]:
        """Give the log-probabilities of the labels of each word, at its first sub-word."""
        return [(1.0, functional.log_softmax(scores[0][batch["labels"] != IGNORE], dim=-1))]

    def loss_of(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor]) -> Tensor:
        """Give the mean cross-entropy over labelled words, in nats; 0 where no word of the batch has a sub-word."""
        labels = batch["labels"].flatten()
        total = functional.cross_entropy(scores[0].flatten(0, 1), labels, ignore_index=IGNORE, reduction="sum")
        return total / (labels != IGNORE).sum().clamp(min=1)

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, examples: Sequence[TaggedPiece]) -> Evaluation:
        """Give the accuracy over words; a word without a sub-word counts as wrong."""
        outcomes: dict[int, list[int]] = {}
        total_loss, labelled = 0.0, 0
        for chunk, labels, logits in self._forward(model, examples):
            where = labels != IGNORE
            total_loss += float(functional.cross_entropy(logits[where], labels[where], reduction="sum"))
            labelled += int(where.sum())
            correct = ((logits.argmax(-1) == labels) & where).sum(1).tolist()
            for example, right in zip(chunk, correct, strict=True):
                so_far = outcomes.setdefault(example.sentence, [0, 0])
                so_far[0] += right
                so_far[1] += example.words
        right = sum(o[0] for o in outcomes.values())
        words = sum(o[1] for o in outcomes.values())
        accuracy = right / max(words, 1)
        metrics = {
            "accuracy": accuracy,
            "loss": total_loss / max(labelled, 1),
            "words": float(words),
            "size": float(words),
        }
        ordered = tuple((outcomes[i][0], outcomes[i][1]) for i in sorted(outcomes))
        return Evaluation(score=accuracy, metrics=metrics, outcomes=ordered)

    def _forward(
        self, model: PreTrainedModel, examples: Sequence[TaggedPiece]
    ) -> Iterator[tuple[list[TaggedPiece], Tensor, Tensor]]:
        """Yield pieces with their labels, (pieces, length), and logits on the CPU, (pieces, length, labels)."""
        device = next(model.parameters()).device
        for chunk in self._batches(examples):
            batch = self.collate(chunk, torch.Generator())
            inputs: dict[str, Any] = {k: v.to(device) for k, v in batch.items() if k != "labels"}
            yield chunk, batch["labels"], model(**inputs).logits.float().cpu()

    def _batches(self, examples: Sequence[TaggedPiece]) -> Iterable[list[TaggedPiece]]:
        return like_lengths(examples, subwords_at_once=SUBWORDS_AT_ONCE)


def most_frequent(labels: Iterable[Sequence[str]]) -> str:
    """Give the most frequent label; of equally frequent ones the first in the alphabet."""
    counts = Counter(label for sentence in labels for label in sentence)
    return min(counts, key=lambda label: (-counts[label], label))
