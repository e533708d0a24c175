"""What the measures of raw text and of labelled data have in common: values, examples, hashes and shares.

A measure has the name of its threshold in ``ltsft/config/gates.py`` without ``min_`` or ``max_``.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field

__all__ = ["Examples", "Measures", "share_of", "text_hash"]

EXAMPLES = 5
EXAMPLE_CHARACTERS = 80
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


@dataclass(frozen=True)
class Measures:
    """What was measured, and lines that show it.

    Attributes:
        values: name of the measure -> value; None where there was nothing to measure (the script of a text without
            letters). Names beyond those of the thresholds are for information.
        examples: name of the measure -> a few places, each ``source:line «start of the line»``.
    """

    values: dict[str, float | None]
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Examples:
    """The first few places of each measure."""

    def __init__(self) -> None:
        self._places: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, measure: str, source: str, number: int, text: str) -> None:
        """Keep a place, if the measure has too few yet."""
        places = self._places[measure]
        if len(places) < EXAMPLES:
            places.append(f"{source}:{number} «{_printable(text)}»")

    def copy(self, measure: str, to: str) -> None:
        """Show the places of one measure for another one too."""
        self._places[to] = list(self._places[measure])

    def shown(self) -> dict[str, tuple[str, ...]]:
        """Give the places of each measure that has any."""
        return {measure: tuple(places) for measure, places in self._places.items() if places}


def _printable(text: str) -> str:
    """Cut a line to an example and write out what cannot be printed (raw bytes as ``\\xNN``)."""
    cut = text if len(text) <= EXAMPLE_CHARACTERS else text[:EXAMPLE_CHARACTERS] + "…"
    return "".join(_escaped(c) for c in cut)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character not in "\u200c\u200d" and unicodedata.category(character) in (
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Cn",
        "Zl",
        "Zp",
    ):
        return character.encode("unicode_escape").decode("ascii")
    return character


def text_hash(text: str) -> int:
    """Give 64 bits that tell texts apart, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")


def share_of(part: float, whole: float) -> float | None:
    """Give part / whole, or None where there is nothing to measure."""
    return part / whole if whole else None
