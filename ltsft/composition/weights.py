"""How much of an SFT a composition takes: one weight for all of it, or a weight for each part of the network.

Weights by part are named as parameters are: ``embeddings``, ``layer.0`` or ``layer.*.attention`` stand for every
parameter whose dotted name has these parts one after the other, and ``*`` for all that nothing else names. Of several
that match, the one with more parts decides, so the order in which they are written says nothing. A parameter that none
matches has weight 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from ltsft.errors import CompositionError

__all__ = ["Weight", "largest_weight", "parse_weight", "shown_weight", "weight_at", "weight_problem"]

Weight = float | Mapping[str, float]
"""What the diffs of an SFT are multiplied by: a number, or numbers by name pattern."""


def weight_at(weight: Weight, name: str) -> float:
    """Give the weight of one parameter.

    Args:
        weight: Of the SFT; sound, see `weight_problem`.
        name: Of the parameter, relative to the encoder.

    Example:
        >>> weight_at({"embeddings": 0.5, "layer.0": 0.8}, "encoder.layer.0.output.dense.weight")
        0.8
    """
    if not isinstance(weight, Mapping):
        return float(weight)
    matching = [pattern for pattern in weight if _matches(pattern, name)]
    return float(weight[max(matching, key=_parts)]) if matching else 1.0


def weight_problem(weight: object, names: Iterable[str]) -> str | None:
    """Say what is wrong with a weight, as the end of a sentence, or None where it is sound.

    Looked at are that every number is finite, that every pattern matches a parameter, and that of two patterns with as
    many parts no parameter matches both, unless they weigh the same.

    Args:
        weight: Of an SFT.
        names: Of the encoder's parameters.
    """
    if not isinstance(weight, Mapping):
        return None if _is_finite(weight) else f"weight must be a finite number, got {weight!r}"
    known = list(names)
    for pattern, value in weight.items():
        if not isinstance(pattern, str) or not _is_finite(value):
            return f"weight of {pattern!r} must be a finite number, got {value!r}"
        if not any(_matches(pattern, name) for name in known):
            return f"the weight pattern {pattern!r} matches no parameter; names look like {next(iter(known), 'none')!r}"
    for name in known:
        found = [pattern for pattern in weight if _matches(pattern, name)]
        longest = [pattern for pattern in found if _parts(pattern) == max(map(_parts, found))]
        if len({weight[pattern] for pattern in longest}) > 1:
            return (
                f"the weight patterns {' and '.join(map(repr, sorted(longest)))} both match {name} and differ; "
                "give one of them more parts, or take it out"
            )
    return None


def largest_weight(weight: Weight) -> float:
    """Give the largest factor, without its sign, that some diff may be multiplied by."""
    return max([1.0, *map(abs, weight.values())]) if isinstance(weight, Mapping) else abs(weight)


def shown_weight(weight: Weight) -> str:
    """Write a weight for people: ``0.5``, or ``embeddings 0.5, layer.0 0.8``."""
    if isinstance(weight, Mapping):
        return ", ".join(f"{pattern} {value:g}" for pattern, value in sorted(weight.items()))
    return f"{weight:g}"


def parse_weight(text: str) -> Weight:
    """Read a weight as the command line takes it: ``0.5``, or ``embeddings=0.5,layer.0=0.8``.

    Raises:
        CompositionError: It is neither.
    """
    try:
        if "=" not in text:
            return float(text)
        pairs = [pair.partition("=") for pair in text.split(",")]
        return {pattern.strip(): float(value) for pattern, _, value in pairs}
    except ValueError as error:
        raise CompositionError(
            f"a weight must be a number, or name=number with commas between (embeddings=0.5,layer.0=0.8); got {text!r}"
        ) from error


def _is_finite(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def _parts(pattern: str) -> int:
    return 0 if pattern == "*" else pattern.count(".") + 1


def _matches(pattern: str, name: str) -> bool:
    if pattern == "*":
        return True
    wanted, parts = pattern.split("."), name.split(".")
    return any(
        all(fnmatchcase(part, want) for part, want in zip(parts[i:], wanted, strict=False))
        for i in range(len(parts) - len(wanted) + 1)
    )
