"""What Trainer trains in a phase: the loss as a module whose state is what is trained and nothing else."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from ltsft.errors import TrainingError
from ltsft.objectives import Objective
from ltsft.training.optim import SupportModule

Loaded = namedtuple("Loaded", "missing_keys unexpected_keys")


class LossModule(nn.Module):
    """What Trainer trains: the objective's loss, plus the L1 pull; its state is what is trained alone.

    Args:
        model: with the parameters below among its own; all others are frozen.
        objective: gives the loss of a batch.
        maskable: parameters of which an SFT may hold differences, by name.
        head: parameters that train whole, by full name.
        support: strictly increasing flat indices of the weights that may train, by name of the maskable parameter;
            None lets all of them train.
        pull_to: values that the L1 penalty pulls to, as `maskable` below; read here if there is a penalty, else when
            the distance is asked for.
        l1: weight of the penalty, which is the mean of |theta - theta0| over the maskable weights.

    Attributes:
        maskable: what trains of the maskable parameters: whole ones, or the values on their support.
        trained: those, and the head.
        tokens: sub-words since someone last set it to 0.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        maskable: Mapping[str, nn.Parameter],
        head: Mapping[str, nn.Parameter],
        support: Mapping[str, Tensor] | None,
        pull_to: Mapping[str, Tensor],
        l1: float,
    ) -> None:
        super().__init__()
        loss = _Loss(model, objective).requires_grad_(False)
        for p in head.values():
            p.requires_grad_(True)
        self.sparse: SupportModule | None = None
        self.maskable = dict(maskable)
        if support is None:
            for p in self.maskable.values():
                p.requires_grad_(True)
        else:
            names = {id(p): name for name, p in loss.named_parameters()}
            full = {name: names[id(p)] for name, p in maskable.items()}
            self.sparse = SupportModule(loss, {full[name]: indices for name, indices in support.items()})
            values = self.sparse.values
            self.maskable = {name: values[full[name]] for name in maskable if full[name] in values}
        self._loss: nn.Module = loss if self.sparse is None else self.sparse
        self.trained = {**self.maskable, **head}
        self.tokens = 0
        self._objective = objective
        self._l1 = l1
        self._weights = sum(p.numel() for p in maskable.values())
        self._pull_to = pull_to
        if l1:
            self._pull_to = {name: pull_to[name].to(p.device) for name, p in self.maskable.items()}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the loss of a batch, with the L1 pull, as Trainer wants it."""
        self._objective.before_batch(batch)
        loss = self._loss(batch)
        if self._l1:
            loss = loss + self._l1 * self.l1_distance() / self._weights
        return {"loss": loss}

    def l1_distance(self) -> Tensor:
        """Sum of |theta - theta0| over the maskable weights, a scalar; off a support it is 0, and in a head phase."""
        if not self.maskable:
            return torch.zeros(())
        distances = [_Distance.apply(p, self._pull_to[name].to(p.device)) for name, p in self.maskable.items()]
        return torch.stack(distances).sum()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Give what is trained: of parameters with a support, the values on it."""
        return {name: p.detach() for name, p in self.trained.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take what `state_dict` gave.

        Raises:
            TrainingError: something is missing, or has another shape.
        """
        missing = [name for name in self.trained if name not in state_dict]
        if missing:
            raise TrainingError(f"a checkpoint lacks {missing[0]!r}; remove the working folder to train anew")
        for name, p in self.trained.items():
            if state_dict[name].shape != p.shape:
                raise TrainingError(
                    f"a checkpoint has {name!r} of shape {tuple(state_dict[name].shape)} in place of {tuple(p.shape)}; "
                    "remove the working folder to train anew"
                )
            p.copy_(state_dict[name])
        if self.sparse is not None:
            self.sparse.write_back()
        return Loaded([], [])


class _Loss(nn.Module):
    """The loss of an objective as a module: the model's parameters are its own."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self._objective.loss(self.model, batch)


class _Distance(torch.autograd.Function):
    """Sum of |weight - anchor|; keeps no difference for the backward pass, where autograd would keep one a weight."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, anchor: Tensor) -> Tensor:
        ctx.save_for_backward(weight, anchor)
        return (weight - anchor).abs_().sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weight, anchor = ctx.saved_tensors
        return (weight - anchor).sign_().mul_(gradients[0]), None
