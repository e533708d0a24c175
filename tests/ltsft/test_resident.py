"""A resident model: switching gives the bits of composing anew, and the base comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ltsft import resident as module
from ltsft.compose import Resident
from ltsft.errors import CompositionError
from ltsft.sft import SFT, BaseRef

Build = Callable[..., PreTrainedModel]
Make = Callable[..., SFT]
Bits = Callable[[PreTrainedModel], dict[str, bytes]]


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    turns=st.lists(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1.0, -0.3])), max_size=3), max_size=5),
    threads=st.booleans(),
)
def test_switching_gives_the_bits_of_composing_anew(
    dtype: torch.dtype,
    turns: list[list[tuple[int, float]]],
    threads: bool,
    tiny_model: Build,
    make_sft: Make,
    bits: Bits,
    base_ref: BaseRef,
) -> None:
    model, fresh = tiny_model().to(dtype), tiny_model().to(dtype)
    sfts = [make_sft(model, seed=seed) for seed in range(3)]
    sfts.append(make_sft(model, seed=3, kind="task", head=True))
    before = bits(model)
    with pytest.MonkeyPatch.context() as patched:
        if threads:  # several blocks in each parameter, shared out over threads
            patched.setattr(module, "BLOCK", 100)
            patched.setattr(module, "FEW", 0)
            patched.setattr(torch, "get_num_threads", lambda: 3)
        resident = Resident(model, base=base_ref)
        for turn in turns:
            has_head = [number for number, _ in turn if number == 3]
            parts = [(sfts[number], weight) for number, weight in turn]
            resident.switch(parts)
            assert resident.parts == tuple(parts)
            other = Resident(fresh, base=base_ref)
            assert bits(model) == bits(other.switch(parts)), has_head
            other.switch([])
        resident.switch([])
    assert bits(model) == before
    assert bits(fresh) == before


def test_a_refused_switch_leaves_what_was_composed(
    tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef
) -> None:
    model = tiny_model().half()
    resident = Resident(model, base=base_ref)
    language, task = make_sft(model, seed=1), make_sft(model, seed=2, kind="task", head=True)
    resident.switch([(language, 1.0), (task, 1.0)])
    before = bits(model)
    foreign = replace(language, base=replace(base_ref, fingerprint="c" * 64))
    for parts in ([(foreign, 1.0)], [(make_sft(model, seed=5), 1e6), (task, 1.0)]):
        with pytest.raises(CompositionError):
            resident.switch(parts)
        assert bits(model) == before
        assert resident.parts == ((language, 1.0), (task, 1.0))
    resident.switch([])
    assert bits(model) == bits(tiny_model().half())


def test_a_switch_that_is_cut_off_can_be_made_again(
    tiny_model: Build, make_sft: Make, bits: Bits, base_ref: BaseRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    resident = Resident(model, base=base_ref)
    first, second = make_sft(model, seed=1), make_sft(model, seed=2)
    resident.switch([(first, 1.0)])
    before, change, calls = bits(model), module._Target.change, []

    def stop_in_the_middle(self: module._Target, number: int) -> None:
        calls.append(number)
        if len(calls) == 5:
            raise KeyboardInterrupt
        change(self, number)

    monkeypatch.setattr(module._Target, "change", stop_in_the_middle)
    with pytest.raises(KeyboardInterrupt):
        resident.switch([(second, 1.0)])
    assert bits(model) == before
    resident.switch([])
    assert bits(model) == bits(tiny_model())


def test_switching_to_the_same_parts_changes_nothing(
    tiny_model: Build, make_sft: Make, base_ref: BaseRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    sft = make_sft(model)
    resident = Resident(model, base=base_ref)
    resident.switch([(sft, 1.0)])
    monkeypatch.setattr(module._Target, "change", lambda *_: pytest.fail("a weight was touched"))
    assert resident.switch([(sft, 1.0)]) is model
