"""Tables, JSON lines, Parquet, data sets of the hub and column files: the same records whatever the format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ltsft.config.source import Source
from ltsft.data.conll import read_tagged
from ltsft.data.sources import RowError, fingerprint
from ltsft.data.tables import read_records
from ltsft.errors import SourceError
from ltsft.project.project import load_project

ROWS: list[dict[str, Any]] = [
    {"text": "góð", "pair": 'she said "yes", he\tno'.replace("\t", " "), "label": "positive"},
    {"text": "ringur", "pair": "", "label": "negative"},
]


def source(scheme: str, location: Path | str) -> Source:
    return Source.model_validate(f"{scheme}:{location}")


def records(found: Source) -> list[dict[str, Any]]:
    return [dict(record.fields) for record in read_records(found)]


def write(folder: Path, scheme: str) -> Path:
    file = folder / f"rows.{scheme}"
    if scheme == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
        return file
    names = ",".join(ROWS[0]) if scheme == "csv" else "\t".join(ROWS[0])
    lines = {
        "csv": [names, 'góð,"she said ""yes"", he no",positive', "ringur,,negative"],
        "tsv": [names, *("\t".join(row.values()) for row in ROWS)],
        "jsonl": [json.dumps(row, ensure_ascii=False) for row in ROWS],
    }[scheme]
    file.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))
    return file


@pytest.mark.parametrize("scheme", ["tsv", "csv", "jsonl", "parquet"])
def test_the_same_records_are_read_from_every_format(scheme: str, tmp_path: Path) -> None:
    assert records(source(scheme, write(tmp_path, scheme))) == ROWS


@pytest.mark.parametrize("scheme", ["jsonl", "parquet", "csv"])
def test_a_folder_of_data_files_is_read_as_the_hub_stores_them(scheme: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    file = write(folder, scheme)
    content = file.read_bytes() if scheme == "parquet" else gzip.decompress(file.read_bytes())
    (folder / f"train.{scheme}").write_bytes(content)
    file.unlink()
    found = source("hf", f"{folder}?split=train")
    read = records(found)
    assert [{**row, "pair": row["pair"] or ""} for row in read] == ROWS  # an empty field of CSV is nothing there
    before = fingerprint(found)
    assert before == fingerprint(found)
    (folder / f"train.{scheme}").write_bytes(content + b" ")
    assert fingerprint(found) != before


def test_labels_of_a_data_set_are_given_by_their_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": 0}], features=features).to_parquet(
        tmp_path / "test.parquet"
    )
    found = records(source("hf", f"{tmp_path}?split=test"))
    assert found == [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]


def test_a_data_set_of_the_hub_is_named_by_its_commit() -> None:
    commit = "0123456789" * 4
    found = source("hf", f"owner/name?revision={commit}&split=train&name=es")
    assert found.location == f"owner/name?split=train&name=es&revision={commit}"
    assert found.is_remote
    assert fingerprint(found) != fingerprint(source("hf", f"owner/name?split=test&name=es&revision={commit}"))
    for location, message in {
        "owner/name?split=train": "named with the commit",
        "owner/name?split=train&revision=main": "named with the commit",
        f"owner/name?revision={commit}": "hf: needs a split",
        "owner/name?split=train&config=es": "unknown option 'config' of hf:; allowed are split, name, revision",
    }.items():
        with pytest.raises(ValueError, match=message):
            source("hf", location)


def test_a_folder_is_looked_for_below_the_data_root(tiny_project: Path) -> None:
    sources = "target_tasks.pos.test.aa"
    with pytest.raises(Exception, match=r"there is no folder .*/data/nowhere; mend the path or set data_root"):
        load_project(tiny_project, overrides=[f"{sources}='hf:./nowhere?split=test'"])
    with pytest.raises(Exception, match="objective pos reads conllu:, conll:; got hf:"):
        load_project(tiny_project, overrides=[f"{sources}='hf:./?split=test'"])


MALFORMED = {
    "tsv": ("a\tb\n1\t2\n1\t2\t3\n4\t5\n", 3, "2 columns are due (a, b), got 3 in '1 | 2 | 3'"),
    "csv": ('a,b\n1,2\n"3\n4"\n5,6\n', 3, "2 columns are due (a, b), got 1 in '3\\n4'"),
    "jsonl": ('{"a": 1}\nnonsense\n{"a": 2}\n', 2, "this is not JSON: "),
    "jsonl half a pair": ('{"a": "\\ud83d\\ude00"}\n{"a": ["\\ud83d"]}\n{"a": 2}\n', 2, "half a surrogate pair is no"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_record_is_told_by_line_and_the_others_are_read(case: str, tmp_path: Path) -> None:
    content, line, reason = MALFORMED[case]
    scheme = case.split()[0]
    file = tmp_path / "rows"
    file.write_text(content)
    errors: list[RowError] = []
    assert len(list(read_records(source(scheme, file), on_error=errors.append))) == 2
    assert [(e.line, e.reason[: len(reason)]) for e in errors] == [(line, reason)]
    with pytest.raises(RowError, match=f"rows:{line}: "):
        records(source(scheme, file))


def test_a_table_without_names_of_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a\ta\n1\t2\n")
    with pytest.raises(SourceError, match="the first line names the columns, each once, got 'a', 'a'"):
        records(source("tsv", tmp_path / "t"))


def test_damaged_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"PAR1 and nothing that belongs there PAR1")
    with pytest.raises(SourceError, match="t cannot be read as Parquet"):
        records(source("parquet", tmp_path / "t"))
    with pytest.raises(SourceError, match=r"there is no file .*nowhere"):
        records(source("parquet", tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="is of the scheme text: where one of tsv:, csv:"):
        records(source("text", tmp_path / "t"))
    with pytest.raises(SourceError, match=r"cannot be read: .*need a script"):
        records(source("hf", f"{tmp_path}/nowhere?split=train"))


CONLL = "-DOCSTART- -X- O\n\nAda NNP B-PER\nsings VBZ O\n\n\nHi UH O\n"


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_columns_are_read_word_first_and_label_last(separator: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(CONLL.replace(" ", separator))
    first, second = read_tagged(source("conll", tmp_path / "t"))
    assert (first.words, first.labels, first.line) == (("Ada", "sings"), ("B-PER", "O"), 3)
    assert (second.text, second.labels, second.line) == ("Hi", ("O",), 7)


def test_a_line_with_another_number_of_columns_spoils_its_sentence_alone(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("Ada B-PER\nsings\n\nHi O\n\nfor\n\nyou O extra\nto O\n")
    errors: list[RowError] = []
    assert [row.words for row in read_tagged(source("conll", tmp_path / "t"), on_error=errors.append)] == [("Hi",)]
    assert [error.line for error in errors] == [2, 6, 9]
    assert "2 columns are due, word first and label last" in errors[0].reason
