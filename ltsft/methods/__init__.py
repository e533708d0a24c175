"""How SFTs are learnt: lt_sft and what it is compared with. One file for each family, one line in `registry` for each.

A method says which phases a training has, what trains in them, and how its product is put into a model. What it
learns from, its keys, its checkpoints, its record and its scores are the same for all (docs/methods.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ltsft.config import Recipe

__all__ = ["LT_SFT", "Method"]

LT_SFT = "lt_sft"
"""The method of the paper, and the default. Keys and files of its SFTs do not name it: they are older than the rest."""


class Method:
    """What every method says of itself.

    Attributes:
        name: as in the project file.
        phases: sections of the recipe that it uses, of "full" and "sparse".
        has_languages: whether there are language SFTs, which its compositions are made of.
        settings: recipe settings that only some methods have, which this one has.
    """

    name: ClassVar[str]
    phases: ClassVar[tuple[str, ...]] = ("full", "sparse")
    has_languages: ClassVar[bool] = True
    settings: ClassVar[frozenset[str]] = frozenset()

    def problems(self, recipe: Recipe) -> list[str]:
        """Say what of a recipe this method cannot work with, each as ``setting: what is allowed``."""
        return []
