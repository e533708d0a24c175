"""Random SFT: K weights drawn at random, trained from the base. What the choice of the support is worth, is told by it.

There is no full phase: the draw does not look at the weights, so it would be rewound for nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ltsft.methods.mask import select_magnitude
from ltsft.methods.method import SupportMethod

if TYPE_CHECKING:
    from ltsft.config import Recipe


class RandomSupport(SupportMethod):
    """The K weights with the largest random numbers, each weight having one that its seed settles."""

    name: ClassVar[str] = "rand_sft"
    summary: ClassVar[str] = "K weights drawn at random, trained from the base"
    phases: ClassVar[tuple[str, ...]] = ("sparse",)

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
        """Draw without replacement, every weight as likely as any other."""
        nothing = {name: torch.zeros(()).expand(p.shape) for name, p in now.items()}
        return select_magnitude(nothing, _RandomNumbers(now, seed), k, taken=taken)


class _RandomNumbers(Mapping[str, Tensor]):
    """A random number in [0, 1) for each weight of each parameter, made when it is asked for, the same each time."""

    def __init__(self, parameters: Mapping[str, Tensor], seed: int) -> None:
        self._parameters = parameters
        self._seed = seed

    def __getitem__(self, name: str) -> Tensor:
        digest = hashlib.sha256(f"{self._seed}\0{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        return torch.rand(self._parameters[name].shape, generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)
