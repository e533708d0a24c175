"""Choosing a support: exactly K, ties settled in one way only."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltsft.errors import ConfigError, TrainingError
from ltsft.methods import mask
from ltsft.methods.mask import select_magnitude, support_size

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


def started(moves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(move) for name, move in moves.items()}


def indices(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.reshape(-1).nonzero().squeeze(1) for name, mask in masks.items()}


def chosen(support: dict[str, Tensor]) -> set[tuple[int, int]]:
    return {(place, index) for place, chosen in enumerate(support.values()) for index in chosen.tolist()}


@settings(max_examples=200, deadline=None)
@given(moves_and_k(), st.sampled_from([1, 2, 3, 2**17]))
def test_the_support_is_exactly_the_k_weights_that_a_plain_sort_keeps(
    drawn: tuple[dict[str, Tensor], dict[str, Tensor], int], chunk: int
) -> None:
    moves, taken, k = drawn
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mask, "_CHUNK", chunk)  # ties across chunks are settled as ties within one
        support = select_magnitude(moves, started(moves), k, taken=indices(taken))
    assert list(support) == list(moves)
    assert sum(part.numel() for part in support.values()) == k
    assert chosen(support) == sorted_choice(moves, k, taken)
    for name, part in support.items():
        assert part.dtype == torch.int32
        assert bool((part[1:] > part[:-1]).all())
        assert not bool(taken[name].reshape(-1)[part.long()].any())


@settings(max_examples=50, deadline=None)
@given(moves_and_k(), st.integers(0, 10**6))
def test_a_move_is_the_float32_difference_from_the_start(
    drawn: tuple[dict[str, Tensor], dict[str, Tensor], int], seed: int
) -> None:
    now, _, k = drawn
    generator = torch.Generator().manual_seed(seed)
    start = {name: torch.randn(value.shape, generator=generator) for name, value in now.items()}
    none = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in now.items()}
    moves = {name: value - start[name] for name, value in now.items()}
    assert chosen(select_magnitude(now, start, k)) == sorted_choice(moves, k, none)


def test_many_weights_over_several_chunks_and_threads_are_chosen_as_torch_chooses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    generator = torch.Generator().manual_seed(0)
    now = {"a": torch.randn(500, 700, generator=generator), "b": torch.randn(90_001, generator=generator)}
    start = {name: torch.zeros_like(value) for name, value in now.items()}
    support = select_magnitude(now, start, 20_000)
    everything = torch.cat([value.reshape(-1).abs() for value in now.values()])
    expected = everything.topk(20_000).indices.sort().values
    assert torch.equal(torch.cat([support["a"].long(), support["b"].long() + 350_000]), expected)


def test_weights_that_are_not_finite_are_refused() -> None:
    for wrong in (math.nan, math.inf, -math.inf):
        with pytest.raises(TrainingError, match="not finite"):
            select_magnitude({"w": torch.tensor([1.0, wrong])}, {"w": torch.zeros(2)}, 1)


def test_equal_moves_are_settled_by_parameter_order_then_by_the_lower_index() -> None:
    moves = {"z": torch.tensor([1.0, -1.0, 1.0]), "a": torch.tensor([[1.0, 3.0], [-1.0, 1.0]])}
    support = select_magnitude(moves, started(moves), 4)
    assert support["z"].tolist() == [0, 1, 2]
    assert support["a"].tolist() == [1]


def test_weights_that_did_not_move_are_selected_when_k_asks_for_them() -> None:
    assert select_magnitude({"w": torch.zeros(5)}, {"w": torch.zeros(5)}, 2)["w"].tolist() == [0, 1]


def test_taken_weights_are_not_counted_as_left() -> None:
    now, start, taken = {"w": torch.ones(4)}, {"w": torch.zeros(4)}, {"w": torch.tensor([0, 2])}
    assert select_magnitude(now, start, 2, taken=taken)["w"].tolist() == [1, 3]
    with pytest.raises(ConfigError, match="cannot select 3 weights: 2 are left to choose from"):
        select_magnitude(now, start, 3, taken=taken)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_a_k_that_cannot_be_selected_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot select {k} weights: 4 are left"):
        select_magnitude({"w": torch.ones(4)}, {"w": torch.zeros(4)}, k)


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
