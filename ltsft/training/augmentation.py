"""Augmenting examples: the words of one are cut into other sub-words, or replaced by translations.

It works on sub-words, so it is the same for all objectives: an example says which of its sub-words are which word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Any

from ltsft.config import Augmentations, Recipe
from ltsft.errors import ConfigError
from ltsft.objectives import MARK, continuation_prefix
from ltsft.training.unigram import unigram_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Augmenter", "Respelling", "check_augmentations"]

WordList = Mapping[str, tuple[str, ...]]
_AROUND = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)


@dataclass(frozen=True)
class Respelling:
    """A word of an example after augmentation.

    Attributes:
        ids: its sub-words.
        before: for each sub-word that it had, the number of the stretch of characters that it is in; from 0.
        after: the same for its sub-words now. Stretches are as short as both ways of cutting allow; a translation is
            one.
    """

    ids: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


class Augmenter:
    """Augments the words of examples.

    Args:
        tokenizer: the base's tokenizer.
        settings: what is done.
        word_lists: those of `settings.code_switch`, read.

    Raises:
        ConfigError: sub-words cannot be drawn from this tokenizer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: Augmentations, word_lists: Sequence[WordList] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._switch = settings.code_switch
        self._word_lists = list(word_lists)
        self._sampling = settings.subword_sampling
        self._noise = settings.noise
        self._unigram = None
        if self._sampling is not None:
            self._unigram = unigram_of(tokenizer, alpha=self._sampling.alpha)
            if self._unigram is None:
                raise ConfigError(_no_sampling(tokenizer))

    @property
    def noise_deviation(self) -> float | None:
        """Standard deviation of the noise on embeddings, in shares of their size; None without."""
        return self._noise.deviation if self._noise is not None else None

    @property
    def changes_subwords(self) -> bool:
        """Whether any sub-word may come out another one; noise alone leaves all as they are."""
        return self._switch is not None or self._sampling is not None

    def augment(self, words: Sequence[tuple[int, ...]], room: int, random: Random) -> list[Respelling]:
        """Augment the words of an example.

        Args:
            words: the sub-words of each.
            room: sub-words that may be there more than before; a word that does not fit stays as it is.
            random: settles what is changed and how.
        """
        made = []
        for ids in words:
            word = self._augment(ids, random)
            if len(word.ids) - len(ids) > room:
                word = _same(ids)
            room -= len(word.ids) - len(ids)
            made.append(word)
        return made

    def _augment(self, ids: tuple[int, ...], random: Random) -> Respelling:
        if not ids or self._tokenizer.unk_token_id in ids:
            return _same(ids)
        now = ids
        if self._switch is not None and random.random() < self._switch.share:
            now = self._translated(ids, random) or ids
        is_translated = now is not ids
        if self._unigram is not None and self._sampling is not None and random.random() < self._sampling.share:
            now = self._unigram.sample("".join(self._pieces(now)), random) or now
        if is_translated:
            return Respelling(now, (0,) * len(ids), (0,) * len(now))
        return _same(ids) if now == ids else Respelling(now, *_stretches(self._sizes(ids), self._sizes(now)))

    def _translated(self, ids: tuple[int, ...], random: Random) -> tuple[int, ...] | None:
        """Give the sub-words of a translation; None if there is none. Punctuation around stays, as a capital does."""
        around = _AROUND.match(self._text(ids))
        if around is None or not around[2]:
            return None
        start, core, end = around.groups()
        translations = random.choice(self._word_lists).get(core.lower())
        if not translations:
            return None
        chosen = random.choice(translations)
        if core[0].isupper():
            chosen = chosen[0].upper() + chosen[1:]
        encoded = self._tokenizer([[f"{start}{chosen}{end}"]], is_split_into_words=True, add_special_tokens=False)
        return tuple(encoded["input_ids"][0]) or None

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [str(piece) for piece in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def _sizes(self, ids: Sequence[int]) -> list[int]:
        return [len(piece) for piece in self._pieces(ids)]

    def _text(self, ids: Sequence[int]) -> str:
        """Give a word as it is written, as far as sub-words tell."""
        backend: Any = self._tokenizer
        pieces = self._pieces(ids)
        prefix = continuation_prefix(self._tokenizer)
        if prefix:
            return "".join(piece.removeprefix(prefix) for piece in pieces)
        decoder = backend.backend_tokenizer.decoder
        return (decoder.decode(pieces) if decoder is not None else "".join(pieces).replace(MARK, " ")).strip()


def check_augmentations(recipes: Mapping[str, Recipe], load_tokenizer: Callable[[], PreTrainedTokenizerBase]) -> None:
    """Refuse recipes whose augmentations a tokenizer does not allow.

    Args:
        recipes: by name.
        load_tokenizer: gives the base's; called only where a recipe asks something of it.

    Raises:
        ConfigError: naming the recipe.
    """
    for name, recipe in recipes.items():
        wanted = recipe.consistency is not None and recipe.consistency.augmentations.subword_sampling is not None
        if wanted and _model_type(load_tokenizer()) != "Unigram":
            raise ConfigError(f"recipes.{name}.consistency.augmentations.{_no_sampling(load_tokenizer())}")


def _no_sampling(tokenizer: PreTrainedTokenizerBase) -> str:
    return (
        f"subword_sampling: the base's tokenizer is of the type {_model_type(tokenizer)}, and other sub-words can be "
        "drawn from a Unigram model alone (XLM-R has one); leave it out, and use noise or code_switch"
    )


def _model_type(tokenizer: PreTrainedTokenizerBase) -> str:
    backend: Any = tokenizer
    return type(backend.backend_tokenizer.model).__name__


def _same(ids: tuple[int, ...]) -> Respelling:
    places = tuple(range(len(ids)))
    return Respelling(ids, places, places)


def _stretches(before: Sequence[int], after: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Number the stretches between the places where both ways of cutting a word cut; by the sizes of the sub-words."""
    cuts = sorted(set(accumulate(before)) & set(accumulate(after)))

    def numbered(sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(sum(cut < end for cut in cuts) for end in accumulate(sizes))

    return numbered(before), numbered(after)
