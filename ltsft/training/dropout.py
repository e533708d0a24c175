"""Dropout and attention on a CPU whose backward pass keeps less, or is faster, than torch's own.

torch keeps the noise as floats, four bytes where a bit would do. In attention, for which it has no fused kernel with
dropout, it keeps three matrices of (batch, heads, length, length) floats: probabilities, noise, and their product. Here
it is one. Values and gradients are torch's, bit for bit; without dropout, in bfloat16, attention is computed in float32
and its gradients are closer to the true ones than torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "ltsft_sdpa"


@contextmanager
def lean_dropout(model: nn.Module) -> Iterator[None]:
    """Let a model on a CPU drop out as this module does, inside; a model elsewhere stays as it is."""
    if any(p.device.type != "cpu" for p in model.parameters()):
        yield
        return
    layers = [m for m in model.modules() if type(m) is nn.Dropout and not m.inplace and "forward" not in m.__dict__]
    is_attending = isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa"
    attending = cast(PreTrainedModel, model) if is_attending else None
    try:
        for layer in layers:
            layer.forward = _drop_by(layer)  # type: ignore[method-assign, assignment]
        if attending is not None:
            AttentionInterface.register(NAME, attend)
            AttentionMaskInterface.register(NAME, sdpa_mask)
            attending.set_attn_implementation(NAME)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
        if attending is not None:
            attending.set_attn_implementation("sdpa")


def _drop_by(layer: nn.Dropout) -> Callable[[Tensor], Tensor]:
    def drop(x: Tensor) -> Tensor:
        if not layer.training or not 0 < layer.p < 1 or not torch.is_grad_enabled():
            return functional.dropout(x, layer.p, layer.training)
        dropped: Tensor = _Dropout.apply(x, layer.p)
        return dropped

    return drop


class _Dropout(torch.autograd.Function):
    """Set some elements to zero and scale the others; keeps a byte for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        noise = torch.empty_like(x).bernoulli_(1 - p)
        ctx.save_for_backward(noise.bool())
        ctx.p = p
        return noise.div_(1 - p).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return gradients[0] * kept.to(gradients[0].dtype).div_(1 - ctx.p), None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend as `sdpa_attention_forward` of transformers does, with a backward pass that keeps less or is faster.

    Args:
        module: the layer; what it says about groups of heads and causality is for torch's own attention.
        query: (batch, heads, length, width); `key` and `value` are alike.
        attention_mask: True or 0 where a query may see a key, (batch, 1, length, length); all where None.
        dropout: probability that a weight is dropped.
        scaling: of the scores; 1 / sqrt(width) if None.

    Returns:
        (batch, length, heads, width), and None in place of the probabilities.
    """
    is_plain = query.shape[1] == key.shape[1] and not more.get("is_causal") and not getattr(module, "is_causal", False)
    if not dropout or not is_plain or more.get("position_bias") is not None or not torch.is_grad_enabled():
        return _by_torch(module, query, key, value, attention_mask, dropout, scaling, **more)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        zeros = torch.zeros(attention_mask.shape, dtype=query.dtype)
        attention_mask = zeros.masked_fill_(attention_mask.logical_not(), -math.inf)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):
        attended: Tensor = _Attention.apply(query, key, value, attention_mask, dropout, math.sqrt(scale))
    return attended.transpose(1, 2).contiguous(), None


def _by_torch(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    **more: Any,
) -> tuple[Tensor, None]:
    """torch's own attention, for gradients in float32: its backward pass takes 4 to 10 times as long in bfloat16."""
    is_narrow = query.dtype in (torch.bfloat16, torch.float16) and more.get("position_bias") is None
    if not is_narrow or not query.requires_grad:
        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **more)
    wide = mask.float() if mask is not None and mask.is_floating_point() else mask
    with torch.autocast("cpu", enabled=False):
        q32, k32, v32 = query.float(), key.float(), value.float()
        attended, _ = sdpa_attention_forward(module, q32, k32, v32, wide, dropout, scaling, **more)
    return attended.to(query.dtype), None


class _Attention(torch.autograd.Function):
    """softmax(q k' + mask), some of it dropped, times v; both q and k are scaled, as torch does it.

    What was dropped is kept as the sign of the probabilities, which have none.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float) -> Tensor:
        q32, k32, v32 = q.float() * scale, k.float() * scale, v.float()
        scores = q32 @ k32.transpose(-2, -1)  # (batch, heads, length, length)
        if mask is not None:
            scores += mask
        probabilities = torch.softmax(scores, -1)
        noise = torch.empty_like(scores).bernoulli_(1.0 - dropout).div_(1.0 - dropout)
        torch.mul(probabilities, noise, out=scores)
        output = scores @ v32
        probabilities.copysign_(noise.sub_(0.5))
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.scale, ctx.dropout = scale, dropout
        return output.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, signed = ctx.saved_tensors
        gradient = gradients[0].float()
        kept = float(torch.ones(()) / (1.0 - ctx.dropout))  # rounded to float32, as the noise was
        dropped = signed.relu().mul_(kept)
        of_v = dropped.transpose(-2, -1) @ gradient
        torch.matmul(gradient, v.float().transpose(-2, -1), out=dropped)
        of_probabilities = torch.ops.aten.threshold_backward(dropped, signed, 0).mul_(kept)
        probabilities = torch.abs(signed, out=dropped)
        of_scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, torch.float32)
        # Which operand is transposed decides the last bit: these are torch's.
        of_q = (of_scores @ (k.float() * ctx.scale).mT.contiguous().mT) * ctx.scale
        of_k = (((q.float() * ctx.scale).contiguous().mT @ of_scores) * ctx.scale).mT
        return of_q.to(q.dtype), of_k.to(k.dtype), of_v.to(v.dtype), None, None, None
