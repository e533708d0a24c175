"""How long a plan will take: from what finished products of the same kind took, by the size of their trainings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ltsft.project.plan import Product

__all__ = ["Expected", "Measured", "expected_time"]

NEWEST = 20
"""Finished products of a kind that count, the newest: machines change."""
NOTHING = "not known yet: nothing of this kind has been made here"


@dataclass(frozen=True)
class Measured:
    """A finished product and how long it took.

    Attributes:
        kind: such as ``language``.
        parts: what determined its key.
        seconds: from its begin to its end, in one go.
    """

    kind: str
    parts: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Expected:
    """How long some products will take, one after the other.

    Attributes:
        seconds: of those of which it is known.
        known: how many these are.
        unknown: by kind, how many products have no finished one to compare with.
    """

    seconds: float
    known: int
    unknown: Mapping[str, int]

    def __str__(self) -> str:
        """Say it for people; nothing where there is nothing to do."""
        left = ", ".join(f"{count} of the kind {kind}" for kind, count in self.unknown.items())
        if not self.known:
            return NOTHING if left else ""
        told = f"about {_shown(self.seconds)}, one after the other, as earlier ones took"
        return f"{told}; and {left}, {NOTHING}" if left else told


def expected_time(products: Iterable[Product], measured: Sequence[Measured]) -> Expected:
    """Say how long products will take.

    A training takes as long as its sub-words (steps x batch x length, at most) at the median rate of finished ones of
    the same kind, method and base; what has no such size takes the median time.

    Args:
        products: what is to be made.
        measured: what was made, newest first.
    """
    seconds, known, unknown = 0.0, 0, dict[str, int]()
    for product in products:
        alike = [m for m in measured if m.kind == product.kind and _group(m.parts) == _group(product.parts)][:NEWEST]
        if not alike:
            unknown[product.kind] = unknown.get(product.kind, 0) + 1
            continue
        known += 1
        size = _size(product.parts)
        rates = [m.seconds / other for m in alike if size is not None and (other := _size(m.parts)) is not None]
        seconds += size * median(rates) if size is not None and rates else median(m.seconds for m in alike)
    return Expected(seconds, known, unknown)


def _group(parts: Mapping[str, Any]) -> tuple[Any, ...]:
    return parts.get("method"), parts.get("base", {}).get("encoder"), parts.get("objective")


def _size(parts: Mapping[str, Any]) -> float | None:
    """Give the sub-words that a training sees at most; None where its steps depend on the data."""
    recipe = parts.get("recipe", {})
    phases = [recipe[name] for name in ("head", "full", "sparse") if recipe.get(name)]
    steps = [phase.get("max_steps") for phase in phases]
    if not steps or None in steps:
        return None
    return float(sum(steps) * recipe["batch_size"] * recipe["max_length"])


def _shown(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
