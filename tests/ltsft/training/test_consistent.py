"""Consistency: the divergences by hand, what gradients reach, and plain training where the weights are 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ltsft.base import Base, load_base
from ltsft.config.consistency import Consistency
from ltsft.config.recipe import PhaseSettings, Recipe
from ltsft.data.sources import Row
from ltsft.objectives.classification import Classification, TextRow
from ltsft.objectives.dependency import DependencyParsing
from ltsft.objectives.objective import TargetObjective
from ltsft.objectives.question_answering import QuestionAnswering, QuestionRow
from ltsft.objectives.token_classification import TokenClassification
from ltsft.sft.files import save_sft
from ltsft.training.augmentation import Augmenter
from ltsft.training.consistent import Consistent, divergence, symmetric_divergence
from ltsft.training.prepare import Training
from ltsft.training.several import FromLanguage, SeveralSources
from ltsft.training.stages import Progress
from ltsft.training.train import train_sft

HALF, QUARTER = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()


@pytest.fixture(scope="module")
def base(unigram_base: Path) -> Base:
    return load_base(str(unigram_base))


def test_divergences_are_those_of_the_closed_form() -> None:
    there = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    back = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert float(divergence(HALF, QUARTER)) == pytest.approx(there, abs=1e-6)
    assert float(symmetric_divergence(HALF, QUARTER)) == pytest.approx(there + back, abs=1e-6)
    assert float(divergence(HALF, HALF)) == 0.0
    two = divergence(torch.cat([HALF, HALF]), torch.cat([QUARTER, HALF]))
    assert float(two) == pytest.approx(there / 2, abs=1e-6), "a mean over items"
    assert float(divergence(HALF[:0], HALF[:0])) == 0.0


def test_an_outcome_that_is_impossible_in_both_counts_nothing_and_has_no_gradient() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    said = torch.log_softmax(logits, dim=-1)
    target = torch.tensor([[0.5, 0.5, 0.0]]).log()
    found = divergence(target, said)
    without = divergence(target[:, :2], torch.log_softmax(logits[:, :2], dim=-1))
    assert found.item() == pytest.approx(without.item())
    found.backward()
    assert bool(torch.isfinite(logits.grad).all())


def test_no_gradient_goes_through_a_target() -> None:
    first = torch.tensor([[0.3, -0.2, 0.9]], requires_grad=True)
    second = torch.tensor([[-0.5, 0.4, 0.1]], requires_grad=True)
    p, q = torch.log_softmax(first, dim=-1), torch.log_softmax(second, dim=-1)
    divergence(p, q).backward(retain_graph=True)
    assert first.grad is None
    torch.testing.assert_close(second.grad, (q.exp() - p.exp()).detach())
    second.grad = None
    symmetric_divergence(p, q).backward()
    torch.testing.assert_close(second.grad, (q.exp() - p.exp()).detach())
    torch.testing.assert_close(first.grad, (p.exp() - q.exp()).detach())


def examples_of(name: str, base: Base) -> tuple[TargetObjective, list[Any]]:
    """An objective and three small examples of it."""
    sentences = [("beka", "dila", "."), ("kine", "."), ("reka", "sita", "noba", ".")]
    if name == "pos":
        tagger = TokenClassification(base.tokenizer, labels=("A", "B"), max_length=40)
        return tagger, tagger.encode((words, ["A"] * len(words)) for words in sentences)
    if name == "dp":
        parser = DependencyParsing(base.tokenizer, labels=("root", "dep"), max_length=40)
        rows = [
            Row(words, ("X",) * len(words), tuple(range(len(words))), ("root", *["dep"] * (len(words) - 1)), 1, "f")
            for words in sentences
        ]
        return parser, parser.examples(rows)
    if name == "classification":
        classifier = Classification(base.tokenizer, labels=("A", "B", "C"), max_length=40)
        pairs = [TextRow(" ".join(words), "tine sela.", "B", 1, "f") for words in sentences]
        return classifier, classifier.examples(pairs)
    asked = QuestionAnswering(base.tokenizer, max_length=60)
    rows = [QuestionRow("dila beka?", " ".join(words), ((words[0], 0),), 1, "f") for words in sentences]
    return asked, asked.examples(rows)


def consistent(objective: TargetObjective, base: Base, augmentations: Any, **weights: float) -> Consistent:
    settings = Consistency.model_validate({**weights, "augmentations": augmentations})
    lists = [{"beka": ("vavo", "tidane"), "dila": ("ne",)}]
    made = Consistent(objective, settings, Augmenter(base.tokenizer, settings.augmentations, lists), max_length=60)
    made.begin_phase("full")
    return made


def softmax(logits: Any) -> Any:
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def kl(p: Any, q: Any) -> float:
    return float(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / np.where(p > 0, q, 1.0)), 0.0).sum(-1).mean())


def by_hand(name: str, model: Any, batch: dict[str, Tensor], stretches: Tensor) -> list[tuple[float, Any]]:
    """The distributions that count for an objective, with their weights, from plain runs of the model."""
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch}
    with torch.no_grad():
        if name == "dp":
            count = batch["heads"].shape[1]
            vectors = model.words(batch["input_ids"], batch["attention_mask"], batch["places"], count=count)
            where = batch["heads"] >= 0
            relations = model.relation_scores(vectors, batch["heads"].clamp(min=0), where)
            heads = []
            arcs = model.arc_scores(vectors)
            for i, sentence in enumerate(where):
                size = int(sentence.sum())
                heads += [np.pad(softmax(row[: size + 1].numpy()), (0, count - size)) for row in arcs[i, :size]]
            return [(1.0, np.stack(heads)), (1.0, softmax(relations.numpy()))]
        out = model(**inputs)
    if name == "pos":
        firsts = [out.logits[i, j] for i, row in enumerate(batch["labels"]) for j in range(len(row)) if row[j] >= 0]
        return [(1.0, softmax(torch.stack(firsts).numpy()))]
    if name == "classification":
        return [(1.0, softmax(out.logits.numpy()))]
    made = []
    for logits in (out.start_logits.double(), out.end_logits.double()):
        shares = softmax(logits.masked_fill(batch["attention_mask"] == 0, -torch.inf).numpy())
        summed = np.zeros((len(shares), int(stretches.max()) + 1))
        for i, row in enumerate(stretches.tolist()):
            for place, stretch in enumerate(row):
                if stretch >= 0:
                    summed[i, stretch] += shares[i, place]
        made.append((0.5, summed))
    return made


@pytest.mark.parametrize("name", ["pos", "dp", "classification", "qa"])
def test_the_loss_is_that_of_the_formulas_for_every_objective(name: str, base: Base) -> None:
    objective, examples = examples_of(name, base)
    every = {"subword_sampling": {"share": 0.8}, "code_switch": {"words": "tsv:/none.tsv", "share": 0.8}}
    learnt = consistent(objective, base, every, example=5.0, model=0.3)
    model: Any = learnt.build_model(base, seed=1)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    model.eval()
    learnt.keep_first_stage(model, "fp32")
    first_stage: Any = learnt.first_stage
    with torch.no_grad():
        for weight in first_stage.parameters():
            weight += 0.05 * torch.randn(weight.shape)
    batch = learnt.collate(examples, torch.Generator().manual_seed(5))
    given = {k: v for k, v in batch.items() if not k.startswith("augmented.")}
    changed = {k.removeprefix("augmented."): v for k, v in batch.items() if k.startswith("augmented.")}
    plain = objective.collate(examples, torch.Generator().manual_seed(5))
    assert all(torch.equal(plain[key], given[key]) for key in plain), "the examples are as without consistency"
    assert changed["input_ids"].shape != given["input_ids"].shape or not torch.equal(
        changed["input_ids"], given["input_ids"]
    )

    x = by_hand(name, model, given, changed["stretches_before"])
    a = by_hand(name, model, changed, changed["stretches"])
    f = by_hand(name, first_stage, changed, changed["stretches"])
    r1 = sum(w * (kl(p, q) + kl(q, p)) for (w, p), (_, q) in zip(x, a, strict=True))
    r2 = sum(w * kl(p, q) for (w, p), (_, q) in zip(f, a, strict=True))
    assert r1 > 1e-4
    assert r2 > 1e-4
    expected = float(objective.loss(model, given)) + 5.0 * r1 + 0.3 * r2
    loss = learnt.loss(model, batch)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert learnt.figures() == pytest.approx({"example_consistency": r1, "model_consistency": r2}, rel=1e-3)
    loss.backward()
    assert all(weight.grad is None for weight in first_stage.parameters())
    learnt.begin_phase("head")
    assert float(learnt.loss(model, learnt.collate(examples, torch.Generator()))) == pytest.approx(
        float(objective.loss(model, given)), rel=1e-6
    )


def test_noise_is_settled_by_the_batch_and_leaves_the_plain_run_alone(base: Base) -> None:
    objective, examples = examples_of("pos", base)
    learnt = consistent(objective, base, {"noise": {"deviation": 0.5}}, example=1.0)
    model = learnt.build_model(base, seed=1).eval()
    batch = learnt.collate(examples, torch.Generator().manual_seed(5))
    assert torch.equal(batch["input_ids"], batch["augmented.input_ids"])
    before = objective.loss(model, objective.collate(examples, torch.Generator()))
    first, again = learnt.loss(model, batch), learnt.loss(model, batch)
    other = learnt.loss(model, learnt.collate(examples, torch.Generator().manual_seed(6)))
    assert torch.equal(first, again)
    assert float(first) > float(before)
    assert not torch.equal(first, other)
    assert torch.equal(before, objective.loss(model, objective.collate(examples, torch.Generator())))


Learn = Callable[..., tuple[dict[str, bytes], list[Progress]]]


@pytest.fixture
def learn(base: Base, learning: ModuleType, tmp_path: Path) -> Learn:
    """Train a task SFT; gives the bytes of its files, and what was reported."""
    count = 0

    def run(objective: Any, data: Any, **more: Any) -> tuple[dict[str, bytes], list[Progress]]:
        nonlocal count
        count += 1
        reports: list[Progress] = []
        recipe = learning.make_recipe(steps=4, head=PhaseSettings(min_steps=2, max_steps=2), **more)
        folder = tmp_path / str(count)
        sft = train_sft(
            base,
            Training(objective=objective, kind="task", subject="pos", recipe=recipe, seed=1, data=data),
            folder=folder,
            device="cpu",
            on_progress=reports.append,
        )
        return {f.name: f.read_bytes() for f in sorted(save_sft(sft, folder / "sft").iterdir())}, reports

    return run


def test_weights_of_0_give_the_bits_of_plain_training_and_others_do_not(
    learn: Learn, base: Base, learning: ModuleType
) -> None:
    plain, _ = learn(*learning.tagging(base.tokenizer))
    nothing, _ = learn(*learning.consistent_tagging(base.tokenizer, example=0.0, model=0.0))
    assert nothing == plain
    example, told = learn(*learning.consistent_tagging(base.tokenizer, example=5.0))
    both, reports = learn(*learning.consistent_tagging(base.tokenizer, example=5.0, model=1.0))
    assert len({files["sft.safetensors"] for files in (plain, example, both)}) == 3
    names = {name for report in reports for name in report.metrics if name.endswith("_consistency")}
    assert names == {"full.example_consistency", "sparse.example_consistency", "sparse.model_consistency"}
    assert not any(name.endswith("model_consistency") for report in told for name in report.metrics)


def test_it_trains_in_bf16_with_a_first_stage_in_bf16(learn: Learn, base: Base, learning: ModuleType) -> None:
    objective, data = learning.consistent_tagging(base.tokenizer, example=1.0, model=1.0)
    _, reports = learn(objective, data, precision="bf16", accumulation=2)
    found = [v for report in reports for n, v in report.metrics.items() if n == "sparse.model_consistency"]
    assert found
    assert all(0.0 <= value < 1.0 for value in found)
    assert objective.first_stage is None, "it is let go of"


def test_a_first_stage_has_the_language_sft_of_the_batch_too(
    base: Base, learning: ModuleType, make_sft: Any, bits: Any
) -> None:
    from dataclasses import replace

    model = base.masked_lm()
    sfts = {code: replace(make_sft(model, seed=i), base=base.ref) for i, code in enumerate(("aa", "bb"))}
    inner, data = learning.consistent_tagging(base.tokenizer, example=0.0, model=1.0, augmentations={"noise": {}})
    several = SeveralSources(inner, sfts, base)
    trained: Any = several.build_model(base, seed=1).eval()
    inner.begin_phase("sparse")
    several.keep_first_stage(trained, "fp32")
    first_stage: Any = inner.first_stage
    before = bits(first_stage)
    batch = several.collate([FromLanguage(1, e) for e in data.examples[:4]], torch.Generator().manual_seed(1))
    several.loss(trained, batch)
    assert bits(first_stage) != before
    assert bits(first_stage) == bits(trained)
    assert inner.figures()["model_consistency"] == pytest.approx(0.0, abs=1e-6), "the same model, the same noise"
    several.before_step()
    assert bits(first_stage) == before


def test_the_key_of_a_recipe_names_consistency_only_where_there_is_any_and_no_path() -> None:
    assert "consistency" not in Recipe(density=0.5).of_seed(1)
    words = {"code_switch": {"words": "tsv:/some/where.tsv"}}
    values = Recipe.model_validate({"density": 0.5, "consistency": {"augmentations": words}}).of_seed(1)
    switching = {"code_switch": {"share": 0.3}, "noise": None, "subword_sampling": None}
    assert values["consistency"] == {"example": 1.0, "model": 0.0, "augmentations": switching}
