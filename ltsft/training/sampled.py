"""Weight gradients of linear layers where there is a support, computed there alone.

The gradient of a weight matrix is the product of two matrices of all the batch's sub-words, a third of the arithmetic
of a training step. On a CPU the entries of a sparse support are had sooner one by one (a sampled dense-dense product):
by 2 to 3 times at 4 % density, evenly at about 10 %.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

DENSEST = 1 / 16
"""Supports with a larger share of their matrix get the dense gradient."""


class SampledLayers:
    """The linear layers of a module whose weight gradients are computed on the support alone.

    They are those in float32 on a CPU whose weights have a sparse support and are used nowhere else. Under autocast
    they run as ever: products of half width are fast, and torch has no sampled ones.

    Args:
        module: what is run.
        supports: strictly increasing flat indices, (k,), by the parameter's name in `module`.
    """

    def __init__(self, module: nn.Module, supports: Mapping[str, Tensor]) -> None:
        uses = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
        self._layers: dict[str, tuple[nn.Linear, Tensor]] = {}
        for name, layer in module.named_modules():
            weight = f"{name}.weight" if name else "weight"
            support = supports.get(weight)
            if support is not None and _is_sampled(layer, support) and uses[id(layer.weight)] == 1:
                self._layers[weight] = layer, _pattern(support, layer.out_features, layer.in_features)

    @property
    def names(self) -> frozenset[str]:
        """The weights' names in the module."""
        return frozenset(self._layers)

    @contextmanager
    def giving(self, values: Mapping[str, Tensor], dense: Callable[[str], Tensor]) -> Iterator[None]:
        """Let the layers give their weights' gradients to `values`, (k,) by name, inside.

        Args:
            values: what gets the gradients.
            dense: gives the weight of that name so that its dense gradient goes to its values: for autocast.
        """
        try:
            for name, (layer, pattern) in self._layers.items():
                layer.forward = _run_by(layer, values[name], pattern, name, dense)  # type: ignore[method-assign, assignment]
            yield
        finally:
            for layer, _ in self._layers.values():
                layer.__dict__.pop("forward", None)


def _is_sampled(layer: nn.Module, support: Tensor) -> bool:
    return (
        type(layer) is nn.Linear
        and "forward" not in layer.__dict__
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and support.numel() <= DENSEST * layer.weight.numel()
    )


def _pattern(support: Tensor, rows: int, width: int) -> Tensor:
    """Give a matrix of zeros, (rows, width), that are stored where the support is."""
    starts = torch.searchsorted(support, torch.arange(rows + 1, dtype=support.dtype) * width)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts.int(), (support % width).int(), torch.zeros(support.numel()), (rows, width), check_invariants=False
        )


def _run_by(
    layer: nn.Linear, values: Tensor, pattern: Tensor, name: str, dense: Callable[[str], Tensor]
) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            return functional.linear(x, dense(name), layer.bias)
        y: Tensor = _Linear.apply(x, layer.weight, layer.bias, values, pattern)
        return y

    return run


class _Linear(torch.autograd.Function):
    """x W' + b; the gradient of W goes to the values on its support."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, pattern: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pattern = pattern
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_y = gradients[0].reshape(-1, weight.shape[0])  # (sub-words, rows)
        of_x = (of_y @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        of_bias = of_y.sum(0) if ctx.needs_input_grad[2] else None
        inputs = x.reshape(-1, weight.shape[1])  # (sub-words, width)
        of_values = torch.sparse.sampled_addmm(ctx.pattern, of_y.t(), inputs, beta=0.0).values()
        return of_x, None, of_bias, of_values, None
