"""Gradients on a sparse support equal those of the dense gradient there, as autograd computes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ltsft.training.optim import SupportModule
from ltsft.training.sampled import DENSEST, SampledLayers


class Model(nn.Module):
    """A layer that is used twice, one without bias, one whose matrix is used by embeddings too, and one left alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(40, 32)
        self.twice = nn.Linear(32, 32)
        self.bare = nn.Linear(32, 48, bias=False)
        self.alone = nn.Linear(48, 32)
        self.tied = nn.Linear(32, 40)
        self.tied.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        states = torch.tanh(self.twice(torch.tanh(self.twice(self.words(ids)))))
        out: Tensor = self.tied(self.alone(torch.tanh(self.bare(states))))
        return out


def make_support(model: nn.Module, density: float = 0.03) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: (torch.rand(p.numel(), generator=generator) < density).nonzero().squeeze(1).int()
        for name, p in model.named_parameters()
        if not name.startswith("alone")
    }


def gradients_of(precision: torch.dtype | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give the gradients on the support, and those that autograd gives of whole parameters, gathered there."""
    ids = torch.randint(0, 40, (3, 17), generator=torch.Generator().manual_seed(2))
    model, whole = Model().requires_grad_(False), Model()
    module = SupportModule(model, make_support(model))
    for run in (module, whole):
        for _ in range(2):  # gradients add up over micro-batches
            with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
                out = run(ids)
            (out.float() ** 2).sum().backward()
    dense = {name: p.grad.reshape(-1) for name, p in whole.named_parameters() if p.grad is not None}
    expected = {name: dense[name][indices.long()] for name, indices in make_support(whole).items()}
    return {name: p.grad for name, p in module.values.items() if p.grad is not None}, expected


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_gradients_on_the_support_are_those_of_the_dense_gradient(precision: torch.dtype | None) -> None:
    ours, expected = gradients_of(precision)
    assert ours.keys() == {name for name, indices in expected.items() if indices.numel()}
    assert {"twice.weight", "bare.weight", "words.weight"} <= ours.keys()
    for name, gradient in ours.items():
        rtol, atol = (1e-4, 1e-4) if precision is None else (3e-2, 1.0)
        torch.testing.assert_close(gradient, expected[name], rtol=rtol, atol=atol, msg=name)
        assert float(gradient.abs().max()) > 1, name


def test_layers_whose_matrix_is_shared_or_not_sparse_get_the_dense_gradient() -> None:
    model = Model()
    assert SampledLayers(model, make_support(model)).names == {"twice.weight", "bare.weight"}
    assert not SampledLayers(model, make_support(model, density=2 * DENSEST)).names
    assert not SampledLayers(model.double(), make_support(model)).names


def test_no_dense_gradient_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model().requires_grad_(False)
    module = SupportModule(model, make_support(model))
    sampled: list[tuple[int, ...]] = []
    compute = torch.sparse.sampled_addmm

    def count(pattern: Tensor, *args: Tensor, beta: float) -> Tensor:
        sampled.append(tuple(pattern.shape))
        computed: Tensor = compute(pattern, *args, beta=beta)
        return computed

    monkeypatch.setattr(torch.sparse, "sampled_addmm", count)
    module(torch.ones(2, 3, dtype=torch.long)).sum().backward()
    assert sorted(sampled) == [(32, 32), (32, 32), (48, 32)]


def test_the_model_is_as_it_was_after_a_run_that_failed() -> None:
    model = Model()
    module = SupportModule(model, make_support(model))
    with pytest.raises(IndexError):
        module(torch.tensor([[99]]))
    assert "forward" not in model.twice.__dict__
    with pytest.raises(TypeError):
        module()
    assert "forward" not in model.bare.__dict__
