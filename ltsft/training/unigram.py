"""Other ways to cut a word into sub-words, drawn from a unigram model (Kudo 2018, arXiv 1804.10959).

The tokenizers library draws them too, from a generator that cannot be seeded: a resumed training would see others.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


__all__ = ["Unigram", "unigram_of"]

Lattice = list[list[tuple[int, int, float]]]
"""For each place in a word, what may end there: (where it begins, its number, its weight)."""
WORDS_KEPT = 50_000


class Unigram:
    """Draws segmentations of words.

    Args:
        scores: log-probability of each sub-word with its number.
        alpha: of a segmentation the probability is its own to this power, normalised: low ones make all alike.
    """

    def __init__(self, scores: dict[str, tuple[int, float]], *, alpha: float) -> None:
        self._scores = scores
        self._alpha = alpha
        self._longest = max(map(len, scores), default=0)
        self._lattice = lru_cache(maxsize=WORDS_KEPT)(self._build)

    def sample(self, word: str, random: Random) -> tuple[int, ...] | None:
        """Draw a segmentation.

        Args:
            word: as the tokenizer's model sees it, normalised and with its mark of a word's beginning.
            random: where the draw comes from; it is used as often as the segmentation is long.

        Returns:
            Numbers of the sub-words; None where no sub-words of the vocabulary make the word.
        """
        lattice = self._lattice(word)
        ids: list[int] = []
        end = len(word)
        while end:
            if not lattice[end]:
                return None
            (drawn,) = random.choices(lattice[end], [share for _, _, share in lattice[end]])
            ids.append(drawn[1])
            end = drawn[0]
        return tuple(reversed(ids))

    def _build(self, word: str) -> Lattice:
        """Sum over the ways to each place, forwards; give the share that each last sub-word has in the sum."""
        sums = [0.0] + [-math.inf] * len(word)
        lattice: Lattice = [[]]
        for end in range(1, len(word) + 1):
            ways = []
            for begin in range(max(0, end - self._longest), end):
                found = self._scores.get(word[begin:end])
                if found is not None and sums[begin] > -math.inf:
                    ways.append((begin, found[0], sums[begin] + self._alpha * found[1]))
            if ways:
                most = max(way[2] for way in ways)
                sums[end] = most + math.log(sum(math.exp(way[2] - most) for way in ways))
            lattice.append([(begin, number, math.exp(weight - sums[end])) for begin, number, weight in ways])
        return lattice


def unigram_of(tokenizer: PreTrainedTokenizerBase, *, alpha: float) -> Unigram | None:
    """Give the unigram model of a tokenizer; None if it has another one, from which nothing can be drawn."""
    backend: Any = tokenizer
    model = json.loads(backend.backend_tokenizer.to_str())["model"]
    if model["type"] != "Unigram":
        return None
    special = set(tokenizer.all_special_ids)
    scores = {piece: (i, score) for i, (piece, score) in enumerate(model["vocab"]) if i not in special}
    return Unigram(scores, alpha=alpha)
