"""Recipes: how an SFT is learnt. Everything in one is part of the key of the SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ltsft.config.consistency import Consistency
from ltsft.config.frozen import Frozen

__all__ = ["MethodRecipes", "PhaseSettings", "Precision", "Recipe"]

Precision = Literal["fp32", "bf16", "fp16"]


class PhaseSettings(Frozen):
    """Length and learning rate of the full or the sparse phase."""

    epochs: float = Field(1.0, gt=0, description="passes over the training data, within the bounds below")
    min_steps: int = Field(1, ge=1, description="optimizer steps at least")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps at most")
    learning_rate: float = Field(5e-5, gt=0, description="the highest; it falls linearly to 0 at the end")
    l1: float = Field(0.0, ge=0, description="weight of the pull to the base, l1 * sum|theta - theta0| / N")

    @model_validator(mode="after")
    def _ordered(self) -> PhaseSettings:
        if self.max_steps is not None and self.max_steps < self.min_steps:
            raise ValueError(f"max_steps ({self.max_steps}) must be at least min_steps ({self.min_steps})")
        return self


_SINCE = ("disjoint", "values", "processes", "nodes", "head", "consistency")
"""Settings of a recipe that are younger than the first keys."""


class Recipe(Frozen):
    """How an SFT is learnt. Everything here is part of the key of the SFT."""

    density: float | None = Field(None, gt=0, le=1, description="share of the maskable weights that may train")
    size: int | None = Field(None, ge=1, description="K itself, instead of a density")
    iterations: int = Field(1, ge=1, description="rounds of select and train; each adds its share of K")
    head: PhaseSettings | None = Field(None, description="trains the head alone, before the full phase; none when null")
    full: PhaseSettings = Field(PhaseSettings(), description="everything trains, then the support is selected")
    sparse: PhaseSettings = Field(PhaseSettings(), description="the support alone trains")
    batch_size: int = Field(32, ge=1, description="sequences in an optimizer step, over all processes of all nodes")
    accumulation: int = Field(1, ge=1, description="micro-batches that a batch is split into")
    max_length: int = Field(128, ge=8, description="sub-words in a sequence")
    mask_probability: float = Field(0.15, gt=0, lt=1, description="share of sub-words to predict (language only)")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of a phase in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    dropout: float | None = Field(None, ge=0, lt=1, description="replaces the base's dropout; its own when null")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    evaluations: int = Field(4, ge=1, description="times that a phase looks at the held-out score")
    held_out: int = Field(64, ge=1, description="sequences of raw text kept from training (language only)")
    precision: Precision = Field("fp32", description="of forward passes; fp32 where a device would emulate it")
    freeze: tuple[str, ...] = Field((), description="name patterns of more encoder parameters that stay as they are")
    disjoint: bool = Field(False, description="keep out of the supports of the source languages' SFTs (task only)")
    values: Literal["float32", "bfloat16"] = Field("float32", description="precision of the stored diffs")
    processes: int = Field(1, ge=1, description="processes of a node that train together, each with a GPU of its own")
    nodes: int = Field(1, ge=1, description="machines that train together, each with so many processes")
    consistency: Consistency | None = Field(None, description="penalties on what augmentation changes (task only)")
    own: dict[str, Any] = Field({}, description="what only its method has; in a project file it stands beside the rest")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(
        (1,), min_length=1, description="an SFT for each; scores are means over them (one for language)"
    )

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if (self.density is None) == (self.size is None):
            raise ValueError("give either density, in (0, 1], or size, the number of weights")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of accumulation ({self.accumulation})")
        if self.batch_size % (self.accumulation * self.processes * self.nodes):
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation ({self.accumulation}) x processes "
                f"({self.processes}) x nodes ({self.nodes})"
            )
        if self.head is not None and self.head.l1:
            raise ValueError(f"head.l1 must be 0, got {self.head.l1}: the head has no base to be pulled to")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must be distinct")
        return self

    def of_seed(self, seed: int, *, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Give the plain values that go into the key of the SFT trained with this seed.

        Args:
            seed: of the training.
            own: the method's own settings that are not as they are by default; as they were given without it.
        """
        # What changes nothing when it is left as it is stays out, so that a new option leaves old keys alone.
        plain = {name: type(self).model_fields[name].default for name in _SINCE}
        # Where word lists lie is no part of a key; what is in them stands beside the recipe, as of all data.
        places = {"consistency": {"augmentations": {"code_switch": {"words"}}}}
        values = self.model_dump(mode="json", exclude={"seeds": True, "own": True, **places})
        kept = {n: v for n, v in values.items() if n not in plain or v != plain[n]}
        return {**kept, **(self.own if own is None else own), "seed": seed}


class MethodRecipes(Frozen):
    """The recipes of a method: those of the project, with what its own section sets in their place."""

    recipes: dict[str, Recipe] = Field({}, description="by name, what differs from the recipes of the project")
