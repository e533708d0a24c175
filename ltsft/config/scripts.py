"""Scripts by their ISO 15924 codes: which of the codes that Unicode gives to characters each stands for."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

from fontTools import unicodedata as scripts  # type: ignore[import-untyped]
from pydantic import AfterValidator, Field

__all__ = ["ANY_SCRIPT", "Script", "script_members"]

ANY_SCRIPT = frozenset({"Zyyy", "Zinh", "Zzzz"})
"""Codes of what all scripts share, and of what has none."""

# Codes that join scripts or name a style of one; Unicode gives them to no character.
_STAND_FOR = {
    "Aran": ("Arab",),
    "Cyrs": ("Cyrl",),
    "Geok": ("Geor",),
    "Hanb": ("Hani", "Bopo"),
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Hntl": ("Hani", "Latn"),
    "Hrkt": ("Hira", "Kana"),
    "Jamo": ("Hang",),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
    "Latf": ("Latn",),
    "Latg": ("Latn",),
    "Syre": ("Syrc",),
    "Syrj": ("Syrc",),
    "Syrn": ("Syrc",),
}
_CODES = frozenset(scripts.Scripts.NAMES) - ANY_SCRIPT


def script_members(code: str) -> tuple[str, ...]:
    """Give the scripts that a code stands for, in the codes that Unicode gives to characters.

    >>> script_members("Aran"), script_members("Jpan")
    (('Arab',), ('Hani', 'Hira', 'Kana'))

    Args:
        code: of ISO 15924, such as ``Latn``; codes that join scripts (``Jpan``) or name a style (``Aran``) are known.

    Raises:
        ValueError: Unicode has no character in such a script.
    """
    if code in _CODES:
        return (code,)
    if code in _STAND_FOR:
        return _STAND_FOR[code]
    known = sorted(_CODES | _STAND_FOR.keys())
    near = get_close_matches(code.capitalize(), known, n=3, cutoff=0.7)
    meant = f"; is it {' or '.join(near)}?" if near else ""
    raise ValueError(f"must be an ISO 15924 code that Unicode knows, such as Latn, Cyrl or Arab{meant}")


def _known(code: str) -> str:
    script_members(code)
    return code


Script = Annotated[str, Field(description="ISO 15924, such as Latn"), AfterValidator(_known)]
"""The code of a script in which there are characters."""
