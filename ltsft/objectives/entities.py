"""Named entities: BIO labels on words, scored by whole entities as seqeval counts them (CoNLL-2003's convention)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch.nn import functional

from ltsft.config import Source, TargetTask
from ltsft.data import OnError, Sentence, TaggedRow, read_tagged
from ltsft.objectives.demands import count_labels, no_columns, schemes_within
from ltsft.objectives.objective import Evaluation
from ltsft.objectives.token_classification import IGNORE, TaggedPiece, TokenClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTSIDE = "O"


@dataclass(frozen=True)
class EntityPiece(TaggedPiece):
    """A piece of a sentence with what its words are.

    Attributes:
        gold: number of the label of each word, also of those without a sub-word.
        has_subword: 1 for the words that have one, 0 for the others.
    """

    gold: tuple[int, ...]
    has_subword: tuple[int, ...]

    def spread(self, answers: Sequence[int]) -> list[int]:
        """Give a label to each word from those of the words that have a sub-word; the others are in no entity, 0."""
        left = iter(answers)
        return [next(left) if has else 0 for has in self.has_subword]


class NamedEntities(TokenClassification):
    """Find entities: a word begins one (``B-PER``), continues one (``I-PER``) or is in none (``O``).

    The project file declares the types of entities; a type that only some data have can be read as ``O`` with
    `relabel` (``{DATE: O}``).
    """

    metric: ClassVar[str] = "entity F1"
    unit: ClassVar[str] = "entities"
    shown: ClassVar[dict[str, str]] = {"precision": "precision", "recall": "recall"}
    measures: ClassVar[frozenset[str]] = TokenClassification.measures | {"bio_break_share"}
    background: ClassVar[str] = OUTSIDE
    example: ClassVar[type] = EntityPiece
    reader: ClassVar[str] = "ltsft.serving.readers.words:EntityReader"

    @classmethod
    def problems(cls, target: TargetTask) -> list[str]:
        """One type of entity at least, without prefix; columns."""
        prefixed = [label for label in target.labels if label == OUTSIDE or label[:2] in ("B-", "I-")]
        types = [f"labels: objective ner takes types of entities, such as PER, got {label!r}" for label in prefixed]
        return [*count_labels(target, 1), *types, *schemes_within(target, ("conll",)), *no_columns(target)]

    @classmethod
    def label_set(cls, target: TargetTask) -> tuple[str, ...]:
        """``O``, and the two labels of each type."""
        return (OUTSIDE, *(f"{prefix}-{kind}" for kind in target.labels for prefix in "BI"))

    @classmethod
    def read(cls, target: TargetTask, source: Source, *, on_error: OnError | None = None) -> Iterator[TaggedRow]:
        """Read sentences; `relabel` is over types of entities."""
        names: dict[str, str] = {}
        for kind, name in target.relabel.items():
            names |= {f"{p}-{kind}": OUTSIDE if name == OUTSIDE else f"{p}-{name}" for p in "BI"}
        for row in read_tagged(source, on_error=on_error):
            yield row.relabelled(names)

    @classmethod
    def sentence(cls, row: TaggedRow) -> Sentence:
        """Words and their labels; a label that continues nothing is a problem."""
        found = super().sentence(row)
        broken = bio_break(row.labels)
        if broken is None:
            return found
        before = row.labels[broken - 1] if broken else "nothing"
        told = f"{row.labels[broken]} at word {broken + 1}, {row.words[broken]!r}, follows {before}"
        return found._replace(problems={"bio_break_share": told})

    @classmethod
    def majority(cls, rows: Iterable[TaggedRow]) -> str | None:
        """Nothing: what is most frequent is no entity."""
        return None

    def _piece(self, sentence: int, subwords: Sequence[Sequence[int]], labels: Sequence[str]) -> EntityPiece:
        piece = super()._piece(sentence, subwords, labels)
        has_subword = tuple(int(bool(word)) for word in subwords)
        gold = tuple(self._number[label] for label in labels)
        return EntityPiece(piece.sentence, piece.input_ids, piece.labels, piece.words, gold, has_subword)

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, examples: Sequence[TaggedPiece]) -> Evaluation:
        """Give the micro-averaged F1 over entities; one counts when its type and both its ends are right.

        Labels that break BIO are read as seqeval does by default, as CoNLL's script did: an ``I-`` that continues
        nothing begins an entity. A word without a sub-word is taken to be in none.
        """
        pieces = cast(Sequence[EntityPiece], examples)
        answers: dict[int, list[int]] = {}
        total_loss, labelled = 0.0, 0
        for chunk, labels, logits in self._forward(model, examples):
            where = labels != IGNORE
            total_loss += float(functional.cross_entropy(logits[where], labels[where], reduction="sum"))
            labelled += int(where.sum())
            for piece, firsts, best in zip(chunk, where, logits.argmax(-1), strict=True):
                answers[id(piece)] = best[firsts].tolist()
        sentences: dict[int, tuple[list[str], list[str]]] = {}
        for piece in pieces:
            gold, found = sentences.setdefault(piece.sentence, ([], []))
            gold += [self.labels[i] for i in piece.gold]
            found += [self.labels[i] for i in piece.spread(answers[id(piece)])]
        return entity_evaluation([sentences[i] for i in sorted(sentences)], loss=total_loss / max(labelled, 1))


def entity_evaluation(sentences: Sequence[tuple[list[str], list[str]]], *, loss: float) -> Evaluation:
    """Count entities by sentence, each (gold labels, found labels), and put together F1, precision and recall."""
    from seqeval.metrics.sequence_labeling import get_entities  # loads sklearn

    outcomes = []
    hits = looked_for = found = 0
    for gold, answer in sentences:
        wanted, given = set(get_entities(gold)), set(get_entities(answer))
        right = len(wanted & given)
        outcomes.append((2 * right, len(wanted) + len(given)))
        hits, looked_for, found = hits + right, looked_for + len(wanted), found + len(given)
    f1 = 2 * hits / max(looked_for + found, 1)
    metrics = {
        "f1": f1,
        "precision": hits / max(found, 1),
        "recall": hits / max(looked_for, 1),
        "loss": loss,
        "words": float(sum(len(gold) for gold, _ in sentences)),
        "size": float(looked_for),
    }
    return Evaluation(score=f1, metrics=metrics, outcomes=tuple(outcomes))


def bio_break(labels: Sequence[str]) -> int | None:
    """Give the place of the first label that continues nothing, or None: ``I-X`` follows ``B-X`` or ``I-X`` alone."""
    before = OUTSIDE
    for place, label in enumerate(labels):
        if label.startswith("I-") and (before == OUTSIDE or before[2:] != label[2:]):
            return place
        before = label
    return None
