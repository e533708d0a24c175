"""Column files: one word a line with its label, an empty line between sentences (CoNLL-2003, MasakhaNER)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ltsft.named_source import Source
from ltsft.sources import OnError, RowError, check_scheme, open_lines, sentence_blocks, source_name

__all__ = ["TaggedRow", "read_tagged"]

DOCUMENT = "-DOCSTART-"


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

    Columns are divided by tabs if the sentence's first line has one, by spaces otherwise. The marks between documents
    (``-DOCSTART-``) are left out. Every line of a sentence has as many columns as its first; which labels are allowed
    is a matter of the target task.

    Args:
        source: what to read; a missing local file is fetched from its origin first.
        on_error: called with what is wrong with a malformed sentence, which is then left out; without it the first
            one ends the reading.

    Yields:
        Each sentence.

    Raises:
        SourceError: as for `ltsft.sources.open_lines`; if the source is not of the scheme ``conll:``; and, naming file
            and line, if a line has fewer than two columns, another number than the lines before, or an empty column.
    """
    check_scheme(source, "conll")
    name = source_name(source)
    for first, block in sentence_blocks(open_lines(source)):
        if block[0].startswith(DOCUMENT):
            continue
        try:
            words, labels = _parse(block, first, name)
        except RowError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        yield TaggedRow(words, labels, first, name, " ".join(words))


def _parse(block: list[str], first: int, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    separator = "\t" if "\t" in block[0] else None
    words, labels = [], []
    expected = max(2, len(block[0].split(separator)))
    for number, line in enumerate(block, start=first):
        columns = [column.strip() for column in line.split(separator)]
        if len(columns) != expected:
            raise RowError(
                name,
                number,
                f"{expected} columns are due, word first and label last, as many as the sentence begins with; "
                f"got {len(columns)} in {line[:60]!r}; mend the line",
            )
        if not columns[0] or not columns[-1]:
            raise RowError(name, number, f"the word or the label is empty in {line[:60]!r}; mend the line")
        words.append(columns[0])
        labels.append(columns[-1])
    return tuple(words), tuple(labels)
