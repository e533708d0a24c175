"""The base: what each parameter is for, what identifies it, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from ltsft.base import Base, check_length, load_base, locate_base, parameter_roles
from ltsft.errors import BaseModelError, ConfigError

BuildModel = Callable[..., PreTrainedModel]


@pytest.fixture
def family_folder(family: str, tiny_model: BuildModel, tiny_base: Path, tmp_path: Path) -> Path:
    """A tiny base of each family, as it would come from the hub: output embeddings tied to the input's."""
    folder = tmp_path / family
    model = tiny_model(family, head="masked_lm", tied=True)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(tiny_base)))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_base / name, folder / name)
    return folder


@pytest.fixture
def copied(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base to damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "copied"))


def test_only_the_encoder_less_its_layer_norms_is_maskable(family_folder: Path) -> None:
    model = load_base(str(family_folder)).masked_lm()
    roles = parameter_roles(model)
    encoder = dict(model.base_model.named_parameters())
    left_out = set(encoder) - set(roles.maskable)
    assert left_out
    assert all("norm" in name.lower() for name in left_out)
    assert not any("norm" in name.lower() for name in roles.maskable)
    assert all(encoder[name] is p for name, p in roles.maskable.items())
    assert roles.size == sum(p.numel() for p in roles.maskable.values())
    assert any(name.endswith("word_embeddings.weight") or "tok_embeddings" in name for name in roles.maskable)


def test_output_embeddings_are_untied_and_frozen(family_folder: Path) -> None:
    model = load_base(str(family_folder)).masked_lm()
    roles = parameter_roles(model)
    output, entry = model.get_output_embeddings(), model.get_input_embeddings()
    assert output.weight is not entry.weight
    assert output.weight.data_ptr() != entry.weight.data_ptr()
    assert torch.equal(output.weight, entry.weight)
    frozen = dict(model.named_parameters())
    assert any(frozen[name] is output.weight for name in roles.frozen)
    trained = {id(p) for p in (*roles.maskable.values(), *roles.head.values())}
    assert id(output.weight) not in trained
    assert output.bias is None or id(output.bias) in {id(p) for p in roles.head.values()}


def test_every_parameter_has_exactly_one_role(family_folder: Path) -> None:
    base = load_base(str(family_folder))
    for model in (base.masked_lm(), base.token_classifier(["A", "B"], seed=1)):
        roles = parameter_roles(model)
        by_role = [
            {id(p) for p in roles.maskable.values()},
            {id(p) for p in roles.head.values()},
            {id(p) for name, p in model.named_parameters() if name in roles.frozen},
        ]
        assert sum(map(len, by_role)) == len(set.union(*by_role)) == len(list(model.parameters()))
        inside = {id(p) for p in model.base_model.parameters()}
        assert not inside & {id(p) for p in roles.head.values()}
        assert roles.head


def test_both_heads_stand_on_the_same_maskable_weights(family_folder: Path) -> None:
    base = load_base(str(family_folder))
    language = parameter_roles(base.masked_lm()).maskable
    task = parameter_roles(base.token_classifier(["A", "B"], seed=1)).maskable
    assert list(language) == list(task)
    assert all(torch.equal(language[name], task[name]) for name in language)


