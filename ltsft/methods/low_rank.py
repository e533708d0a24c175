"""LoRA (Hu et al. 2021, arXiv 2106.09685), by `peft`: a product of two narrow matrices beside each linear layer.

Stored are the two matrices, A and B; composed is their product, added to the weight like any other diff. So language
and task SFTs add up, weights scale them, and what is exported or served has the architecture of the base.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import nn

from ltsft.errors import CompositionError, ConfigError
from ltsft.methods.method import AdapterMethod, OwnSettings, budget
from ltsft.sft import SFT, Diff, Kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ltsft.base import Roles
    from ltsft.config import Recipe

_NAME = "ltsft"
"""What peft calls the adapter; also part of the names of its modules."""


class LowRankSettings(OwnSettings):
    """How large the products are."""

    rank: int | None = Field(None, ge=1, description="of the products; that which comes nearest to K when null")


class LowRank(AdapterMethod):
    """Products of rank `rank` at every linear layer of the encoder that is not frozen, of scale 1."""

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = (
        "two narrow matrices A and B for each linear layer of the encoder; B A, which is dense, is added to its weight"
    )
    settings: ClassVar[type[OwnSettings]] = LowRankSettings

    def follows_density(self, recipe: Recipe) -> bool:
        """Say whether there is no `rank`, which would settle it."""
        return LowRankSettings.of(recipe).rank is None

    def attach(
        self, model: PreTrainedModel, roles: Roles, *, kind: Kind, recipe: Recipe, seed: int
    ) -> dict[str, nn.Parameter]:
        """Have peft put its modules into the model; B begins at zero, so nothing changes yet."""
        from peft import LoraConfig, inject_adapter_in_model

        maskable = {id(p) for p in roles.maskable.values()}
        linear = {
            name: module
            for name, module in model.base_model.named_modules()
            if isinstance(module, nn.Linear) and id(module.weight) in maskable
        }
        if not linear:
            raise ConfigError(
                f"freeze: {', '.join(recipe.freeze)} leaves no linear layer to lora; set another one in methods.lora"
            )
        matching = matching_rank(list(linear.values()), budget(recipe, roles.size))
        rank = LowRankSettings.of(recipe).rank or matching
        prefix = f"{model.base_model_prefix}."
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=[prefix + name for name in linear], bias="none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model, adapter_name=_NAME)
        found: dict[str, nn.Parameter] = {}
        for name in linear:
            module = model.base_model.get_submodule(name)
            found[f"{name}.A"] = module.get_parameter(f"lora_A.{_NAME}.weight")  # (rank, in)
            found[f"{name}.B"] = module.get_parameter(f"lora_B.{_NAME}.weight")  # (out, rank)
        return found

    def as_diffs(self, sft: SFT) -> SFT:
        """Multiply: a dense diff for the weight of each layer.

        Raises:
            CompositionError: a matrix is missing, or two do not fit each other.
        """
        diffs = dict(sft.diffs)
        for name in sorted(key.removesuffix(".A") for key in sft.adapter if key.endswith(".A")):
            a, b = sft.adapter[f"{name}.A"], sft.adapter.get(f"{name}.B")
            if b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
                raise CompositionError(f"{sft.title}: the matrices of {name} do not fit each other; fetch it again")
            product = b.float() @ a.float()  # (out, in)
            indices = torch.arange(product.numel(), dtype=torch.int32)
            diffs[f"{name}.weight"] = Diff(indices=indices, values=product.reshape(-1), shape=tuple(product.shape))
        return replace(sft, diffs=diffs, adapter={})


def matching_rank(linear: list[nn.Linear], k: int) -> int:
    """Give the rank at which the products of some layers have as near to K parameters as can be.

    It is 1 at least, and at most the shortest side of a layer: beyond that a product has no more to say.
    """
    of_one = sum(module.in_features + module.out_features for module in linear)
    longest = min(min(module.in_features, module.out_features) for module in linear)
    return max(1, min(longest, round(k / of_one)))
