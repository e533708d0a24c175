"""Named entities: F1 as seqeval counts it, BIO breaks, and words without sub-words."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from seqeval.metrics import f1_score, precision_score, recall_score
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ltsft.base import load_base
from ltsft.config.source import Source
from ltsft.config.target_task import TargetTask
from ltsft.data.conll import TaggedRow
from ltsft.objectives.entities import NamedEntities, bio_break, entity_evaluation
from ltsft.objectives.registry import OBJECTIVES

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
NO_SUBWORD = "\u200b"


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    from tokenizers import normalizers

    tokenizer = load_base(str(tiny_base)).tokenizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(NO_SUBWORD, "")
    return tokenizer


def target(**more: object) -> TargetTask:
    data = {"train": "conll:/data/train.txt"}
    values = {"name": "ner", "objective": "ner", "labels": ["PER", "LOC"], "sources": {"en": data}, "test": {}}
    return TargetTask.model_validate({**values, **more})


def row(words: str, labels: str) -> TaggedRow:
    return TaggedRow(tuple(words.split(" ")), tuple(labels.split(" ")), 1, "conll:t", words)


class Oracle(nn.Module):
    """Answers each sub-word with the label in its table."""

    def __init__(self, table: dict[int, int]) -> None:
        super().__init__()
        self.table = table
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, len(LABELS))
        for b, ids in enumerate(input_ids.tolist()):
            for i, piece in enumerate(ids):
                logits[b, i, self.table.get(piece, 0)] = 5.0
        return SimpleNamespace(logits=logits)


def test_the_head_has_two_labels_for_each_type() -> None:
    assert NamedEntities.label_set(target()) == LABELS
    assert OBJECTIVES["ner"] is NamedEntities


def test_an_entity_counts_when_its_type_and_both_its_ends_are_right(tokenizer: PreTrainedTokenizerBase) -> None:
    """A worked example: one entity of three is found, one is cut short, one has the wrong type."""
    objective = NamedEntities(tokenizer, labels=LABELS, max_length=32)
    rows = [row("a b c d", "B-PER I-PER O B-LOC"), row("e f", "B-LOC I-LOC"), row("g", "O")]
    number = {word: tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in "abcdefg"}
    answers = {"a": 1, "b": 2, "c": 0, "d": 1, "e": 3, "f": 0, "g": 3}
    oracle = Oracle({number[word]: label for word, label in answers.items()})
    found = objective.evaluate(oracle, objective.examples(rows))  # type: ignore[arg-type]
    assert found.outcomes == ((2, 4), (0, 2), (0, 1))  # twice the hits, and entities looked for + found
    assert found.score == found.metrics["f1"] == pytest.approx(2 / 7)
    assert found.metrics["precision"] == pytest.approx(1 / 4)
    assert found.metrics["recall"] == pytest.approx(1 / 3)
    assert found.metrics["size"] == 3.0


def test_figures_are_seqevals_on_any_labels_those_that_break_bio_too() -> None:
    rng = random.Random(0)
    sentences = [(rng.choices(LABELS, k=9), rng.choices(LABELS, k=9)) for _ in range(200)]
    found = entity_evaluation(sentences, loss=0.0)
    gold, answers = [g for g, _ in sentences], [a for _, a in sentences]
    assert found.score == pytest.approx(f1_score(gold, answers))
    assert found.metrics["precision"] == pytest.approx(precision_score(gold, answers))
    assert found.metrics["recall"] == pytest.approx(recall_score(gold, answers))
    assert sum(n for n, _ in found.outcomes) / sum(d for _, d in found.outcomes) == pytest.approx(found.score)


def test_a_word_without_a_subword_is_in_no_entity_and_its_entity_is_missed(tokenizer: PreTrainedTokenizerBase) -> None:
    objective = NamedEntities(tokenizer, labels=LABELS, max_length=32)
    number = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    found = objective.evaluate(Oracle({number: 1}), objective.examples([row(f"a {NO_SUBWORD} a", "B-PER I-PER O")]))  # type: ignore[arg-type]
    assert found.outcomes == ((0, 3),)


def test_an_entity_over_the_cut_of_a_long_sentence_is_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    objective = NamedEntities(tokenizer, labels=LABELS, max_length=8)
    words = ["a"] * 5 + ["b", "c"] + ["a"] * 3
    labels = ["O"] * 5 + ["B-PER", "I-PER"] + ["O"] * 3
    pieces = objective.examples([row(" ".join(words), " ".join(labels))])
    assert len(pieces) == 2
    number = {word: tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in "abc"}
    oracle = Oracle({number["a"]: 0, number["b"]: 1, number["c"]: 2})
    assert objective.evaluate(oracle, pieces).score == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "place"),
    [
        ("O B-PER I-PER O", None),
        ("I-PER I-PER O", 0),
        ("O I-LOC", 1),
        ("B-PER I-LOC", 1),
        ("B-PER B-PER I-PER", None),
    ],
)
def test_a_label_that_continues_nothing_breaks_bio(labels: str, place: int | None) -> None:
    assert bio_break(labels.split(" ")) == place
    problems = NamedEntities.sentence(row("a b c d"[: 2 * len(labels.split()) - 1], labels)).problems
    assert set(problems) == (set() if place is None else {"bio_break_share"})


def test_a_type_can_be_read_as_another_or_as_none(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("Ada B-PERSON\nL. I-PERSON\nin O\n1843 B-DATE\n")
    renamed = target(relabel={"PERSON": "PER", "DATE": "O"})
    (found,) = NamedEntities.read(renamed, Source(scheme="conll", location=str(file)))
    assert found.labels == ("B-PER", "I-PER", "O", "O")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"labels": []}, "objective ner needs 1 or more"),
        ({"labels": ["B-PER"]}, "takes types of entities, such as PER, got 'B-PER'"),
        (
            {"sources": {"en": {"train": "conllu:/a"}}},
            "sources.en.train[0]: objective ner reads conll:; got conllu:",
        ),
        ({"columns": {"word": "w"}}, "formats that say which column is which"),
    ],
)
def test_what_does_not_fit_the_objective_is_said(values: dict[str, object], problem: str) -> None:
    told = NamedEntities.problems(target(**values))
    assert len(told) == 1
    assert problem in told[0]
