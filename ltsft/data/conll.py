"""Column files: one word a line with its label, an empty line between sentences (CoNLL-2003, MasakhaNER)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ltsft.config import Source
from ltsft.data.sources import OnError, RowError, check_scheme, open_lines, source_name

__all__ = ["TaggedRow", "read_tagged"]

_MARK = re.compile(r"[ \t]*-DOCSTART-([ \t]|$)")
_SPACES = re.compile(r"[ \t]+")
"""What divides columns. Other white space (no-break, ideographic) is a part of a word."""


@dataclass(frozen=True, slots=True)
class TaggedRow:
    """One sentence with a label for each word.

    Attributes:
        words: the words.
        labels: the label of each.
        line: number of the sentence's first line in its file, from 1.
        source: the source that it was read from, for messages.
        text: the sentence as it was written; the words with spaces where that is not known.
    """

    words: tuple[str, ...]
    labels: tuple[str, ...]
    line: int
    source: str
    text: str

    def relabelled(self, names: Mapping[str, str]) -> TaggedRow:
        """Give the row with some labels called otherwise."""
        return replace(self, labels=tuple(names.get(label, label) for label in self.labels)) if names else self


def read_tagged(source: Source, *, on_error: OnError | None = None) -> Iterator[TaggedRow]:
    """Read the sentences of a ``conll:`` source: the word is the first column, the label the last.

    Columns are divided by tabs if the sentence's first line has one, by spaces otherwise; a no-break or ideographic
    space is a part of a word. The marks between documents (``-DOCSTART-``) are left out and end a sentence, wherever
    they stand. There are no comments: ``#`` is a word. Every line of a sentence has as many columns as its first; which
    labels are allowed is a matter of the target task.

    Args:
        source: what to read; a missing local file is fetched from its origin first.
        on_error: called with what is wrong with a malformed sentence, which is then left out; without it the first
            one ends the reading.

    Yields:
        Each sentence.

    Raises:
        SourceError: as for `ltsft.data.sources.open_lines`; if the source is not of the scheme ``conll:``; and, naming
            file and line, if a line has fewer than two columns, another number than the lines before, or an empty
            column.
    """
    check_scheme(source, "conll")
    name = source_name(source)
    for first, block in _sentences(open_lines(source)):
        try:
            words, labels = _parse(block, first, name)
        except RowError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        yield TaggedRow(words, labels, first, name, " ".join(words))


def _sentences(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Group lines into sentences, which empty lines end, and marks between documents, wherever they stand."""
    block: list[str] = []
    first = 1
    for number, line in enumerate(lines, start=1):
        if line.strip() and not _MARK.match(line):
            first = first if block else number
            block.append(line)
        elif block:
            yield first, block
            block = []
    if block:
        yield first, block


def _parse(block: list[str], first: int, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    has_tabs = "\t" in block[0].strip(" \t")
    words, labels = [], []
    expected = max(2, len(_columns(block[0], has_tabs=has_tabs)))
    if block[0].startswith("#") and len(block) > 1 and expected != len(_columns(block[1], has_tabs=has_tabs)):
        told = f"this looks like a comment, which columns do not have: {block[0][:60]!r}; take it out"
        raise RowError(name, first, told)
    for number, line in enumerate(block, start=first):
        columns = _columns(line, has_tabs=has_tabs)
        if len(columns) != expected:
            raise RowError(
                name,
                number,
                f"{expected} columns are due, word first and label last, as many as the sentence begins with; "
                f"got {len(columns)} in {line[:60]!r}; mend the line",
            )
        if not columns[0] or not columns[-1]:
            raise RowError(name, number, f"the word or the label is empty in {line[:60]!r}; mend the line")
        if not columns[0].strip() or not columns[-1].strip():
            raise RowError(name, number, f"the word or the label is white space alone in {line[:60]!r}; mend the line")
        words.append(columns[0])
        labels.append(columns[-1])
    return tuple(words), tuple(labels)


def _columns(line: str, *, has_tabs: bool) -> list[str]:
    return [column.strip(" ") for column in line.split("\t")] if has_tabs else _SPACES.split(line.strip(" \t"))
