"""SFT folders: what is saved is what is loaded, and nothing that is damaged is loaded at all."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pcodec import standalone
from safetensors.torch import load_file, save_file

from ltsft.errors import SFTFileError
from ltsft.sft.files import CARD_FILE, MANIFEST_FILE, TENSOR_FILE, load_sft, read_manifest, save_sft
from ltsft.sft.manifest import seal_manifest
from ltsft.sft.packing import CHUNK, pack
from ltsft.sft.sft import SFT, BaseRef, Diff

NAME = "encoder.layer.0.output.dense.weight"


@pytest.fixture(scope="module")
def sft(tiny_model: Callable[..., Any], make_sft: Callable[..., SFT]) -> SFT:
    return make_sft(tiny_model(), kind="task", head=True)


@pytest.fixture
def folder(sft: SFT, tmp_path: Path) -> Path:
    return save_sft(sft, tmp_path / "pos")


NUMERICS = {"device": "cpu", "precision": "bf16", "threads": 2, "instructions": "AVX512", "torch": "2.13.0+cpu"}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_same(one: SFT, other: SFT) -> None:
    assert (one.kind, one.subject, one.base, one.labels) == (other.kind, other.subject, other.base, other.labels)
    assert (one.maskable, one.source_languages, one.details) == (other.maskable, other.source_languages, other.details)
    assert one.diffs.keys() == other.diffs.keys()
    for name, diff in one.diffs.items():
        assert diff.shape == other.diffs[name].shape
        assert torch.equal(diff.indices, other.diffs[name].indices)
        assert diff.values.numpy().tobytes() == other.diffs[name].values.numpy().tobytes()
    assert one.head.keys() == other.head.keys()
    for name, value in one.head.items():
        assert value.dtype == other.head[name].dtype
        assert torch.equal(value, other.head[name])


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_text())
    change(content)
    if math.isfinite(content["density"]) and len(content["seal"]) == 64:
        content["seal"] = seal_manifest(content)
    (folder / MANIFEST_FILE).write_text(json.dumps(content))


def rewrite_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors and make the manifest's hash fit, as someone would who meant harm."""
    tensors = load_file(folder / TENSOR_FILE)
    change(tensors)
    save_file(tensors, folder / TENSOR_FILE)
    content = (folder / TENSOR_FILE).read_bytes()
    entry = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite_manifest(folder, lambda manifest: manifest.update(tensor_file=entry))


@st.composite
def sfts(draw: st.DrawFn) -> SFT:
    diffs = {}
    for name in draw(st.sets(st.sampled_from(["embeddings.w", "layer.0.w", "layer.0.b", "layer.1.w"]))):
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
        size = int(torch.Size(shape).numel())
        support = sorted(draw(st.sets(st.integers(0, size - 1)))) if size else []
        floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
        values = draw(st.lists(floats, min_size=len(support), max_size=len(support)))
        diffs[name] = Diff(
            indices=torch.tensor(support, dtype=torch.int32),
            values=torch.tensor(values, dtype=torch.float32),
            shape=shape,
        )
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    json_values = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=2))
    return SFT(
        kind=draw(st.sampled_from(["language", "task"])),
        subject=draw(st.text(min_size=1)),
        base=BaseRef(draw(st.text()), draw(st.none() | st.text()), "a", "b"),
        diffs=diffs,
        head=draw(st.sampled_from([{}, {"classifier.weight": torch.ones((2, 3), dtype=dtype)}])),
        labels=tuple(draw(st.lists(st.text(), max_size=3))),
        maskable=sum(diff.size for diff in diffs.values()) + draw(st.integers(0, 3)),
        source_languages=tuple(draw(st.lists(st.text(), max_size=2))),
        details=draw(st.dictionaries(st.text(), json_values, max_size=3)),
    )


