"""Dependency parsing: the head of each word and its relation, scored as the CoNLL 2018 shared task does on gold words.

Zeman et al. 2018, «CoNLL 2018 Shared Task», section 4: LAS is the share of syntactic words with the right head and the
right universal relation; punctuation counts, and what follows a colon in a relation does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from ltsft.base import Base
from ltsft.config import Source, TargetTask
from ltsft.data import WORD_MEASURES, OnError, Row, Sentence, read_rows
from ltsft.errors import SourceError
from ltsft.objectives.demands import no_columns, schemes_within
from ltsft.objectives.lengths import attention, like_lengths, padded
from ltsft.objectives.objective import Belief, Evaluation, TargetObjective
from ltsft.objectives.spans import spliced
from ltsft.objectives.trees import best_tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ltsft.objectives.biaffine import BiaffineParser

IGNORE = -100
RELATIONS = (
    *("acl", "advcl", "advmod", "amod", "appos", "aux", "case", "cc", "ccomp", "clf", "compound", "conj", "cop"),
    *("csubj", "dep", "det", "discourse", "dislocated", "expl", "fixed", "flat", "goeswith", "iobj", "list", "mark"),
    *(
        "nmod",
        "nsubj",
        "nummod",
        "obj",
        "obl",
        "orphan",
        "parataxis",
        "punct",
        "reparandum",
        "root",
        "vocative",
        "xcomp",
    ),
)
"""The universal relations of UD v2; a project file that declares labels has its own."""


@dataclass(frozen=True)
class ParsedSentence:
    """A sentence as sub-words, with its tree.

    Attributes:
        sentence: number of the sentence.
        input_ids: sub-words with special tokens.
        places: for each sub-word the number of its word; 0 for the first special token, which stands for the root; -1
            for the last.
        heads: number of each word's head, 0 for the root.
        relations: number of each word's relation.
    """

    sentence: int
    input_ids: tuple[int, ...]
    places: tuple[int, ...]
    heads: tuple[int, ...]
    relations: tuple[int, ...]


class Parsed(NamedTuple):
    """What a parser found in a batch.

    Attributes:
        vectors: of the root and the words, (batch, words + 1, width).
        arcs: scores of all heads, (batch, words, words + 1).
        heads: of the best trees, (batch, words); 0 where there is no word.
        relations: scores of the relations to these heads, (number of words, relations), sentence after sentence.
    """

    vectors: Tensor
    arcs: Tensor
    heads: Tensor
    relations: Tensor


class DependencyParsing(TargetObjective):
    """Find the tree of a sentence.

    Args:
        tokenizer: the base's tokenizer.
        labels: the universal relations, in the order of the head's outputs.
        max_length: sub-words in a sentence. In a longer one each word keeps its first sub-words, as many as fit; words
            for which not one is left are parsed without.
    """

    metric: ClassVar[str] = "LAS"
    unit: ClassVar[str] = "words"
    shown: ClassVar[dict[str, str]] = {"uas": "UAS"}
    measures: ClassVar[frozenset[str]] = WORD_MEASURES - {"label_agreement"}
    example: ClassVar[type] = ParsedSentence
    reader: ClassVar[str] = "ltsft.serving.readers.trees:TreeReader"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str], max_length: int) -> None:
        super().__init__(tokenizer, labels=labels, max_length=max_length)
        self._number = {label: i for i, label in enumerate(self.labels)}

    @classmethod
    def problems(cls, target: TargetTask) -> list[str]:
        """Treebanks alone; labels without subtypes."""
        subtypes = [
            f"labels: objective dp takes universal relations, got {label!r}; leave out what follows the colon"
            for label in target.labels
            if ":" in label
        ]
        return [*subtypes, *schemes_within(target, ("conllu",)), *no_columns(target)]

    @classmethod
    def label_set(cls, target: TargetTask) -> tuple[str, ...]:
        """The declared relations, or the universal ones."""
        return target.labels or RELATIONS

    @classmethod
    def new_model(cls, base: Base, labels: Sequence[str], *, seed: int) -> PreTrainedModel:
        """Load the base with a new parser's head."""
        from ltsft.objectives.biaffine import new_parser  # loads transformers with its models

        return new_parser(base, labels, seed=seed)

    @classmethod
    def read(cls, target: TargetTask, source: Source, *, on_error: OnError | None = None) -> Iterator[Row]:
        """Read sentences with their trees."""
        return read_rows(source, on_error=on_error)

    @classmethod
    def texts(cls, row: Row) -> tuple[str, ...]:
        """The sentence."""
        return (row.text,)

    @classmethod
    def sentence(cls, row: Row) -> Sentence:
        """Words and their universal relations."""
        return Sentence(PurePosixPath(row.source).name, row.line, row.words, [universal(r) for r in row.deprels])

    def examples(self, rows: Iterable[Row]) -> list[ParsedSentence]:
        """Turn rows into examples.

        Raises:
            SourceError: a relation is not in the label set.
        """
        made = []
        for number, row in enumerate(rows):
            encoded = self._tokenizer([[w] for w in row.words], is_split_into_words=True, add_special_tokens=False)
            subwords = self._shortened(cast(list[list[int]], encoded["input_ids"]))
            ids = [self._tokenizer.cls_token_id, *(i for word in subwords for i in word), self._tokenizer.sep_token_id]
            places = [0, *(n for n, word in enumerate(subwords, start=1) for _ in word), -1]
            relations = tuple(self._relation(name, row) for name in row.deprels)
            made.append(ParsedSentence(number, tuple(ids), tuple(places), row.heads, relations))
        return made

    def _relation(self, name: str, row: Row) -> int:
        try:
            return self._number[universal(name)]
        except KeyError:
            raise SourceError(
                f"{row.source}:{row.line}: relation {name!r} is not in the label set ({', '.join(self.labels)})"
            ) from None

    def _shortened(self, subwords: list[list[int]]) -> list[list[int]]:
        room = self._max_length - 2
        most = max(map(len, subwords), default=0)
        while most > 1 and sum(min(len(word), most) for word in subwords) > room:
            most -= 1
        kept = [word[:most] for word in subwords]
        for place in range(len(kept)):
            kept[place] = kept[place][: max(room, 0)]
            room -= len(kept[place])
        return kept

    def collate(self, examples: Sequence[ParsedSentence], generator: Generator) -> dict[str, Tensor]:
        """Pad to the longest.

        Returns:
            `input_ids`, `attention_mask` and `places`, (batch, length); `heads` and `relations`, (batch, words), -100
            where there is no word.
        """
        rows = [e.input_ids for e in examples]
        pad: int = self._tokenizer.pad_token_id
        return {
            "input_ids": padded(rows, pad),
            "attention_mask": attention(rows),
            "places": padded([e.places for e in examples], -1),
            "heads": padded([e.heads for e in examples], IGNORE),
            "relations": padded([e.relations for e in examples], IGNORE),
        }

    def words(self, example: ParsedSentence) -> list[tuple[int, int]]:
        """Give the sub-words of each word that has one, as (first, last + 1)."""
        firsts = [i for i, place in enumerate(example.places) if place > 0 and place != example.places[i - 1]]
        return list(pairwise([*firsts, len(example.input_ids) - 1])) if firsts else []

    def respelled(self, example: ParsedSentence, words: Sequence[tuple[int, ...]]) -> ParsedSentence:
        """Give the sentence with other sub-words for its words."""
        spans = self.words(example)
        places = [[example.places[a]] * len(word) for (a, _), word in zip(spans, words, strict=True)]
        ids = spliced(example.input_ids, spans, words)
        return replace(example, input_ids=ids, places=spliced(example.places, spans, places))

    def scores(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Score all heads, and the relations to the gold heads: (batch, words, words + 1), (words, relations)."""
        return self._scores(cast("BiaffineParser", model), batch)

    def beliefs(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor], stretches: Tensor) -> list[Belief]:
        """Give the log-probabilities of the heads of each word, and of the relations to its gold head."""
        arcs, relations = scores
        heads = functional.log_softmax(arcs[batch["heads"] != IGNORE], dim=-1)
        return [(1.0, heads), (1.0, functional.log_softmax(relations, dim=-1))]

    def loss_of(self, scores: tuple[Tensor, ...], batch: dict[str, Tensor]) -> Tensor:
        """Give the cross-entropy of heads plus that of relations to the gold heads, means over words, in nats."""
        arcs, relations = scores
        where = batch["heads"] != IGNORE
        arc_loss = functional.cross_entropy(arcs[where], batch["heads"][where])
        return arc_loss + functional.cross_entropy(relations, batch["relations"][where])

    def _scores(self, parser: BiaffineParser, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Score all heads, and the relations to the gold heads: (batch, words, words + 1), (words, relations)."""
        vectors = self._vectors(parser, batch)
        where = batch["heads"] != IGNORE
        heads = batch["heads"].clamp(min=0)
        return self._arcs(parser, vectors, where), parser.relation_scores(vectors, heads, where)

    @staticmethod
    def _vectors(parser: BiaffineParser, batch: dict[str, Tensor]) -> Tensor:
        count = batch["heads"].shape[1]
        return parser.words(batch["input_ids"], batch["attention_mask"], batch["places"], count=count)

    @staticmethod
    def _arcs(parser: BiaffineParser, vectors: Tensor, where: Tensor) -> Tensor:
        """Score all heads; those that are padding are impossible."""
        is_head = functional.pad(where, (1, 0), value=True)  # (batch, words + 1)
        return parser.arc_scores(vectors).masked_fill(~is_head.unsqueeze(1), -torch.inf)

    def parse(self, parser: BiaffineParser, batch: dict[str, Tensor], examples: Sequence[ParsedSentence]) -> Parsed:
        """Find the best trees with a single root, and score the relations to the heads in them.

        Args:
            parser: the model.
            batch: of the examples, from `collate`.
            examples: sentences; of their heads only the number counts.
        """
        vectors = self._vectors(parser, batch)
        where = batch["heads"] != IGNORE
        arcs = self._arcs(parser, vectors, where)
        heads = self._trees(arcs, examples).to(arcs.device)
        return Parsed(vectors, arcs, heads, parser.relation_scores(vectors, heads, where))

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, examples: Sequence[ParsedSentence]) -> Evaluation:
        """Give LAS, and UAS beside it, of the best trees with a single root and the best relations to their heads.

        Outcomes are (words with the right head and relation, words).
        """
        parser = cast("BiaffineParser", model)
        device = next(model.parameters()).device
        counted: dict[int, tuple[int, int, int]] = {}
        loss = 0.0
        for chunk in like_lengths(examples):
            batch = {k: v.to(device) for k, v in self.collate(chunk, torch.Generator()).items()}
            where = batch["heads"] != IGNORE
            parsed = self.parse(parser, batch, chunk)
            gold = parser.relation_scores(parsed.vectors, batch["heads"].clamp(min=0), where)
            loss += float(functional.cross_entropy(parsed.arcs[where], batch["heads"][where], reduction="sum"))
            loss += float(functional.cross_entropy(gold, batch["relations"][where], reduction="sum"))
            found = torch.full_like(batch["relations"], IGNORE)
            found[where] = parsed.relations.argmax(-1)
            has_head = (parsed.heads == batch["heads"]) & where
            has_both = has_head & (found == batch["relations"])
            for example, both, head in zip(chunk, has_both.sum(1).tolist(), has_head.sum(1).tolist(), strict=True):
                counted[example.sentence] = (both, head, len(example.heads))
        return _attachment(counted, loss)

    @staticmethod
    def _trees(arcs: Tensor, chunk: Sequence[ParsedSentence]) -> Tensor:
        """Give the heads of the best trees, (batch, words), 0 where there is no word."""
        logs: Any = functional.log_softmax(arcs, dim=-1).double().cpu().numpy()
        sizes = [len(example.heads) for example in chunk]
        return padded([best_tree(log[:size, : size + 1]) for log, size in zip(logs, sizes, strict=True)], 0)


def _attachment(counted: dict[int, tuple[int, int, int]], loss: float) -> Evaluation:
    ordered = [counted[i] for i in sorted(counted)]
    both, head, words = (sum(column) for column in zip(*ordered, strict=True)) if ordered else (0, 0, 0)
    metrics = {
        "las": both / max(words, 1),
        "uas": head / max(words, 1),
        "loss": loss / max(words, 1),
        "words": float(words),
        "size": float(words),
    }
    return Evaluation(score=metrics["las"], metrics=metrics, outcomes=tuple((b, w) for b, _, w in ordered))


def universal(relation: str) -> str:
    """Give the universal part of a relation: ``nsubj`` of ``nsubj:pass``."""
    return relation.partition(":")[0]
