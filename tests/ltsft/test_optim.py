"""AdamW over a support equals dense AdamW with masked gradients, computed by torch's own optimizer."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from ltsft.optim import SupportAdamW

STEPS = 6
DECAY, MAX_NORM, RATE = 0.1, 0.5, 0.05


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))


def make_masks(model: nn.Sequential) -> dict[str, Tensor]:
    """Masks of the first two layers; the last layer is the head; one parameter has an empty support."""
    generator = torch.Generator().manual_seed(1)
    masks = {
        name: torch.rand(p.shape, generator=generator) < 0.4
        for name, p in model.named_parameters()
        if not name.startswith("4.")
    }
    masks["0.bias"][:] = False
    return masks


def make_optimizer(model: nn.Sequential, max_grad_norm: float | None) -> SupportAdamW:
    masks, parameters = make_masks(model), dict(model.named_parameters())
    return SupportAdamW(
        [parameters[name] for name in masks],
        [p for name, p in parameters.items() if name not in masks],
        support={parameters[name]: mask.reshape(-1).nonzero().squeeze(1) for name, mask in masks.items()},
        learning_rate=RATE,
        weight_decay=DECAY,
        max_grad_norm=max_grad_norm,
    )


def rate_at(step: int) -> float:
    return RATE * (1 - step / STEPS)


def backward(model: nn.Sequential, step: int) -> None:
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
    (model(inputs) ** 2).mean().mul(10).backward()


def train(model: nn.Sequential, optimizer: SupportAdamW, steps: range) -> None:
    for step in steps:
        backward(model, step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        optimizer.step()


def train_dense(model: nn.Sequential, max_grad_norm: float | None) -> None:
    """Mask the gradients, clip and step with torch's dense AdamW; keep the weights off the support by hand."""
    masks, parameters = make_masks(model), dict(model.named_parameters())
    head = [p for name, p in parameters.items() if name not in masks]
    groups = [{"params": [parameters[n] for n in masks], "weight_decay": DECAY}, {"params": head, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    start = {name: parameters[name].detach().clone() for name in masks}
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, step)
        for name, mask in masks.items():
            gradient = parameters[name].grad
            assert gradient is not None
            gradient.mul_(mask)
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(list(parameters.values()), max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        optimizer.step()
        with torch.no_grad():  # dense weight decay would move the others
            for name, mask in masks.items():
                parameters[name].copy_(torch.where(mask, parameters[name], start[name]))


@pytest.mark.parametrize("max_grad_norm", [None, MAX_NORM, 1e6])
def test_the_weights_equal_those_of_dense_adamw_with_masked_gradients(max_grad_norm: float | None) -> None:
    model, dense, start = make_model(), make_model(), make_model()
    train(model, make_optimizer(model, max_grad_norm), range(STEPS))
    train_dense(dense, max_grad_norm)
    for (name, value), expected, before in zip(
        model.named_parameters(), dense.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
        if name != "0.bias":
            assert not torch.equal(value, before), name


def test_clipping_is_at_work_in_the_comparison() -> None:
    clipped, free = make_model(), make_model()
    train(clipped, make_optimizer(clipped, 1e-8), range(STEPS))
    train(free, make_optimizer(free, None), range(STEPS))
    assert not torch.allclose(clipped[0].weight, free[0].weight, rtol=1e-4)


def test_weights_off_the_support_keep_every_bit() -> None:
    model, start = make_model(), make_model()
    train(model, make_optimizer(model, MAX_NORM), range(STEPS))
    before = dict(start.named_parameters())
    for name, mask in make_masks(model).items():
        value = dict(model.named_parameters())[name]
        assert torch.equal(value[~mask].view(torch.int32), before[name][~mask].view(torch.int32)), name


def test_the_state_holds_the_entries_of_the_support_alone() -> None:
    model = make_model()
    optimizer = make_optimizer(model, MAX_NORM)
    train(model, optimizer, range(2))
    masks = make_masks(model)
    for name, p in model.named_parameters():
        wanted = int(masks[name].sum()) if name in masks else p.numel()
        held = optimizer.state[p]["exp_avg"].numel() if p in optimizer.state else 0
        assert held == wanted, name


def test_a_saved_and_loaded_optimizer_goes_on_with_the_same_bits() -> None:
    through, model = make_model(), make_model()
    train(through, make_optimizer(through, MAX_NORM), range(STEPS))
    first = make_optimizer(model, MAX_NORM)
    train(model, first, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = copy.deepcopy(model)
    second = make_optimizer(resumed, MAX_NORM)
    second.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, second, range(3, STEPS))
    for value, expected in zip(resumed.parameters(), through.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_gradients_are_dropped_by_a_step() -> None:
    model = make_model()
    optimizer = make_optimizer(model, None)
    train(model, optimizer, range(1))
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(p.grad is None for p in model.parameters() if id(p) in trained)


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    model, start = make_model(), make_model()
    optimizer = make_optimizer(model, MAX_NORM)
    model[0].weight.requires_grad_(False)
    train(model, optimizer, range(1))
    assert torch.equal(model[0].weight, start[0].weight)
    assert not torch.equal(model[2].weight, start[2].weight)
