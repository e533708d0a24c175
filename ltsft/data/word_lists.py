"""Bilingual word lists: a word and its translation a line, divided by a tab; what code-switching takes words from."""

from __future__ import annotations

from collections.abc import Mapping

from ltsft.config import Source
from ltsft.data.sources import check_scheme, open_lines, source_name, visible
from ltsft.errors import SourceError

__all__ = ["read_word_list"]

SHOWN = 5


def read_word_list(source: Source) -> Mapping[str, tuple[str, ...]]:
    """Read a bilingual word list: two columns and no line of names, as in MUSE's dictionaries.

    Args:
        source: a ``tsv:`` file; empty lines are left out.

    Returns:
        Word in lower case -> its translations, in the order of the file.

    Raises:
        SourceError: lines without two columns, or with an empty one: how many, and the first of them; or no line.
    """
    check_scheme(source, "tsv")
    found: dict[str, dict[str, None]] = {}
    bad = []
    for number, line in enumerate(open_lines(source), start=1):
        if not line.strip():
            continue
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 2 or "" in columns:
            bad.append(f"{source_name(source)}:{number} «{visible(line[:60])}»")
        else:
            found.setdefault(columns[0].lower(), {})[columns[1]] = None
    if bad:
        raise SourceError(
            f"{source_name(source)}: {len(bad)} lines of the word list do not have a word, a tab and its translation: "
            f"{'; '.join(bad[:SHOWN])}; mend them or take them out"
        )
    if not found:
        raise SourceError(f"{source_name(source)} is empty; a word list has a word, a tab and its translation a line")
    return {word: tuple(translations) for word, translations in found.items()}
