"""How a request becomes pieces for the model, and how the model's output becomes an answer. One class an objective.

A new kind of target task is one class here (or a file of its own) and one line in `READERS`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltsft.base import Base
from ltsft.errors import LtsftError
from ltsft.release import Composition
from ltsft.serving.limits import Limits
from ltsft.serving.words import split_words

__all__ = ["READERS", "Input", "Piece", "Prepared", "Reader", "RefusedInputError", "TaggedWord", "TokenReader"]


class RefusedInputError(LtsftError):
    """A text cannot be answered: it has no words, or is longer than the limits allow."""


@dataclass(frozen=True)
class Input:
    """One text of a request: as raw text, or as words that the caller has split."""

    text: str | None = None
    words: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Piece:
    """What goes through the model as one row.

    Attributes:
        input_ids: sub-words with special tokens.
        firsts: place of the first sub-word of each word of the piece; None for a word that has none.
    """

    input_ids: tuple[int, ...]
    firsts: tuple[int | None, ...]


@dataclass(frozen=True)
class Prepared:
    """A text that is ready for the model: its words with their offsets, and its pieces."""

    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...] | None
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class TaggedWord:
    """A word with its label and the model's probability of it; both are None for a word without a sub-word."""

    text: str
    start: int | None
    end: int | None
    label: str | None
    score: float | None


class Reader(Protocol):
    """What a server needs to know of an objective."""

    @property
    def architecture(self) -> str:
        """Name of the model class: releases with the same one share a resident base."""
        ...

    def build_model(self, base: Base) -> PreTrainedModel:
        """Load the base with the head of this objective."""
        ...

    def prepare(self, item: Input) -> Prepared:
        """Turn a text into pieces.

        Raises:
            RefusedInputError: it has no words, or is longer than the limits allow.
        """
        ...

    def collate(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """Make a batch."""
        ...

    def read(self, prepared: Prepared, logits: Sequence[Tensor]) -> list[TaggedWord]:
        """Turn the logits of the pieces of a text into its answer."""
        ...


class TokenReader:
    """Label each word of a text.

    Args:
        tokenizer: the base's tokenizer.
        labels: of the head, in the order of its outputs.
        max_length: sub-words in a piece; a longer text is cut between words, as when the task was learnt.
        limits: of the server.
    """

    architecture = "token classification"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str], max_length: int, limits: Limits
    ) -> None:
        self.labels = tuple(labels)
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._limits = limits

    def build_model(self, base: Base) -> PreTrainedModel:
        """Load the base with a token classifier; its head is replaced by the release's."""
        return base.token_classifier(self.labels, seed=0)

    def prepare(self, item: Input) -> Prepared:
        """Split a text into words if that is not done, words into sub-words, and these into pieces."""
        spans = None
        if item.words is not None:
            words = item.words
        else:
            text = item.text or ""
            spans = tuple(split_words(text))
            words = tuple(text[start:end] for start, end in spans)
        if not words:
            raise RefusedInputError("the text has no words")
        if len(words) > self._limits.max_words:
            raise RefusedInputError(f"the text has {len(words)} words, at most {self._limits.max_words} are allowed")
        pieces = tuple(self._pieces(self._subwords(words)))
        if len(pieces) > 1 and self._limits.long_texts == "refuse":
            raise RefusedInputError(
                f"the text is longer than the {self._max_length} sub-words that the model takes; send it in parts"
            )
        return Prepared(words, spans, pieces)

    def collate(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """Pad to the longest: `input_ids` and `attention_mask`, both (batch, length), int64."""
        longest = max(len(piece.input_ids) for piece in pieces)
        pad: int = self._tokenizer.pad_token_id
        ids = torch.full((len(pieces), longest), pad)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece.input_ids)] = torch.tensor(piece.input_ids)
        lengths = torch.tensor([len(piece.input_ids) for piece in pieces]).unsqueeze(1)
        return {"input_ids": ids, "attention_mask": (torch.arange(longest) < lengths).long()}

    def read(self, prepared: Prepared, logits: Sequence[Tensor]) -> list[TaggedWord]:
        """Give each word its most probable label, and the probability of it at the word's first sub-word."""
        found: list[tuple[str | None, float | None]] = []
        for piece, values in zip(prepared.pieces, logits, strict=True):
            scores, labels = torch.softmax(values.float(), dim=-1).max(dim=-1)  # (length,)
            for first in piece.firsts:
                if first is None:
                    found.append((None, None))
                else:
                    found.append((self.labels[int(labels[first])], float(scores[first])))
        spans: Sequence[tuple[int | None, int | None]] = prepared.spans or [(None, None)] * len(found)
        return [
            TaggedWord(word, start, end, label, score)
            for word, (start, end), (label, score) in zip(prepared.words, spans, found, strict=True)
        ]

    def _subwords(self, words: Sequence[str]) -> list[list[int]]:
        with _TOKENIZING:
            encoded = self._tokenizer([[w] for w in words], is_split_into_words=True, add_special_tokens=False)
        body = self._max_length - 2
        return [ids[:body] for ids in encoded["input_ids"]]

    def _pieces(self, subwords: Sequence[Sequence[int]]) -> list[Piece]:
        """Cut between words wherever the next one would not fit."""
        start_id: int = self._tokenizer.cls_token_id
        end_id: int = self._tokenizer.sep_token_id
        pieces = []
        ids: list[int] = [start_id]
        firsts: list[int | None] = []
        for word in subwords:
            if len(ids) + len(word) > self._max_length - 1:
                pieces.append(Piece((*ids, end_id), tuple(firsts)))
                ids, firsts = [start_id], []
            firsts.append(len(ids) if word else None)
            ids += word
        return [*pieces, Piece((*ids, end_id), tuple(firsts))]


_TOKENIZING = threading.Lock()
"""Fast tokenizers keep padding and truncation as state: one thread at a time."""


def _token_reader(base: Base, composition: Composition, limits: Limits) -> Reader:
    return TokenReader(base.tokenizer, labels=composition.labels, max_length=composition.max_length, limits=limits)


READERS: dict[str, Callable[[Base, Composition, Limits], Reader]] = {"pos": _token_reader}
"""How each objective is served."""
