"""Mojibake: UTF-8 that was read as Latin-1 or Windows-1252, or as the Windows-1251 of Cyrillic, and written again.

What looks like it need not be: «ášš» are three bytes of UTF-8 in Windows-1252, and a part of a frequent word of
Northern Sámi. So a line counts when what its traces stand for may be there, and ftfy, which knows such cases, would
mend it. ftfy is not asked where the letters that are shown are not of the script, and those that are meant are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

import ftfy
from fontTools import unicodedata as scripts  # type: ignore[import-untyped]

from ltsft.config import ANY_SCRIPT

__all__ = ["has_mojibake"]

# The encodings as browsers read them: bytes that they lack are the control characters of Latin-1.
_ENCODINGS = {"cp1252": "Latn", "cp1251": "Cyrl"}  # and the script whose letters bytes become
_BYTES = {
    encoding: {bytes([b]).decode(encoding, errors="ignore") or chr(b): b for b in range(0x80, 0x100)}
    for encoding in _ENCODINGS
}
for _table in _BYTES.values():
    _table.update({chr(b): b for b in range(0x80, 0xA0)})


def _pattern(encoding: str) -> re.Pattern[str]:
    """Find a lead byte and its continuation bytes, each shown as a character of its own."""

    def characters(first: int, last: int) -> str:
        return "[" + re.escape("".join(c for c, b in _BYTES[encoding].items() if first <= b <= last)) + "]"

    rest = characters(0x80, 0xBF)
    two, three, four = (characters(*ends) for ends in ((0xC2, 0xDF), (0xE0, 0xEF), (0xF0, 0xF4)))
    return re.compile(f"{two}{rest}|{three}{rest}{{2}}|{four}{rest}{{3}}")


_TRACES = {encoding: _pattern(encoding) for encoding in _ENCODINGS}


def has_mojibake(text: str, script: Collection[str]) -> bool:
    """Say whether a text has the traces of UTF-8 that was read in an encoding of one byte a character.

    >>> has_mojibake("iÃ° liggur Ã¡ Streymoynni", ("Latn",)), has_mojibake("Nášši ášši", ("Latn",))
    (True, False)

    Args:
        text: one line.
        script: codes of the scripts whose letters the language has (see `script_members`).
    """
    for encoding, traces in _TRACES.items():
        codes = Counter(_script_of(match[0], encoding) for match in traces.finditer(text))
        letters = sum(count for code, count in codes.items() if code in script)
        if letters > 1 and _ENCODINGS[encoding] not in script:
            return True  # such letters are not of the script, and what they stand for is
        if letters or any(code in ANY_SCRIPT for code in codes):
            return ftfy.fix_encoding(text) != text
    return False


def _script_of(trace: str, encoding: str) -> str:
    """Tell the script of the character that a trace stands for; empty where there is no such character."""
    meant = bytes(_BYTES[encoding][c] for c in trace).decode(errors="ignore")
    code = str(scripts.script(meant)) if meant else "Zzzz"
    return "" if code == "Zzzz" else code
