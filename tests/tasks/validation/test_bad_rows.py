"""Bad rows of every objective, from the file to the gate: counted, shown with file and line, and stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ltsft.config.gates import LabelledGate
from ltsft.config.target_task import TargetTask
from tasks.validation.judging import _rows
from tasks.validation.quality import GateResult, validate_labelled

GATE = LabelledGate(max_label_share=1.0, min_labels_present=0.0, min_label_agreement=0.0)
GOOD = 20
WORDS = [f"word{i}" for i in range(GOOD)]


def conllu(*rows: tuple[str, str, int, str]) -> str:
    """A sentence of (form, tag, head, relation)."""
    lines = [f"{i}\t{w}\t_\t{tag}\t_\t_\t{head}\t{rel}\t_\t_" for i, (w, tag, head, rel) in enumerate(rows, 1)]
    return "\n".join(lines) + "\n\n"


def asked(**more: Any) -> str:
    sound = {"question": "who?", "context": "eto sato bi", "answers": {"text": ["sato"], "answer_start": [4]}}
    return json.dumps({**sound, **more}) + "\n"


FORMATS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "pos": (
        "pos",
        "conllu",
        {"labels": ["NOUN", "VERB"]},
        "".join(conllu((w, "NOUN", 2, "nsubj"), ("is", "VERB", 0, "root")) for w in WORDS),
    ),
    "pos in columns": ("pos", "conll", {"labels": ["A", "B"]}, "".join(f"{w} A\nis B\n\n" for w in WORDS)),
    "dp": ("dp", "conllu", {}, "".join(conllu((w, "X", 2, "nsubj:pass"), ("is", "X", 0, "root")) for w in WORDS)),
    "ner": ("ner", "conll", {"labels": ["PER"]}, "".join(f"{w} B-PER\nSmith I-PER\nis O\n\n" for w in WORDS)),
    "nli": (
        "classification",
        "tsv",
        {"labels": ["yes", "no"], "columns": {"text": "premise", "pair": "hypothesis"}},
        "premise\thypothesis\tlabel\n" + "".join(f"{w} a\t{w} b\tyes\n" for w in WORDS),
    ),
    "sentiment in csv": (
        "classification",
        "csv",
        {"labels": ["yes", "no"]},
        "text,label\n" + "".join(f"{w},no\n" for w in WORDS),
    ),
    "sentiment in json": (
        "classification",
        "jsonl",
        {"labels": ["yes", "no"]},
        "".join(json.dumps({"text": w, "label": "no"}) + "\n" for w in WORDS),
    ),
    "qa": ("qa", "jsonl", {}, "".join(asked(question=f"{w}?") for w in WORDS)),
}
"""What is learnt, the scheme of its files, what the project file says besides, and good rows."""

BAD: list[tuple[str, str, str, int, str]] = [
    ("pos", conllu(("a", "NOUN", 0, "root")).replace("\t_\t_\n", "\t_\n"), "malformed", 0, "10 columns"),
    ("pos", conllu(("a", "NUON", 0, "root")), "undeclared", 0, "'NUON' in a"),
    ("pos", conllu(("a", "NOUN", 0, "root"), ("b", "VERB", 5, "obj")), "malformed", 1, "HEAD of word 2 is 5"),
    ("pos in columns", "a A\nb\n\n", "malformed", 1, "2 columns are due"),
    ("pos in columns", "a C\n\n", "undeclared", 0, "'C' in a"),
    ("dp", conllu(("a", "X", 0, "root")).replace("\tX", ""), "malformed", 0, "10 columns"),
    ("dp", conllu(("a", "X", 0, "root"), ("b", "X", 7, "obj")), "malformed", 1, "HEAD of word 2 is 7"),
    ("dp", conllu(("a", "X", 0, "root"), ("b", "X", -1, "obj")), "malformed", 1, "got '-1'"),
    ("dp", conllu(("a", "X", 0, "root"), ("b", "X", 3, "o"), ("c", "X", 2, "o")), "malformed", 1, "lead back to it"),
    ("dp", conllu(("a", "X", 0, "root"), ("b", "X", 0, "root")), "malformed", 0, "this one has 2"),
    ("dp", conllu(("a", "X", 2, "dep"), ("b", "X", 1, "dep")), "malformed", 0, "this one has 0"),
    ("dp", conllu(("a", "X", 0, "rood")), "undeclared", 0, "'rood' in a"),
    ("ner", "a B-PER extra\nb\n\n", "malformed", 1, "3 columns are due"),
    ("ner", "a B-LOC\n\n", "undeclared", 0, "'B-LOC' in a"),
    ("ner", "a O\nb I-PER\n\n", "bio_break", 0, "I-PER at word 2, 'b', follows O"),
    ("nli", "a\tyes\n", "malformed", 0, "3 columns are due (premise, hypothesis, label), got 2"),
    ("nli", "a\tb\tmaybe\n", "undeclared", 0, "'maybe' in a b"),
    ("nli", "a\tb\t\n", "undeclared", 0, "'' in a b"),
    ("nli", "a\t \tyes\n", "empty_text", 0, "pair empty in a |"),
    ("sentiment in csv", 'a,"b",yes\n', "malformed", 0, "2 columns are due"),
    ("sentiment in csv", " ,yes\n", "empty_text", 0, "text empty"),
    ("sentiment in json", '{"text": null, "label": "yes"}\n', "malformed", 0, "column 'text' holds nothing"),
    ("sentiment in json", "{broken\n", "malformed", 0, "this is not JSON"),
    ("qa", asked(answers={"text": ["sato"], "answer_start": [3]}), "answer_mismatch", 0, "'sato' at character 3"),
    ("qa", asked(answers={"text": ["none"], "answer_start": [-4]}), "answer_mismatch", 0, "'none' at character -4"),
    ("qa", asked(answers={"text": [], "answer_start": []}), "malformed", 0, "with one answer"),
    ("qa", asked(question=" "), "empty_text", 0, "question empty"),
    ("qa", "[1]\n", "malformed", 0, "a JSON object is due"),
]
"""What is learnt, a bad row after the good ones, the measure that counts it, its line from its first, what is said."""


def judge(name: str, content: str, folder: Path, gate: LabelledGate) -> GateResult:
    objective, scheme, more, _ = FORMATS[name]
    file = folder / "train.data"
    file.write_text(content, encoding="utf-8")
    source = f"{scheme}:{file}"
    values = {"name": "learnt", "objective": objective, "sources": {"en": {"train": source}}, "test": {"en": source}}
    target = TargetTask.model_validate({**values, **more})
    splits = {"en train": _rows(target, target.sources["en"].train)}
    return validate_labelled(target, splits, gate=gate, report_folder=folder / "report")


@pytest.mark.parametrize("name", FORMATS)
def test_good_rows_pass_and_nothing_is_told(name: str, tmp_path: Path) -> None:
    result = judge(name, FORMATS[name][3], tmp_path, GATE)
    assert result.success, result.message()
    assert result.tolerated == ()


@pytest.mark.parametrize(("name", "row", "measure", "line", "told"), BAD)
def test_a_bad_row_is_counted_shown_with_its_line_and_stopped(
    name: str, row: str, measure: str, line: int, told: str, tmp_path: Path
) -> None:
    good = FORMATS[name][3]
    result = judge(name, good + row, tmp_path, GATE)
    assert not result.success
    (failure,) = result.failures
    assert failure.threshold == f"gates.labelled.max_{measure}_share"
    assert result.measures[f"en train.{measure}_share"] > 0.0
    (example,) = failure.examples
    assert example.startswith(f"train.data:{good.count(chr(10)) + 1 + line} «")
    assert told in example
    assert example in result.message()


@pytest.mark.parametrize(("name", "row", "measure", "line", "told"), {bad[2]: bad for bad in BAD}.values())
def test_a_bad_row_that_is_let_through_is_not_passed_over_in_silence(
    name: str, row: str, measure: str, line: int, told: str, tmp_path: Path
) -> None:
    good = FORMATS[name][3]
    lenient = GATE.model_copy(update={f"max_{measure}_share": 1.0})
    allowed = judge(name, good + row, tmp_path, lenient)
    assert allowed.success
    (note,) = allowed.tolerated
    assert note.threshold == f"gates.labelled.max_{measure}_share"
    (example,) = note.examples
    assert example.startswith(f"train.data:{good.count(chr(10)) + 1 + line} «")
    assert told in example
    assert example in allowed.message()
    assert example.split("«")[0] in allowed.markdown()
