"""Named data sources: from a file, wherever it lies and however it is packed, to lines and rows.

The one room that knows file formats. A source is a local path or a URL that fsspec can open (``https://``, ``s3://``),
plain or gzip (told apart by the first bytes, not by the name), in UTF-8. Everything is streamed: memory does not grow
with the size of the file. Credentials come from the usual environment of the storage library, never from a source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ltsft.config import Source
from ltsft.data.locations import fetch_origin, hash_bytes, hub_fingerprint, read_bytes, shown
from ltsft.errors import SourceError

__all__ = [
    "OnError",
    "Row",
    "RowError",
    "check_scheme",
    "ensure_local",
    "fingerprint",
    "open_lines",
    "read_rows",
    "read_text",
    "sentence_blocks",
    "source_name",
    "visible",
]

Errors = Literal["strict", "surrogateescape"]

LINE_LIMIT_BYTES = 64 * 1024 * 1024
"""A longer line is refused: a file without line breaks would otherwise go into memory whole."""

COLUMNS = 10
_WORD_ID = re.compile(r"[1-9][0-9]*")
_RANGE_ID = re.compile(r"([1-9][0-9]*)-([1-9][0-9]*)")
_EMPTY_NODE_ID = re.compile(r"[0-9]+\.[1-9][0-9]*")


class RowError(SourceError):
    """One row of a source is malformed; the rows around it can be read.

    Attributes:
        source: name of the source.
        line: number of the line, from 1.
        reason: what is wrong with it, what is allowed and how to mend it.
    """

    def __init__(self, source: str, line: int, reason: str) -> None:
        super().__init__(f"{source}:{line}: {reason}")
        self.source = source
        self.line = line
        self.reason = reason


OnError = Callable[[RowError], None]
"""Called with what is wrong with a malformed row, which is then left out."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sentence of a treebank: its syntactic words, which is what UD annotates.

    Attributes:
        words: the forms, without multi-word tokens and empty nodes.
        upos: the universal part of speech of each word.
        heads: for each word the 1-based number of its head, 0 for the root.
        deprels: the relation of each word to its head.
        line: number of the sentence's first line in its file, from 1.
        source: the source that it was read from, for messages.
        text: the sentence as it was written (the comment ``# text``); the words with spaces where there is none.
    """

    words: tuple[str, ...]
    upos: tuple[str, ...]
    heads: tuple[int, ...]
    deprels: tuple[str, ...]
    line: int
    source: str
    text: str = ""


def open_lines(source: Source, *, errors: Errors = "strict") -> Iterator[str]:
    r"""Read a source line by line.

    A line ends with ``\n``, ``\r\n`` or ``\r``, and with nothing else: U+2028, U+0085, form feeds and the like stay in
    the line. A byte order mark at the start of the file is dropped; nothing else is changed.

    Args:
        source: what to read; a missing local file is fetched from its origin first.
        errors: "strict" refuses bytes that are not UTF-8; "surrogateescape" keeps each as a lone surrogate
            (U+DC80 to U+DCFF), so that whoever reads can count them.

    Yields:
        Each line without its line break, empty lines too: the n-th is line n of the file.

    Raises:
        SourceError: if the file is missing, cannot be read, is cut off, is packed in another way than gzip, has a line
            of more than 64 MiB, or (with "strict") has a line that is not UTF-8.
    """
    ensure_local(source)
    for number, raw in enumerate(_split_lines(read_bytes(source.location), source), start=1):
        data = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        try:
            yield data.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise SourceError(_undecodable(source, number, data, error)) from None


def read_text(sources: Iterable[Source], *, errors: Errors = "strict", documents: bool = False) -> Iterator[str]:
    """Read raw text: the lines of ``text:`` sources, one source after the other.

    Args:
        sources: what to read, in this order.
        errors: as for `open_lines`.
        documents: whether to yield an empty line where a document ends: at empty lines of a source, and at its end.

    Yields:
        Each line that is not empty, without the white space around it; between documents one that is.

    Raises:
        SourceError: as for `open_lines`, and if a source is not of the scheme ``text:``.
    """
    for source in sources:
        check_scheme(source, "text")
        is_open = False
        for line in open_lines(source, errors=errors):
            stripped = line.strip()
            if stripped:
                yield stripped
                is_open = True
            elif documents and is_open:
                yield ""
                is_open = False
        if documents and is_open:
            yield ""


def read_rows(source: Source, *, on_error: OnError | None = None) -> Iterator[Row]:
    """Read the sentences of a ``conllu:`` source.

    The format is CoNLL-U (https://universaldependencies.org/format.html). The lines of multi-word tokens (``1-2``) and
    of empty nodes (``1.1``) are left out, comments too; a form of ``_`` is kept as it is. Labels are not checked here:
    which are allowed is a matter of the target task.

    Args:
        source: what to read; a missing local file is fetched from its origin first.
        on_error: called with what is wrong with a malformed sentence, which is then left out; without it the first
            one ends the reading.

    Yields:
        Each sentence as a `Row`.

    Raises:
        SourceError: as for `open_lines`; if the source is not of the scheme ``conllu:``; and, naming the file and the
            line, if a sentence has a line without ten columns, an empty column, words that are not numbered 1, 2, 3...,
            a head out of range, not exactly one root, or a cycle.
    """
    check_scheme(source, "conllu")
    for first, block in sentence_blocks(open_lines(source)):
        try:
            row = _parse_sentence(block, first, source)
        except RowError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        if row is not None:
            yield row


def fingerprint(source: Source) -> str:
    """Hash the bytes of a source as they are stored, packed or not.

    The hash of a local file is remembered while the process lives, until its size or its time of change differs;
    a remote file is read each time. A data set of the hub is what its commit says: its name is hashed, nothing is read.

    Args:
        source: what to hash; a missing local file is fetched from its origin first.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Raises:
        SourceError: if the file is missing or cannot be read.
    """
    if source.scheme == "hf":
        return hub_fingerprint(source.location)
    ensure_local(source)
    return hash_bytes(source.location)


def ensure_local(source: Source) -> None:
    """Fetch a missing local file from its origin; do nothing if it is there, or if the source has no origin.

    The file appears at once and whole, also when several processes want it at the same time. It is packed with gzip on
    the way if its name ends in ``.gz`` and the origin is not gzip.

    Args:
        source: the source; one whose location is a URL is left where it is.

    Raises:
        SourceError: if the origin cannot be fetched after several attempts, or the folder cannot be written.
    """
    if source.origin is not None and not source.is_remote:
        fetch_origin(source.origin, source.location)


def check_scheme(source: Source, scheme: str) -> None:
    """Refuse a source of another scheme.

    Raises:
        SourceError: naming both.
    """
    if source.scheme != scheme:
        raise SourceError(
            f"{source_name(source)} is of the scheme {source.scheme}: where {scheme}: is needed; "
            f"write {scheme}:{shown(source.location)} in the project file if that is what the file holds"
        )


def source_name(source: Source) -> str:
    """Name a source in messages, without user, password and query of a URL."""
    return f"{source.scheme}:{shown(source.location)}"


def visible(text: str) -> str:
    """Give text as it may stand in a message of one line: what is no visible character is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _split_lines(chunks: Iterable[bytes], source: Source) -> Iterator[bytes]:
    """Cut chunks into lines at universal newlines, which is what ``bytes.splitlines`` does and ``str``'s does not."""
    rest: list[bytes] = []  # pieces of the line that is not at its end yet
    rest_bytes = 0
    number = 1
    for chunk in chunks:
        if rest and rest[-1].endswith(b"\r"):
            # the last chunk ended between \r and, perhaps, \n
            chunk = rest.pop() + chunk
            rest_bytes = sum(map(len, rest))
        pieces = chunk.splitlines(keepends=True)
        for i, piece in enumerate(pieces):
            is_last = i == len(pieces) - 1
            if piece.endswith(b"\n") or (piece.endswith(b"\r") and not is_last):
                yield b"".join((*rest, piece.rstrip(b"\r\n")))
                rest, rest_bytes = [], 0
                number += 1
            else:
                rest.append(piece)
                rest_bytes += len(piece)
        if rest_bytes > LINE_LIMIT_BYTES:
            raise SourceError(
                f"{source_name(source)}:{number}: the line has more than {LINE_LIMIT_BYTES // 2**20} MiB; "
                "text has one sentence or paragraph a line: is this a text file, and are its line breaks kept?"
            )
    if rest:
        yield b"".join(rest).rstrip(b"\r\n")


def _undecodable(source: Source, number: int, data: bytes, error: UnicodeDecodeError) -> str:
    if number == 1 and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "UTF-32" if data[:4] == b"\xff\xfe\x00\x00" else "UTF-16"
        return (
            f"{source_name(source)} is {encoding}, and UTF-8 is what is read; "
            f"convert it: iconv -f {encoding} -t UTF-8 FILE > NEW_FILE"
        )
    around = data[max(0, error.start - 20) : error.start + 20].decode("utf-8", "backslashreplace")
    return (
        f"{source_name(source)}:{number}: byte 0x{data[error.start]:02x} at column {error.start + 1} is not UTF-8, "
        f"near {around!r}; convert the file (iconv -f ENCODING -t UTF-8) or take the line out"
    )


def sentence_blocks(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Group lines into sentences, which empty lines separate; each with the number of its first line."""
    block: list[str] = []
    first = 1
    for number, line in enumerate(lines, start=1):
        if line.strip():
            if not block:
                first = number
            block.append(line)
        elif block:
            yield first, block
            block = []
    if block:
        yield first, block


def _parse_sentence(block: list[str], first: int, source: Source) -> Row | None:
    """Parse the lines of a sentence; None if it has comments only."""
    words: list[str] = []
    upos: list[str] = []
    heads: list[int] = []
    deprels: list[str] = []
    numbers: list[int] = []  # line of each word
    text, name = "", source_name(source)
    for number, line in enumerate(block, start=first):
        if line.startswith("#"):
            field, _, value = line[1:].partition("=")
            text = value.strip() if field.strip() == "text" else text
            continue
        where = (name, number)
        columns = line.split("\t")
        if len(columns) != COLUMNS:
            raise RowError(
                *where,
                f"a line of CoNLL-U has {COLUMNS} columns with a tab between them, got {len(columns)} in "
                f"{line[:60]!r}; mend the line, or write _ in columns that have no value",
            )
        if not _is_word(columns[0], len(words), where):
            continue
        if "" in columns:
            raise RowError(*where, f"column {columns.index('') + 1} is empty; write _ where there is no value")
        words.append(columns[1])
        upos.append(columns[3])
        heads.append(_parse_head(columns[6], where))
        deprels.append(columns[7])
        numbers.append(number)
    if not words:
        return None
    _check_tree(heads, numbers, first, name)
    return Row(tuple(words), tuple(upos), tuple(heads), tuple(deprels), first, name, text or " ".join(words))


def _is_word(identifier: str, so_far: int, where: tuple[str, int]) -> bool:
    """Whether a line is a syntactic word; False for a multi-word token or an empty node."""
    if _WORD_ID.fullmatch(identifier):
        if int(identifier) != so_far + 1:
            raise RowError(
                *where,
                f"words are numbered 1, 2, 3... in each sentence, got {identifier} where {so_far + 1} is due; "
                "mend the numbers, or add the empty line that is missing between two sentences",
            )
        return True
    token = _RANGE_ID.fullmatch(identifier)
    if token is not None:
        if int(token[1]) != so_far + 1 or int(token[2]) < int(token[1]):
            raise RowError(*where, f"the multi-word token {identifier} must stand before its first word; move it")
        return False
    if _EMPTY_NODE_ID.fullmatch(identifier):
        return False
    raise RowError(
        *where,
        f"the first column is a word's number (1), a multi-word token (1-2) or an empty node (1.1), "
        f"got {identifier!r}; mend it",
    )


def _parse_head(column: str, where: tuple[str, int]) -> int:
    if not (column.isascii() and column.isdigit()):
        raise RowError(*where, f"HEAD is the number of a word, or 0 for the root, got {column!r}; mend it")
    return int(column)


def _check_tree(heads: list[int], numbers: list[int], first: int, name: str) -> None:
    for word, (head, number) in enumerate(zip(heads, numbers, strict=True), start=1):
        if head > len(heads) or head == word:
            raise RowError(
                name,
                number,
                f"HEAD of word {word} is {head}; allowed is another word of the sentence "
                f"(1 to {len(heads)}) or 0 for the root",
            )
    roots = [word for word, head in enumerate(heads, start=1) if head == 0]
    if len(roots) != 1:
        raise RowError(
            name,
            first,
            f"a sentence has exactly one root (HEAD 0), this one has {len(roots)}; mend it, or cut it into sentences",
        )
    reaches_root = {0}
    for word in range(1, len(heads) + 1):
        path: set[int] = set()
        node = word
        while node not in reaches_root:
            if node in path:
                raise RowError(
                    name,
                    numbers[node - 1],
                    f"the heads from word {node} lead back to it; heads form a tree, so one of them is wrong",
                )
            path.add(node)
            node = heads[node - 1]
        reaches_root |= path
