"""Splitting raw text into words with offsets, for any script, as the treebanks of Universal Dependencies do.

Where a word ends is for Unicode to say (UAX 29, by the package `regex`). What treebanks join beyond that is joined:
equal signs in a row («...»), hyphens, signs within numbers, and runs of scripts without spaces, which only a dictionary
could split. Treebanks of some languages part at hyphens and apostrophes, and so does this for these languages.
Callers who know better send words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import regex

__all__ = ["split_words"]

_BOUNDARY = regex.compile(r"(?w)\b")
# Characters that show nothing by themselves, and where they stand at the edge of a word are no part of it. Joiners are:
# words of Malayalam and Hindi end in them.
_INVISIBLE = r"\s\p{Cc}\p{Default_Ignorable_Code_Point}"
_ATTACHED = r"\u200c\u200d\ufe00-\ufe0f\U000e0020-\U000e007f"
_SEEN = regex.compile(rf"(?V1)[{_INVISIBLE}]*+(.*?)[{_INVISIBLE}--[{_ATTACHED}]]*+", regex.DOTALL)
_RUN = r"[\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}\p{Mn}\p{Mc}\u200c\u200d%s]+"
_UNSPACED = regex.compile(_RUN % "")
_UNSPACED_OR_HAN = regex.compile(_RUN % r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}")
_HAN_APART = frozenset({"ja", "lzh", "wuu", "yue", "zh"})  # their words are short; elsewhere a run is a name
_RAISED = regex.compile(r"\p{No}+")  # m²
_HYPHENS = frozenset("-‐‑־")
_WITHIN_NUMBERS = frozenset(":/")
_APOSTROPHES = frozenset("'’ʼ՚")

# What treebanks do with a hyphen between letters, by language; others take it for a letter.
_HYPHEN_IS_A_WORD = frozenset(
    {"ar", "cs", "de", "en", "he", "hsb", "hy", "hyw", "kmr", "pl", "ps", "sl", "uk", "uz", "yo", "yue", "zh"}
)
_HYPHEN_ENDS_A_WORD = frozenset({"mt", "ro"})
# ... and with an apostrophe.
_APOSTROPHE_ENDS_A_WORD = frozenset({"bm", "fr", "ga", "hyw", "it", "lb", "lij", "mt", "oc", "sq", "yo"})
_APOSTROPHE_BEGINS_A_WORD = frozenset({"cy"})
_WHOLE = regex.compile(r"aujourd['’]hui|quelqu['’]une?", regex.IGNORECASE)


class _Segment(NamedTuple):
    """A piece of text between two boundaries, without what is not seen at its edges."""

    start: int
    end: int
    text: str

    @property
    def is_word(self) -> bool:
        """Whether it has letters or digits."""
        return any(map(_is_letter, self.text))


def split_words(text: str, language: str = "") -> list[tuple[int, int]]:
    """Give the words of a text as (start, end) in code points; they do not overlap.

    Nothing is left out but white space and characters that show nothing, such as direction marks.

    Args:
        text: any text.
        language: its code, whose part before the first ``-`` or ``_`` counts; treebanks of some languages part words
            at hyphens and apostrophes. An unknown one is split as most languages are.

    Example:
        >>> [("l'été 3,14 ...")[a:b] for a, b in split_words("l'été 3,14 ...")]
        ["l'été", '3,14', '...']
        >>> [("l'été 3,14 ...")[a:b] for a, b in split_words("l'été 3,14 ...", "fr")]
        ["l'", 'été', '3,14', '...']
    """
    code = regex.split("[-_]", language.lower())[0]
    words: list[_Segment] = []
    segments = [part for segment in _segments(text) for part in _parted(segment, code)]
    for i, segment in enumerate(segments):
        following = segments[i + 1] if i + 1 < len(segments) else None
        if words and words[-1].end == segment.start and _joins(words[-1], segment, following, code):
            start = words.pop().start
            segment = _Segment(start, segment.end, text[start : segment.end])
        words.append(segment)
    return [(word.start, word.end) for word in words]


def _segments(text: str) -> Iterator[_Segment]:
    boundaries = [match.start() for match in _BOUNDARY.finditer(text)]
    for start, end in pairwise(boundaries):
        seen = _SEEN.fullmatch(text, start, end)
        if seen is not None and seen[1]:
            yield _Segment(*seen.span(1), seen[1])


def _parted(segment: _Segment, language: str) -> Iterator[_Segment]:
    """Part a word at its apostrophes where the treebanks of the language do; one that it begins with is a quotation."""
    start, _, text = segment
    quotes = len(text) - len(text.lstrip("".join(_APOSTROPHES)))
    cuts = [quotes] if 0 < quotes < len(text) and text[quotes].isalnum() else []
    place = 1 if language in _APOSTROPHE_ENDS_A_WORD else 0 if language in _APOSTROPHE_BEGINS_A_WORD else None
    if place is not None:
        kept = {i for match in _WHOLE.finditer(text) for i in range(*match.span())}
        inside = (i for i in range(quotes + 1, len(text) - 1) if i not in kept)
        cuts += [i + place for i in inside if text[i] in _APOSTROPHES and text[i + 1].isalnum()]
    for a, b in pairwise([0, *cuts, len(text)]):
        yield _Segment(start + a, start + b, text[a:b])


def _joins(before: _Segment, segment: _Segment, following: _Segment | None, language: str) -> bool:
    """Say whether a segment goes on with the word before it, which it touches."""
    text, last = segment.text, before.text[-1]
    if len(text) == 1 and text == last and before.text == text * len(before.text):
        return not segment.is_word  # equal signs
    unspaced = _UNSPACED if language in _HAN_APART else _UNSPACED_OR_HAN
    if unspaced.fullmatch(text) and unspaced.fullmatch(before.text):
        return True
    after = following.text[0] if following is not None and following.start == segment.end else " "
    if text in _WITHIN_NUMBERS:
        return last.isdigit() and after.isdigit()
    if text in _HYPHENS | _APOSTROPHES:
        return before.is_word and _is_letter(after) and _sides(text, language)[0]
    if _RAISED.fullmatch(text):
        return before.is_word
    if not segment.is_word or not before.is_word:
        return False
    return last in _WITHIN_NUMBERS or (last in _HYPHENS | _APOSTROPHES and _sides(last, language)[1])


def _sides(sign: str, language: str) -> tuple[bool, bool]:
    """Say whether a hyphen or an apostrophe belongs to the word before it, and to the one behind."""
    if sign in _HYPHENS:
        return language not in _HYPHEN_IS_A_WORD, language not in _HYPHEN_IS_A_WORD | _HYPHEN_ENDS_A_WORD
    return language not in _APOSTROPHE_BEGINS_A_WORD, language not in _APOSTROPHE_ENDS_A_WORD


def _is_letter(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"
