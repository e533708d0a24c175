"""Interference between two SFTs of one base, measured on their weights, and the sparsity of one.

Two diffs can only disturb each other where their supports meet. Reported are how often they meet and what chance alone
would give, how often they then pull in opposite directions, how alike they are there, and how much of their energy
(squared norm) lies there: overall, for each layer, and for each parameter group (the same parameter in all layers).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ltsft.errors import CompositionError
from ltsft.methods import as_diffs
from ltsft.sft import SFT, Diff

__all__ = [
    "Collision",
    "Interference",
    "Share",
    "Sparsity",
    "interference",
    "parameter_group",
    "parameter_layer",
    "sparsity",
]

_METRIC_CHARACTERS = re.compile(r"[^A-Za-z0-9_.\-]")


def parameter_layer(name: str) -> str:
    """Name the layer that a parameter belongs to: the first number in its name, or its first part.

    Args:
        name: Parameter name relative to the encoder.

    Returns:
        "3" for "encoder.layer.3.output.dense.weight", "embeddings" for "embeddings.word_embeddings.weight".
    """
    parts = name.split(".")
    return next((part for part in parts if part.isdecimal()), parts[0])


def parameter_group(name: str) -> str:
    """Name the group that a parameter shares with its like in other layers: what follows the layer's number.

    Args:
        name: Parameter name relative to the encoder.

    Returns:
        "attention.self.query.weight" for "encoder.layer.3.attention.self.query.weight"; a name without a number, or
        with nothing after it, is returned whole.
    """
    parts = name.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[first + 1 :]) or name


@dataclass(frozen=True)
class Collision:
    """Say how two SFTs a and b meet in one scope (all parameters, a layer, or a group).

    Shares and cosines that have nothing to be taken of are 0.

    Attributes:
        weights: Number of weights of the scope's parameters.
        support_a: Size of the support of a.
        support_b: Size of the support of b.
        intersection: Number of weights in both supports.
        expected: Intersection that chance would give if both supports were spread evenly over the scope: a·b/weights.
        expected_by_parameter: The same, each parameter keeping its own densities: the sum of a·b/weights of each.
        overlap: Intersection over the smaller support, in [0, 1].
        share_a: Intersection over the support of a.
        share_b: Intersection over the support of b.
        jaccard: Intersection over union.
        sign_conflict: Share of the intersection where the two diffs have opposite signs.
        cosine_on_intersection: Cosine of the two diffs on the intersection, in [-1, 1].
        cosine: Cosine of the two diffs over the whole scope, in [-1, 1].
        energy: Share of the squared norm of both that lies on the intersection.
        energy_a: Share of the squared norm of a that lies on the intersection.
        energy_b: Share of the squared norm of b that lies on the intersection.
    """

    weights: int
    support_a: int
    support_b: int
    intersection: int
    expected: float
    expected_by_parameter: float
    overlap: float
    share_a: float
    share_b: float
    jaccard: float
    sign_conflict: float
    cosine_on_intersection: float
    cosine: float
    energy: float
    energy_a: float
    energy_b: float


@dataclass(frozen=True)
class Interference:
    """Hold the collisions of two SFTs: overall, by layer, and by parameter group."""

    overall: Collision
    layers: Mapping[str, Collision]
    groups: Mapping[str, Collision]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)

    def metrics(self, prefix: str = "interference", *, details: bool = True) -> dict[str, float]:
        """Return everything flat, under names that are the same for every pair of SFTs of a base.

        Args:
            prefix: What the names begin with.
            details: Whether layers and groups are given too.

        Returns:
            Such as "interference.overlap", "interference.layer.3.cosine",
            "interference.group.output.dense.weight.overlap".
        """
        return _flat(prefix, self.overall, *((self.layers, self.groups) if details else ({}, {})))


@dataclass(frozen=True)
class Share:
    """Say how sparse one SFT is in one scope, and how far it moved.

    Attributes:
        weights: Number of weights: the maskable ones overall, those of the listed parameters in a layer or a group.
        support_size: Number of weights in the support.
        density: Support over weights, in [0, 1].
        l1: Sum of the absolute diffs.
        l2: Euclidean norm of the diffs.
    """

    weights: int
    support_size: int
    density: float
    l1: float
    l2: float


@dataclass(frozen=True)
class Sparsity:
    """Hold where an SFT changes its base: overall, by layer, and by parameter group."""

    overall: Share
    layers: Mapping[str, Share]
    groups: Mapping[str, Share]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)

    def metrics(self, prefix: str = "sparsity", *, details: bool = True) -> dict[str, float]:
        """Return everything flat, such as "sparsity.density" and, with details, "sparsity.layer.3.l2"."""
        return _flat(prefix, self.overall, *((self.layers, self.groups) if details else ({}, {})))


def interference(a: SFT, b: SFT) -> Interference:
    """Measure how two SFTs of one base meet.

    Args:
        a: One SFT.
        b: The other; heads play no part.

    Returns:
        The collisions overall, by layer (in the order of the layers) and by parameter group.

    Raises:
        CompositionError: The SFTs belong to different bases, or a parameter has two shapes.

    Example:
        >>> interference(sft, sft).overall.jaccard
        1.0
    """
    if a.base.fingerprint != b.base.fingerprint:
        raise CompositionError(
            f"{a.title} and {b.title} belong to different bases ({a.base.id}: {a.base.fingerprint}; {b.base.id}: "
            f"{b.base.fingerprint}); weights of different bases cannot be compared"
        )
    a, b = as_diffs(a), as_diffs(b)
    for sft in (a, b):
        if sft.adapter:
            raise CompositionError(
                f"{sft.title} is an adapter of {sft.method}, which leaves the weights alone: it has no diff"
            )
    rows = {}
    for name in sorted(a.diffs.keys() | b.diffs.keys()):
        present = [diff for diff in (a.diffs.get(name), b.diffs.get(name)) if diff is not None]
        if len({diff.shape for diff in present}) > 1:
            shapes = " and ".join(str(list(diff.shape)) for diff in present)
            raise CompositionError(f"{a.title} and {b.title}: diff of {name}: shapes {shapes} differ")
        rows[name] = _meeting(a.diffs.get(name), b.diffs.get(name), present[0].size)
    return Interference(
        overall=_collision(rows.values()),
        layers={scope: _collision(found) for scope, found in _grouped(rows, parameter_layer).items()},
        groups={scope: _collision(found) for scope, found in _grouped(rows, parameter_group).items()},
    )


def sparsity(sft: SFT) -> Sparsity:
    """Measure where an SFT changes its base, and how far.

    Args:
        sft: The SFT; its head plays no part.

    Returns:
        Density and norms overall, by layer and by parameter group.
    """
    rows = {}
    for name, diff in sorted(sft.diffs.items()):
        values = diff.values.numpy().astype(np.float64)
        rows[name] = np.array([diff.size, diff.support_size, np.abs(values).sum(), values @ values])
    return Sparsity(
        overall=_share(list(rows.values()), weights=sft.maskable),
        layers={scope: _share(found) for scope, found in _grouped(rows, parameter_layer).items()},
        groups={scope: _share(found) for scope, found in _grouped(rows, parameter_group).items()},
    )


_Places = npt.NDArray[np.intp]
_Row = npt.NDArray[np.float64]
"""Sums over one parameter; those of several add up. Counts are exact: float64 holds integers up to 2**53."""


def _meeting(a: Diff | None, b: Diff | None, size: int) -> _Row:
    """Return size, support of a, of b, intersection, expected, conflicts, a·b, a·a and b·b there, a·a and b·b whole."""
    left, left_values = _arrays(a)
    right, right_values = _arrays(b)
    in_left, in_right = _intersection(left, right)
    met_left, met_right = left_values[in_left], right_values[in_right]
    return np.array(
        [
            size,
            len(left),
            len(right),
            len(met_left),
            len(left) * len(right) / size if size else 0.0,
            np.count_nonzero(met_left * met_right < 0),
            met_left @ met_right,
            met_left @ met_left,
            met_right @ met_right,
            left_values @ left_values,
            right_values @ right_values,
        ],
        dtype=np.float64,
    )


def _arrays(diff: Diff | None) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    if diff is None:
        return np.zeros(0, dtype=np.int32), np.zeros(0)
    return diff.indices.numpy(), diff.values.numpy().astype(np.float64)


def _intersection(left: npt.NDArray[np.int32], right: npt.NDArray[np.int32]) -> tuple[_Places, _Places]:
    """Return where the common indices lie in each of two strictly increasing rows."""
    if not len(left) or not len(right):
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    candidates = np.minimum(np.searchsorted(right, left), len(right) - 1)
    in_left = np.flatnonzero(right[candidates] == left)
    return in_left, candidates[in_left]


def _grouped(rows: Mapping[str, _Row], scope_of: Callable[[str], str]) -> dict[str, list[_Row]]:
    """Gather rows by scope; numbered layers come in their order, after the named ones."""
    scopes: defaultdict[str, list[_Row]] = defaultdict(list)
    for name, row in rows.items():
        scopes[scope_of(name)].append(row)
    order = sorted(scopes, key=lambda scope: (1, int(scope), "") if scope.isdecimal() else (0, 0, scope))
    return {scope: scopes[scope] for scope in order}


def _collision(rows: Iterable[_Row]) -> Collision:
    total = np.sum([np.zeros(11), *rows], axis=0)
    weights, support_a, support_b, intersection = (int(count) for count in total[:4])
    by_parameter, conflicts, dot, met_a, met_b, square_a, square_b = (float(value) for value in total[4:])
    return Collision(
        weights=weights,
        support_a=support_a,
        support_b=support_b,
        intersection=intersection,
        expected=_ratio(support_a * support_b, weights),
        expected_by_parameter=by_parameter,
        overlap=_ratio(intersection, min(support_a, support_b)),
        share_a=_ratio(intersection, support_a),
        share_b=_ratio(intersection, support_b),
        jaccard=_ratio(intersection, support_a + support_b - intersection),
        sign_conflict=_ratio(conflicts, intersection),
        cosine_on_intersection=_cosine(dot, met_a, met_b),
        # Outside the intersection one of the two is 0, so the dot product is the same.
        cosine=_cosine(dot, square_a, square_b),
        energy=_ratio(met_a + met_b, square_a + square_b),
        energy_a=_ratio(met_a, square_a),
        energy_b=_ratio(met_b, square_b),
    )


def _share(rows: Sequence[_Row], *, weights: int | None = None) -> Share:
    listed, support_size, l1, squares = (float(value) for value in np.sum([np.zeros(4), *rows], axis=0))
    weights = int(listed) if weights is None else weights
    return Share(
        weights=weights,
        support_size=int(support_size),
        density=_ratio(support_size, weights),
        l1=l1,
        l2=math.sqrt(squares),
    )


def _cosine(dot: float, square_a: float, square_b: float) -> float:
    return max(-1.0, min(1.0, _ratio(dot, math.sqrt(square_a * square_b))))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _flat(
    prefix: str,
    overall: Collision | Share,
    layers: Mapping[str, Collision] | Mapping[str, Share],
    groups: Mapping[str, Collision] | Mapping[str, Share],
) -> dict[str, float]:
    scopes: dict[str, Collision | Share] = {prefix: overall}
    scopes |= {f"{prefix}.layer.{layer}": measured for layer, measured in layers.items()}
    scopes |= {f"{prefix}.group.{group}": measured for group, measured in groups.items()}
    return {
        _METRIC_CHARACTERS.sub("_", f"{scope}.{measure}"): float(value)
        for scope, measured in scopes.items()
        for measure, value in asdict(measured).items()
    }
