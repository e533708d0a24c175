"""What a character of raw text is to the gate: a letter of the declared script, of another one, or no text at all."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

from fontTools import unicodedata as scripts  # type: ignore[import-untyped]

from ltsft.config import ANY_SCRIPT

__all__ = ["UNSPACED", "CharacterClasses"]

BYTE_ORDER_MARK = "\ufeff"
# Soft hyphens, direction marks, word joiners, invisible letters. Not the joiners U+200C and U+200D: they are parts of
# words in Persian, Malayalam, Hindi and Sinhala, and of emoji.
_INVISIBLE = frozenset(
    "\u00ad\u061c\u115f\u1160\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2062\u2063\u2064\u2066\u2067"
    "\u2068\u2069\u206a\u206b\u206c\u206d\u206e\u206f\u3164\uffa0\ufff9\ufffa\ufffb"
)
_ZERO_WIDTH_SPACE = "\u200b"  # divides words where no space does
_UNSPACED_SCRIPTS = frozenset({"Hani", "Hira", "Kana", "Khmr", "Lana", "Laoo", "Mymr", "Tale", "Talu", "Thai", "Tibt"})
UNSPACED = (  # the ranges of these scripts, for a class of a regular expression
    "\u0e01-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aad\u3041-\u30ff\u3400-\u9fff\ua9e0-\ua9fe"
    "\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff"
)


class CharacterClasses(dict[int, str]):
    """Classes of characters, a letter each, for `str.translate`.

    ``d``: letter of the declared script; ``f``: letter of a foreign one; ``c``: control, private-use or unassigned;
    ``r``: replacement character; ``b``: byte that is not UTF-8; ``m``: byte-order mark; ``i``: invisible character
    that no orthography needs; ``n``: none of these.

    Args:
        script: codes of the declared script's parts (see `script_members`).
    """

    def __init__(self, script: Collection[str]) -> None:
        super().__init__()
        self._declared = frozenset(script)

    def __missing__(self, code: int) -> str:
        self[code] = found = self._class_of(chr(code))
        return found

    def _class_of(self, character: str) -> str:
        if character == "\ufffd":
            return "r"
        if "\ud800" <= character <= "\udfff":
            return "b"
        if character == BYTE_ORDER_MARK:
            return "m"
        if character in _INVISIBLE:
            return "n" if character == _ZERO_WIDTH_SPACE and self._declared & _UNSPACED_SCRIPTS else "i"
        category, code = unicodedata.category(character), scripts.script(character)
        # The table of scripts knows all assigned characters, Python those of its own version.
        if category in ("Cc", "Co") or (category == "Cn" and code == "Zzzz"):
            return "n" if character == "\t" else "c"
        if category[0] not in "LM" and category != "Cn":
            return "n"
        return "n" if code in ANY_SCRIPT else "d" if code in self._declared else "f"
