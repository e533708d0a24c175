"""Choosing a support: exactly K, ties settled in one way only."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltsft.errors import ConfigError
from ltsft.mask import select_magnitude, support_size

FEW_VALUES = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0])
ANY_VALUES = st.floats(-10, 10, width=32)
SHAPES = [(), (3,), (2, 4), (2, 2, 2)]


@st.composite
def moves_and_k(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Moves of one to four parameters, what is taken already, and a K that is possible."""
    values = draw(st.sampled_from([FEW_VALUES, ANY_VALUES]))
    moves, taken = {}, {}
    for name in draw(st.permutations("dacb"))[: draw(st.integers(1, 4))]:
        shape = draw(st.sampled_from(SHAPES))
        size = math.prod(shape)
        moves[name] = torch.tensor(draw(st.lists(values, min_size=size, max_size=size))).reshape(shape)
        taken[name] = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(shape)
    if all(bool(mask.all()) for mask in taken.values()):
        taken = {name: torch.zeros_like(mask) for name, mask in taken.items()}
    free = sum(int((~mask).sum()) for mask in taken.values())
    return moves, taken, draw(st.integers(1, free))


def sorted_choice(moves: dict[str, Tensor], k: int, taken: dict[str, Tensor]) -> set[tuple[int, int]]:
    """Choose by sorting Python tuples: the longest move, then the earlier parameter, then the lower flat index."""
    candidates = [
        (-abs(value), place, index)
        for place, name in enumerate(moves)
        for index, value in enumerate(moves[name].reshape(-1).tolist())
        if not taken[name].reshape(-1)[index]
    ]
    return {(place, index) for _, place, index in sorted(candidates)[:k]}


def chosen(masks: dict[str, Tensor]) -> set[tuple[int, int]]:
    return {
        (place, index)
        for place, mask in enumerate(masks.values())
        for index, is_chosen in enumerate(mask.reshape(-1).tolist())
        if is_chosen
    }


@settings(max_examples=200, deadline=None)
@given(moves_and_k())
def test_mask_keeps_exactly_the_k_weights_that_a_plain_sort_keeps(
    drawn: tuple[dict[str, Tensor], dict[str, Tensor], int],
) -> None:
    moves, taken, k = drawn
    masks = select_magnitude(moves, k, taken=taken)
    assert list(masks) == list(moves)
    assert all(mask.dtype == torch.bool and mask.shape == moves[name].shape for name, mask in masks.items())
    assert sum(int(mask.sum()) for mask in masks.values()) == k
    assert chosen(masks) == sorted_choice(moves, k, taken)
    assert not any(bool((masks[name] & taken[name]).any()) for name in moves)


@settings(max_examples=50, deadline=None)
@given(moves_and_k())
def test_taking_nothing_is_the_same_as_no_taken(drawn: tuple[dict[str, Tensor], dict[str, Tensor], int]) -> None:
    moves, _, k = drawn
    none = {name: torch.zeros(move.shape, dtype=torch.bool) for name, move in moves.items()}
    assert chosen(select_magnitude(moves, k)) == chosen(select_magnitude(moves, k, taken=none))


def test_equal_moves_are_settled_by_parameter_order_then_by_the_lower_index() -> None:
    moves = {"z": torch.tensor([1.0, -1.0, 1.0]), "a": torch.tensor([[1.0, 3.0], [-1.0, 1.0]])}
    masks = select_magnitude(moves, 4)
    assert masks["z"].tolist() == [True, True, True]
    assert masks["a"].tolist() == [[False, True], [False, False]]


def test_weights_that_did_not_move_are_selected_when_k_asks_for_them() -> None:
    assert select_magnitude({"w": torch.zeros(5)}, 2)["w"].tolist() == [True, True, False, False, False]


def test_taken_weights_are_not_counted_as_left() -> None:
    moves, taken = {"w": torch.ones(4)}, {"w": torch.tensor([True, False, True, False])}
    assert select_magnitude(moves, 2, taken=taken)["w"].tolist() == [False, True, False, True]
    with pytest.raises(ConfigError, match="cannot select 3 weights: 2 are left to choose from"):
        select_magnitude(moves, 3, taken=taken)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_a_k_that_cannot_be_selected_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot select {k} weights: 4 are left"):
        select_magnitude({"w": torch.ones(4)}, k)


@given(st.integers(1, 1000), st.integers(1, 10**9))
def test_k_is_the_floor_of_density_times_the_maskable_weights_and_at_least_one(thousandths: int, maskable: int) -> None:
    k = support_size(density=thousandths / 1000, maskable=maskable)
    assert k == max(1, math.floor(Fraction(thousandths, 1000) * maskable))
    assert 1 <= k <= maskable


def test_a_density_is_the_decimal_number_that_is_written() -> None:
    assert 0.29 * 100 < 29
    assert support_size(density=0.29, maskable=100) == 29


def test_a_size_is_k_itself() -> None:
    assert support_size(size=7, maskable=10) == 7
    assert support_size(density=1.0, maskable=10) == 10


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"density": 1.5}, r"density must be in \(0, 1\], got 1.5"),
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"density": -0.1}, r"density must be in \(0, 1\], got -0.1"),
        ({"density": math.nan}, r"density must be in \(0, 1\], got nan"),
        ({"size": 0}, "size must be between 1 and the 10 maskable weights, got 0"),
        ({"size": 11}, "size must be between 1 and the 10 maskable weights, got 11"),
        ({"size": 3, "density": 0.5}, "give either density"),
        ({}, "give either density"),
    ],
)
def test_a_bad_density_or_size_says_what_is_allowed(wanted: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        support_size(**wanted, maskable=10)  # type: ignore[arg-type]
