"""The optimizer of the sparse phase: AdamW whose state holds the K entries of the support alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw


class SupportAdamW(Optimizer):
    """AdamW that moves the weights of a support and no others.

    Equals dense AdamW (Loshchilov and Hutter 2019) with gradients masked to the support, weight decay on the support
    only, and clipping by the global norm over the support and the parameters that are trained whole. Gradients outside
    the support are dropped.

    Args:
        sparse: parameters with a support.
        whole: parameters that are trained whole (the head).
        support: strictly increasing flat indices of each parameter in `sparse`, int64, shape (k,).
        learning_rate: step size.
        weight_decay: decoupled decay of the weights in `sparse`.
        max_grad_norm: the global norm that gradients are clipped to; None for no clipping.
    """

    def __init__(
        self,
        sparse: Iterable[nn.Parameter],
        whole: Iterable[nn.Parameter],
        *,
        support: Mapping[nn.Parameter, Tensor],
        learning_rate: float,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
    ) -> None:
        self._support = dict(support)
        self._max_grad_norm = max_grad_norm
        groups = [
            {"params": [p for p in sparse if self._support[p].numel()], "weight_decay": weight_decay},
            {"params": list(whole), "weight_decay": 0.0},
        ]
        defaults: dict[str, Any] = {"lr": learning_rate, "betas": (0.9, 0.999), "eps": 1e-8}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the weights of the support by one AdamW step and drop the dense gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = self._gather_gradients()
        if self._max_grad_norm is not None and gradients:
            norm = nn.utils.get_total_norm(list(gradients.values()))
            scale = (self._max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_ does
            for gradient in gradients.values():
                gradient.mul_(scale)
        for group in self.param_groups:
            params = [p for p in group["params"] if p in gradients]
            values = [self._values(p) for p in params]
            states = [self._state(p) for p in params]
            adamw(
                values,
                [gradients[p] for p in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for p, value in zip(params, values, strict=True):
                if p in self._support:
                    p.view(-1)[self._support[p]] = value
        return loss

    def _gather_gradients(self) -> dict[nn.Parameter, Tensor]:
        gradients = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    gradients[p] = p.grad.view(-1)[self._support[p]] if p in self._support else p.grad
                    p.grad = None
        return gradients

    def _values(self, p: nn.Parameter) -> Tensor:
        return p.view(-1)[self._support[p]] if p in self._support else p

    def _state(self, p: nn.Parameter) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            values = self._values(p)
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(values)
            state["exp_avg_sq"] = torch.zeros_like(values)
        return state
