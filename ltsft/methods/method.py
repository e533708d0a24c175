"""How SFTs are learnt: lt_sft and what it is compared with. One file for each method, one line in `registry`.

A method says which phases a training has, what trains in them, and how its product is put into a model. What it
learns from, its keys, checkpoints, record and scores are the same for all (docs/methods.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ValidationError as PydanticError
from torch import Tensor, nn

from ltsft.config import Frozen
from ltsft.errors import ConfigError
from ltsft.methods.mask import support_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ltsft.base import Roles
    from ltsft.config import Recipe
    from ltsft.sft import SFT, Kind

__all__ = ["AdapterMethod", "Method", "OwnSettings", "SupportMethod", "budget"]


class OwnSettings(Frozen):
    """The settings of a recipe that only one method has; this one has none."""

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Take them from a recipe.

        Raises:
            ConfigError: one is unknown or out of range.
        """
        if found := cls.problems(recipe.own):
            raise ConfigError("; ".join(found))
        return cls.model_validate(recipe.own)

    @classmethod
    def problems(cls, own: Mapping[str, Any], *, method: str = "this method") -> list[str]:
        """Say what is wrong with some values, each as ``setting: what is allowed``."""
        try:
            cls.model_validate(own)
        except PydanticError as error:
            found = []
            for item in error.errors(include_url=False):
                is_unknown = item["type"] == "extra_forbidden"
                message = f"{method} has no such setting" if is_unknown else item["msg"].removeprefix("Value error, ")
                found.append(f"{'.'.join(map(str, item['loc']))}: {message}, got {item['input']!r}")
            return found
        return []


class Method(ABC):
    """What every method says of itself.

    Attributes:
        name: as in the project file.
        summary: a sentence for people: what is stored, and how it is put into the base.
        phases: sections of the recipe that it uses, of "full" and "sparse".
        has_languages: whether there are language SFTs, which its compositions are made of.
        has_rounds: whether it selects K weights, in several rounds if the recipe says so.
        has_norm_biases: whether the biases of layer norms are among the maskable weights.
        is_stacked: whether its product is modules that stay modules when SFTs are composed, and so no diff.
        settings: what a recipe may say to this method alone.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    phases: ClassVar[tuple[str, ...]] = ("full", "sparse")
    has_languages: ClassVar[bool] = True
    has_rounds: ClassVar[bool] = True
    has_norm_biases: ClassVar[bool] = False
    is_stacked: ClassVar[bool] = False
    settings: ClassVar[type[OwnSettings]] = OwnSettings

    def problems(self, recipe: Recipe) -> list[str]:
        """Say what of a recipe this method cannot work with, each as ``setting: what is allowed``."""
        found = self.settings.problems(recipe.own, method=self.name)
        if recipe.iterations > 1 and not self.has_rounds:
            found.append(f"iterations: must be 1 for {self.name}, which selects nothing, got {recipe.iterations}")
        if recipe.disjoint and not self.has_rounds:
            found.append(f"disjoint: must be false for {self.name}, which selects nothing")
        if recipe.consistency is not None and recipe.consistency.model and self.phases != ("full", "sparse"):
            found.append(
                f"consistency.model: must be 0 for {self.name}, which has no full phase before its last one, "
                f"got {recipe.consistency.model}"
            )
        return found

    def follows_density(self, recipe: Recipe) -> bool:
        """Say whether the density of a recipe settles how much is learnt."""
        return True

    def used(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Give the plain values of a recipe that determine what this method learns with a seed."""
        unused = {"full", "sparse"} - set(self.phases)
        own = self.settings.of(recipe).model_dump(mode="json", exclude_defaults=True)
        return {name: value for name, value in recipe.of_seed(seed, own=own).items() if name not in unused}

    def as_diffs(self, sft: SFT) -> SFT:
        """Give an SFT whose product is no diff as one with diffs, if it can be: composing takes diffs."""
        return sft


class AdapterMethod(Method):
    """A method whose product is a few whole tensors, of modules that are trained beside the encoder's weights.

    Everything trains in one phase, with the settings of `full`.
    """

    phases: ClassVar[tuple[str, ...]] = ("full",)
    has_rounds: ClassVar[bool] = False

    @abstractmethod
    def attach(
        self, model: PreTrainedModel, roles: Roles, *, kind: Kind, recipe: Recipe, seed: int
    ) -> dict[str, nn.Parameter]:
        """Put new modules into a model, over what is composed in it; they change nothing, or next to nothing, yet.

        Args:
            model: base and composed SFTs.
            roles: what each of its parameters is for; K is counted by these.
            kind: of the SFT.
            recipe: its size or density says how many parameters the modules get, as near to K as they can.
            seed: settles what they begin with.

        Returns:
            The parameters to train, by the names that they are stored under; they are parameters of the model, too.

        Raises:
            ConfigError: the recipe leaves nothing to train.
            BaseModelError: the modules do not fit this architecture.
        """


def budget(recipe: Recipe, maskable: int) -> int:
    """Give K, what methods are compared at: the size of the recipe, or its density of the maskable weights."""
    return support_size(density=recipe.density, size=recipe.size, maskable=maskable)


class SupportMethod(Method):
    """A method whose product is a diff: values on a support."""

    def size(self, roles: Roles, recipe: Recipe) -> int:
        """Give K, the size of the support."""
        return budget(recipe, roles.size)

    @abstractmethod
    def select(
        self,
        now: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
        k: int,
        *,
        taken: Mapping[str, Tensor],
        recipe: Recipe,
        seed: int,
    ) -> dict[str, Tensor]:
        """Select K more weights.

        Args:
            now: each maskable parameter as the full phase left it, or as it began where there is none. A method may
                write to them: they are rewound afterwards.
            start: the same as they began; each is read when it is asked for.
            k: number of weights to select.
            taken: flat indices, strictly increasing, of the weights that earlier rounds selected, by name.
            recipe: its settings.
            seed: settles what is random.

        Returns:
            Strictly increasing flat indices, int32, on the CPU, by name; without `taken`.
        """
