"""What the sparse phase trains: the K values on the support, as parameters of their own.

Gradients, optimizer state, clipping, loss scaling and what processes exchange are then of size K without a word to
anyone: they are what torch does with any parameter. A dense gradient, where there is one, lives as long as the backward
pass of its layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from ltsft.training.sampled import SampledLayers


class SupportModule(nn.Module):
    """Runs a module of which, of some parameters, the weights on a support train and no others.

    Training it with AdamW equals training the module with dense AdamW (Loshchilov and Hutter 2019) on gradients that
    are masked to the support, with weight decay on the support only. The module's own parameters keep their bits off
    the support; on it they follow the values each time that `write_back` is called, which an optimizer does by itself
    after `follow`. Parameters that need no support (the head) are trained in the module as they are.

    Args:
        module: what is run. Parameters with a support are set not to require gradients.
        support: strictly increasing flat indices, (k,), int32 or int64, of each parameter that trains on a support, by
            its name in `module`. A parameter whose support is empty costs nothing.

    Attributes:
        values: the weights on the support, by name; (k,) each, float32 parameters.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> sparse = SupportModule(layer, {"weight": torch.tensor([0, 3])})
        >>> sparse(torch.ones(1, 2)).sum().backward()
        >>> sparse.values["weight"].grad.tolist(), layer.weight.grad
        ([1.0, 1.0], None)
    """

    def __init__(self, module: nn.Module, support: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module = module
        parameters = dict(module.named_parameters())
        self._support = {n: s.to(parameters[n].device) for n, s in support.items() if s.numel()}
        self._weights = {name: parameters[name].requires_grad_(False) for name in self._support}
        self._values = nn.ParameterList(
            [w.reshape(-1).index_select(0, self._support[n]) for n, w in self._weights.items()]
        )
        self._sampled = SampledLayers(module, self._support)
        trained = {id(w) for w in self._weights.values()}
        self._embeddings = [
            m
            for m in module.modules()
            if isinstance(m, nn.Embedding) and id(m.weight) in trained and not m.scale_grad_by_freq
        ]

    @property
    def values(self) -> dict[str, nn.Parameter]:
        """The weights on the support, by name."""
        return dict(zip(self._support, self._values, strict=True))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module; its gradients go to `values`."""
        values = self.values

        def give(name: str) -> Tensor:
            weight: Tensor = _OnSupport.apply(values[name], self._weights[name], self._support[name])
            return weight

        dense = {name: give(name) for name in values if name not in self._sampled.names}
        with self._row_gradients(), self._sampled.giving(values, give):
            return torch.func.functional_call(self.module, dense, args, kwargs)

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the values into the module's parameters."""
        for name, values in self.values.items():
            self._weights[name].view(-1).index_copy_(0, self._support[name].long(), values)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the values into the module's parameters after each step of the optimizer."""
        optimizer.register_step_post_hook(lambda *_: self.write_back())

    @contextmanager
    def _row_gradients(self) -> Iterator[None]:
        """Let embeddings give gradients for the rows of the batch alone.

        On a CPU that spares a dense matrix of zeros. On an accelerator it would make the host wait for their number.
        """
        before = [m.sparse for m in self._embeddings]
        try:
            for m in self._embeddings:
                m.sparse = m.weight.device.type == "cpu"
            yield
        finally:
            for m, sparse in zip(self._embeddings, before, strict=True):
                m.sparse = sparse


class _OnSupport(torch.autograd.Function):
    """Give a weight as it is, and its gradient on the support to the values."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, weight: Tensor, support: Tensor) -> Tensor:
        ctx.save_for_backward(support)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (support,) = ctx.saved_tensors
        (gradient,) = gradients
        if gradient.is_sparse:
            return _gather_rows(gradient.coalesce(), support), None, None
        return gradient.reshape(-1).index_select(0, support), None, None


def _gather_rows(gradient: Tensor, support: Tensor) -> Tensor:
    """Give the entries on the support, (k,), of a gradient that has some rows of (rows, width) and zeros elsewhere."""
    rows = gradient.indices()[0]  # (n,), increasing
    values = gradient.values()  # (n, width)
    width = values.shape[1]
    bounds = torch.stack([rows * width, (rows + 1) * width]).to(support.dtype)
    first, last = torch.searchsorted(support, bounds)  # the entries of each row in the support
    counts = last - first
    at = torch.repeat_interleave(first - (counts.cumsum(0) - counts), counts) + torch.arange(int(counts.sum()))
    of_row = torch.repeat_interleave((torch.arange(len(rows)) - rows) * width, counts)
    gathered = torch.zeros(support.shape, dtype=values.dtype)
    gathered[at] = values.reshape(-1)[support[at] + of_row]
    return gathered
