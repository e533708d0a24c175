"""Interference and sparsity: laws, and numbers computed the slow way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltsft.errors import CompositionError
from ltsft.evaluation.weight_interference import interference, parameter_group, parameter_layer, sparsity
from ltsft.sft.sft import SFT, BaseRef, Diff

SHAPES = {
    "embeddings.word.weight": (5, 3),
    "encoder.layer.0.dense.weight": (3, 4),
    "encoder.layer.0.dense.bias": (4,),
    "encoder.layer.10.dense.weight": (3, 4),
    "encoder.layer.2.dense.weight": (3, 4),
}


def sft_of(dense: dict[str, Any], *, maskable: int | None = None) -> SFT:
    diffs = {}
    for name, values in dense.items():
        whole = torch.as_tensor(values, dtype=torch.float32)
        support = whole.flatten().nonzero().flatten()
        diffs[name] = Diff(indices=support.int(), values=whole.flatten()[support], shape=tuple(whole.shape))
    return SFT(
        kind="language",
        subject="fo",
        base=BaseRef("tiny", None, "a", "b"),
        diffs=diffs,
        head={},
        labels=(),
        maskable=maskable or sum(diff.size for diff in diffs.values()),
    )


@st.composite
def sfts(draw: st.DrawFn) -> SFT:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    density = draw(st.floats(0, 1))
    return sft_of(
        {
            name: torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
            for name, shape in SHAPES.items()
        }
    )


@given(sft=sfts())
def test_an_sft_overlaps_itself_fully(sft: SFT) -> None:
    found = interference(sft, sft)
    for collision in (found.overall, *found.layers.values(), *found.groups.values()):
        full = float(collision.support_a > 0)
        assert collision.intersection == collision.support_a == collision.support_b
        assert collision.overlap == collision.share_a == collision.share_b == collision.jaccard == full
        assert collision.cosine == collision.cosine_on_intersection == full
        assert collision.energy == collision.energy_a == collision.energy_b == full
        assert collision.sign_conflict == 0


@given(sft=sfts(), seed=st.integers(0, 1000))
def test_disjoint_supports_do_not_overlap_at_all(sft: SFT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    others = {
        name: torch.randn(diff.shape, generator=generator) * (diff.dense() == 0) for name, diff in sft.diffs.items()
    }
    collision = interference(sft, sft_of(others)).overall
    assert collision.intersection == collision.overlap == collision.jaccard == 0
    assert collision.share_a == collision.share_b == collision.sign_conflict == 0
    assert collision.cosine == collision.cosine_on_intersection == collision.energy == 0


@given(sft=sfts())
def test_an_sft_and_its_opposite_conflict_everywhere(sft: SFT) -> None:
    opposite = replace(sft, diffs={name: replace(diff, values=-diff.values) for name, diff in sft.diffs.items()})
    collision = interference(sft, opposite).overall
    assert collision.sign_conflict == float(sft.support_size > 0)
    assert collision.cosine == collision.cosine_on_intersection == -float(sft.support_size > 0)


@settings(max_examples=50)
@given(a=sfts(), b=sfts())
def test_measures_agree_with_dense_arithmetic(a: SFT, b: SFT) -> None:
    found = interference(a, b).overall
    left = np.concatenate([a.diffs[name].dense().flatten().numpy() for name in SHAPES]).astype(float)
    right = np.concatenate([b.diffs[name].dense().flatten().numpy() for name in SHAPES]).astype(float)
    met = (left != 0) & (right != 0)
    assert found.weights == len(left)
    assert found.intersection == met.sum()
    assert found.expected == pytest.approx((left != 0).sum() * (right != 0).sum() / len(left))
    by_parameter = sum(a.diffs[name].support_size * b.diffs[name].support_size / a.diffs[name].size for name in SHAPES)
    assert found.expected_by_parameter == pytest.approx(by_parameter)
    if not met.any():
        return
    assert found.jaccard == pytest.approx(met.sum() / ((left != 0) | (right != 0)).sum())
    assert found.sign_conflict == pytest.approx((left[met] * right[met] < 0).mean())
    norms = np.linalg.norm(left) * np.linalg.norm(right)
    assert found.cosine == pytest.approx(left @ right / norms)
    on_met = np.linalg.norm(left[met]) * np.linalg.norm(right[met])
    assert found.cosine_on_intersection == pytest.approx(left[met] @ right[met] / on_met)
    assert found.energy_a == pytest.approx((left[met] ** 2).sum() / (left**2).sum())
    energy = ((left[met] ** 2).sum() + (right[met] ** 2).sum()) / ((left**2).sum() + (right**2).sum())
    assert found.energy == pytest.approx(energy)


def test_a_small_case_worked_out_by_hand() -> None:
    a = sft_of({"layer.0.w": [3.0, 0.0, -4.0, 0.0], "layer.1.w": [1.0, 0.0, 0.0, 0.0]})
    b = sft_of({"layer.0.w": [1.0, 2.0, 2.0, 0.0], "layer.1.w": [0.0, 1.0, 0.0, 0.0]})
    found = interference(a, b)
    assert (found.overall.support_a, found.overall.support_b, found.overall.intersection) == (3, 4, 2)
    assert found.overall.expected == 3 * 4 / 8
    assert found.overall.expected_by_parameter == 2 * 3 / 4 + 1 * 1 / 4
    assert found.overall.jaccard == 2 / 5
    assert found.overall.overlap == 2 / 3
    assert found.overall.sign_conflict == 0.5
    assert found.overall.cosine_on_intersection == pytest.approx((3 - 8) / (5 * 5**0.5))
    assert found.overall.cosine == pytest.approx((3 - 8) / (26**0.5 * 10**0.5))
    assert found.overall.energy_a == 25 / 26
    assert found.overall.energy_b == 5 / 10
    assert found.overall.energy == 30 / 36
    assert found.layers["0"].intersection == 2
    assert found.layers["1"].intersection == 0
    assert found.groups["w"] == found.overall


def test_chance_predicts_the_overlap_of_random_supports() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"w": torch.randn(200_000, generator=generator)}
    a, b = (sft_of({"w": sizes["w"] * (torch.rand(200_000, generator=generator) < 0.08)}) for _ in range(2))
    found = interference(a, b).overall
    assert found.intersection == pytest.approx(found.expected, rel=0.05)


def test_a_parameter_that_one_sft_lacks_counts_as_untouched_by_it() -> None:
    a, b = sft_of({"layer.0.w": [1.0, 0.0]}), sft_of({"layer.1.w": [1.0, 1.0]})
    found = interference(a, b)
    assert found.overall.weights == 4
    assert found.overall.intersection == 0
    assert found.layers["1"].support_a == 0


def test_different_bases_and_shapes_are_refused() -> None:
    a = sft_of({"layer.0.w": [1.0, 0.0]})
    with pytest.raises(CompositionError, match="different bases"):
        interference(a, replace(a, base=replace(a.base, fingerprint="other")))
    with pytest.raises(CompositionError, match=r"layer\.0\.w: shapes \[2\] and \[3\] differ"):
        interference(a, sft_of({"layer.0.w": [1.0, 0.0, 0.0]}))


@pytest.mark.parametrize(
    ("name", "layer", "group"),
    [
        ("embeddings.word_embeddings.weight", "embeddings", "embeddings.word_embeddings.weight"),
        ("encoder.layer.3.attention.self.query.weight", "3", "attention.self.query.weight"),
        ("transformer.layer.11.ffn.lin1.bias", "11", "ffn.lin1.bias"),
        ("layers.0.attn.Wqkv.weight", "0", "attn.Wqkv.weight"),
        ("blocks.2.experts.5.weight", "2", "experts.5.weight"),
        ("weights.4", "4", "weights.4"),
    ],
)
def test_layers_and_groups_come_from_the_names_alone(name: str, layer: str, group: str) -> None:
    assert (parameter_layer(name), parameter_group(name)) == (layer, group)


def test_layers_come_in_their_order() -> None:
    a = sft_of({name: torch.ones(shape) for name, shape in SHAPES.items()})
    assert list(interference(a, a).layers) == list(sparsity(a).layers) == ["embeddings", "0", "2", "10"]


def test_every_parameter_of_a_model_has_a_layer_and_a_group(
    family: str, tiny_model: Callable[..., Any], make_sft: Callable[..., SFT]
) -> None:
    sft = make_sft(tiny_model(family))
    found = sparsity(sft)
    assert list(found.layers) == ["embeddings", "0", "1"]
    assert sum(share.support_size for share in found.layers.values()) == sft.support_size
    assert sum(share.support_size for share in found.groups.values()) == sft.support_size
    assert all(share.weights for share in found.groups.values())


def test_sparsity_counts_and_measures() -> None:
    found = sparsity(sft_of({"layer.0.w": [3.0, 0.0, -4.0, 0.0], "layer.1.w": [0.0, 0.0]}, maskable=10))
    assert (found.overall.weights, found.overall.support_size, found.overall.density) == (10, 2, 0.2)
    assert (found.overall.l1, found.overall.l2) == (7.0, 5.0)
    assert found.layers["0"].density == 0.5
    assert found.layers["1"].density == found.layers["1"].l2 == 0.0


def test_metric_names_are_the_same_for_every_pair(tiny_model: Callable[..., Any], make_sft: Callable[..., SFT]) -> None:
    model = tiny_model()
    full, empty = make_sft(model), make_sft(model, density=0.0)
    assert interference(full, full).metrics().keys() == interference(full, empty).metrics().keys()
    assert sparsity(full).metrics().keys() == sparsity(empty).metrics().keys()
    metrics = interference(full, full).metrics()
    assert metrics["interference.overlap"] == 1.0
    assert metrics["interference.layer.1.sign_conflict"] == 0.0
    assert metrics["interference.group.output.dense.weight.overlap"] == 1.0
    assert sparsity(full).metrics("s")["s.density"] == full.density
    assert all(type(value) is float for value in metrics.values())


def test_metrics_without_details_are_the_overall_ones() -> None:
    sft = sft_of({"layer.0.w": [1.0]})
    assert not [name for name in interference(sft, sft).metrics(details=False) if "layer" in name or "group" in name]
    assert list(sparsity(sft).metrics(details=False)) == [
        f"sparsity.{measure}" for measure in ("weights", "support_size", "density", "l1", "l2")
    ]


def test_results_are_plain_json() -> None:
    sft = sft_of({"layer.0.w": [1.0, 0.0]})
    assert json.loads(json.dumps(interference(sft, sft).to_dict()))["overall"]["overlap"] == 1.0
    assert json.loads(json.dumps(sparsity(sft).to_dict()))["layers"]["0"]["density"] == 0.5
