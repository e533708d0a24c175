"""Any bytes of a data file give rows, or an error of ours with file and line; what was once read wrongly is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltsft.config.source import Source
from ltsft.data.conll import read_tagged
from ltsft.data.sources import read_rows, read_text
from ltsft.data.tables import read_records
from ltsft.data.word_lists import read_word_list
from ltsft.errors import SourceError

READERS: dict[str, Callable[[Source], Any]] = {
    "text": lambda source: read_text([source]),
    "conllu": read_rows,
    "conll": read_tagged,
    "tsv": read_records,
    "csv": read_records,
    "jsonl": read_records,
    "parquet": read_records,
}


def source(scheme: str, content: bytes | str, folder: Path) -> Source:
    file = folder / f"data.{scheme}"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return Source.model_construct(scheme=scheme, location=str(file), origin=None)


def tagged(content: str, folder: Path) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(row.words, row.labels) for row in read_tagged(source("conll", content, folder))]


def problem(scheme: str, content: bytes | str, folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        list(READERS[scheme](source(scheme, content, folder)))
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "-DOCSTART- O\n\na A\nb B\n\nc A\n",
        "-DOCSTART- -X- -X- O\na A\nb B\n\nc A\n",
        "a A\nb B\n-DOCSTART- O\nc A\n",
        "a A\nb B\n\n-DOCSTART- O\nc A\n-DOCSTART-\n",
        " -DOCSTART-\ta\tO\n\na A\nb B\n-DOCSTART-\n\n-DOCSTART-\n\nc A",
    ],
)
def test_a_document_mark_ends_a_sentence_and_takes_none_with_it(content: str, tmp_path: Path) -> None:
    assert tagged(content, tmp_path) == [(("a", "b"), ("A", "B")), (("c",), ("A",))]


def test_other_white_space_is_a_part_of_a_word_and_a_number_sign_is_a_word(tmp_path: Path) -> None:
    content = "10\u00a0000 A\n\u6771\u3000\u4eac  \tB\n"
    assert tagged("10\u00a0000 A\n\u6771\u3000\u4eac B\n", tmp_path) == [
        (("10\u00a0000", "\u6771\u3000\u4eac"), ("A", "B"))
    ]
    assert tagged("10\u00a0000\tA\n\u6771\u3000\u4eac\tB\n", tmp_path) == tagged(content.replace("  \t", " "), tmp_path)
    assert tagged("# NN A\nb NN B\n", tmp_path) == [(("#", "b"), ("A", "B"))]
    assert tagged("# A\n-DOCSTART-x B\n", tmp_path) == [(("#", "-DOCSTART-x"), ("A", "B"))]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a A\n\n# sent_id = 3\nb B\n", "data.conll:3: this looks like a comment"),
        ("a A\n\u00a0 B\n", "data.conll:2: the word or the label is white space alone"),
        ("a\tA\nb\t\u3000\n", "data.conll:2: the word or the label is white space alone"),
        ("a A\nb\n", "data.conll:2: 2 columns are due"),
        ("a\tA\n\tB\n", "data.conll:2: the word or the label is empty"),
    ],
)
def test_a_line_of_columns_that_cannot_be_read_is_told(content: str, told: str, tmp_path: Path) -> None:
    assert told in problem("conll", content, tmp_path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"text": NaN}', "NaN is no number of JSON"),
        ('{"text": -Infinity}', "-Infinity is no number of JSON"),
        ('{"text": 1e400}', "the number 1e400 is too large"),
        ('{"text": "a", "label": 1, "text": "b"}', "'text' stands twice in an object"),
        ('{"a": {"b": 1, "b": 2}}', "'b' stands twice in an object"),
        ("[" * 100_000, "this is not JSON"),
        ("1" * 5000, "this is not JSON"),
    ],
)
def test_json_that_would_be_learnt_as_something_else_is_told_with_its_line(
    line: str, told: str, tmp_path: Path
) -> None:
    found = problem("jsonl", '{"text": "sound"}\n' + line, tmp_path)
    assert "data.jsonl:2: " in found
    assert told in found


def test_a_column_twice_is_refused_in_every_kind_of_table(tmp_path: Path) -> None:
    assert "data.tsv:1: the first line names the columns, each once" in problem("tsv", "a\tb\ta\n1\t2\t3", tmp_path)
    assert "data.csv:1: the first line names the columns, each once" in problem("csv", "a,b,a\n1,2,3", tmp_path)
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "twice.parquet")
    assert "column 'text' stands twice" in problem("parquet", (tmp_path / "twice.parquet").read_bytes(), tmp_path)


def test_a_gap_in_a_table_of_numbers_is_no_text(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [1.5, math.nan, None]}), tmp_path / "gaps.parquet")
    records = list(read_records(source("parquet", (tmp_path / "gaps.parquet").read_bytes(), tmp_path)))
    for record, told in zip(records[1:], ("holds nan, which is no text", "holds nothing"), strict=True):
        with pytest.raises(SourceError, match=told):
            record.text("text")


WORDS = st.text(st.sampled_from('ab1 \t\n\r#-_.,"{}[]:é\u00a0\u3000\u2028\ufeff\0'), max_size=80)
PIECES: dict[str, list[str]] = {
    "text": ["a\n", "\n", "b c\n"],
    "conllu": [
        "1\ta\t_\tX\t_\t_\t0\troot\t_\t_\n",
        "2\tb\t_\tX\t_\t_\t1\tdep\t_\t_\n",
        "# text = a\n",
        "1-2\tab\n",
        "\n",
    ],
    "conll": ["a A\n", "a\tA\n", "-DOCSTART- O\n", "# a\n", "\n", "a b C\n"],
    "tsv": ["text\tlabel\n", "a\tb\n", "a\n", "\n"],
    "csv": ["text,label\n", 'a,"b\n', '"', "a,b\n", "\n"],
    "jsonl": ['{"text": "a"}\n', '{"text": NaN}\n', '{"a": 1, "a": 2}\n', "[]\n", '{"a": "\\ud800"}\n', "{\n"],
    "parquet": ["PAR1", "\0\0\0\0", "PAR1"],
}


def contents(scheme: str) -> st.SearchStrategy[bytes]:
    pieces = st.lists(st.one_of(st.sampled_from(PIECES[scheme]), WORDS), max_size=8).map("".join)
    return st.one_of(st.binary(max_size=80), pieces.map(str.encode))


def check(scheme: str, content: bytes, folder: Path) -> None:
    found = source(scheme, content, folder)
    readers: list[Callable[[Source], Any]] = [READERS[scheme], *([read_word_list] if scheme == "tsv" else [])]
    for reader in readers:
        try:
            rows = reader(found)
            rows = list(rows) if isinstance(rows, Iterator) else rows
        except SourceError as error:
            told, rows = str(error), []
        else:
            told = found.location
        assert found.location in told
        assert len(told.splitlines()) == 1, told
        for row in rows if scheme == "conll" else ():
            assert len(row.words) == len(row.labels) > 0
            assert all(word.strip() and "\n" not in word for word in (*row.words, *row.labels))
        for row in rows if scheme == "conllu" else ():
            assert len(row.words) == len(row.heads) > 0


def fuzz(scheme: str, examples: int, folder: Path) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(content=contents(scheme))
    def holds(content: bytes) -> None:
        check(scheme, content, folder)

    holds()


@pytest.mark.parametrize("scheme", list(READERS))
def test_any_bytes_give_rows_or_an_error_with_their_place(scheme: str, tmp_path: Path) -> None:
    fuzz(scheme, 150, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", list(READERS))
def test_any_bytes_give_rows_or_an_error_with_their_place_for_minutes(scheme: str, tmp_path: Path) -> None:
    fuzz(scheme, 10_000, tmp_path)
