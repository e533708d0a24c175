"""Composition rules and weights by part: small results worked out by hand, and laws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ltsft.composition.compose import composed
from ltsft.composition.resident import Resident
from ltsft.composition.rules import RULES, Contribution
from ltsft.composition.weights import parse_weight, weight_at
from ltsft.errors import CompositionError
from ltsft.sft.sft import SFT, BaseRef, Diff

Build = Callable[..., PreTrainedModel]
Make = Callable[..., SFT]
Bits = Callable[[PreTrainedModel], dict[str, bytes]]


def piece(places: Sequence[int], values: Sequence[float], weight: float = 1.0) -> Contribution:
    return Contribution(torch.tensor(places), torch.tensor(values), weight)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # 0 untouched, 1 one part, 2 agree, 3 conflict (-3 wins), 4 a zero does not count, 5 a tie, 6 two against one
        ("sum", [1.0, 3.0, 4.0, -1.0, 3.0, 1.0, 1.5]),
        ("ties", [1.0, 3.0, 2.5, -2.0, 3.0, 1.0, 3.0]),
        ("ties_sum", [1.0, 3.0, 4.0, -2.0, 3.0, 1.0, 5.0]),
    ],
)
def test_each_rule_gives_what_was_worked_out_by_hand(rule: str, expected: list[float]) -> None:
    weights = torch.ones(7)
    pieces = [
        piece([1, 2, 3, 4, 5, 6], [2.0, 1.0, 1.0, 2.0, 1.5, 3.0]),
        piece([2, 3, 4, 5, 6], [4.0, -6.0, 0.0, -3.0, 2.0], weight=0.5),
        piece([6], [-3.5]),
    ]

    RULES[rule](weights, pieces)

    assert weights.tolist() == expected


@pytest.mark.parametrize("rule", sorted(RULES))
def test_one_sft_or_sfts_that_do_not_meet_are_their_sum_by_every_rule(
    rule: str, tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef
) -> None:
    model = tiny_model()
    sft = make_sft(model, seed=1)
    halves = [
        replace(sft, diffs={name: Diff(d.indices[i::2], d.values[i::2], d.shape) for name, d in sft.diffs.items()})
        for i in (0, 1)
    ]
    with composed(model, [(sft, 1.0)], base=base_ref):
        expected = bits(model)
    for parts in ([(sft, 1.0)], [(half, 1.0) for half in halves]):
        with composed(model, parts, base=base_ref, rule=rule):
            assert bits(model) == expected


WEIGHTS = st.one_of(
    st.sampled_from([1.0, -0.5]), st.fixed_dictionaries({"embeddings": st.just(0.5), "layer.0": st.just(-2.0)})
)


@settings(max_examples=30, deadline=None)
@given(
    rule=st.sampled_from(sorted(RULES)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    turns=st.lists(st.lists(st.tuples(st.integers(0, 2), WEIGHTS), max_size=3), max_size=4),
)
def test_switching_by_any_rule_and_weights_is_composing_anew_and_leaving_restores_the_base(
    rule: str,
    dtype: torch.dtype,
    turns: list[list[tuple[int, Any]]],
    tiny_model: Build,
    make_sft: Make,
    bits: Bits,
    base_ref: BaseRef,
) -> None:
    from ltsft.composition import resident as module

    model, fresh = tiny_model().to(dtype), tiny_model().to(dtype)
    sfts = [make_sft(model, seed=seed, density=0.5) for seed in range(3)]
    before = bits(model)
    resident = Resident(model, base=base_ref, rule=rule)
    for turn in [*turns, []]:
        parts = [(sfts[number], weight) for number, weight in turn]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "BLOCK", 100)
            resident.switch(parts)
        with composed(fresh, parts, base=base_ref, rule=rule):
            assert bits(model) == bits(fresh)
    assert bits(model) == bits(fresh) == before


def test_weights_by_part_scale_the_diffs_of_the_parameters_that_they_name(
    tiny_model: Build, make_sft: Make, base_ref: BaseRef
) -> None:
    model = tiny_model()
    sft = make_sft(model)
    base = {name: value.detach().clone() for name, value in model.base_model.named_parameters()}
    weight = {"*": 0.25, "embeddings": 0.5, "layer.0": 2.0, "layer.0.output": -1.0}
    with composed(model, [(sft, weight)], base=base_ref):
        for name, value in model.base_model.named_parameters():
            if name not in sft.diffs:
                continue
            factor = 0.25
            factor = 0.5 if name.startswith("embeddings.") else factor
            factor = 2.0 if ".layer.0." in f".{name}" else factor
            factor = -1.0 if ".layer.0.output." in f".{name}" else factor
            torch.testing.assert_close(value.detach(), base[name] + factor * sft.diffs[name].dense(), rtol=0, atol=1e-7)


def test_a_pattern_means_whole_parts_of_a_name_and_the_longer_one_decides() -> None:
    name = "encoder.layer.1.attention.self.query.weight"
    assert weight_at({"layer.1": 0.5}, "encoder.layer.11.attention.self.query.weight") == 1.0
    assert weight_at({"layer.*.attention": 0.5, "layer.1": 0.1}, name) == 0.5
    assert weight_at({"layer.1": 0.1, "layer.*.attention": 0.5}, name) == 0.5
    assert parse_weight("embeddings=0.5, layer.0=0.8") == {"embeddings": 0.5, "layer.0": 0.8}
    assert parse_weight("0.5") == 0.5


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ({"layr.0": 0.5}, "'layr.0' matches no parameter"),
        ({"layer.0": float("nan")}, "must be a finite number"),
        ({"layer.0": 0.5, "layer.*": 0.6}, "both match encoder.layer.0"),
        (True, "must be a finite number"),
    ],
)
def test_weights_that_mean_nothing_are_refused_before_anything_is_touched(
    weight: Any, message: str, tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef
) -> None:
    model = tiny_model()
    before = bits(model)
    with pytest.raises(CompositionError, match=message), composed(model, [(make_sft(model), weight)], base=base_ref):
        pass
    assert bits(model) == before
    with pytest.raises(CompositionError, match="a weight must be a number"):
        parse_weight("embeddings=half")
