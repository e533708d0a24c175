"""Composition: right while it lasts, gone afterwards bit for bit, and refused before anything is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ltsft.composition.compose import composed, export_composition
from ltsft.composition.rules import RULES, Contribution
from ltsft.errors import CompositionError
from ltsft.sft.sft import SFT, BaseRef, Diff

Build = Callable[..., PreTrainedModel]
Make = Callable[..., SFT]
Bits = Callable[[PreTrainedModel], dict[str, bytes]]


def with_diff(sft: SFT, name: str, **changes: object) -> SFT:
    return replace(sft, diffs={**sft.diffs, name: replace(sft.diffs[name], **changes)}, path="sfts/broken")


def test_composing_nothing_is_the_base(family: str, tiny_model: Build, bits: Bits, base_ref: BaseRef) -> None:
    model = tiny_model(family)
    before = bits(model)
    with composed(model, [], base=base_ref) as same:
        assert same is model
        assert bits(model) == before
    assert bits(model) == before


@pytest.mark.parametrize("head", ["token", "masked_lm"])
def test_weights_are_base_plus_weighted_diffs_the_last_listed_first(
    family: str, head: str, tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef
) -> None:
    model = tiny_model(family, head=head)
    before = bits(model)
    first, second = make_sft(model, seed=1), make_sft(model, seed=2)
    base = {name: value.detach().clone().numpy() for name, value in model.base_model.named_parameters()}
    with composed(model, [(first, 1.0), (second, -0.3)], base=base_ref):
        for name, value in model.base_model.named_parameters():
            expected = base[name].copy()
            if name in first.diffs:
                expected = expected + second.diffs[name].dense().numpy() * np.float32(-0.3)
                expected = expected + first.diffs[name].dense().numpy()
            np.testing.assert_array_equal(value.detach().numpy(), expected)
    assert bits(model) == before


def test_weights_outside_all_supports_keep_the_bits_of_the_base(
    tiny_model: Build, make_sft: Make, base_ref: BaseRef
) -> None:
    model = tiny_model()
    sft = make_sft(model, density=0.1)
    base = {name: value.detach().clone() for name, value in model.base_model.named_parameters()}
    with composed(model, [(sft, 1.0)], base=base_ref):
        for name, diff in sft.diffs.items():
            outside = torch.ones(diff.size, dtype=torch.bool)
            outside[diff.indices.long()] = False
            now = dict(model.base_model.named_parameters())[name].detach()
            assert torch.equal(now.view(-1)[outside], base[name].view(-1)[outside])


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    nested=st.lists(st.lists(st.tuples(st.integers(0, 4), st.floats(-4, 4, width=32)), max_size=3), max_size=4),
    fails=st.booleans(),
)
def test_leaving_restores_the_base_bit_for_bit(
    dtype: torch.dtype,
    nested: list[list[tuple[int, float]]],
    fails: bool,
    tiny_model: Build,
    make_sft: Make,
    bits: Bits,
    base_ref: BaseRef,
) -> None:
    model = tiny_model().to(dtype)
    task = make_sft(model, seed=9, kind="task", head=True)
    before = bits(model)
    with ExitStack() as stack:
        if fails:
            stack.enter_context(pytest.raises(KeyboardInterrupt))
        stack.enter_context(composed(model, [(task, 1.0)], base=base_ref))
        for parts in nested:
            chosen = [(make_sft(model, seed=seed), weight) for seed, weight in parts]
            stack.enter_context(composed(model, chosen, base=base_ref))
        assert bits(model) != before
        if fails:
            raise KeyboardInterrupt
    assert bits(model) == before


def test_two_hundred_changes_leave_no_trace(tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef) -> None:
    model = tiny_model("distilbert")
    before = bits(model)
    sfts = [make_sft(model, seed=seed, density=0.05) for seed in range(4)]
    for turn in range(200):
        with composed(model, [(sfts[turn % 4], 0.1 * turn), (sfts[turn % 3], 1.0)], base=base_ref):
            pass
    assert bits(model) == before


def test_nested_compositions_are_the_composition_of_the_list(
    tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef
) -> None:
    model = tiny_model()
    first, second = make_sft(model, seed=1), make_sft(model, seed=2)
    with composed(model, [(first, 1.0), (second, 1.0)], base=base_ref):
        listed = bits(model)
    with composed(model, [(second, 1.0)], base=base_ref), composed(model, [(first, 1.0)], base=base_ref):
        assert bits(model) == listed


def test_low_precision_rounds_once_from_float32(tiny_model: Build, make_sft: Make, base_ref: BaseRef) -> None:
    model = tiny_model().to(torch.bfloat16)
    first, second = make_sft(model, seed=1), make_sft(model, seed=2)
    name = "embeddings.word_embeddings.weight"
    base = model.base_model.get_parameter(name).detach().clone()
    with composed(model, [(first, 1.0), (second, 0.5)], base=base_ref):
        exact = (base.float() + second.diffs[name].dense() * 0.5) + first.diffs[name].dense()
        assert torch.equal(model.base_model.get_parameter(name), exact.to(torch.bfloat16))


def test_weights_that_are_not_contiguous_are_composed_and_restored(
    tiny_model: Build, make_sft: Make, base_ref: BaseRef
) -> None:
    model = tiny_model()
    sft = make_sft(model)
    name = "encoder.layer.0.output.dense.weight"
    parameter = model.base_model.get_parameter(name)
    parameter.data = parameter.data.t().contiguous().t()
    base = parameter.detach().clone()
    with composed(model, [(sft, 1.0)], base=base_ref):
        assert torch.equal(parameter, base + sft.diffs[name].dense())
    assert torch.equal(parameter, base)


def test_heads_replace_the_models_and_may_be_left_out(tiny_model: Build, make_sft: Make, base_ref: BaseRef) -> None:
    model = tiny_model()
    task = make_sft(model, kind="task", head=True)
    own = model.classifier.weight.detach().clone()
    with composed(model, [(task, 0.5)], base=base_ref):
        assert torch.equal(model.classifier.weight, task.head["classifier.weight"])
    with composed(model, [(task, 0.5)], base=base_ref, heads=False):
        assert torch.equal(model.classifier.weight, own)
    assert torch.equal(model.classifier.weight, own)


def test_the_masked_lm_head_of_a_language_sft_is_ignored_by_a_token_classifier(
    family: str, tiny_model: Build, make_sft: Make, base_ref: BaseRef
) -> None:
    masked_lm, classifier = tiny_model(family, head="masked_lm"), tiny_model(family)
    sft = make_sft(masked_lm, head=True)
    with composed(masked_lm, [(sft, 1.0)], base=base_ref):
        for name, value in sft.head.items():
            assert torch.equal(masked_lm.get_parameter(name), value)
    inside = {f"{classifier.base_model_prefix}.{name}" for name in sft.diffs}
    own = {name: value.detach().clone() for name, value in classifier.named_parameters() if name not in inside}
    with composed(classifier, [(sft, 1.0)], base=base_ref):
        for name, value in own.items():
            assert torch.equal(classifier.get_parameter(name), value)
        assert torch.equal(
            classifier.base_model.get_parameter(next(iter(sft.diffs))),
            tiny_model(family).base_model.get_parameter(next(iter(sft.diffs)))
            + sft.diffs[next(iter(sft.diffs))].dense(),
        )


def refused(case: str, sft: SFT, base_ref: BaseRef) -> tuple[SFT, str]:
    """An SFT that must be refused, and what the message must name."""
    name = "encoder.layer.0.output.dense.weight"
    diff = sft.diffs[name]
    falling = diff.indices.clone()
    falling[1] = falling[0]
    values = diff.values.clone()
    values[2] = float("nan") if case == "nan" else float("inf")
    beyond = diff.indices.clone()
    beyond[-1] = diff.size
    return {
        "base": lambda: (replace(sft, base=replace(base_ref, fingerprint="c" * 64)), "another base"),
        "tokenizer": lambda: (replace(sft, base=replace(base_ref, tokenizer_fingerprint="c" * 64)), "tokenizer"),
        "labels": lambda: (replace(sft, labels=("NOUN", "X", "VERB")), "label set"),
        "fewer_labels": lambda: (replace(sft, labels=("NOUN", "VERB")), "label set"),
        "head_name": lambda: (replace(sft, head={"nowhere.bias": torch.zeros(3)}), "nowhere.bias"),
        "head_in_part": lambda: (replace(sft, head={**sft.head, "nowhere.bias": torch.zeros(3)}), "nowhere.bias"),
        "head_shape": lambda: (replace(sft, head={"classifier.bias": torch.zeros(4)}), "classifier.bias"),
        "head_nan": lambda: (replace(sft, head={"classifier.bias": torch.full((3,), torch.nan)}), "classifier.bias"),
        "name": lambda: (replace(sft, diffs={**sft.diffs, "encoder.layer.7.weight": diff}), "encoder.layer.7.weight"),
        "shape": lambda: (with_diff(sft, name, shape=(24, 16)), name),
        "nan": lambda: (with_diff(sft, name, values=values), name),
        "inf": lambda: (with_diff(sft, name, values=values), name),
        "out_of_range": lambda: (with_diff(sft, name, indices=beyond), name),
        "negative": lambda: (with_diff(sft, name, indices=-diff.indices - 1), name),
        "unsorted": lambda: (with_diff(sft, name, indices=diff.indices.flip(0)), name),
        "twice": lambda: (with_diff(sft, name, indices=falling), name),
        "dtype": lambda: (with_diff(sft, name, indices=diff.indices.long()), name),
        "lengths": lambda: (with_diff(sft, name, values=diff.values[:-1]), name),
    }[case]()


CASES = """
base tokenizer labels fewer_labels head_name head_in_part head_shape head_nan name shape nan inf out_of_range negative
unsorted twice dtype lengths
"""


@pytest.mark.parametrize("case", CASES.split())
def test_an_sft_that_does_not_fit_is_refused_by_name_and_nothing_is_touched(
    case: str, tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef
) -> None:
    model = tiny_model()
    good = make_sft(model, seed=1)
    bad, named = refused(case, make_sft(model, seed=2, kind="task", head=True), base_ref)
    bad = replace(bad, path="sfts/broken")
    before = bits(model)
    with pytest.raises(CompositionError) as raised, composed(model, [(good, 1.0), (bad, 1.0)], base=base_ref):
        pytest.fail("the block was entered")
    assert "sfts/broken" in str(raised.value)
    assert named in str(raised.value)
    assert bits(model) == before


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", None, True])
def test_a_weight_that_is_not_a_finite_number_is_refused(
    weight: float, tiny_model: Build, make_sft: Make, base_ref: BaseRef
) -> None:
    model = tiny_model()
    with (
        pytest.raises(CompositionError, match="finite number"),
        composed(model, [(make_sft(model), weight)], base=base_ref),
    ):
        pass


def test_an_unknown_rule_is_refused_with_the_rules_there_are(tiny_model: Build, base_ref: BaseRef) -> None:
    with (
        pytest.raises(CompositionError, match="'add' is unknown; allowed are sum"),
        composed(tiny_model(), [], base=base_ref, rule="add"),
    ):
        pass
    assert next(iter(RULES)) == "sum", "the rule of the paper is named first"


def test_a_sum_that_overflows_the_models_precision_is_refused_before_anything_is_touched(
    tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef
) -> None:
    model = tiny_model().to(torch.float16)
    before = bits(model)
    with (
        pytest.raises(CompositionError, match=r"not finite in torch\.float16"),
        composed(model, [(make_sft(model), 1e6)], base=base_ref),
    ):
        pass
    assert bits(model) == before


def test_two_heads_of_one_name_are_refused(tiny_model: Build, make_sft: Make, base_ref: BaseRef) -> None:
    model = tiny_model()
    parts = [(make_sft(model, seed=seed, kind="task", head=True), 0.5) for seed in (1, 2)]
    with pytest.raises(CompositionError, match="heads do not add up"), composed(model, parts, base=base_ref):
        pass
    with composed(model, parts, base=base_ref, heads=False):
        pass


def test_diffs_do_not_move_a_tied_output_layer(
    family: str, tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef
) -> None:
    model = tiny_model(family, head="masked_lm", tied=True)
    before = bits(model)
    language = make_sft(model)
    refused = pytest.raises(CompositionError, match="has tied its output layer to it")
    with refused, composed(model, [(language, 1.0)], base=base_ref):
        pass
    assert bits(model) == before
    output = model.get_output_embeddings()
    output.weight = torch.nn.Parameter(output.weight.detach().clone())
    with composed(model, [(language, 1.0)], base=base_ref):
        assert bits(model) != before


def test_sub_words_that_changed_under_the_same_files_are_told(
    tiny_model: Build, make_sft: Make, base_ref: BaseRef
) -> None:
    model = tiny_model()
    learnt = replace(base_ref, golden=(("one", (1, 7, 2)), ("two", (1, 8, 2))))
    sft = replace(make_sft(model), base=learnt)
    now = replace(base_ref, golden=(("one", (1, 7, 2)), ("two", (1, 3, 3, 2)), ("new", (1,))))
    refused = pytest.raises(CompositionError, match=r"other ids of 1 of 2 texts, such as \[1, 3, 3, 2\] for 'two'")
    with refused, composed(model, [(sft, 1.0)], base=now):
        pass
    for same in (learnt, base_ref):  # what nobody knows is not compared
        with composed(model, [(sft, 1.0)], base=same):
            pass


def test_a_head_tied_to_a_changed_weight_is_refused(tiny_model: Build, make_sft: Make, base_ref: BaseRef) -> None:
    model = tiny_model(head="masked_lm")
    sft = make_sft(model, head=True)
    model.cls.predictions.decoder.weight = model.bert.embeddings.word_embeddings.weight
    with pytest.raises(CompositionError, match="tied"), composed(model, [(sft, 1.0)], base=base_ref):
        pass


def test_a_model_converted_inside_the_block_is_reported(tiny_model: Build, make_sft: Make, base_ref: BaseRef) -> None:
    model = tiny_model()
    with (
        pytest.raises(CompositionError, match="was converted inside"),
        composed(model, [(make_sft(model), 1.0)], base=base_ref),
    ):
        model.to(torch.float16)


def test_an_sft_with_nothing_in_its_support_changes_nothing(
    tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef
) -> None:
    model = tiny_model()
    before = bits(model)
    with composed(model, [(make_sft(model, density=0.0), 1.0)], base=base_ref):
        assert bits(model) == before


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize("head", ["token", "masked_lm"])
def test_an_exported_composition_loads_with_the_auto_classes(
    family: str,
    head: str,
    tiny_model: Build,
    make_sft: Make,
    bits: Bits,
    base_ref: BaseRef,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    model = tiny_model(family, head=head)
    before = bits(model)
    parts = [(make_sft(model, seed=1), 1.0), (make_sft(model, seed=2, kind="task", head=head == "token"), 0.5)]
    folder = export_composition(model, tokenizer, parts, tmp_path / "out" / "pos-fo", base=base_ref)
    assert bits(model) == before
    kind = AutoModelForTokenClassification if head == "token" else AutoModelForMaskedLM
    loaded = kind.from_pretrained(folder, dtype=torch.float32)
    with composed(model, parts, base=base_ref):
        assert bits(loaded) == bits(model)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    assert "language SFT fo" in (folder / "README.md").read_text()
    content = json.loads((folder / "composition.json").read_text())
    assert [part["weight"] for part in content["parts"]] == [1.0, 0.5]
    assert [entry.name for entry in folder.parent.iterdir()] == ["pos-fo"]


def test_an_exported_masked_lm_keeps_its_output_bias(
    family: str,
    tiny_model: Build,
    make_sft: Make,
    base_ref: BaseRef,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    """Untied after loading, the output layer still shares its bias, and a plain save would lose one of the names."""
    model = tiny_model(family, head="masked_lm", tied=True)
    output = model.get_output_embeddings()
    output.weight = torch.nn.Parameter(output.weight.detach().clone())
    model.config.tie_word_embeddings = False
    torch.nn.init.normal_(output.bias)
    parts = [(make_sft(model, seed=1), 1.0)]
    folder = export_composition(model, tokenizer, parts, tmp_path / "fo", base=base_ref)
    loaded = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = torch.tensor([[3, 4, 5, 6]])
    with composed(model.eval(), parts, base=base_ref), torch.no_grad():
        assert torch.equal(loaded(words).logits, model(words).logits)


def test_exporting_twice_gives_the_same_bytes_and_replaces_the_earlier_export(
    tiny_model: Build, make_sft: Make, base_ref: BaseRef, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model()
    parts = [(make_sft(model), 1.0)]
    first = export_composition(model, tokenizer, parts, tmp_path / "one", base=base_ref)
    contents = {file.name: file.read_bytes() for file in first.iterdir()}
    (first / "stale").write_text("from an earlier version")
    again = export_composition(model, tokenizer, parts, tmp_path / "one", base=base_ref)
    assert {file.name: file.read_bytes() for file in again.iterdir()} == contents


def test_an_export_never_replaces_a_folder_that_is_not_an_export(
    tiny_model: Build, base_ref: BaseRef, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("do not delete")
    with pytest.raises(CompositionError, match="is not an exported composition"):
        export_composition(tiny_model(), tokenizer, [], tmp_path, base=base_ref)
    assert (tmp_path / "thesis.tex").exists()


def test_a_refused_export_leaves_nothing_behind(
    tiny_model: Build, make_sft: Make, base_ref: BaseRef, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny_model()
    wrong = replace(make_sft(model), base=replace(base_ref, fingerprint="c" * 64))
    with pytest.raises(CompositionError):
        export_composition(model, tokenizer, [(wrong, 1.0)], tmp_path / "out", base=base_ref)
    assert not list(tmp_path.iterdir())


def test_the_sum_rule_adds_part_after_part() -> None:
    start = torch.tensor([1e8, 1.0, 0.0])
    both = torch.tensor([0, 1])
    pieces = [
        Contribution(places=both, values=torch.tensor([1.0, 2.0]), weight=1.0),
        Contribution(places=torch.tensor([0, 2]), values=torch.tensor([-1e8, 3.0]), weight=1.0),
    ]
    # 1e8 + 1 rounds back to 1e8 in float32: the order of the parts shows. The last one is added first.
    forwards, backwards = start.clone(), start.clone()
    RULES["sum"](forwards, pieces)
    RULES["sum"](backwards, pieces[::-1])
    assert forwards.tolist() == [1.0, 3.0, 3.0]
    assert backwards.tolist() == [0.0, 3.0, 3.0]


def test_a_diff_may_sit_on_a_parameter_of_any_rank(tiny_model: Build, make_sft: Make, base_ref: BaseRef) -> None:
    model = tiny_model()
    name = "encoder.layer.1.output.dense.bias"
    diff = Diff(indices=torch.tensor([0, 15], dtype=torch.int32), values=torch.tensor([1.0, -1.0]), shape=(16,))
    sft = replace(make_sft(model), diffs={name: diff})
    base = model.base_model.get_parameter(name).detach().clone()
    with composed(model, [(sft, 2.0)], base=base_ref):
        assert torch.equal(model.base_model.get_parameter(name), base + 2.0 * diff.dense())
