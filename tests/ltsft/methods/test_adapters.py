"""Methods whose product is an adapter: what each computes, against the formula, and that it goes as it came."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, BertConfig, PreTrainedModel, XLMRobertaConfig

from ltsft.base import Base, encoder_parameters, load_base, parameter_roles
from ltsft.composition.compose import composed, export_composition
from ltsft.composition.resident import Resident
from ltsft.composition.rules import RULES
from ltsft.errors import BaseModelError, CompositionError, ConfigError, SFTFileError
from ltsft.evaluation.weight_interference import interference
from ltsft.methods.bottleneck import matching_width
from ltsft.methods.low_rank import matching_rank
from ltsft.methods.registry import as_diffs
from ltsft.methods.stack import Bottlenecks, stack_of
from ltsft.sft.files import load_sft, save_sft
from ltsft.sft.sft import SFT
from ltsft.training.prepare import Training, TrainingData
from ltsft.training.several import FromLanguage, Mixture, SeveralSources
from ltsft.training.train import train_sft

ADAPTERS = ["lora", "mad_x"]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


Learn = Callable[..., SFT]


@pytest.fixture(scope="module")
def learn(base: Base, learning: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Learn:
    """Learn an adapter, of a language or of tagging; the same one once, unless `objective` and `data` are others."""
    learnt: dict[tuple[str, str, int, str], SFT] = {}

    def run(
        method: str,
        kind: str = "task",
        *,
        seed: int = 1,
        is_new: bool = False,
        objective: Any = None,
        data: Any = None,
        on_progress: Any = None,
        **more: Any,
    ) -> SFT:
        recipe = learning.make_recipe(**{"rate": 1e-2, "steps": 4, **more.pop("recipe", {})})
        key = method, kind, seed, recipe.model_dump_json()
        is_usual = objective is None and on_progress is None and not more
        if is_usual and key in learnt and not is_new:
            return learnt[key]
        folder = tmp_path_factory.mktemp("adapter")
        if objective is None:
            text = learning.masked_lm(base.tokenizer, folder)
            objective, data = text if kind == "language" else learning.tagging(base.tokenizer)
        sft = train_sft(
            base,
            Training(
                objective=objective,
                kind=kind,
                subject="aa" if kind == "language" else "pos",
                recipe=recipe,
                seed=seed,
                method=method,
                data=data,
                source_languages=("aa",) if kind == "task" else (),
                **more,
            ),
            folder=folder,
            device="cpu",
            on_progress=on_progress,
        )
        if is_usual:
            learnt[key] = sft
        return sft

    return run


class Kept:
    """An objective that keeps the model it is trained in."""

    def __init__(self, objective: Any) -> None:
        self._objective = objective

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def build_model(self, base: Base, *, seed: int) -> PreTrainedModel:
        self.model: PreTrainedModel = self._objective.build_model(base, seed=seed)
        return self.model


def batch_of(base: Base, learning: ModuleType) -> dict[str, Tensor]:
    objective, data = learning.tagging(base.tokenizer)
    batch = objective.collate(data.held_out[:4], torch.Generator().manual_seed(0))
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    model.eval()
    found: Tensor = model(**batch).logits
    return found


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_computes_after_training_what_it_computed_in_it(
    method: str, learn: Learn, base: Base, learning: ModuleType
) -> None:
    """Trained over a language adapter, then composed with it in a fresh model: the same outputs."""
    language = learn(method, "language")
    objective, data = learning.tagging(base.tokenizer)
    kept, seen = Kept(objective), []
    batch = batch_of(base, learning)
    task = learn(
        method,
        objective=kept,
        data=data,
        applied=[language],
        recipe={"evaluations": 1},
        on_progress=lambda progress: seen.append(logits(kept.model, batch)) if progress.step == 4 else None,
    )
    model = base.token_classifier(learning.LABELS, seed=7)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain = logits(model, batch)
    with composed(model, [(language, 1.0), (task, 1.0)], base=base.ref):
        both = logits(model, batch)
    torch.testing.assert_close(both, seen[-1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both, plain, atol=1e-3)
    assert torch.equal(logits(model, batch), plain)
    assert {name for name, _ in model.named_parameters()} == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_weights_of_the_base_stay_while_an_adapter_trains(
    method: str, learn: Learn, base: Base, learning: ModuleType
) -> None:
    objective, data = learning.tagging(base.tokenizer)
    kept = Kept(objective)
    sft = learn(method, objective=kept, data=data)
    original = dict(base.token_classifier(learning.LABELS, seed=1).base_model.named_parameters())
    found = encoder_parameters(kept.model)
    assert all(torch.equal(found[name], p) for name, p in original.items())
    assert sft.head.keys() == {"classifier.weight", "classifier.bias"}
    assert not sft.diffs
    assert any(bool(value.any()) for value in sft.adapter.values())


@pytest.mark.parametrize("method", ADAPTERS)
@pytest.mark.parametrize("kind", ["language", "task"])
def test_an_adapter_has_as_near_to_k_parameters_as_can_be(method: str, kind: str, learn: Learn) -> None:
    sizes = {k: learn(method, kind, recipe={"size": k, "density": None, "steps": 1}).parameters for k in (4000, 9000)}
    for k, size in sizes.items():
        step = sizes_step(method, learn)
        assert abs(size - k) <= step / 2, f"{size} for {k}"


def sizes_step(method: str, learn: Learn) -> int:
    """Parameters that one more of rank, or of width, costs."""
    setting = {"lora": ("rank", 1, 2), "mad_x": ("reduction", 32.0, 16.0)}[method]
    one, two = (learn(method, recipe={"steps": 1, "own": {setting[0]: value}}).parameters for value in setting[1:])
    return two - one


@pytest.mark.parametrize("method", ADAPTERS)
def test_a_stored_adapter_is_small_and_comes_back_with_every_bit(method: str, learn: Learn, tmp_path: Path) -> None:
    sft = learn(method)
    folder = save_sft(sft, tmp_path / "sft")
    loaded = load_sft(folder)
    assert loaded.method == method
    assert loaded.adapter.keys() == sft.adapter.keys()
    assert all(torch.equal(loaded.adapter[name], value) for name, value in sft.adapter.items())
    size = (folder / "sft.safetensors").stat().st_size
    assert size < 4 * sft.parameters + 8000
    assert f"{sft.parameters:,} parameters" in (folder / "README.md").read_text()
    content = bytearray((folder / "sft.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "sft.safetensors").write_bytes(bytes(content))
    with pytest.raises(SFTFileError, match="corrupt"):
        load_sft(folder)


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_same_seed_gives_the_same_adapter_and_another_one_another(method: str, learn: Learn) -> None:
    first, again, other = learn(method), learn(method, is_new=True), learn(method, seed=2)
    assert all(torch.equal(again.adapter[name], value) for name, value in first.adapter.items())
    assert any(not torch.equal(other.adapter[name], value) for name, value in first.adapter.items())


@pytest.mark.parametrize("method", ADAPTERS)
def test_several_source_languages_each_have_their_adapter_in_place(
    method: str, learn: Learn, base: Base, learning: ModuleType
) -> None:
    languages = {code: learn(method, "language", seed=i) for i, code in enumerate(("aa", "bb"))}
    objective, data = learning.tagging(base.tokenizer)
    several = SeveralSources(objective, languages, base)
    mixed = Mixture(dict.fromkeys(languages, data.examples[:20]), {"aa": 0.5, "bb": 0.5})
    held_out = [FromLanguage(i, example) for i in (0, 1) for example in data.held_out[:4]]
    task = learn(method, objective=several, data=TrainingData(mixed, held_out), recipe={"evaluations": 2})
    model = base.token_classifier(learning.LABELS, seed=7)
    losses = []
    for sft in languages.values():
        with composed(model, [(sft, 1.0), (task, 1.0)], base=base.ref):
            losses.append(objective.evaluate(model.eval(), data.held_out[:4]).metrics["loss"])
    several.build_model(base, seed=1)
    assert losses[0] != losses[1]
    expected = task.details["history"][-1]["best_score"]
    with_each = [0.0, 0.0]
    for i, sft in enumerate(languages.values()):
        with composed(model, [(sft, 1.0), (task, 1.0)], base=base.ref):
            with_each[i] = objective.evaluate(model.eval(), data.held_out[:4]).score
    assert sum(with_each) / 2 == pytest.approx(expected)


def test_lora_adds_the_product_of_its_matrices_times_the_weight(learn: Learn, base: Base) -> None:
    first, second = learn("lora", "language"), learn("lora")
    model = base.token_classifier(second.labels, seed=1)
    before = {name: p.detach().clone() for name, p in model.base_model.named_parameters()}
    linear = [n for n, m in model.base_model.named_modules() if isinstance(m, nn.Linear)]
    with composed(model, [(first, 0.5), (second, 1.0)], base=base.ref):
        after = dict(model.base_model.named_parameters())
        for name in linear:
            product = sum(w * s.adapter[f"{name}.B"] @ s.adapter[f"{name}.A"] for s, w in ((first, 0.5), (second, 1.0)))
            torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + product, rtol=0, atol=1e-6)
        others = before.keys() - {f"{name}.weight" for name in linear}
        assert others
        assert all(torch.equal(after[name], before[name]) for name in others)
    met = interference(first, second).overall
    assert met.overlap == 1.0
    assert met == interference(as_diffs(first), as_diffs(second)).overall


def test_the_rank_of_lora_is_that_nearest_to_k(base: Base) -> None:
    layers = [nn.Linear(10, 20), nn.Linear(20, 10)]  # 60 parameters for each rank
    assert [matching_rank(layers, k) for k in (1, 89, 91, 299, 6000)] == [1, 1, 2, 5, 10]
    model = base.token_classifier(["A", "B"], seed=1)
    roles = parameter_roles(model)
    per_rank = sum(m.in_features + m.out_features for m in model.base_model.modules() if isinstance(m, nn.Linear))
    k = int(0.2 * roles.size)
    rank = matching_rank([m for m in model.base_model.modules() if isinstance(m, nn.Linear)], k)
    assert abs(rank * per_rank - k) <= per_rank / 2


def test_lora_leaves_frozen_layers_alone_and_says_so_when_none_is_left(learn: Learn) -> None:
    sft = learn("lora", recipe={"freeze": ("encoder.layer.0.*",), "own": {"rank": 1}})
    assert sft.adapter
    assert not any(name.startswith("encoder.layer.0.") for name in sft.adapter)
    with pytest.raises(ConfigError, match=r"freeze: encoder\.\* leaves no linear layer to lora"):
        learn("lora", recipe={"freeze": ("encoder.*",)})


def test_matrices_that_do_not_fit_are_refused(learn: Learn, base: Base) -> None:
    sft = learn("lora")
    name = next(key for key in sft.adapter if key.endswith(".B"))
    resident = Resident(base.token_classifier(sft.labels, seed=1), base=base.ref)
    for adapter in ({**sft.adapter, name: torch.zeros(3, 99)}, {k: v for k, v in sft.adapter.items() if k != name}):
        with pytest.raises(CompositionError, match="do not fit each other"):
            resident.switch([(replace(sft, adapter=adapter), 1.0)])


def bottleneck(sft: SFT, layer: int, normed: Tensor, beside: Tensor) -> Tensor:
    """Down, ReLU, up, and what it goes beside, by the stored tensors."""
    a, prefix = sft.adapter, f"layers.{layer}"
    inside = (normed @ a[f"{prefix}.down.weight"].T + a[f"{prefix}.down.bias"]).clamp(min=0)
    return inside @ a[f"{prefix}.up.weight"].T + a[f"{prefix}.up.bias"] + beside


def coupled(sft: SFT, part: str, half: Tensor) -> Tensor:
    a, prefix = sft.adapter, f"invertible.{part}"
    inside = (half @ a[f"{prefix}.0.weight"].T + a[f"{prefix}.0.bias"]).clamp(min=0)
    return inside @ a[f"{prefix}.2.weight"].T + a[f"{prefix}.2.bias"]


@torch.no_grad()
def hidden_states(model: PreTrainedModel, input_ids: Tensor, adapters: list[SFT]) -> Tensor:
    """BERT's encoder with MAD-X in it, written out: the first adapter is a language's."""
    encoder: Any = model.base_model
    states = encoder.embeddings(input_ids)
    half = states.shape[-1] // 2
    first = states[..., :half] + coupled(adapters[0], "f", states[..., half:])
    states = torch.cat([first, states[..., half:] + coupled(adapters[0], "g", first)], -1)
    for number, layer in enumerate(encoder.encoder.layer):
        attended = layer.attention(states)[0]
        inside = torch.nn.functional.gelu(attended @ layer.intermediate.dense.weight.T + layer.intermediate.dense.bias)
        beside = inside @ layer.output.dense.weight.T + layer.output.dense.bias
        states = layer.output.LayerNorm(beside + attended)
        for sft in adapters:
            beside = bottleneck(sft, number, states, beside)
            states = layer.output.LayerNorm(beside + attended)
    return states


def test_mad_x_computes_what_its_equations_say(learn: Learn, base: Base, learning: ModuleType) -> None:
    language, task = learn("mad_x", "language"), learn("mad_x")
    ids = batch_of(base, learning)["input_ids"]
    tagger = base.token_classifier(task.labels, seed=1).eval()
    expected = hidden_states(tagger, ids, [language, task]) @ task.head["classifier.weight"].T
    with composed(tagger, [(language, 1.0), (task, 1.0)], base=base.ref):
        found = tagger(input_ids=ids).logits
    torch.testing.assert_close(found, expected + task.head["classifier.bias"], rtol=1e-4, atol=1e-5)

    speaker = base.masked_lm().eval()
    states = hidden_states(speaker, ids, [language])
    with composed(speaker, [(language, 1.0)], base=base.ref):
        head: Any = speaker.get_submodule("cls.predictions")
        states = head.transform(states)
        half = states.shape[-1] // 2
        second = states[..., half:] - coupled(language, "g", states[..., :half])
        first = states[..., :half] - coupled(language, "f", second)
        expected = torch.cat([first, second], -1) @ head.decoder.weight.T + head.bias
        found = speaker(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "xlm-r"])
@torch.no_grad()
def test_mad_x_computes_what_the_library_of_its_authors_does(family: str, reference: ModuleType) -> None:
    """Hidden states with a language adapter, with a task adapter on it, and the logits of the masked LM."""
    expected = json.loads(reference.FILE.read_text())[family]
    config = {"bert": BertConfig, "xlm-r": XLMRobertaConfig}[family](**reference.SIZES, **reference.MORE)
    model: Any = AutoModelForMaskedLM.from_config(config).eval()
    layers, hidden = config.num_hidden_layers, config.hidden_size
    language = Bottlenecks(layers, hidden, reference.WIDTHS["language"], invertible=hidden)
    task = Bottlenecks(layers, hidden, reference.WIDTHS["task"])
    for prefix, module in (("", model), ("language.", language), ("task.", task)):
        for name, parameter in module.named_parameters():
            parameter.copy_(reference.weight(prefix + name, parameter.shape))
    ids, stack, found = torch.tensor(reference.IDS), stack_of(model), {}
    for label, adapters in (("language", [language]), ("both", [language, task])):
        stack.compose(adapters)
        found[label] = model.base_model(input_ids=ids).last_hidden_state
        if label == "language":
            found["logits"] = model(input_ids=ids).logits
    for label, values in expected.items():
        torch.testing.assert_close(found[label].flatten(), torch.tensor(values), rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_inverse_of_an_invertible_adapter_undoes_it() -> None:
    torch.manual_seed(0)
    coupling: Any = Bottlenecks(layers=0, hidden=10, width=1, invertible=10).invertible
    for p in coupling.parameters():
        p.normal_()
    states = torch.randn(3, 7, 10)
    moved = coupling(states)
    assert not torch.allclose(moved, states, atol=0.1)
    torch.testing.assert_close(coupling.inverse(moved), states, rtol=1e-4, atol=1e-4)


def test_a_task_adapter_is_swapped_from_one_language_to_the_next(
    learn: Learn, base: Base, learning: ModuleType
) -> None:
    first, second, task = learn("mad_x", "language"), learn("mad_x", "language", seed=2), learn("mad_x")
    batch = batch_of(base, learning)
    model = base.token_classifier(task.labels, seed=1)
    plain = logits(model, batch)
    resident = Resident(model, base=base.ref)
    given = {}
    for name, language in (("first", first), ("second", second), ("again", first)):
        given[name] = logits(resident.switch([(language, 1.0), (task, 1.0)]), batch)
    assert torch.equal(given["first"], given["again"])
    assert not torch.equal(given["first"], given["second"])
    resident.switch([])
    assert not stack_of(model).composed
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(logits(model, batch), plain)


def test_what_cannot_be_done_with_stacked_adapters_is_refused(
    learn: Learn, base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    language, task = learn("mad_x", "language"), learn("mad_x")
    model = base.token_classifier(task.labels, seed=1)
    resident = Resident(model, base=base.ref)
    with pytest.raises(CompositionError, match=r"weight 0\.5: an adapter of mad_x is there or not"):
        resident.switch([(language, 0.5), (task, 1.0)])
    for parts in ([task, language], [language, language, task]):
        with pytest.raises(CompositionError, match="at most one of a language, and over it"):
            resident.switch([(sft, 1.0) for sft in parts])
    monkeypatch.setitem(RULES, "other", RULES["sum"])
    with pytest.raises(CompositionError, match=r"rule 'other' puts diffs together.*use the rule 'sum'"):
        Resident(model, base=base.ref, rule="other").switch([(task, 1.0)])
    with pytest.raises(CompositionError, match="cannot be exported; export a method whose SFTs are diffs"):
        export_composition(model, base.tokenizer, [(task, 1.0)], tmp_path / "out", base=base.ref)
    with pytest.raises(CompositionError, match="which leaves the weights alone"):
        interference(language, task)
    broken = {name: value for name, value in task.adapter.items() if name != "layers.1.up.bias"}
    with pytest.raises(CompositionError, match=r"adapter layers\.1\.up\.bias: shape none, but the model's is \[32\]"):
        resident.switch([(replace(task, adapter=broken), 1.0)])
    assert not stack_of(model).composed


@pytest.mark.parametrize("family", ["xlm-r", "distilbert", "modernbert"])
def test_mad_x_takes_encoders_like_bert_and_refuses_others_by_name(
    family: str, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    model = tiny_model(family)
    if family == "xlm-r":
        assert len(stack_of(model)._layers) == 2
        return
    with pytest.raises(BaseModelError, match=r"mad_x needs an encoder whose layers end as BERT's do.*lora takes any"):
        stack_of(model)


def test_the_width_of_mad_x_is_that_nearest_to_k() -> None:
    for k in (5_000, 90_000, 123_456):
        for invertible in (0, 48):
            width = matching_width(k, layers=3, hidden=48, invertible=invertible)
            sizes = {
                w: sum(p.numel() for p in Bottlenecks(3, 48, w, invertible).parameters())
                for w in (width - 1, width, width + 1)
                if w
            }
            assert min(sizes, key=lambda w: abs(sizes[w] - k)) == width
