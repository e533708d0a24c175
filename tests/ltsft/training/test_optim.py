"""Training the values on a support equals dense AdamW with masked gradients, computed by torch's own optimizer."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ltsft.training.optim import SupportModule

STEPS = 6
MICRO_BATCHES = 2
DECAY, MAX_NORM, RATE = 0.1, 0.5, 0.05
HEAD = "head."


class Model(nn.Module):
    """Embeddings, a matrix that is used twice, biases and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 5, padding_idx=0)
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.words(ids)
        states = torch.tanh(self.first(torch.tanh(self.first(states))))
        states = states @ self.words.weight.T @ self.words.weight  # the embeddings, not by rows
        return self.head(torch.tanh(self.second(states)))


def make_support(model: nn.Module) -> dict[str, Tensor]:
    """Some of all weights outside the head; one parameter has an empty support and one is not named at all."""
    generator = torch.Generator().manual_seed(1)
    masks = {
        name: torch.rand(p.shape, generator=generator) < 0.4
        for name, p in model.named_parameters()
        if not name.startswith(HEAD)
    }
    masks["first.bias"][:] = False
    del masks["second.bias"]
    return {name: mask.reshape(-1).nonzero().squeeze(1).int() for name, mask in masks.items()}


class Sparse:
    """A model, its support and torch's own optimizer over the values and the head."""

    def __init__(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        self.model = model
        self.head = [p.requires_grad_(True) for name, p in model.named_parameters() if name.startswith(HEAD)]
        self.module = SupportModule(model, make_support(model))
        groups = [{"params": list(self.module.values.values()), "weight_decay": DECAY}]
        groups += [{"params": self.head, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
        self.module.follow(self.optimizer)


def batches(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randint(0, 11, (4, 7), generator=generator) for _ in range(MICRO_BATCHES)]


def loss_of(model: nn.Module, ids: Tensor, precision: torch.dtype | None = None) -> Tensor:
    with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
        out = model(ids)
    return (out.float() ** 2).mean() * 10 / MICRO_BATCHES


def set_rate(optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = RATE * (1 - step / STEPS)


def train(
    sparse: Sparse, steps: range, *, max_norm: float | None = MAX_NORM, precision: torch.dtype | None = None
) -> None:
    for step in steps:
        for ids in batches(step):
            loss_of(sparse.module, ids, precision).backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(sparse.module.parameters(), max_norm)
        set_rate(sparse.optimizer, step)
        sparse.optimizer.step()
        sparse.module.zero_grad()


def train_dense(model: nn.Module, *, max_norm: float | None, precision: torch.dtype | None = None) -> None:
    """Mask the gradients, clip and step with torch's dense AdamW; keep the weights off the support by hand."""
    parameters, masks = dict(model.named_parameters()), {}
    for name, p in parameters.items():
        masks[name] = torch.full(p.shape, name.startswith(HEAD))
    for name, indices in make_support(model).items():
        masks[name].view(-1)[indices.long()] = True
    groups = [
        {"params": [p for n, p in parameters.items() if not n.startswith(HEAD)], "weight_decay": DECAY},
        {"params": [p for n, p in parameters.items() if n.startswith(HEAD)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    for step in range(STEPS):
        optimizer.zero_grad()
        for ids in batches(step):
            loss_of(model, ids, precision).backward()
        for name, p in parameters.items():
            assert p.grad is not None
            p.grad.mul_(masks[name])
        if max_norm is not None:
            nn.utils.clip_grad_norm_(list(parameters.values()), max_norm)
        set_rate(optimizer, step)
        optimizer.step()
        with torch.no_grad():  # dense weight decay would move the others
            for name, p in parameters.items():
                p.copy_(torch.where(masks[name], p, start[name]))


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("max_norm", [None, MAX_NORM, 1e6])
def test_the_weights_equal_those_of_dense_adamw_with_masked_gradients(
    max_norm: float | None, precision: torch.dtype | None
) -> None:
    sparse, dense, start = Sparse(Model()), Model(), Model()
    train(sparse, range(STEPS), max_norm=max_norm, precision=precision)
    train_dense(dense, max_norm=max_norm, precision=precision)
    rtol, atol = (1e-4, 1e-6) if precision is None else (2e-2, 2e-3)  # a step is RATE; sums are rounded to bf16 or not
    for (name, value), expected, before in zip(
        sparse.model.named_parameters(), dense.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
        assert torch.equal(value, before) == (name in ("first.bias", "second.bias")), name


def test_clipping_is_at_work_in_the_comparison() -> None:
    clipped, free = Sparse(Model()), Sparse(Model())
    train(clipped, range(STEPS), max_norm=1e-8)
    train(free, range(STEPS), max_norm=None)
    assert not torch.allclose(clipped.model.first.weight, free.model.first.weight, rtol=1e-4)


def test_a_loss_scaler_sees_and_skips_what_is_not_finite_on_the_support() -> None:
    sparse = Sparse(Model())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with torch.no_grad():
        before = [p.clone() for p in sparse.model.parameters()]
    for factor, is_skipped in ((1.0, False), (float("inf"), True), (1.0, False)):
        last = [p.detach().clone() for p in sparse.model.parameters()]
        values = sparse.module.values["first.weight"]
        scaler.scale(loss_of(sparse.module, batches(0)[0])).backward()
        assert values.grad is not None
        values.grad[0] *= factor
        scale = scaler.get_scale()
        scaler.step(sparse.optimizer)
        scaler.update()
        sparse.module.zero_grad()
        assert (scaler.get_scale() < scale) == is_skipped
        assert all(torch.equal(p, q) for p, q in zip(sparse.model.parameters(), last, strict=True)) == is_skipped
    unscaled = Sparse(Model())
    for _ in range(2):
        loss_of(unscaled.module, batches(0)[0]).backward()
        unscaled.optimizer.step()
        unscaled.module.zero_grad()
    for value, expected, start in zip(sparse.model.parameters(), unscaled.model.parameters(), before, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
        assert value.dtype == start.dtype


def test_weights_off_the_support_keep_every_bit() -> None:
    sparse, start = Sparse(Model()), dict(Model().named_parameters())
    train(sparse, range(STEPS))
    support = make_support(sparse.model)
    for name, value in sparse.model.named_parameters():
        if not name.startswith(HEAD):
            off = torch.ones(value.numel(), dtype=torch.bool)
            off[support.get(name, torch.empty(0)).long()] = False
            bits, before = value.view(-1).view(torch.int32), start[name].view(-1).view(torch.int32)
            assert torch.equal(bits[off], before[off]), name


def test_gradients_and_state_have_the_size_of_the_support() -> None:
    sparse = Sparse(Model())
    for ids in batches(0):
        loss_of(sparse.module, ids).backward()
    held = [p for p in sparse.module.parameters() if p.grad is not None]
    whole = sum(p.numel() for p in sparse.head)
    k = sum(indices.numel() for indices in make_support(sparse.model).values())
    assert sum(p.grad.numel() for p in held) == k + whole
    assert all(p.grad is None for n, p in sparse.model.named_parameters() if not n.startswith(HEAD))
    sparse.optimizer.step()
    assert sum(state["exp_avg"].numel() for state in sparse.optimizer.state.values()) == k + whole


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each gradient of embeddings that reached a support came by rows."""
    by_rows: list[bool] = []
    backward: Callable[..., Tensor] = torch.Tensor.coalesce

    def coalesce(self: Tensor) -> Tensor:
        by_rows.append(self.is_sparse)
        return backward(self)

    monkeypatch.setattr(torch.Tensor, "coalesce", coalesce)
    return by_rows


def test_embeddings_give_gradients_for_the_rows_of_the_batch_alone(spy: list[bool]) -> None:
    words = nn.Embedding(50, 6, padding_idx=1)
    dense = copy.deepcopy(words)
    support = torch.randperm(300, generator=torch.Generator().manual_seed(2))[:130].sort().values
    module = SupportModule(words, {"weight": support})
    ids = torch.tensor([[3, 1, 9, 3], [49, 0, 9, 1]])
    weights = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(3))
    (module(ids) * weights).sum().backward()
    (dense(ids) * weights).sum().backward()
    assert spy == [True]
    assert dense.weight.grad is not None
    torch.testing.assert_close(module.values["weight"].grad, dense.weight.grad.view(-1)[support])
    assert words.sparse is False


def test_a_saved_and_loaded_optimizer_goes_on_with_the_same_bits() -> None:
    through, first = Sparse(Model()), Sparse(Model())
    train(through, range(STEPS))
    train(first, range(3))
    file = io.BytesIO()
    torch.save(first.optimizer.state_dict(), file)
    file.seek(0)
    second = Sparse(copy.deepcopy(first.model))
    second.optimizer.load_state_dict(torch.load(file, weights_only=True))
    train(second, range(3, STEPS))
    for value, expected in zip(second.model.parameters(), through.model.parameters(), strict=True):
        assert torch.equal(value, expected)
