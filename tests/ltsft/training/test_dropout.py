"""Dropout on a CPU gives torch's values and gradients, bit for bit, and keeps less for the backward pass."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

from ltsft.objectives.masked_lm import _CrossEntropy
from ltsft.training.dropout import attend, lean_dropout

DTYPES = [torch.float32, torch.bfloat16]


def saved_bytes(run: object) -> tuple[object, int]:
    """Run something and count the bytes that autograd keeps, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()  # type: ignore[operator]
    return result, sum(kept.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("width", [8, 16, 32])
def test_attention_has_the_bits_of_torch_and_keeps_its_probabilities_once(
    dtype: torch.dtype, is_masked: bool, width: int
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 64, 3, width).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = None
    if is_masked:
        mask = torch.ones(2, 1, 64, 64, dtype=torch.bool)
        mask[..., 50:] = False
    weights = torch.randn(2, 3, 64, width).to(dtype)

    def torchs() -> Tensor:
        return functional.scaled_dot_product_attention(*inputs, attn_mask=mask, dropout_p=0.2)

    def ours() -> Tensor:
        return attend(nn.Identity(), *inputs, mask, dropout=0.2)[0].transpose(1, 2)

    results = []
    for run in (torchs, ours):
        torch.manual_seed(1)
        output, kept = saved_bytes(run)
        results.append(([output, *torch.autograd.grad((output * weights).sum(), inputs)], kept))
    (expected, plain), (found, lean) = results
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert plain - lean >= 1.5 * 2 * 3 * 64 * 64 * 4


@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_in_bfloat16_has_gradients_closer_to_the_true_ones_than_torchs(is_masked: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 64, 3, 16).bfloat16().transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = None
    if is_masked:
        mask = torch.zeros(2, 1, 64, 64, dtype=torch.bfloat16)
        mask[..., 50:] = torch.finfo(torch.bfloat16).min
    weights = torch.randn(2, 3, 64, 16)

    def error(output: Tensor, leaves: list[Tensor], true: list[Tensor]) -> float:
        found = torch.autograd.grad((output * weights.to(output.dtype)).sum(), leaves)
        return sum(float((a.double() - b).square().sum()) for a, b in zip(found, true, strict=True))

    exact = [x.detach().double().requires_grad_() for x in inputs]
    output = functional.scaled_dot_product_attention(*exact, attn_mask=None if mask is None else mask.double())
    true = list(torch.autograd.grad((output * weights).sum(), exact))
    layer = nn.Identity()
    layer.is_causal = False  # type: ignore[assignment]
    ours = attend(layer, *inputs, mask)[0]
    assert ours.dtype == torch.bfloat16
    torchs = functional.scaled_dot_product_attention(*inputs, attn_mask=mask)
    assert error(ours.transpose(1, 2), inputs, true) < 0.7 * error(torchs, inputs, true)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_a_model_inside_has_the_bits_of_the_model_outside(dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=p, attention_probs_dropout_prob=p,
    )  # fmt: skip
    model = BertForMaskedLM(config).train().to(dtype)
    ids = torch.randint(50, (3, 12))

    def gradients() -> list[Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        model(input_ids=ids).logits.float().square().sum().backward()
        return [q.grad.clone() for q in model.parameters() if q.grad is not None]

    expected = gradients()
    with lean_dropout(model):
        found = gradients()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(expected, gradients(), strict=True))
    assert model.config._attn_implementation == "sdpa"
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_outside_training_nothing_is_dropped() -> None:
    layer = nn.Dropout(0.5)
    x = torch.ones(8)
    model = nn.Sequential(layer)
    with lean_dropout(model):
        assert torch.equal(model.eval()(x), x)
        assert not torch.equal(model.train()(x), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_in_place_has_the_bits_of_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(37, 1001)).to(dtype).requires_grad_()
    labels = torch.randint(1001, (37,))
    expected = functional.cross_entropy(logits.float(), labels, reduction="sum") / 37
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    found = _CrossEntropy.apply(logits.clone(), labels) / 37
    (gradient,) = torch.autograd.grad(found, logits)
    assert math.isfinite(float(found))
    assert torch.equal(found, expected)
    assert torch.equal(gradient, expected_gradient)
