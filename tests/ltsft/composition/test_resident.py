"""A resident model: switching gives the bits of composing anew, and the base comes back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ltsft.composition import kernels
from ltsft.composition import resident as module
from ltsft.composition.resident import Resident
from ltsft.errors import CompositionError
from ltsft.sft.sft import SFT, BaseRef

Build = Callable[..., PreTrainedModel]
Make = Callable[..., SFT]
Bits = Callable[[PreTrainedModel], dict[str, bytes]]


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    turns=st.lists(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1.0, -0.3])), max_size=3), max_size=5),
    threads=st.booleans(),
    is_compiled=st.booleans(),
)
def test_switching_gives_the_bits_of_composing_anew(
    dtype: torch.dtype,
    turns: list[list[tuple[int, float]]],
    threads: bool,
    is_compiled: bool,
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
        resident = Resident(model, base=base_ref, is_compiled=is_compiled)
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


@pytest.mark.parametrize(
    ("rule", "is_contiguous", "is_compiled"),
    [("sum", True, False), ("sum", True, True), ("sum", False, False), ("ties", True, False), ("ties", False, False)],
)
def test_a_switch_that_is_cut_off_at_any_write_leaves_what_was_there(
    rule: str,
    is_contiguous: bool,
    is_compiled: bool,
    tiny_model: Build,
    make_sft: Make,
    bits: Bits,
    base_ref: BaseRef,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BLOCK", 700)
    model = tiny_model()
    if not is_contiguous:
        for parameter in model.base_model.parameters():
            parameter.data = parameter.data.t().contiguous().t() if parameter.ndim == 2 else parameter.data
    base = bits(model)
    sfts = [make_sft(model, seed=seed, density=0.5) for seed in range(3)]
    resident = Resident(model, base=base_ref, rule=rule, is_compiled=is_compiled)
    resident.switch([(sfts[0], 1.0), (sfts[1], 1.0)])
    before = bits(model)
    steps = {name: getattr(module._Target, name) for name in ("_put_back", "_save", "_add", "_compose_all")}
    put, is_cut_off, at = module._put, True, 0
    while is_cut_off:
        at += 1
        left = at

        def count_down() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "_put", lambda *given: (put(*given), count_down()))
            for name, step in steps.items():
                patched.setattr(module._Target, name, lambda *given, step=step: (step(*given), count_down()))
            try:
                resident.switch([(sfts[1], 1.0), (sfts[2], -0.5), (sfts[0], 1.0)])  # two change places
                is_cut_off = False
            except KeyboardInterrupt:
                assert bits(model) == before
    assert at > 20
    assert bits(model) != before
    resident.switch([])
    assert bits(model) == base


def test_changing_the_language_touches_the_task_sft_nowhere(
    tiny_model: Build, make_sft: Make, base_ref: BaseRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    task, *languages = [make_sft(model, seed=seed, density=0.3) for seed in range(3)]
    resident = Resident(model, base=base_ref)
    resident.switch([(languages[0], 1.0), (task, 1.0)])
    held, touched = set(resident._held[task].values()), []
    for name in ("_put_back", "_save", "_add"):
        step = getattr(module._Target, name)
        monkeypatch.setattr(module._Target, name, lambda *given, step=step: touched.append(given[1]) or step(*given))
    resident.switch([(languages[1], 1.0), (task, 1.0)])
    assert touched
    assert not held & set(touched)


def test_switching_to_the_same_parts_changes_nothing(
    tiny_model: Build, make_sft: Make, base_ref: BaseRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    sft = make_sft(model)
    resident = Resident(model, base=base_ref)
    resident.switch([(sft, 1.0)])
    monkeypatch.setattr(module._Target, "change", lambda *_: pytest.fail("a weight was touched"))
    assert resident.switch([(sft, 1.0)]) is model


def test_compiled_loops_round_as_torch_does_and_say_how_large_what_they_took_was() -> None:
    generator = torch.Generator().manual_seed(1)
    weights, values = torch.randn(1000, generator=generator), torch.randn(300, generator=generator)
    places = torch.randperm(1000, generator=generator)[:300].sort().values
    out, changed = torch.empty(300), weights.clone()
    indices = places.int().numpy()
    assert kernels.take(changed.numpy(), indices, out.numpy()) == float(weights[places].abs().max())
    assert torch.equal(out, weights[places])
    kernels.add(changed.numpy(), indices, values.numpy(), np.float32(-0.3))
    assert torch.equal(changed, weights.index_add(0, places, values * -0.3))
    kernels.put(changed.numpy(), indices, out.numpy())
    assert torch.equal(changed, weights)
    changed[places[7]] = torch.nan
    assert math.isnan(kernels.take(changed.numpy(), indices, out.numpy()))
