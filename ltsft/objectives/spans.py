"""Words as spans of sub-words: found in running text, and replaced by other sub-words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MARK", "continuation_prefix", "spliced", "words_by_marks"]

MARK = "\u2581"  # of a word's beginning, in unigram models
MARKS = (MARK, "\u0120")


def words_by_marks(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Find words in running text by the marks that sub-words carry; special tokens and unknown ones are in none.

    Returns:
        (first, last + 1) of each word, in order.
    """
    prefix = continuation_prefix(tokenizer)
    special = set(tokenizer.all_special_ids)
    words: list[tuple[int, int]] = []
    is_open = False
    for place, piece in enumerate(tokenizer.convert_ids_to_tokens(list(ids))):
        if ids[place] in special:
            is_open = False
            continue
        is_first = not piece.startswith(prefix) if prefix else piece.startswith(MARKS)
        if is_first or not is_open:
            words.append((place, place + 1))
        else:
            words[-1] = (words[-1][0], place + 1)
        is_open = True
    return words


def spliced(values: Sequence[Any], spans: Sequence[tuple[int, int]], new: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """Put other values in place of some spans, (first, last + 1) in order."""
    made: list[Any] = []
    place = 0
    for (start, stop), values_there in zip(spans, new, strict=True):
        made += [*values[place:start], *values_there]
        place = stop
    return (*made, *values[place:])


def continuation_prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give what marks a sub-word that continues a word; empty where beginnings are marked instead."""
    backend: Any = tokenizer
    model = backend.backend_tokenizer.model
    return str(model.continuing_subword_prefix) if type(model).__name__ == "WordPiece" else ""
