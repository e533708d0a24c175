"""Files of records, all streamed: tab- and comma-separated tables, JSON lines, Parquet, and data sets of the hub."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from ltsft.config import Source
from ltsft.data.locations import shown
from ltsft.data.sources import OnError, RowError, ensure_local, open_lines, source_name, visible
from ltsft.errors import SourceError

__all__ = ["RECORDS", "Record", "read_records"]

ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        fields: column -> value; text in tables, JSON's types elsewhere.
        line: number of its line in the file, or of the record where there are no lines, from 1.
        source: the source that it was read from, for messages.
    """

    fields: Mapping[str, Any]
    line: int
    source: str

    def text(self, column: str) -> str:
        """Give a column as text, without the white space around it.

        Raises:
            RowError: there is no such column, or it holds neither text nor a number.
        """
        value = self.value(column)
        if isinstance(value, float) and not math.isfinite(value):
            raise RowError(self.source, self.line, f"column {column!r} holds {value}, which is no text: a gap?")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise RowError(self.source, self.line, f"column {column!r} holds {_kind(value)}; it must hold text")
        return str(value).strip()

    def value(self, column: str) -> Any:
        """Give what a column holds.

        Raises:
            RowError: there is no such column.
        """
        if column not in self.fields:
            raise RowError(
                self.source,
                self.line,
                f"there is no column {column!r}; the columns are {', '.join(map(repr, self.fields))}: name the right "
                "one under columns of the target task",
            )
        return self.fields[column]


def read_records(source: Source, *, on_error: OnError | None = None) -> Iterator[Record]:
    """Read the records of a source of the schemes in `RECORDS`.

    ``tsv:`` and ``csv:`` begin with a line of column names. A field of a ``tsv:`` file is what stands between two tabs,
    quotation marks included; ``csv:`` follows RFC 4180, so a field in quotation marks may hold commas and line breaks.
    ``jsonl:`` has one JSON object a line. ``parquet:`` and ``hf:`` are read with pyarrow and the datasets library, in
    blocks; the labels that a data set of the hub stores as numbers are given by their names.

    Args:
        source: what to read; a missing local file is fetched from its origin first.
        on_error: called with what is wrong with a malformed record, which is then left out; without it the first one
            ends the reading.

    Yields:
        Each record.

    Raises:
        SourceError: as for `ltsft.data.sources.open_lines`; if the source is of another scheme; and, naming file and
            line, if a record has another number of fields than the first line, or is not a JSON object.
    """
    reader = RECORDS.get(source.scheme)
    if reader is None:
        allowed = ", ".join(f"{scheme}:" for scheme in RECORDS)
        raise SourceError(f"{source_name(source)} is of the scheme {source.scheme}: where one of {allowed} is needed")
    name = source_name(source)
    for number, found in reader(source):
        if isinstance(found, str):
            error = RowError(name, number, found)
            if on_error is None:
                raise error
            on_error(error)
        else:
            yield Record(found, number, name)


Found = Iterator[tuple[int, Mapping[str, Any] | str]]
"""Numbers of lines, each with the fields of its record or with what is wrong with it."""


def _read_tsv(source: Source) -> Found:
    numbered = ((number, line.split("\t")) for number, line in enumerate(open_lines(source), start=1) if line.strip())
    return _with_names(numbered, source)


def _read_csv(source: Source) -> Found:
    reader = csv.reader((f"{line}\n" for line in open_lines(source)), strict=True)

    def numbered() -> Iterator[tuple[int, list[str]]]:
        before = 0
        try:
            for fields in reader:
                if fields:
                    yield before + 1, fields
                before = reader.line_num
        except csv.Error as error:
            raise RowError(source_name(source), before + 1, f"this is not CSV: {error}; mend the quotes") from None

    return _with_names(numbered(), source)


def _with_names(numbered: Iterator[tuple[int, list[str]]], source: Source) -> Found:
    _, names = next(numbered, (1, []))
    names = [name.strip() for name in names]
    if len(set(names)) != len(names) or "" in names:
        raise SourceError(
            f"{source_name(source)}:1: the first line names the columns, each once, got {', '.join(map(repr, names))}; "
            "add it"
        )
    for number, fields in numbered:
        if len(fields) == len(names):
            yield number, dict(zip(names, fields, strict=True))
        else:
            shown_fields = " | ".join(fields)[:60]
            yield (
                number,
                f"{len(names)} columns are due ({visible(', '.join(names))}), got {len(fields)} in {shown_fields!r}",
            )


def _read_jsonl(source: Source) -> Found:
    for number, line in enumerate(open_lines(source), start=1):
        if not line.strip():
            continue
        try:
            value = _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            yield number, f"this is not JSON: {error}, in {line[:60]!r}"
            continue
        if "\\u" in line and not _is_unicode(value):
            yield number, f"half a surrogate pair is no character, in {line[:60]!r}"
            continue
        yield number, value if isinstance(value, dict) else f"a JSON object is due, got {_kind(value)}"


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is too large")
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"{next(name for name, count in counts.items() if count > 1)!r} stands twice in an object")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_each_key_once)


def _is_unicode(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _refuse_twice(names: list[str], source: Source) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SourceError(f"{source_name(source)}: column {twice[0]!r} stands twice; rename or remove one")


def _read_parquet(source: Source) -> Found:
    import fsspec
    import pyarrow
    import pyarrow.parquet

    ensure_local(source)
    try:
        with fsspec.open(source.location, "rb") as opened:
            number = 0
            file = pyarrow.parquet.ParquetFile(opened)
            _refuse_twice(file.schema_arrow.names, source)
            for block in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for record in block.to_pylist():
                    number += 1
                    yield number, record
    except FileNotFoundError as error:
        raise SourceError(f"there is no file {shown(source.location)}; mend the path or set data_root") from error
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        # a library's message may hold the whole URL with its query, so only its kind is told
        raise SourceError(
            f"{source_name(source)} cannot be read as Parquet ({type(error).__name__}); fetch or write the file again"
        ) from error


def _read_hub(source: Source) -> Found:
    import datasets

    path, _, query = source.location.partition("?")
    options = dict(parse_qsl(query))
    try:
        opened = datasets.load_dataset(
            path, options.get("name"), split=options["split"], revision=options.get("revision"), streaming=True
        )
        features = opened.features or {}
        classes = {n: f for n, f in features.items() if isinstance(f, datasets.ClassLabel)}
        for number, record in enumerate(opened, start=1):
            named = {n: f.int2str(record[n]) for n, f in classes.items() if record[n] is not None and record[n] >= 0}
            yield number, {**record, **named}
    except (OSError, ValueError, RuntimeError, TypeError) as error:  # the hub's and the library's own are among these
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"{source_name(source)} cannot be read: {told}; data sets that need a script are not read: name their files"
        ) from error


RECORDS = {
    "tsv": _read_tsv,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "hf": _read_hub,
}
"""The schemes of files of records. Another format is one function and one line here."""


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)
