"""Several source languages: batches of one language, its SFT in place for that batch, and nothing left of it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ltsft.base import Base, load_base
from ltsft.composition.compose import composed
from ltsft.errors import TrainingError
from ltsft.sft.sft import SFT
from ltsft.training.prepare import Training, TrainingData
from ltsft.training.several import FromLanguage, Mixture, SeveralSources, sampling_shares
from ltsft.training.train import train_sft

SHARES = {"aa": 0.75, "bb": 0.25}


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


@pytest.fixture(scope="module")
def languages(base: Base, make_sft: Any) -> dict[str, SFT]:
    """Language SFTs with other diffs, of the tiny base."""
    from dataclasses import replace

    model = base.masked_lm()
    return {
        code: replace(make_sft(model, seed=seed, density=0.1), base=base.ref, subject=code)
        for seed, code in enumerate(("aa", "bb"))
    }


def mixture(learning: ModuleType, base: Base) -> tuple[Any, Mixture, list[FromLanguage]]:
    objective, data = learning.tagging(base.tokenizer)
    examples = {"aa": data.examples[:40], "bb": data.examples[40:]}
    held_out = [FromLanguage(i % 2, example) for i, example in enumerate(data.held_out)]
    return objective, Mixture(examples, SHARES), held_out


def test_each_batch_is_of_one_language_and_languages_come_by_their_share(learning: ModuleType, base: Base) -> None:
    _, mixed, _ = mixture(learning, base)
    order = mixed.order(400, 8, seed=3)
    batches = order.reshape(400, 8)
    languages = torch.tensor([[mixed[int(i)].language for i in batch] for batch in batches])
    assert bool((languages == languages[:, :1]).all())
    assert float((languages[:, 0] == 0).double().mean()) == pytest.approx(0.75, abs=0.06)
    of_bb = batches[languages[:, 0] == 1].flatten().tolist()
    size = len(mixed) - 40
    whole = len(of_bb) // size
    for epoch in range(whole):
        assert sorted(of_bb[epoch * size : (epoch + 1) * size]) == list(range(40, len(mixed))), "each once an epoch"
    assert torch.equal(mixed.order(400, 8, seed=3), order)
    assert not torch.equal(mixed.order(400, 8, seed=4), order)


def test_shares_follow_sizes_temperature_or_weights() -> None:
    sizes = {"en": 900, "eu": 100}
    assert sampling_shares(sizes, temperature=1.0, weights={}) == {"en": 0.9, "eu": 0.1}
    assert sampling_shares(sizes, temperature=2.0, weights={}) == {"en": 0.75, "eu": 0.25}
    assert sampling_shares(sizes, temperature=1.0, weights={"en": 1.0, "eu": 3.0}) == {"en": 0.25, "eu": 0.75}


def test_a_batch_is_run_with_the_sft_of_its_language_and_the_weights_come_back_bit_for_bit(
    learning: ModuleType, base: Base, languages: dict[str, SFT], bits: Any
) -> None:
    objective, mixed, _ = mixture(learning, base)
    several = SeveralSources(objective, languages, base)
    model = several.build_model(base, seed=1).eval()
    before = bits(model)
    for number, code in ((0, "aa"), (1, "bb"), (1, "bb"), (0, "aa")):
        examples = [mixed[i] for i in range(len(mixed)) if mixed[i].language == number][:8]
        batch = several.collate(examples, torch.Generator())
        loss = several.loss(model, batch)
        loss.backward()
        gradient = model.base_model.embeddings.word_embeddings.weight.grad.clone()
        several.before_step()
        assert bits(model) == before
        model.zero_grad()
        with composed(model, [(languages[code], 1.0)], base=base.ref, heads=False):
            plain = objective.loss(model, objective.collate([e.example for e in examples], torch.Generator()))
            plain.backward()
        assert loss.item() == plain.item()
        assert torch.equal(gradient, model.base_model.embeddings.word_embeddings.weight.grad)
        model.zero_grad()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_is_learnt_is_the_task_alone_and_repeats(
    accumulation: int, learning: ModuleType, base: Base, languages: dict[str, SFT], tmp_path: Path
) -> None:
    """Off the support the trained weights are the base's: nothing of a language SFT leaks into the task SFT."""
    found = []
    for attempt in range(2):
        objective, mixed, held_out = mixture(learning, base)
        found.append(
            train_sft(
                base,
                Training(
                    objective=SeveralSources(objective, languages, base),
                    kind="task",
                    subject="pos",
                    recipe=learning.make_recipe(rate=5e-3, steps=8, accumulation=accumulation),
                    seed=1,
                    data=TrainingData(mixed, held_out),
                    source_languages=("aa", "bb"),
                ),
                folder=tmp_path / str(attempt),
                device="cpu",
            )
        )
    first, second = found
    assert first.source_languages == ("aa", "bb")
    for name, diff in first.diffs.items():
        assert torch.equal(diff.indices, second.diffs[name].indices)
        assert torch.equal(diff.values, second.diffs[name].values)
        assert float(diff.values.abs().max() if diff.support_size else 0.0) < 0.1, "as far as eight steps go"


def test_held_out_figures_are_means_over_languages_each_with_its_sft(
    learning: ModuleType, base: Base, languages: dict[str, SFT]
) -> None:
    objective, _, held_out = mixture(learning, base)
    several = SeveralSources(objective, languages, base)
    model = several.build_model(base, seed=1).eval()
    found = several.evaluate(model, held_out)
    scores = []
    for number, code in enumerate(("aa", "bb")):
        with composed(model, [(languages[code], 1.0)], base=base.ref, heads=False):
            own = objective.evaluate(model, [e.example for e in held_out if e.language == number])
        assert found.metrics[f"accuracy.{code}"] == own.score
        scores.append(own.score)
    assert found.score == pytest.approx(sum(scores) / 2)


def test_a_language_without_examples_is_refused() -> None:
    with pytest.raises(TrainingError, match="source language bb has nothing to train on"):
        Mixture({"aa": [1], "bb": []}, SHARES)


def test_one_language_after_the_other_and_what_the_first_has_lost(
    learning: ModuleType, base: Base, languages: dict[str, SFT], tmp_path: Path
) -> None:
    objective, mixed, held_out = mixture(learning, base)
    several = SeveralSources(objective, languages, base)
    rounds = [
        TrainingData([e for e in mixed if e.language == i], [e for e in held_out if e.language == i]) for i in range(2)
    ]
    sft = train_sft(
        base,
        Training(
            objective=several,
            kind="task",
            subject="pos",
            recipe=learning.make_recipe(rate=5e-3, steps=8),
            seed=1,
            data=rounds,
            source_languages=("aa", "bb"),
        ),
        folder=tmp_path,
        device="cpu",
    )
    assert sft.support_size == int(0.2 * sft.maskable), "the rounds share K"
    assert [(h["phase"], h["iteration"]) for h in sft.details["history"]] == [
        (phase, i) for i in range(2) for phase in ("full", "sparse")
    ]
    first, second = sft.details["forgetting"]
    assert first["before"] == sft.details["history"][1]["best_score"]
    assert second["before"] == second["after"] == sft.details["history"][3]["best_score"]
    model = objective.build_model(base, seed=1).eval()
    with composed(model, [(languages["aa"], 1.0), (sft, 1.0)], base=base.ref):
        after = objective.evaluate(model, [e.example for e in rounds[0].held_out]).score
    assert first["after"] == pytest.approx(after)
