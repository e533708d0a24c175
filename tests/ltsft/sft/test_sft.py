"""The SFT object: its numbers, and what a diff says is wrong with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ltsft.sft.sft import SFT, BaseRef, Diff


def diff(indices: list[int], values: list[float] | None = None, shape: tuple[int, ...] = (3, 4)) -> Diff:
    values = [0.5] * len(indices) if values is None else values
    return Diff(indices=torch.tensor(indices, dtype=torch.int32), values=torch.tensor(values), shape=shape)


def test_support_size_and_density_count_the_support(base_ref: BaseRef) -> None:
    diffs = {"a": diff([0, 3]), "b": diff([]), "c": diff([11])}
    sft = SFT(kind="language", subject="fo", base=base_ref, diffs=diffs, head={}, labels=(), maskable=36)
    assert (sft.support_size, sft.density) == (3, 3 / 36)


def test_a_zero_value_still_counts_as_support(base_ref: BaseRef) -> None:
    assert diff([1, 2], [0.0, 0.0]).support_size == 2


def test_dense_puts_values_at_row_major_indices() -> None:
    dense = diff([1, 4, 11], [1.0, 2.0, 3.0]).dense()
    assert dense.tolist() == [[0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 3]]
    assert dense.dtype == torch.float32


def test_title_names_the_folder_where_there_is_one(
    base_ref: BaseRef, make_sft: Callable[..., SFT], tiny_model: Callable[..., object]
) -> None:
    assert make_sft(tiny_model()).title == "language SFT fo"


def test_an_sft_says_what_it_is_and_prints_no_tensors(base_ref: BaseRef) -> None:
    sft = SFT(
        kind="task", subject="pos", base=base_ref, diffs={"a": diff([0, 3])}, head={}, labels=("NOUN", "<b>"),
        maskable=36, source_languages=("en",),
    )  # fmt: skip

    assert repr(sft) == (
        f"<task SFT pos: base: {base_ref.id}, method: lt_sft, support: 2 of 36 weights (5.56 %), labels: NOUN, <b>, "
        "learnt from: en>"
    )
    assert "<td>NOUN, &lt;b&gt;</td>" in sft._repr_html_()
    assert repr(diff([0, 3])) == "Diff(2 of 12 weights, shape (3, 4))"


def test_a_sound_diff_has_no_problem() -> None:
    assert diff([0, 5, 11]).problem() is None
    assert diff([]).problem() is None
    assert diff([], shape=(0, 4)).problem() is None


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (diff([0, 12]), "index 12 is out of range: allowed are 0 to 11"),
        (diff([-1, 3]), "index -1 is out of range"),
        (diff([3, 1]), "1 follows 3 at position 1"),
        (diff([3, 3]), "3 follows 3 at position 1"),
        (diff([0, 7], [1.0, float("nan")]), "value nan at index 7 is not finite"),
        (diff([0, 7], [float("-inf"), 1.0]), "value -inf at index 0 is not finite"),
        (diff([0, 7], [1.0]), "2 indices but 1 values"),
        (diff([0], shape=(2**16, 2**16)), "at most 2147483647 weights"),
        (Diff(torch.tensor([0]), torch.tensor([1.0]), (3,)), "row of int32, got int64"),
        (Diff(torch.tensor([0], dtype=torch.int32), torch.tensor([1.0]).double(), (3,)), "row of float32, got float64"),
    ],
)
def test_a_broken_diff_says_what_is_wrong(broken: Diff, words: str) -> None:
    assert words in str(broken.problem())
