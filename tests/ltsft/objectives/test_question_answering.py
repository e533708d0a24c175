"""Extractive question answering: SQuAD's figures on known examples, windows, answers that slipped."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import processors
from torch import Tensor, nn

from ltsft.base import Base, load_base
from ltsft.config.source import Source
from ltsft.config.target_task import TargetTask
from ltsft.data.sources import RowError
from ltsft.objectives.question_answering import QuestionAnswering, QuestionRow, answer_f1, best_span, normalised

CONTEXT = "bado eto kelo nira moti sabo duke."


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    """The tiny base, with a tokenizer that puts special tokens around pairs as those of real bases do."""
    base = load_base(str(tiny_base))
    special = [("[CLS]", base.tokenizer.cls_token_id), ("[SEP]", base.tokenizer.sep_token_id)]
    base.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special
    )
    return base


def row(question: str, context: str, *answers: str) -> QuestionRow:
    return QuestionRow(question, context, tuple((a, context.index(a)) for a in answers), 1, "jsonl:t")


def target(**more: Any) -> TargetTask:
    data = {"train": "jsonl:/data/train.jsonl"}
    return TargetTask.model_validate({"name": "qa", "objective": "qa", "sources": {"en": data}, "test": {}, **more})


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("the Denver Broncos", "Denver Broncos", 1.0),  # articles and case do not count
        ("Saint Bernadette Soubirous", "Bernadette", 0.5),  # 1 of 3 and 1 of 1
        ("a copper statue of Christ", "copper statue of Christ, in 1888", 2 * 4 / (4 + 6)),
        ("1888", "in the year 1888!", 2 * 1 / (1 + 3)),
        ("cat cat dog", "cat dog dog", 2 * 2 / 6),  # each word as often as both have it
        ("nothing", "something", 0.0),
        ("", "something", 0.0),
        ("The", "a", 1.0),
    ],
)
def test_f1_is_that_of_squads_script(answer: str, gold: str, f1: float) -> None:
    assert answer_f1(answer, gold) == pytest.approx(f1)


def test_exact_match_is_after_squads_normalisation() -> None:
    assert normalised("  The  U.S.   Army ") == "us army"
    assert normalised("a-b, an (apple)") == "ab apple"
    assert normalised("theatre") == "theatre"


def test_a_long_context_is_read_in_windows_that_overlap_and_lose_nothing(base: Base) -> None:
    context = " ".join(f"bado{chr(97 + i % 26)}" for i in range(60))
    objective = QuestionAnswering(base.tokenizer, max_length=32)
    windows = objective.examples([row("kelo?", context, "badoz")])
    assert len(windows) > 3
    assert all(len(w.input_ids) <= 32 for w in windows)
    covered = sorted({place for w in windows for a, b in w.offsets if a >= 0 for place in range(a, b)})
    assert covered == [i for i, c in enumerate(context) if c != " "]
    for before, after in pairwise(windows):
        assert max(b for _, b in before.offsets) > min(a for a, _ in after.offsets if a >= 0), "they overlap"
    holding = [w for w in windows if w.start]
    assert holding
    for w in holding:
        assert context[w.offsets[w.start][0] : w.offsets[w.end][1]] == "badoz"
    assert all((w.start, w.end) == (0, 0) for w in windows if w not in holding)


def test_a_long_question_leaves_room_for_the_context(base: Base) -> None:
    objective = QuestionAnswering(base.tokenizer, max_length=32)
    windows = objective.examples([row("bado " * 60 + "?", CONTEXT, "kelo")])
    assert any(w.start for w in windows)
    assert all(len(w.input_ids) <= 32 for w in windows)


class Oracle(nn.Module):
    """Points at given places of each window, told apart by their first sub-word of the context."""

    def __init__(self, spans: dict[tuple[int, ...], tuple[int, int, float]]) -> None:
        super().__init__()
        self.spans = spans
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Tensor) -> SimpleNamespace:
        starts, ends = torch.zeros(input_ids.shape), torch.zeros(input_ids.shape)
        for b, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            start, end, sureness = self.spans[tuple(ids[mask.bool()].tolist())]
            starts[b, start] = ends[b, end] = sureness
        return SimpleNamespace(start_logits=starts, end_logits=ends)


def test_the_surest_window_answers_and_the_best_gold_answer_counts(base: Base) -> None:
    objective = QuestionAnswering(base.tokenizer, max_length=40)
    context = " ".join([CONTEXT] * 4)
    windows = objective.examples([row("eto?", context, "kelo nira", "nira"), row("bado?", "nira moti", "moti")])
    first = [w for w in windows if w.sentence == 0]
    (second,) = [w for w in windows if w.sentence == 1]
    assert len(first) > 1
    nira = next(i for i, (a, b) in enumerate(first[1].offsets) if a >= 0 and context[a:b].startswith("n"))
    end = next(i for i, (_, b) in enumerate(first[1].offsets) if i >= nira and context[:b].endswith("nira"))
    spans = {w.input_ids: (w.start or 4, w.end or 4, 1.0) for w in first} | {first[1].input_ids: (nira, end, 9.0)}
    wrong = next(i for i, (a, _) in enumerate(second.offsets) if a == 0)
    last = next(i for i, (_, b) in enumerate(second.offsets) if b == len("nira moti"))
    spans[second.input_ids] = (wrong, last, 3.0)
    found = objective.evaluate(Oracle(spans), windows)  # type: ignore[arg-type]
    assert found.outcomes == ((1.0, 1), (pytest.approx(2 / 3), 1))  # «nira», and «nira moti» for «moti»
    assert found.score == found.metrics["f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert found.metrics["exact_match"] == 0.5
    assert found.metrics["size"] == 2.0


def test_an_answer_lies_in_the_context_and_ends_after_it_begins(base: Base) -> None:
    (window,) = QuestionAnswering(base.tokenizer, max_length=48).examples([row("eto?", CONTEXT, "kelo")])
    starts, ends = torch.zeros(len(window.offsets)), torch.zeros(len(window.offsets))
    starts[1], ends[2] = 99.0, 99.0  # in the question
    late, early = window.end, window.start - 1
    starts[late], ends[early], ends[late] = 5.0, 7.0, 4.0
    found = best_span(window, starts, ends)
    assert (found.score, found.first, found.last) == (9.0, late, late)
    assert found.text == CONTEXT[found.start : found.end] == CONTEXT[slice(*window.offsets[late])]


def test_bad_questions_are_told_by_line_and_slipped_answers_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    sound = {"question": "q", "context": CONTEXT, "answers": {"text": ["eto"], "answer_start": [5]}}
    lines = [
        sound,
        {**sound, "answers": {"text": [], "answer_start": []}},
        {**sound, "answers": "eto"},
        {**sound, "answers": {"text": ["eto"], "answer_start": [6]}},
        {**sound, "context": 3},
        {**sound, "question": " "},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n{broken\n[1]\n")
    errors: list[RowError] = []
    source = Source(scheme="jsonl", location=str(file))
    rows = list(QuestionAnswering.read(target(), source, on_error=errors.append))
    assert [r.line for r in rows] == [1, 4, 6]
    assert [e.line for e in errors] == [2, 3, 5, 7, 8]
    assert "with one answer at least" in errors[0].reason
    assert [dict(QuestionAnswering.sentence(r).problems) for r in rows] == [
        {},
        {"answer_mismatch_share": "'eto' at character 6, where there is 'to '"},
        {"empty_text_share": "question empty"},
    ]


def test_labels_and_tables_do_not_fit_questions() -> None:
    def problems(**more: Any) -> str:
        return "\n".join(QuestionAnswering.problems(target(**more)))

    assert "objective qa has none; leave them out" in problems(labels=["yes", "no"])
    assert "objective qa reads jsonl:, parquet:, hf:; got tsv:" in problems(
        sources={"en": {"train": "tsv:/data/train.tsv"}}
    )
    assert "objective qa has no column 'text'; allowed are question, context, answers" in problems(
        columns={"text": "t"}
    )
    assert not problems()
