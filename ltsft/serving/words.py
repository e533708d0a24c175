"""Splitting raw text into words with offsets, for any script.

A word is a run of letters, marks and digits, with apostrophes, hyphens, points and joiners inside it («l'été»,
«well-known», «3.14»); anything else that is not white space is a word of its own, equal signs in a row («...») one.
Treebanks split further (clitics, contractions); callers who know better send words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

__all__ = ["split_words"]

_INSIDE = frozenset("'’ʼ-‐‑.·_\u200c\u200d")


def split_words(text: str) -> list[tuple[int, int]]:
    """Give the words of a text as (start, end), character offsets; they do not overlap and leave out white space.

    Example:
        >>> [("l'été 3.14 ...")[a:b] for a, b in split_words("l'été 3.14 ...")]
        ["l'été", '3.14', '...']
    """
    return list(_spans(text))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(text):
        start = at
        if _is_letter(text[at]):
            at = _end_of_word(text, at)
        elif text[at].isspace():
            at += 1
            continue
        else:
            while at < len(text) and text[at] == text[start]:
                at += 1
        yield start, at


def _end_of_word(text: str, at: int) -> int:
    while at < len(text):
        is_joined = text[at] in _INSIDE and at + 1 < len(text) and _is_letter(text[at + 1])
        if not _is_letter(text[at]) and not is_joined:
            break
        at += 1
    return at


def _is_letter(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"