def test_a_classifier_head_depends_on_the_seed_alone(family_folder: Path) -> None:
    base = load_base(str(family_folder))
    torch.manual_seed(3)
    first = base.token_classifier(["A", "B", "C"], seed=1)
    before = torch.get_rng_state()
    again = base.token_classifier(["A", "B", "C"], seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    other = base.token_classifier(["A", "B", "C"], seed=2)
    for name, p in first.named_parameters():
        assert torch.equal(p, dict(again.named_parameters())[name]), name
    assert first.config.id2label == {0: "A", 1: "B", 2: "C"}
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    for value, expected in zip(other.base_model.parameters(), base.masked_lm().base_model.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_a_freeze_pattern_takes_parameters_out(tiny_base: Path) -> None:
    model = load_base(str(tiny_base)).masked_lm()
    roles = parameter_roles(model, ["embeddings.*", "*.bias"])
    assert roles.maskable
    assert not any(name.startswith("embeddings.") or name.endswith(".bias") for name in roles.maskable)
    assert "bert.embeddings.word_embeddings.weight" in roles.frozen


def test_a_freeze_pattern_that_matches_nothing_is_an_error(tiny_base: Path) -> None:
    model = load_base(str(tiny_base)).masked_lm()
    with pytest.raises(ConfigError, match=r"'embedings\.\*' matches no encoder parameter; names look like 'embeddings"):
        parameter_roles(model, ["embeddings.*", "embedings.*"])
    with pytest.raises(ConfigError, match=r"freeze: \* leaves no parameter of the encoder to train"):
        parameter_roles(model, ["*"])


def test_the_same_base_has_the_same_fingerprints_wherever_it_lies(tiny_base: Path, copied: Path) -> None:
    first, second = load_base(str(tiny_base)), load_base(str(copied))
    assert first.ref.fingerprint == second.ref.fingerprint
    assert first.ref.tokenizer_fingerprint == second.ref.tokenizer_fingerprint
    assert first.head_fingerprint == second.head_fingerprint
    assert second.ref.id == "copied"
    assert len(first.ref.fingerprint) == len(first.ref.tokenizer_fingerprint) == 64


def change_one_weight(folder: Path, name: str) -> Base:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        parameter = dict(model.named_parameters())[name].view(-1)
        parameter[0] = torch.nextafter(parameter[0], torch.tensor(9.0))
    model.save_pretrained(folder)
    return load_base(str(folder))


def test_one_bit_of_the_encoder_changes_the_fingerprint(tiny_base: Path, copied: Path) -> None:
    before, after = load_base(str(tiny_base)), change_one_weight(copied, "bert.encoder.layer.1.output.dense.bias")
    assert after.ref.fingerprint != before.ref.fingerprint
    assert after.head_fingerprint == before.head_fingerprint
    assert after.ref.tokenizer_fingerprint == before.ref.tokenizer_fingerprint


def test_one_bit_of_the_head_changes_the_head_fingerprint_alone(tiny_base: Path, copied: Path) -> None:
    before, after = load_base(str(tiny_base)), change_one_weight(copied, "cls.predictions.transform.dense.bias")
    assert after.ref.fingerprint == before.ref.fingerprint
    assert after.head_fingerprint != before.head_fingerprint


def test_one_token_changes_the_tokenizer_fingerprint_alone(tiny_base: Path, copied: Path) -> None:
    file = copied / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary[last + "x"] = vocabulary.pop(last)
    file.write_text(json.dumps(content), encoding="utf-8")
    before, after = load_base(str(tiny_base)).ref, load_base(str(copied)).ref
    assert after.tokenizer_fingerprint != before.tokenizer_fingerprint
    assert after.fingerprint == before.fingerprint


def test_a_base_stored_in_half_precision_is_loaded_as_float32(copied: Path) -> None:
    AutoModelForMaskedLM.from_pretrained(copied).to(torch.bfloat16).save_pretrained(copied)
    assert {p.dtype for p in load_base(str(copied)).masked_lm().parameters()} == {torch.float32}


def test_a_folder_without_a_base_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"cannot load the tokenizer of base .*nothing-here"):
        load_base(str(tmp_path / "nothing-here"))


def test_a_damaged_tokenizer_is_refused_by_name(copied: Path) -> None:
    (copied / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "None"}}', encoding="utf-8")
    with pytest.raises(BaseModelError, match=r"cannot load the tokenizer of base .*copied"):
        load_base(str(copied))


def test_a_tokenizer_without_a_mask_token_is_refused(copied: Path) -> None:
    file = copied / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "mask_token": None}), encoding="utf-8")
    with pytest.raises(BaseModelError, match="has no mask token"):
        load_base(str(copied))


