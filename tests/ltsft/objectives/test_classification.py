"""Classification of texts and pairs: accuracy and macro-F1 against scikit-learn, pairs, bad rows."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score
from tokenizers import processors
from torch import Tensor, nn

from ltsft.base import Base, load_base, parameter_roles
from ltsft.composition.compose import composed
from ltsft.config.recipe import PhaseSettings, Recipe
from ltsft.config.source import Source
from ltsft.config.target_task import TargetTask
from ltsft.data.sources import RowError
from ltsft.errors import SourceError
from ltsft.objectives.classification import Classification, ClassifiedText, TextRow, macro_f1
from ltsft.training.prepare import Training, TrainingData
from ltsft.training.train import train_sft

LABELS = ("entailment", "neutral", "contradiction")


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    """The tiny base, with a tokenizer that puts special tokens around pairs as those of real bases do."""
    base = load_base(str(tiny_base))
    special = [("[CLS]", base.tokenizer.cls_token_id), ("[SEP]", base.tokenizer.sep_token_id)]
    base.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special
    )
    return base


def target(**more: Any) -> TargetTask:
    values = {
        "name": "nli",
        "objective": "classification",
        "labels": LABELS,
        "columns": {"text": "premise", "pair": "hypothesis"},
        "sources": {"en": {"train": "tsv:/data/train.tsv"}},
        "test": {},
    }
    return TargetTask.model_validate({**values, **more})


def read(file: Path, task: TargetTask, errors: list[RowError] | None = None) -> list[TextRow]:
    source = Source(scheme="tsv", location=str(file))
    return list(Classification.read(task, source, on_error=None if errors is None else errors.append))


def test_pairs_are_read_and_bad_rows_are_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text('premise\thypothesis\tlabel\nA "b"\tC\te\nonly two\tfields\n\nA\t\tneutral\nA\tB\tmaybe\n')
    errors: list[RowError] = []
    rows = read(file, target(relabel={"e": "entailment"}), errors)
    assert [(r.text, r.pair, r.label, r.line) for r in rows] == [
        ('A "b"', "C", "entailment", 2),
        ("A", "", "neutral", 5),
        ("A", "B", "maybe", 6),
    ]
    assert [error.line for error in errors] == [3]
    assert "3 columns are due (premise, hypothesis, label), got 2" in str(errors[0])
    with pytest.raises(RowError, match="3 columns are due"):
        read(file, target())
    sentence = Classification.sentence(rows[1])
    assert sentence.problems == {"empty_text_share": "pair empty in A | "}
    assert Classification.sentence(rows[0]).problems == {}
    assert Classification.texts(rows[0]) == ('A "b"', "C")


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text("sentence1\tlabel\na\tneutral\n")
    with pytest.raises(RowError, match="no column 'hypothesis'; the columns are 'sentence1', 'label'"):
        read(file, target())


def test_pairs_are_encoded_as_the_tokenizer_does_and_cut_at_the_end_of_the_longer(base: Base) -> None:
    objective = Classification(base.tokenizer, labels=LABELS, max_length=16)
    rows = [TextRow("bado eto", "kelo", "neutral", 1, "t"), TextRow("bado " * 30, "kelo", "entailment", 2, "t")]
    short, long = objective.examples(rows)
    assert short.input_ids == tuple(base.tokenizer("bado eto", "kelo")["input_ids"])
    assert short.label == 1
    kelo = base.tokenizer("kelo", add_special_tokens=False)["input_ids"]
    assert len(long.input_ids) == 16
    assert long.input_ids[-1 - len(kelo) : -1] == tuple(kelo)
    batch = objective.collate([short, long], torch.Generator())
    assert batch["attention_mask"].sum(1).tolist() == [len(short.input_ids), 16]
    assert batch["labels"].tolist() == [1, 0]
    with pytest.raises(SourceError, match="t:3: label 'maybe' is not in the label set"):
        objective.examples([TextRow("a", "b", "maybe", 3, "t")])


class Oracle(nn.Module):
    """Answers by the second sub-word."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, **inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=nn.functional.one_hot(input_ids[:, 1] % len(LABELS), len(LABELS)).float())


def test_accuracy_and_macro_f1_are_those_of_a_worked_example(base: Base) -> None:
    objective = Classification(base.tokenizer, labels=LABELS, max_length=16)
    gold, answers = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 1]
    examples = [ClassifiedText(i, (1, a), (), g) for i, (g, a) in enumerate(zip(gold, answers, strict=True))]
    found = objective.evaluate(Oracle(), examples[::-1])  # type: ignore[arg-type]
    assert found.outcomes == ((1, 1), (1, 1), (0, 1), (1, 1), (0, 1), (0, 1))
    assert found.score == found.metrics["accuracy"] == 0.5
    # entailment: 2 hits of 3 gold and 3 found; neutral: 1 of 2 and 3; contradiction: none
    assert found.metrics["macro_f1"] == pytest.approx((2 * 2 / 6 + 2 * 1 / 5 + 0) / 3)
    assert found.metrics["size"] == 6.0


def test_macro_f1_is_scikit_learns() -> None:
    rng = random.Random(0)
    for count in (1, 3, 40):
        answers = [(rng.randrange(4), rng.randrange(3)) for _ in range(count)]
        expected = f1_score([g for g, _ in answers], [a for _, a in answers], average="macro", zero_division=0)
        assert macro_f1(answers) == pytest.approx(expected)
    assert macro_f1([]) == 0.0


def test_the_majority_is_that_of_the_training_data(base: Base) -> None:
    objective = Classification(base.tokenizer, labels=LABELS, max_length=16)
    train = [TextRow("a", None, label, 1, "t") for label in ("neutral", "neutral", "entailment")]
    gold = ("neutral", "entailment", "entailment", "neutral", "contradiction")
    test = objective.examples([TextRow("a", None, label, 1, "t") for label in gold])
    assert objective.majority(train) == "neutral"
    assert objective.majority_score("neutral", test) == 0.4


def test_a_pooler_belongs_to_the_head_so_that_the_encoder_stays_the_bases(base: Base, tmp_path: Path) -> None:
    """BERT's sequence classifier has a pooler in its encoder, which a masked LM has not."""
    objective = Classification(base.tokenizer, labels=LABELS[:2], max_length=16)
    roles = parameter_roles(objective.build_model(base, seed=1))
    assert set(roles.head) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert set(roles.maskable) == set(parameter_roles(base.masked_lm()).maskable)
    words = {"entailment": "bado", "neutral": "kelo"}
    rows = [TextRow(f"{words[label]} eto", None, label, 1, "t") for label in LABELS[:2] for _ in range(8)]
    examples = objective.examples(rows)
    phase = PhaseSettings(min_steps=25, max_steps=25, learning_rate=5e-3)
    recipe = Recipe(density=0.2, full=phase, sparse=phase, batch_size=8, max_length=16, evaluations=1, dropout=0.0)
    sft = train_sft(
        base,
        Training(
            objective=objective,
            kind="task",
            subject="sentiment",
            recipe=recipe,
            seed=1,
            data=TrainingData(examples, examples),
        ),
        folder=tmp_path,
        device="cpu",
    )
    assert set(sft.head) == set(roles.head)
    model = objective.build_model(base, seed=2).eval()
    with composed(model, [(sft, 1.0)], base=base.ref):
        assert objective.evaluate(model, examples).score == 1.0
    assert objective.evaluate(model, examples).score < 1.0
