"""Reading texts word by word: a label for each word, and entities from such labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import AutoModelForTokenClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ltsft.data import TaggedRow
from ltsft.objectives import OUTSIDE, attention, entity_evaluation, padded
from ltsft.release import Composition
from ltsft.serving.answers import TOKENIZING, Input, Output, Prepared, find_words, refuse_form, refuse_long
from ltsft.serving.limits import Limits
from ltsft.serving.results import EntitiesResult, Entity, Result, TaggedResult, Word

__all__ = ["EntityReader", "TokenPiece", "TokenReader"]


@dataclass(frozen=True)
class TokenPiece:
    """A text, or a part of a long one.

    Attributes:
        input_ids: sub-words with special tokens.
        firsts: place of the first sub-word of each word of the piece; None for a word that has none.
    """

    input_ids: tuple[int, ...]
    firsts: tuple[int | None, ...]


class TokenReader:
    """Label each word of a text.

    Args:
        tokenizer: the base's tokenizer.
        composition: what answers: its labels, and its `max_length`, beyond which a text is cut between words, as when
            the task was learnt.
        limits: of the server.
    """

    forms = ("text", "words")
    result: ClassVar[type[Result]] = TaggedResult
    inputs: ClassVar[Mapping[str, Any]] = {"text": str, "words": [str]}
    outputs: ClassVar[Mapping[str, Any]] = {"words": [str], "labels": [str], "scores": [float]}

    def __init__(self, tokenizer: PreTrainedTokenizerBase, composition: Composition, limits: Limits) -> None:
        self.labels = composition.labels
        self._tokenizer = tokenizer
        self._max_length = composition.max_length
        self._language = composition.language
        self._limits = limits

    def build_shell(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Build a token classifier."""
        shell: PreTrainedModel = AutoModelForTokenClassification.from_config(config)
        return shell

    def prepare(self, item: Input) -> Prepared:
        """Split a text into words if that is not done, words into sub-words, and these into pieces."""
        refuse_form(item, self.forms)
        words, spans = find_words(item, self._limits, self._language)
        pieces = tuple(self._pieces(self._subwords(words)))
        if len(pieces) > 1:
            refuse_long(self._limits, self._max_length)
        return Prepared(item, pieces, words, spans)

    def forward(self, model: PreTrainedModel, pieces: Sequence[TokenPiece]) -> list[Output]:
        """Give logits, (length, labels) for each piece; behind its end they mean nothing."""
        rows = [piece.input_ids for piece in pieces]
        pad: int = self._tokenizer.pad_token_id
        logits = model(input_ids=padded(rows, pad), attention_mask=attention(rows)).logits
        return [(row,) for row in logits]

    def read(self, prepared: Prepared, outputs: Sequence[Output]) -> TaggedResult | EntitiesResult:
        """Give each word its most probable label, and the probability of it at the word's first sub-word."""
        return TaggedResult(words=self._words(prepared, outputs), pieces=len(prepared.pieces))

    @staticmethod
    def asked(row: TaggedRow) -> Input:
        """Give the words."""
        return Input(words=row.words)

    @staticmethod
    def right(row: TaggedRow, answer: Mapping[str, Any]) -> tuple[float, float]:
        """Count the words with the right label."""
        labels = answer["labels"]
        refuse_other_words(row.words, labels)
        return float(sum(a == b for a, b in zip(labels, row.labels, strict=True))), float(len(labels))

    def _words(self, prepared: Prepared, outputs: Sequence[Output]) -> list[Word]:
        found: list[tuple[str | None, float | None]] = []
        for piece, (logits,) in zip(prepared.pieces, outputs, strict=True):
            scores, labels = torch.softmax(logits.float(), dim=-1).max(dim=-1)  # (length,)
            for first in piece.firsts:
                if first is None:
                    found.append((None, None))
                else:
                    found.append((self.labels[int(labels[first])], float(scores[first])))
        spans: Sequence[tuple[int | None, int | None]] = prepared.spans or [(None, None)] * len(found)
        return [
            Word(text=word, start=start, end=end, label=label, score=score)
            for word, (start, end), (label, score) in zip(prepared.words, spans, found, strict=True)
        ]

    def _subwords(self, words: Sequence[str]) -> list[list[int]]:
        with TOKENIZING:
            encoded = self._tokenizer([[w] for w in words], is_split_into_words=True, add_special_tokens=False)
        body = self._max_length - 2
        return [ids[:body] for ids in encoded["input_ids"]]

    def _pieces(self, subwords: Sequence[Sequence[int]]) -> list[TokenPiece]:
        """Cut between words wherever the next one would not fit."""
        start_id: int = self._tokenizer.cls_token_id
        end_id: int = self._tokenizer.sep_token_id
        pieces = []
        ids: list[int] = [start_id]
        firsts: list[int | None] = []
        for word in subwords:
            if len(ids) + len(word) > self._max_length - 1:
                pieces.append(TokenPiece((*ids, end_id), tuple(firsts)))
                ids, firsts = [start_id], []
            firsts.append(len(ids) if word else None)
            ids += word
        return [*pieces, TokenPiece((*ids, end_id), tuple(firsts))]


class EntityReader(TokenReader):
    """Find the entities of a text; labels that break BIO are read as the score reads them (seqeval's default)."""

    result: ClassVar[type[Result]] = EntitiesResult
    outputs: ClassVar[Mapping[str, Any]] = {
        **TokenReader.outputs,
        "entities": [{"text": str, "label": str, "start_word": int, "end_word": int}],
    }

    def read(self, prepared: Prepared, outputs: Sequence[Output]) -> EntitiesResult:
        """Give the entities, and the words with their labels; a word without a sub-word is in none."""
        from seqeval.metrics.sequence_labeling import get_entities  # loads sklearn

        words = self._words(prepared, outputs)
        labels = [word.label or OUTSIDE for word in words]
        entities = []
        for kind, first, last in get_entities(labels):
            inside = words[first : last + 1]
            start, end = inside[0].start, inside[-1].end
            text = " ".join(word.text for word in inside)
            if prepared.item.text is not None and start is not None and end is not None:
                text = prepared.item.text[start:end]
            scores = [word.score for word in inside if word.score is not None]
            place = {"start_word": first, "end_word": last + 1, "start": start, "end": end}
            entities.append(Entity(text=text, label=kind, score=min(scores, default=None), **place))
        return EntitiesResult(entities=entities, words=words, pieces=len(prepared.pieces))

    @staticmethod
    def right(row: TaggedRow, answer: Mapping[str, Any]) -> tuple[float, float]:
        """Count entities that were found, twice, and entities found or looked for."""
        labels = [label or OUTSIDE for label in answer["labels"]]
        refuse_other_words(row.words, labels)
        [(hits, counted)] = entity_evaluation([(list(row.labels), labels)], loss=0.0).outcomes
        return float(hits), float(counted)


def refuse_other_words(words: Sequence[str], answered: Sequence[Any]) -> None:
    """Refuse an answer with another number of words."""
    if len(words) != len(answered):
        raise ValueError(f"it labelled {len(answered)} words instead of {len(words)}")
