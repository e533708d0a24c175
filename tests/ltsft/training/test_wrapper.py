"""A model for a loop of one's own: both phases of LT-SFT by hand, compared with what they are said to be."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from ltsft.base import Base, load_base
from ltsft.composition.compose import composed
from ltsft.errors import TrainingError
from ltsft.methods.mask import select_magnitude
from ltsft.training.wrapper import PhasedModel


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


def steps(phased: PhasedModel, batch: dict[str, torch.Tensor], count: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in phased.parameters() if p.requires_grad], lr=1e-3)
    phased.train(False)  # without dropout
    for _ in range(count):
        phased(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_both_phases_by_a_loop_of_ones_own_are_those_of_the_paper(base: Base, learning: ModuleType) -> None:
    objective, data = learning.tagging(base.tokenizer)
    batch = objective.collate(data.examples[:8], torch.Generator())
    model = base.token_classifier(learning.LABELS, seed=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    phased = PhasedModel(base, model)
    with pytest.raises(TrainingError, match="there is no support yet"):
        phased.sft("task", "pos")
    steps(phased, batch)
    encoder = dict(model.base_model.named_parameters())
    moved = {name: p.detach().clone() for name, p in encoder.items()}
    norms = {name for name in encoder if "LayerNorm" in name}
    assert {n for n, p in encoder.items() if torch.equal(p, before[f"{model.base_model_prefix}.{n}"])} >= norms

    phased.select(size=700)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "everything is rewound"
    steps(phased, batch)
    with torch.no_grad():
        phased(**batch)
    trained = {name: values for name, values in phased.state_dict().items() if name in encoder}
    supports = select_magnitude({n: moved[n] for n in trained}, {n: before[f"bert.{n}"] for n in trained}, 700)
    for name, values in trained.items():
        assert torch.equal(encoder[name].reshape(-1)[supports[name].long()], values), "each step is from where it is"
    sft = phased.sft("task", "pos", labels=learning.LABELS)

    start = {name: before[f"{model.base_model_prefix}.{name}"] for name in sft.diffs}
    expected = select_magnitude({name: moved[name] for name in sft.diffs}, start, 700)
    assert all(torch.equal(sft.diffs[name].indices, indices) for name, indices in expected.items())
    assert sft.support_size == 700
    assert any(bool(diff.values.any()) for diff in sft.diffs.values())
    for name, p in encoder.items():
        off = torch.ones(p.numel(), dtype=torch.bool)
        if name in sft.diffs:
            off[sft.diffs[name].indices.long()] = False
        assert torch.equal(p.reshape(-1)[off], before[f"{model.base_model_prefix}.{name}"].reshape(-1)[off]), name
    with torch.no_grad():
        learnt = phased(**batch).logits
        again = base.token_classifier(learning.LABELS, seed=2).eval()
        with composed(again, [(sft, 1.0)], base=base.ref):
            torch.testing.assert_close(again(**batch).logits, learnt, rtol=0, atol=1e-5)
    with pytest.raises(TrainingError, match="selected already"):
        phased.select(size=10)


def test_a_checkpoint_of_a_phase_is_what_trains_in_it(base: Base, learning: ModuleType) -> None:
    objective, data = learning.tagging(base.tokenizer)
    batch = objective.collate(data.examples[:8], torch.Generator())
    phased = PhasedModel(base, base.token_classifier(learning.LABELS, seed=1))
    steps(phased, batch, 1)
    phased.select(size=50)
    steps(phased, batch, 1)
    saved = {name: value.clone() for name, value in phased.state_dict().items()}
    assert sum(value.numel() for name, value in saved.items() if "classifier" not in name) == 50
    first = phased.sft("task", "pos")
    steps(phased, batch, 2)
    phased.load_state_dict(saved)
    second = phased.sft("task", "pos")
    assert all(torch.equal(first.diffs[name].values, second.diffs[name].values) for name in first.diffs)
