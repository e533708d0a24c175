"""What the gates say of sound data: 124 texts, 99 parallel texts and 115 treebanks, where LTSFT_SHARED has them.

What is refused there is a false refusal unless its lines say otherwise: with GATES_SHOW=1 in the environment they are
printed. docs/validation.md has what was found.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.figures import Report, main
from ltsft.config import LabelledGate, Source, TextGate
from ltsft.data import (
    Line,
    Measures,
    RowError,
    Sentence,
    measure_labelled,
    measure_text,
    most_used_script,
    open_lines,
    read_rows,
)

BASE = "models/mini-multilingual-6x384"
SAMPLE_LINES = 2_000
"""Lines that the script is told from."""

SIZES = {"min_lines", "min_characters", "min_sentences"}
"""Thresholds of how much there is, which says nothing of what it is."""


def run(quick: bool = False) -> Report:
    """Measure all texts and treebanks; with quick, three of each."""
    shared = os.environ.get("LTSFT_SHARED", "")
    data = Path(shared, "data")
    if not shared or not data.is_dir():
        return Report("gates", "LTSFT_SHARED names no folder of data, so nothing was measured")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(shared, BASE))
    most = 3 if quick else None
    report = Report("gates", f"texts, parallel texts and treebanks in {data}")
    for kind, texts in (("text", _texts(data)), ("parallel", _parallel(data)), ("treebank", _running(data))):
        tally = _Tally(TextGate())
        for name, lines in islice(texts, most):
            script = most_used_script(" ".join(line.text for line in lines[:SAMPLE_LINES]))
            tally.add(name, measure_text(lines, TextGate(), script=script, tokenizer=tokenizer))
        tally.tell(report, kind)
    tally = _Tally(LabelledGate())
    for folder in islice(sorted((data / "ud").glob("*/")), most):
        splits = {file.name.split(".")[0]: _tagged(file) for file in _ordered(folder)}
        for split, measures in measure_labelled(splits, LabelledGate(), labels=UPOS + UPOS_TOO).items():
            tally.add(f"{folder.name} {split}", measures)
    tally.tell(report, "labelled")
    return report


UPOS = ("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT")
UPOS_TOO = ("SCONJ", "SYM", "VERB", "X")


class _Tally:
    """Which data each rule refuses, and the share of what it flags."""

    def __init__(self, gate: TextGate | LabelledGate) -> None:
        self._gate = gate
        self._count = 0
        self._refused: defaultdict[str, list[str]] = defaultdict(list)
        self._flagged: Counter[str] = Counter()
        self._worst: dict[str, tuple[float, str]] = {}

    def add(self, name: str, measures: Measures) -> None:
        self._count += 1
        for field in type(self._gate).model_fields:
            bound, _, measure = field.partition("_")
            value = measures.values.get(measure)
            if bound not in ("min", "max") or field in SIZES or value is None:
                continue
            allowed = getattr(self._gate, field)
            if value < allowed if bound == "min" else value > allowed:
                self._refused[field].append(name)
                if os.environ.get("GATES_SHOW"):
                    print(field, name, f"{value:.4g}", *measures.examples.get(measure, ()), sep="\n    ")
            near = (value - allowed) * (1 if bound == "max" else -1)
            if field not in self._worst or near > self._worst[field][0]:
                self._worst[field] = (near, f"{name} {value:.4g}")

    def tell(self, report: Report, kind: str) -> None:
        refused = {name for names in self._refused.values() for name in names}
        report.at_most(f"{kind}_refused", len(refused), "of " + str(self._count), GOALS[kind])
        for field, (_, worst) in self._worst.items():
            report.note(f"{kind}: {field} (nearest or worst: {worst})", len(self._refused[field]), "refused")


GOALS = {"text": 2, "parallel": 12, "treebank": 6, "labelled": 1}
"""How many were refused when their lines were looked at; one treebank of them is sound."""


def _texts(data: Path) -> Iterator[tuple[str, list[Line]]]:
    for path in sorted((data / "text").glob("*.txt.gz")):
        source = Source(scheme="text", location=str(path))
        yield path.name, [Line(path.name, n, text) for n, text in enumerate(open_lines(source), start=1)]


def _parallel(data: Path) -> Iterator[tuple[str, list[Line]]]:
    for folder in sorted((data / "sib200").glob("*/")):
        lines = []
        for path in sorted(folder.glob("*.tsv.gz")):
            with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
                rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                lines += [Line(folder.name, n, row["text"]) for n, row in enumerate(rows, start=2)]
        yield folder.name, lines


def _running(data: Path) -> Iterator[tuple[str, list[Line]]]:
    for folder in sorted((data / "ud").glob("*/")):
        yield (
            folder.name,
            [Line(path.name, row.line, row.text) for path in _ordered(folder) for row in _rows(path)],
        )


def _ordered(folder: Path) -> list[Path]:
    return [p for name in ("train", "dev", "test") if (p := folder / f"{name}.conllu.gz").is_file()]


def _rows(path: Path) -> Iterator[Any]:
    problems: list[RowError] = []
    yield from read_rows(Source(scheme="conllu", location=str(path)), on_error=problems.append)


def _tagged(path: Path) -> Iterator[Sentence]:
    for row in _rows(path):
        yield Sentence(path.name, row.line, row.words, row.upos)


if __name__ == "__main__":
    main("gates", run)
