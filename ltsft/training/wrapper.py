"""A model for a training loop of your own: it learns an SFT in the two phases of LT-SFT, whatever steps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ltsft.base import Base, parameter_roles
from ltsft.errors import TrainingError
from ltsft.methods import select_magnitude, support_size
from ltsft.sft import SFT, Diff, Kind
from ltsft.training.loss_module import Loaded
from ltsft.training.optim import SupportModule

__all__ = ["PhasedModel"]


class PhasedModel(nn.Module):
    """A model that trains whole at first, and on K weights after `select` (Ansell et al. 2022, section 3).

    It is called as the model is, gives what the model gives, and has the parameters that train, so that Hugging Face's
    Trainer, with ``remove_unused_columns=False``, or any loop of PyTorch can step it. Layer norms and output embeddings
    stay as they are; the head trains in both phases. Make a new optimizer, or a new Trainer, for each phase.

    Args:
        base: the base.
        model: of it, such as `base.token_classifier(labels, seed=0)`; other SFTs may be composed in it. It is trained
            itself, not a copy.
        freeze: name patterns of more encoder parameters that stay as they are.

    Example:
        >>> phased = PhasedModel(base, base.token_classifier(labels, seed=0))  # doctest: +SKIP
        >>> Trainer(phased, arguments, train_dataset=rows, data_collator=collator).train()  # doctest: +SKIP
        >>> phased.select(density=0.08)  # doctest: +SKIP
        >>> Trainer(phased, arguments, train_dataset=rows, data_collator=collator).train()  # doctest: +SKIP
        >>> sft = phased.sft("task", "pos", labels=labels)  # doctest: +SKIP
    """

    accepts_loss_kwargs = False
    """Read by Trainer: the model takes a mean over its batch."""

    def __init__(self, base: Base, model: PreTrainedModel, *, freeze: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.config = model.config
        self._base = base
        self._roles = parameter_roles(model, freeze)
        model.requires_grad_(False)
        self._trained: dict[str, nn.Parameter] = {**self._roles.maskable, **self._roles.head}
        for p in self._trained.values():
            p.requires_grad_(True)
        self._start = {name: p.detach().cpu().clone() for name, p in self._trained.items()}
        self._support: dict[str, Tensor] = {}
        self.model: nn.Module = model

    @property
    def _sparse(self) -> SupportModule | None:
        return self.model if isinstance(self.model, SupportModule) else None

    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Run the model."""
        if self._sparse is not None:
            self._sparse.write_back()  # the optimizer has changed the values
        return self.model(*args, **kwargs, **({} if labels is None else {"labels": labels}))

    @torch.no_grad()
    def select(self, *, density: float | None = None, size: int | None = None) -> None:
        """End the full phase: keep the K weights that moved furthest, and put everything back to where it started.

        Args:
            density: share of the maskable weights, in (0, 1].
            size: K itself, instead.

        Raises:
            ConfigError: neither or both are given, or there are fewer weights.
            TrainingError: it has happened already, or a weight is not finite.
        """
        if self._sparse is not None:
            raise TrainingError("the K weights are selected already: the sparse phase trains them")
        maskable = self._roles.maskable
        k = support_size(density=density, size=size, maskable=self._roles.size)
        self._support = select_magnitude(maskable, {name: self._start[name] for name in maskable}, k)
        for name, p in self._trained.items():
            p.copy_(self._start[name])
        model = self.model
        names = {id(p): name for name, p in model.named_parameters()}
        full = {name: names[id(p)] for name, p in maskable.items()}
        for p in maskable.values():
            p.requires_grad_(False)
        sparse = SupportModule(model, {full[name]: indices for name, indices in self._support.items()})
        self.model, values = sparse, sparse.values
        self._trained = {
            **{name: values[place] for name, place in full.items() if place in values},
            **self._roles.head,
        }

    @torch.no_grad()
    def sft(self, kind: Kind, subject: str, *, labels: tuple[str, ...] = (), **details: Any) -> SFT:
        """End the sparse phase: give what was learnt.

        Args:
            kind: "language" or "task".
            subject: the language or the target task.
            labels: of the head, in the order of its outputs.
            details: recorded in the SFT; `objective` says which head `model_of` builds.

        Raises:
            TrainingError: `select` was not called yet.
        """
        if self._sparse is None:
            raise TrainingError("there is no support yet: call select after the full phase, and train again")
        self._sparse.write_back()
        diffs = {}
        for name, p in self._roles.maskable.items():
            indices = self._support[name]
            values = (p.detach().cpu() - self._start[name]).reshape(-1)[indices.long()]
            diffs[name] = Diff(indices=indices, values=values, shape=tuple(p.shape))
        return SFT(
            kind=kind,
            subject=subject,
            base=self._base.ref,
            diffs=diffs,
            head={name: p.detach().cpu().clone() for name, p in self._roles.head.items()},
            labels=labels,
            maskable=self._roles.size,
            details=details,
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Give what is trained in this phase: that is what a checkpoint holds."""
        return {name: p.detach() for name, p in self._trained.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take what `state_dict` gave in the same phase."""
        for name, p in self._trained.items():
            p.copy_(state_dict[name])
        return Loaded([], [])
