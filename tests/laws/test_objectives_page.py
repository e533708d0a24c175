"""docs/objectives.md: the objective that it adds works as it stands there, and the table names those that exist."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from ltsft.base import load_base
from ltsft.composition.compose import composed
from ltsft.config.recipe import PhaseSettings, Recipe
from ltsft.config.source import Source
from ltsft.config.target_task import TargetTask
from ltsft.objectives.registry import OBJECTIVES, model_of, read_labelled
from ltsft.training.prepare import Training, TrainingData
from ltsft.training.train import train_sft

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


@pytest.fixture
def similarity(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class on the page, registered as the page says."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict[str, Any] = {"__name__": "similarity"}
    exec(compile(code, str(PAGE), "exec"), names)
    monkeypatch.setitem(OBJECTIVES, "sts", names["Similarity"])
    return names["Similarity"]


def test_every_objective_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*`(\w+\.py)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: f"ltsft.objectives.{file[:-3]}" for name, file in rows} == {
        name: objective.__module__ for name, objective in OBJECTIVES.items()
    }


def test_the_worked_example_learns_from_its_files(similarity: Any, tiny_base: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    words = ["bado", "kelo", "nira", "moti"]
    lines = ["text\tpair\tlabel"]
    for _ in range(64):
        a, b = rng.choice(words), rng.choice(words)
        lines.append(f"{a}\t{b}\t{4.5 if a in words[:2] else 0.5}")
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    source = f"tsv:{tmp_path}/t.tsv"
    target = TargetTask.model_validate(
        {
            "name": "sts",
            "objective": "sts",
            "columns": {"pair": "pair"},
            "sources": {"en": {"train": source}},
            "test": {"en": source},
        }
    )
    base = load_base(str(tiny_base))
    special = [("[CLS]", base.tokenizer.cls_token_id), ("[SEP]", base.tokenizer.sep_token_id)]
    base.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special
    )
    objective = similarity(base.tokenizer, labels=similarity.label_set(target), max_length=16)
    rows = list(read_labelled(target, (Source.model_validate(source),)))
    examples = objective.examples(rows)
    phase = PhaseSettings(min_steps=60, max_steps=60, learning_rate=5e-3)
    sft = train_sft(
        base,
        Training(
            objective=objective,
            kind="task",
            subject="sts",
            recipe=Recipe(
                density=0.2, full=phase, sparse=phase, batch_size=16, max_length=16, evaluations=1, dropout=0.0
            ),
            seed=1,
            data=TrainingData(examples, examples),
            details={"objective": "sts"},
        ),
        folder=tmp_path / "work",
        device="cpu",
    )
    model = model_of(base, sft).eval()
    with composed(model, [(sft, 1.0)], base=base.ref):
        found = objective.evaluate(model, examples)
    assert found.score > 0.9
    assert found.metrics["size"] == 64.0