@settings(max_examples=50, deadline=None)
@given(sft=sfts())
def test_saving_and_loading_is_the_identity(sft: SFT, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = save_sft(sft, tmp_path_factory.mktemp("sft") / "saved")
    loaded = load_sft(folder)
    assert_same(sft, loaded)
    assert loaded.path == str(folder)
    again = save_sft(loaded, folder.parent / "again")
    assert bytes_of(again) == bytes_of(folder)


def test_the_same_sft_gives_the_same_bytes_whatever_the_order_of_its_parts(sft: SFT, folder: Path) -> None:
    shuffled = replace(
        sft,
        diffs=dict(reversed(sft.diffs.items())),
        head=dict(reversed(sft.head.items())),
        details=dict(reversed(sft.details.items())),
    )
    assert bytes_of(save_sft(shuffled, folder.parent / "other")) == bytes_of(folder)


def test_a_folder_holds_tensors_card_and_manifest(sft: SFT, folder: Path) -> None:
    assert sorted(bytes_of(folder)) == sorted([TENSOR_FILE, CARD_FILE, MANIFEST_FILE])
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    card = (folder / CARD_FILE).read_text()
    assert "sparse fine-tuning" in card
    assert f"{sft.support_size:,}" in card


def test_an_sft_keeps_what_its_tokenizer_made_of_texts(sft: SFT, tmp_path: Path) -> None:
    golden = (("ein\u200d", (1, 5, 2)), ("tvey", ()))
    loaded = load_sft(save_sft(replace(sft, base=replace(sft.base, golden=golden)), tmp_path / "golden"))
    assert loaded.base.golden == golden
    assert load_sft(save_sft(sft, tmp_path / "without")).base.golden == ()


def test_the_manifest_can_be_read_alone(sft: SFT, folder: Path) -> None:
    (folder / TENSOR_FILE).unlink()
    manifest = read_manifest(folder)
    assert manifest["target_task"] == "pos"
    assert manifest["density"] == sft.density
    assert manifest["base"]["revision"] is None
    assert manifest == json.loads((folder / MANIFEST_FILE).read_text())


def test_saving_again_replaces_an_older_sft(sft: SFT, folder: Path) -> None:
    newer = replace(sft, details={"seed": 7})
    save_sft(newer, folder)
    assert_same(load_sft(folder), newer)
    assert sorted(bytes_of(folder)) == sorted([TENSOR_FILE, CARD_FILE, MANIFEST_FILE])


def test_saving_again_mends_a_damaged_folder(sft: SFT, folder: Path) -> None:
    (folder / TENSOR_FILE).write_bytes(b"")
    save_sft(sft, folder)
    assert_same(load_sft(folder), sft)


def test_an_interrupted_replacement_leaves_no_sft_rather_than_a_mixed_one(
    sft: SFT, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = Path.replace

    def stop_at_the_card(self: Path, target: Path) -> Path:
        if self.name == CARD_FILE:
            raise KeyboardInterrupt
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", stop_at_the_card)
    with pytest.raises(KeyboardInterrupt):
        save_sft(replace(sft, maskable=sft.maskable + 1, diffs={}), folder)
    with pytest.raises(SFTFileError, match="not an SFT"):
        load_sft(folder)


def test_a_folder_with_other_things_in_it_is_left_alone(sft: SFT, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SFTFileError, match=r"notes\.txt"):
        save_sft(sft, tmp_path)
    assert bytes_of(tmp_path) == {"notes.txt": b"mine"}


def test_a_file_in_the_way_is_reported(sft: SFT, tmp_path: Path) -> None:
    (tmp_path / "pos").write_text("")
    with pytest.raises(SFTFileError, match="is a file"):
        save_sft(sft, tmp_path / "pos")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"diffs": {"w": Diff(torch.tensor([0, 0], dtype=torch.int32), torch.ones(2), (3,))}}, "diff of w"),
        ({"diffs": {"w": Diff(torch.tensor([0], dtype=torch.int32), torch.tensor([torch.nan]), (3,))}}, "diff of w"),
        ({"head": {"classifier.bias": torch.tensor([torch.inf])}}, "classifier.bias"),
        ({"head": {"classifier.bias": torch.tensor([1])}}, "classifier.bias"),
        ({"head": {"../evil": torch.ones(1)}}, "head.0.name"),
        ({"details": {"loss": float("nan")}}, "details"),
        ({"details": {"when": object()}}, "details"),
        ({"subject": "\ud800"}, "sft.json"),
        ({"maskable": 1}, "exceeds the 1 maskable"),
        ({"subject": ""}, "target_task"),
    ],
)
def test_an_unsound_sft_is_not_saved(sft: SFT, change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(SFTFileError) as raised:
        save_sft(replace(sft, **change), tmp_path / "pos")
    assert named in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_manifest_is_not_an_sft(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(SFTFileError, match=r"not an SFT: it has no readable sft\.json"):
        load_sft(folder)
    with pytest.raises(SFTFileError, match="there is no such folder"):
        load_sft(folder / "nowhere")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_the_tensors_is_refused(
    data: st.DataObject, sft: SFT, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save_sft(sft, tmp_path_factory.mktemp("sft") / "pos")
    content = bytearray((folder / TENSOR_FILE).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / TENSOR_FILE).write_bytes(content)
    with pytest.raises(SFTFileError, match=r"sft\.safetensors is corrupt: SHA-256"):
        load_sft(folder)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_in_the_manifest_is_refused_unless_it_means_nothing(
    data: st.DataObject, sft: SFT, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """White space between fields may become other white space."""
    folder = save_sft(sft, tmp_path_factory.mktemp("sft") / "pos")
    content = bytearray((folder / MANIFEST_FILE).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / MANIFEST_FILE).write_bytes(content)
    try:
        loaded = load_sft(folder)
    except SFTFileError:
        return
    assert_same(loaded, sft)


@pytest.mark.parametrize("keep", [0, 1, 7, 100, -1])
def test_a_truncated_tensor_file_is_refused(folder: Path, keep: int) -> None:
    content = (folder / TENSOR_FILE).read_bytes()
    (folder / TENSOR_FILE).write_bytes(content[:keep])
    with pytest.raises(SFTFileError, match=rf"sft\.safetensors has \d+ bytes, the manifest says {len(content)}"):
        load_sft(folder)


def test_a_truncated_manifest_is_refused(folder: Path) -> None:
    content = (folder / MANIFEST_FILE).read_bytes()
    for keep in range(0, len(content) - 2, 97):
        (folder / MANIFEST_FILE).write_bytes(content[:keep])
        with pytest.raises(SFTFileError, match=r"sft\.json is not a manifest"):
            load_sft(folder)


def repack(
    folder: Path,
    *,
    gaps: Callable[[np.ndarray], np.ndarray] | None = None,
    values: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Change the packed numbers of a small SFT and make everything that describes them fit."""
    sizes = {}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key, name, edit in (("diff.gaps", "gap_bytes", gaps), ("diff.values", "value_bytes", values)):
            numbers = standalone.simple_decompress(tensors[key].numpy().tobytes())
            stream = pack(edit(numbers) if edit is not None else numbers)[0]
            tensors[key] = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
            sizes[name] = [len(stream)]

    rewrite_tensors(folder, change)
    rewrite_manifest(folder, lambda manifest: manifest["packing"].update(sizes))


def at(place: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(numbers: np.ndarray) -> np.ndarray:
        numbers[place] = value
        return numbers

    return change


def set_at(key: str, place: int, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_at("head.classifier.bias", 0, float("nan")), "head classifier.bias"),
        (
            lambda tensors: tensors.update({"diff.values": tensors["diff.values"].int()}),
            "diff.values is torch.int32",
        ),
        (
            lambda tensors: tensors.update({"diff.gaps": tensors["diff.gaps"][None]}),
            "packed numbers are one row",
        ),
        (lambda tensors: tensors.update({"diff.values": tensors["diff.values"][1:]}), "tensor diff.values holds"),
        (lambda tensors: tensors.update({"extra": torch.ones(1)}), "tensor extra is not in the manifest"),
        (lambda tensors: tensors.pop("head.classifier.bias"), "tensor head.classifier.bias is missing"),
        (lambda tensors: tensors.update({"head.classifier.bias": torch.ones(9)}), "head classifier.bias"),
        (lambda tensors: tensors.update({"head.classifier.bias": torch.ones(3).half()}), "head classifier.bias"),
    ],
)
def test_tensors_that_do_not_hold_what_they_must_are_refused_by_name(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], named: str
) -> None:
    rewrite_tensors(folder, change)
    with pytest.raises(SFTFileError) as raised:
        load_sft(folder)
    assert named in str(raised.value)
    assert str(folder / TENSOR_FILE) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gaps": at(3, 2**30)}, "is out of range"),
        ({"gaps": at(3, 2**32 - 1)}, "is out of range"),
        ({"values": at(0, float("nan"))}, "value nan"),
        ({"values": at(-1, float("inf"))}, "value inf"),
        ({"values": lambda numbers: numbers[1:]}, "does not hold"),
        ({"gaps": lambda numbers: np.append(numbers, numbers[:1])}, "does not hold"),
        ({"values": lambda numbers: numbers.astype(np.float64)}, "cannot be unpacked"),
        ({"gaps": lambda numbers: numbers.astype(np.int32)}, "cannot be unpacked"),
    ],
)
def test_packed_numbers_that_are_not_what_they_must_be_are_refused(
    folder: Path, change: dict[str, Any], named: str
) -> None:
    repack(folder, **change)
    with pytest.raises(SFTFileError, match=named) as raised:
        load_sft(folder)
    assert str(folder / TENSOR_FILE) in str(raised.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_stream_that_someone_damaged_with_a_fitting_hash_is_refused_or_loads_something_sound(
    data: st.DataObject, sft: SFT, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Neither a crash nor a foreign error, whatever bits are flipped and wherever the stream is cut."""
    folder = save_sft(sft, tmp_path_factory.mktemp("sft") / "pos")
    key = data.draw(st.sampled_from(["diff.gaps", "diff.values"]))
    flips = data.draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=6))
    cut = data.draw(st.none() | st.floats(0, 1, exclude_max=True))
    sizes = {}

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        stream = tensors[key].clone()
        for where, bit in flips:
            stream[int(where * len(stream))] ^= 1 << bit
        tensors[key] = stream if cut is None else stream[: int(cut * len(stream))]
        sizes["gap_bytes" if key == "diff.gaps" else "value_bytes"] = [len(tensors[key])]

    rewrite_tensors(folder, damage)
    rewrite_manifest(folder, lambda manifest: manifest["packing"].update(sizes))
    try:
        loaded = load_sft(folder)
    except SFTFileError as error:
        assert str(folder) in str(error)  # noqa: PT017 - it may also load
        return
    assert loaded.support_size == sft.support_size
    assert all(diff.problem() is None for diff in loaded.diffs.values())


def test_a_small_file_cannot_ask_for_much_memory(sft: SFT, folder: Path) -> None:
    size = 2**31 - 1
    diff = {"name": "a", "shape": [size], "support_size": size}
    counts = {"diffs": [diff], "support_size": size, "maskable": size, "density": 1.0}
    rewrite_manifest(folder, lambda manifest: manifest.update(counts))
    with pytest.raises(SFTFileError, match=f"support_size {size} cannot come from"):
        load_sft(folder)


def test_several_chunks_are_packed_and_unpacked_as_one(sft: SFT, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(3 * CHUNK, generator=generator)
    indices = torch.nonzero(whole < 0.8).flatten().int()
    values = torch.randn(len(indices), generator=generator)
    one = Diff(indices=indices, values=values, shape=(3, CHUNK))
    few = Diff(indices=indices[:5], values=values[:5], shape=(CHUNK,))
    big = replace(sft, diffs={"a": few, "b": one, "c": few}, head={}, labels=(), maskable=5 * CHUNK)
    assert_same(load_sft(save_sft(big, folder.parent / "big")), big)
    assert len(read_manifest(folder.parent / "big")["packing"]["gap_bytes"]) == 3


def test_bfloat16_values_are_rounded_once_recorded_and_take_half_the_room(sft: SFT, folder: Path) -> None:
    stored = save_sft(sft, folder.parent / "half", values="bfloat16")
    assert read_manifest(stored)["packing"]["values"] == "bfloat16"
    assert read_manifest(folder)["packing"]["values"] == "float32"
    loaded = load_sft(stored)
    for name, diff in sft.diffs.items():
        assert torch.equal(loaded.diffs[name].values, diff.values.bfloat16().float())
        assert torch.equal(loaded.diffs[name].indices, diff.indices)
    again = save_sft(loaded, folder.parent / "again", values="bfloat16")
    assert bytes_of(again) == bytes_of(stored)
    sizes = {f: sum(read_manifest(f)["packing"]["value_bytes"]) for f in (folder, stored)}
    assert sizes[stored] < 0.55 * sizes[folder]


def test_values_that_bfloat16_cannot_hold_and_other_precisions_are_refused(sft: SFT, tmp_path: Path) -> None:
    huge = Diff(torch.tensor([0], dtype=torch.int32), torch.tensor([3.4e38]), (3,))
    with pytest.raises(SFTFileError, match="too large for bfloat16"):
        save_sft(replace(sft, diffs={"w": huge}), tmp_path / "pos", values="bfloat16")
    with pytest.raises(SFTFileError, match="float32 or bfloat16, got 'int8'"):
        save_sft(sft, tmp_path / "pos", values="int8")  # type: ignore[arg-type]


def test_a_refused_diff_names_its_parameter(sft: SFT, folder: Path) -> None:
    order = sorted(sft.diffs)
    first = sum(sft.diffs[name].support_size for name in order[: order.index(NAME)])
    repack(folder, values=at(first + 1, float("nan")))
    with pytest.raises(SFTFileError, match=f"diff of {NAME}: value nan at index"):
        load_sft(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format_version": 1}, "format_version 1 is unknown"),
        ({"format_version": True}, "format_version True is unknown"),
        ({"format_version": None}, "format_version None is unknown"),
        ({"kind": "adapter"}, "kind"),
        ({"support_size": 3}, "support_size"),
        ({"density": 0.5}, "density"),
        ({"density": float("nan")}, "NaN is not a JSON number"),
        ({"maskable": -1}, "maskable"),
        ({"maskable": 7.5}, "maskable"),
        ({"labels": "NOUN"}, "labels"),
        ({"target_task": None}, "target_task"),
        ({"base": {"id": "x"}}, "base.fingerprint"),
        ({"tensor_file": {"size_bytes": 1, "sha256": "no"}}, "tensor_file.sha256"),
        ({"tensor_file": {"size_bytes": 1, "sha256": "0" * 64, "name": "/etc/passwd"}}, "tensor_file.name"),
        ({"packing": {"codec": "zip"}}, "packing.codec"),
        ({"surprise": 1}, "surprise"),
        ({"seal": "0"}, "seal"),
        ({"details": {"numerics": [{"precision": "bf16"}]}}, "details.numerics.0.device"),
        ({"details": {"numerics": [{**NUMERICS, "device": "<script>"}]}}, "details.numerics.0.device"),
        ({"details": {"numerics": [{**NUMERICS, "threads": 2.5}]}}, "details.numerics.0.threads"),
        ({"details": {"numerics": [NUMERICS] * 1001}}, "details.numerics"),
        ({"diffs": [{"name": "a", "shape": [2], "support_size": 3}]}, "support_size 3 exceeds"),
        ({"diffs": [{"name": "../a", "shape": [2], "support_size": 0}]}, "diffs.0.name"),
        ({"diffs": [{"name": "a", "shape": [-2], "support_size": 0}]}, "diffs.0.shape"),
        ({"diffs": [{"name": "a", "shape": [2**16, 2**16], "support_size": 0}]}, "more than 2147483647"),
        ({"diffs": [{"name": "a", "shape": [2], "support_size": 1}] * 2}, "parameter a is listed more than once"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused_by_name(folder: Path, change: dict[str, Any], named: str) -> None:
    rewrite_manifest(folder, lambda manifest: manifest.update(change))
    with pytest.raises(SFTFileError) as raised:
        load_sft(folder)
    assert named in str(raised.value)
    assert str(folder / MANIFEST_FILE) in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"a": 1, "a": 2}', "\ufeff{}", "[" * 100_000])
def test_what_is_not_a_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(SFTFileError, match=r"sft\.json"):
        load_sft(folder)


def test_a_file_that_is_not_safetensors_is_refused(folder: Path) -> None:
    content = b"\xff" * 64
    (folder / TENSOR_FILE).write_bytes(content)
    entry = {"size_bytes": 64, "sha256": hashlib.sha256(content).hexdigest()}
    rewrite_manifest(folder, lambda manifest: manifest.update(tensor_file=entry))
    with pytest.raises(SFTFileError, match=r"sft\.safetensors is not a safetensors file"):
        load_sft(folder)


def test_a_missing_tensor_file_is_refused(folder: Path) -> None:
    (folder / TENSOR_FILE).unlink()
    with pytest.raises(SFTFileError, match=r"sft\.safetensors cannot be read"):
        load_sft(folder)


def test_a_manifest_changed_by_hand_is_refused(folder: Path) -> None:
    text = (folder / MANIFEST_FILE).read_text()
    (folder / MANIFEST_FILE).write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(SFTFileError, match=r"sft\.json was damaged or changed after it was written"):
        load_sft(folder)


def test_a_copied_folder_is_the_same_sft(sft: SFT, folder: Path) -> None:
    copy = shutil.copytree(folder, folder.parent / "copy")
    assert_same(load_sft(copy), sft)
