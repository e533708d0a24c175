"""Reading dependency trees: a text is taken for one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from transformers import AutoModelForTokenClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ltsft.data import Row
from ltsft.objectives import OBJECTIVES, BiaffineParser, DependencyParsing, ParsedSentence, universal
from ltsft.release import Composition
from ltsft.serving.answers import (
    TOKENIZING,
    Input,
    Output,
    Prepared,
    RefusedInputError,
    find_words,
    refuse_form,
    refuse_long,
)
from ltsft.serving.limits import Limits
from ltsft.serving.readers.words import refuse_other_words
from ltsft.serving.results import ParsedResult, ParsedWord, Result

__all__ = ["TreeReader"]


class TreeReader:
    """Find the head and the relation of each word.

    Args:
        tokenizer: the base's tokenizer.
        composition: what answers: its labels, the relations, and its `max_length`. In a longer sentence words lose
            their last sub-words, as when the task was scored; one with more words than that is refused.
        limits: of the server.
    """

    forms = ("text", "words")
    result: ClassVar[type[Result]] = ParsedResult
    inputs: ClassVar[Mapping[str, Any]] = {"text": str, "words": [str]}
    outputs: ClassVar[Mapping[str, Any]] = {"words": [str], "heads": [int], "labels": [str], "scores": [float]}

    def __init__(self, tokenizer: PreTrainedTokenizerBase, composition: Composition, limits: Limits) -> None:
        self.labels = composition.labels
        self._tokenizer = tokenizer
        self._max_length = composition.max_length
        self._language = composition.language
        objective = cast(type[DependencyParsing], OBJECTIVES[composition.objective])
        self._objective = objective(tokenizer, labels=self.labels, max_length=self._max_length)
        self._limits = limits

    def build_shell(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Build a parser."""
        return BiaffineParser(AutoModelForTokenClassification.from_config(config))

    def prepare(self, item: Input) -> Prepared:
        """Split a text into words if that is not done, and words into sub-words."""
        refuse_form(item, self.forms)
        words, spans = find_words(item, self._limits, self._language)
        most = self._max_length - 2
        if len(words) > most:
            raise RefusedInputError(f"the sentence has {len(words)} words, the parser takes {most} at most; split it")
        blank = Row(words, ("X",) * len(words), (0,) * len(words), self.labels[:1] * len(words), 0, "a request")
        with TOKENIZING:
            [piece] = self._objective.examples([blank])
            whole = self._tokenizer([[w] for w in words], is_split_into_words=True, add_special_tokens=False)
        is_cut = sum(map(len, whole["input_ids"])) > len(piece.input_ids) - 2
        if is_cut:
            refuse_long(self._limits, self._max_length)
        return Prepared(item, (piece,), words, spans, is_cut)

    def forward(self, model: PreTrainedModel, pieces: Sequence[ParsedSentence]) -> list[Output]:
        """Give heads (words,), their log-probabilities (words,) and logits of relations (words, labels)."""
        batch = self._objective.collate(pieces, torch.Generator())
        parsed = self._objective.parse(cast(BiaffineParser, model), batch, pieces)
        chances = torch.log_softmax(parsed.arcs, dim=-1).gather(2, parsed.heads.unsqueeze(2)).squeeze(2)
        sizes = [len(piece.heads) for piece in pieces]
        relations = parsed.relations.split(sizes)
        return [
            (parsed.heads[i, :size], chances[i, :size], relation)
            for i, (size, relation) in enumerate(zip(sizes, relations, strict=True))
        ]

    def read(self, prepared: Prepared, outputs: Sequence[Output]) -> ParsedResult:
        """Give each word its head in the best tree, and the most probable relation to it."""
        [(heads, chances, relations)] = outputs
        scores, labels = torch.log_softmax(relations, dim=-1).max(dim=-1)  # (words,)
        together = (chances + scores).exp()
        spans: Sequence[tuple[int | None, int | None]] = prepared.spans or [(None, None)] * len(prepared.words)
        words = [
            ParsedWord(text=word, start=start, end=end, head=head, label=self.labels[label], score=score)
            for word, (start, end), head, label, score in zip(
                prepared.words, spans, heads.tolist(), labels.tolist(), together.tolist(), strict=True
            )
        ]
        return ParsedResult(words=words, is_cut=prepared.is_cut)

    @staticmethod
    def asked(row: Row) -> Input:
        """Give the words."""
        return Input(words=row.words)

    @staticmethod
    def right(row: Row, answer: Mapping[str, Any]) -> tuple[float, float]:
        """Count the words with the right head and the right universal relation."""
        refuse_other_words(row.words, answer["heads"])
        gold = [(head, universal(relation)) for head, relation in zip(row.heads, row.deprels, strict=True)]
        given = zip(answer["heads"], answer["labels"], strict=True)
        return float(sum((int(h), r) == want for (h, r), want in zip(given, gold, strict=True))), float(len(gold))