def test_a_base_that_is_stored_as_a_pickle_alone_is_refused(copied: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(copied)
    torch.save(model.state_dict(), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    base = load_base(str(copied))
    with pytest.raises(BaseModelError, match="stored as safetensors"):
        base.masked_lm()


def test_a_truncated_base_is_refused_by_name(copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    base = load_base(str(copied))
    with pytest.raises(BaseModelError, match=r"cannot load base .*copied"):
        base.masked_lm()


def test_a_base_without_its_masked_lm_head_is_refused(copied: Path) -> None:
    AutoModel.from_pretrained(copied, add_pooling_layer=False).save_pretrained(copied)
    base = load_base(str(copied))
    with pytest.raises(BaseModelError, match=r"lacks \d+ weights of BertForMaskedLM, such as 'cls"):
        base.masked_lm()
    assert base.token_classifier(["A", "B"], seed=1).num_labels == 2


def test_a_base_with_holes_in_its_encoder_is_refused(copied: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(copied)
    state = {name: value for name, value in model.state_dict().items() if ".layer.1.attention." not in name}
    model.save_pretrained(copied, state_dict=state)
    base = load_base(str(copied))
    with pytest.raises(BaseModelError, match=r"such as 'bert\.encoder\.layer\.1\.attention"):
        base.token_classifier(["A", "B"], seed=1)


def test_a_base_is_found_under_the_data_root_or_as_it_is(copied: Path) -> None:
    assert locate_base("copied", data_root=str(copied.parent)) == str(copied)
    assert locate_base(str(copied), data_root="s3://bucket") == str(copied)
    assert locate_base("org/name", data_root=str(copied.parent)) == "org/name"


@pytest.mark.real
def test_the_shared_base_loads_whole(shared: Path) -> None:
    roles = parameter_roles(load_base(str(shared / "models" / "mini-multilingual-6x384")).masked_lm())
    assert roles.size > 10_000_000


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def add_weights(folder: Path, *names: str) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, **{name: torch.zeros(2) for name in names}}, folder / "model.safetensors", {"format": "pt"})


def test_a_checkpoint_with_more_layers_than_its_config_is_refused(copied: Path) -> None:
    change_json(copied / "config.json", num_hidden_layers=1)
    base = load_base(str(copied))
    for load in (base.masked_lm, lambda: base.token_classifier(["A", "B"], seed=1)):
        with pytest.raises(BaseModelError, match=r"does not use, such as 'bert\.encoder\.layer\.1\..*layers"):
            load()


def test_a_checkpoint_with_positions_of_another_kind_is_refused(copied: Path) -> None:
    add_weights(copied, "bert.encoder.layer.0.attention.self.distance_embedding.weight")
    with pytest.raises(BaseModelError, match=r"holds 1 weights that BertForMaskedLM does not use, such as .*distance"):
        load_base(str(copied)).masked_lm()


def test_weights_of_other_heads_poolers_and_what_is_worked_out_may_be_left_over(copied: Path, tiny_base: Path) -> None:
    add_weights(copied, "bert.pooler.dense.weight", "cls.seq_relationship.bias", "bert.embeddings.position_ids")
    assert load_base(str(copied)).ref.fingerprint == load_base(str(tiny_base)).ref.fingerprint


def test_a_length_beyond_the_positions_of_the_base_is_told(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    check_length(64, base.positions, place="recipes.pos.max_length")
    with pytest.raises(ConfigError, match=r"recipes\.pos\.max_length: must be at most 64, .*; got 65"):
        check_length(65, base.positions, place="recipes.pos.max_length")


def test_positions_begin_behind_the_padding_where_the_family_has_it_so(family: str, family_folder: Path) -> None:
    longest = {"xlm-r": 18, "modernbert": None}.get(family, 20)
    assert load_base(str(family_folder)).positions == longest


def test_a_tokenizer_larger_than_the_embeddings_is_refused(copied: Path) -> None:
    content = json.loads((copied / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"]["one more"] = 10_000
    (copied / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BaseModelError, match=r"larger than the base: 'one more' has id 10000, and the embeddings have"):
        load_base(str(copied)).masked_lm()


def test_a_tokenizer_without_a_pad_token_is_refused(copied: Path) -> None:
    change_json(copied / "tokenizer_config.json", pad_token=None)
    with pytest.raises(BaseModelError, match="has no pad token"):
        load_base(str(copied))


def test_a_folder_without_files_of_a_tokenizer_is_refused(copied: Path) -> None:
    for file in copied.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BaseModelError, match="has no files of a tokenizer"):
        load_base(str(copied))


def test_the_base_says_what_its_tokenizer_makes_of_texts(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    texts = dict(base.ref.golden)
    assert 20 <= len(texts) <= 30
    assert all(list(ids) == base.tokenizer(text)["input_ids"] for text, ids in texts.items())
