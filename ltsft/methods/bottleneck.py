"""MAD-X (Pfeiffer et al., EMNLP 2020): bottleneck adapters for a language and for a target task, one over the other.

A language adapter is a bottleneck in each layer and an invertible one after the embeddings, whose inverse stands before
the output embeddings of the masked LM. A task adapter is a bottleneck in each layer, stacked on the language's. The
encoder stays as it is: a target language's adapter takes the place of the source's, and the model speaks the other
language. `adapters`, the library of the authors, does not go with transformers 5, so the modules are here and in
`ltsft.methods.stack`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import nn

from ltsft.methods.method import AdapterMethod, OwnSettings, budget
from ltsft.methods.stack import Bottlenecks, layers_of, stack_of
from ltsft.sft import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ltsft.base import Roles
    from ltsft.config import Recipe

_NAME = "ltsft_adapter"


class MadXSettings(OwnSettings):
    """How wide the bottlenecks are."""

    reduction: float | None = Field(None, gt=0, description="hidden size over width; that nearest to K when null")


class MadX(AdapterMethod):
    """Bottlenecks whose width is hidden size / `reduction`, or that nearest to K."""

    name: ClassVar[str] = "mad_x"
    summary: ClassVar[str] = "bottleneck adapters: modules in each layer beside the weights, which no diff can express"
    settings: ClassVar[type[OwnSettings]] = MadXSettings
    is_stacked: ClassVar[bool] = True

    def follows_density(self, recipe: Recipe) -> bool:
        """Say whether there is no `reduction`, which would settle it."""
        return MadXSettings.of(recipe).reduction is None

    def attach(
        self, model: PreTrainedModel, roles: Roles, *, kind: Kind, recipe: Recipe, seed: int
    ) -> dict[str, nn.Parameter]:
        """Stack new bottlenecks on what is in place; their weights begin small, so next to nothing changes yet."""
        layers = len(layers_of(model))
        embeddings = model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)  # noqa: S101 - layers_of has refused other architectures
        hidden = int(model.config.hidden_size)
        invertible = embeddings.embedding_dim if kind == "language" else 0
        width = (
            max(1, round(hidden / reduction))
            if (reduction := MadXSettings.of(recipe).reduction)
            else matching_width(budget(recipe, roles.size), layers=layers, hidden=hidden, invertible=invertible)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = Bottlenecks(layers=layers, hidden=hidden, width=width, invertible=invertible)
        adapter.to(next(iter(roles.maskable.values())).device)
        stack_of(model).train_on_top(adapter)
        model.add_module(_NAME, adapter)  # Trainer clips what it finds among the model's parameters
        return dict(adapter.named_parameters())


def matching_width(k: int, *, layers: int, hidden: int, invertible: int) -> int:
    """Give the width at which an adapter has as near to K parameters as can be; 1 at least.

    Args:
        k: number of parameters wanted.
        layers: of the encoder; each has a bottleneck of 2 x hidden x width + width + hidden parameters.
        hidden: size of the hidden states.
        invertible: size of the embeddings that an invertible adapter takes; 0 if there is none.
    """
    rest = k - layers * hidden - sum(p.numel() for p in Bottlenecks(0, hidden, 1, invertible).parameters())
    return max(1, round(rest / (layers * (2 * hidden + 1))))
