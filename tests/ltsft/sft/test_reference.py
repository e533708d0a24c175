"""The reference format: read exactly, and never trusted."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ltsft.composition.compose import composed
from ltsft.errors import SFTFileError
from ltsft.sft.files import load_sft, save_sft
from ltsft.sft.reference import REFERENCE_FILE, convert_reference, read_reference
from ltsft.sft.sft import BaseRef

WEIGHT = "bert.encoder.layer.0.output.dense.weight"
BIAS = "bert.encoder.layer.0.output.dense.bias"


def encoded(dense: torch.Tensor) -> dict[str, Any]:
    """Encode as the format says: flat indices with the first dimension fastest, kept as steps."""
    flat = dense.permute(*reversed(range(dense.dim()))).reshape(-1)
    indices = flat.nonzero().flatten().numpy()
    steps = np.diff(indices).tolist()
    return {
        "size": dense.size(),
        "index_steps": [indices[0], *steps] if len(indices) else [],
        "values": flat[indices].clone(),
    }


def sparse(shape: tuple[int, ...], seed: int, density: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)


def content() -> dict[str, Any]:
    return {
        "diffs": {WEIGHT: encoded(sparse((16, 24), 1)), BIAS: encoded(torch.zeros(16))},
        "abs": {"classifier.weight": torch.ones(3, 16), "classifier.bias": torch.arange(3.0)},
    }


def written(folder: Path, content: object, protocol: int = 2) -> Path:
    torch.save(content, folder / REFERENCE_FILE, pickle_protocol=protocol)
    return folder


def repacked(
    folder: Path,
    change: Callable[[str, bytes], bytes],
    *,
    compression: int = zipfile.ZIP_STORED,
    extra: str | None = None,
) -> Path:
    """Write the archive anew, entry for entry, with some of them changed."""
    file = folder / REFERENCE_FILE
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, old in entries.items():
            archive.writestr(name, change(name.partition("/")[2], old))
        if extra:
            archive.writestr(extra, b"")
    return folder


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_in_the_reference_format_is_read_exactly(tmp_path: Path, protocol: int) -> None:
    reference = read_reference(written(tmp_path, content(), protocol))
    assert torch.equal(reference.diffs[WEIGHT].dense(), sparse((16, 24), 1))
    assert reference.diffs[BIAS].support_size == 0
    assert reference.diffs[BIAS].shape == (16,)
    assert torch.equal(reference.absolute["classifier.bias"], torch.arange(3.0))
    assert all(diff.problem() is None for diff in reference.diffs.values())


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99), density=st.floats(0, 1))
def test_every_shape_is_read_exactly(
    shape: list[int], seed: int, density: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dense = sparse(tuple(shape), seed, density)
    folder = written(tmp_path_factory.mktemp("reference"), {"diffs": {WEIGHT: encoded(dense)}})
    assert torch.equal(read_reference(folder).diffs[WEIGHT].dense(), dense)


def test_half_precision_values_and_views_are_read_exactly(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    stored = content()
    stored["abs"] = {"view": whole.t()[1:3], "half": whole.to(torch.bfloat16), "scalar": torch.tensor(2.0)}
    reference = read_reference(written(tmp_path, stored))
    assert torch.equal(reference.absolute["view"], whole.t()[1:3])
    assert torch.equal(reference.absolute["half"], whole.to(torch.bfloat16).float())
    assert torch.equal(reference.absolute["scalar"], torch.tensor(2.0))


@pytest.mark.real
def test_the_sample_of_the_reference_implementation_is_read_to_exactly_the_expected_values(shared: Path) -> None:
    folder = shared / "reference" / "composable_sft_sample"
    expected = load_file(folder / "expected_dense.safetensors")
    reference = read_reference(folder)
    found = {f"diff.{name}": diff.dense() for name, diff in reference.diffs.items()}
    found |= {f"abs.{name}": value for name, value in reference.absolute.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_a_converted_sft_composes_like_any_other(
    tmp_path: Path, tiny_model: Callable[..., Any], base_ref: BaseRef
) -> None:
    model = tiny_model("bert")
    sft = convert_reference(
        written(tmp_path, content()),
        base=base_ref,
        kind="task",
        subject="pos",
        labels=("NOUN", "VERB", "X"),
        source_languages=("en",),
        model=model,
    )
    assert list(sft.diffs) == [WEIGHT.removeprefix("bert."), BIAS.removeprefix("bert.")]
    assert sft.maskable == 16 * 24 + 16
    sft = load_sft(save_sft(sft, tmp_path / "converted"))
    base = model.get_parameter(WEIGHT).detach().clone()
    with composed(model, [(sft, 1.0)], base=base_ref):
        assert torch.equal(model.get_parameter(WEIGHT), base + sparse((16, 24), 1))
        assert torch.equal(model.classifier.bias, torch.arange(3.0))
    assert torch.equal(model.get_parameter(WEIGHT), base)


def test_labels_come_from_the_config_beside_the_file(tmp_path: Path, base_ref: BaseRef) -> None:
    written(tmp_path, content())
    config = tmp_path / "config.json"
    config.write_text('{"id2label": {"0": "A", "1": "B", "2": "C"}}')
    assert convert_reference(tmp_path, base=base_ref, kind="task", subject="pos").labels == ("A", "B", "C")
    config.write_text('{"id2label": {"0": "A", "1": "B"}}')
    with pytest.raises(SFTFileError, match=r"config\.json: 2 labels, but the head has \[3\] outputs"):
        convert_reference(tmp_path, base=base_ref, kind="task", subject="pos")
    config.write_text('{"id2label": ["A"]}')
    with pytest.raises(SFTFileError, match="id2label cannot be read"):
        convert_reference(tmp_path, base=base_ref, kind="task", subject="pos")


def test_a_diff_outside_the_encoder_is_refused(
    tmp_path: Path, tiny_model: Callable[..., Any], base_ref: BaseRef
) -> None:
    stored = content()
    stored["diffs"]["cls.predictions.bias"] = encoded(torch.ones(4))
    written(tmp_path, stored)
    with pytest.raises(SFTFileError, match=r"begin with bert, cls; give the encoder's prefix"):
        convert_reference(tmp_path, base=base_ref, kind="language", subject="fo")
    with pytest.raises(SFTFileError, match=r"cls\.predictions\.bias lies outside the encoder"):
        convert_reference(tmp_path, base=base_ref, kind="language", subject="fo", prefix="bert")


def test_a_reference_sft_of_another_model_is_refused(
    tmp_path: Path, tiny_model: Callable[..., Any], base_ref: BaseRef
) -> None:
    stored = {"diffs": {WEIGHT: encoded(torch.ones(24, 16))}}
    with pytest.raises(SFTFileError, match=r"has shape \[24, 16\]; the model's is \[16, 24\]"):
        convert_reference(
            written(tmp_path, stored), base=base_ref, kind="language", subject="fo", model=tiny_model("bert")
        )


class Harmful:
    """Unpickled by anything that trusts pickles, it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("function", [os.mkdir, eval, getattr, torch.load, np.fromfile, torch.nn.Linear])
def test_a_pickle_that_names_any_other_global_is_refused_by_that_name_and_runs_nothing(
    tmp_path: Path, function: Callable[..., Any], protocol: int
) -> None:
    victim = tmp_path / "made"
    stored = content() | {"more": Harmful(function, str(victim))}
    name = function.__name__
    with pytest.raises(
        SFTFileError, match=rf"{REFERENCE_FILE} names [\w.]*{name}, which a reference SFT does not need"
    ):
        read_reference(written(tmp_path, stored, protocol))
    assert not victim.exists()


def test_a_persistent_id_or_a_state_cannot_smuggle_anything_in(tmp_path: Path) -> None:
    class Stateful:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.Size, ((1,),), {"__call__": 1}

    for harmful in (Stateful(), Harmful(torch.Size, 3), Harmful(np.dtype, "O"), torch.nn.Parameter(torch.ones(1))):
        with pytest.raises(SFTFileError, match=REFERENCE_FILE):
            read_reference(written(tmp_path, {"diffs": {}, "abs": {"w": harmful}}))


@pytest.mark.parametrize(
    ("program", "named"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "names os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "names os.system"),
        (b"(ios\nsystem\n.", "uses INST"),
        (b"\x82\x01.", "uses EXT1"),
        (b"Pstorage\n.", "uses PERSID"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "memo 2147483647"),
        (b"\x80\x02}", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02(]Q.", "damaged"),
        (b"\x80\x02K\x01.", "expected the sections diffs and abs, found int"),
    ],
)
def test_a_strange_program_is_refused(tmp_path: Path, program: bytes, named: str) -> None:
    folder = repacked(written(tmp_path, content()), lambda name, old: program if name == "data.pkl" else old)
    with pytest.raises(SFTFileError) as raised:
        read_reference(folder)
    assert named in str(raised.value)


def changed(section: str, name: str, **fields: object) -> dict[str, Any]:
    stored = content()
    stored[section][name] = {**stored[section][name], **fields}
    return stored


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ([], "found list"),
        ({"abs": {}}, "found ['abs']"),
        ({"body": {}, "head": {}}, "found ['body', 'head']"),
        ({"diffs": []}, "section diffs"),
        ({"diffs": {3: {}}}, "section diffs"),
        ({"diffs": {WEIGHT: {}}}, WEIGHT),
        ({"diffs": {}, "abs": {"w": 3}}, "w is not a tensor"),
        ({"diffs": {}, "abs": {"w": torch.tensor([torch.nan])}}, "not finite"),
        ({"diffs": {WEIGHT: encoded(torch.ones(2))}, "abs": {WEIGHT: torch.ones(2)}}, "both a diff and stored whole"),
        (changed("diffs", WEIGHT, size=(16,)), WEIGHT),
        (changed("diffs", WEIGHT, size=[16, 24]), WEIGHT),
        (changed("diffs", WEIGHT, size=(16, -24)), WEIGHT),
        (changed("diffs", WEIGHT, size=(2**40, 2**40)), WEIGHT),
        (changed("diffs", WEIGHT, size=("16", 24)), WEIGHT),
        (changed("diffs", WEIGHT, index_steps=3), WEIGHT),
        (changed("diffs", WEIGHT, index_steps=[1, 2]), WEIGHT),
        (changed("diffs", WEIGHT, index_steps=[1, 0], values=torch.ones(2)), "increasing indices"),
        (changed("diffs", WEIGHT, index_steps=[-1, 1], values=torch.ones(2)), "increasing indices"),
        (changed("diffs", WEIGHT, index_steps=[1, 2**70], values=torch.ones(2)), "increasing indices"),
        (changed("diffs", WEIGHT, index_steps=[380, 9], values=torch.ones(2)), "index 389 is out of range"),
        (changed("diffs", WEIGHT, index_steps=["1"], values=torch.ones(1)), "increasing indices"),
        (changed("diffs", WEIGHT, index_steps=[1], values=torch.ones(1, 1)), WEIGHT),
        (changed("diffs", WEIGHT, index_steps=[1], values=torch.tensor([torch.inf])), "value inf"),
        (changed("diffs", WEIGHT, index_steps=[1], values=torch.tensor([1])), "torch.LongStorage"),
    ],
)
def test_content_that_is_not_of_the_format_is_refused_by_name(tmp_path: Path, stored: object, named: str) -> None:
    with pytest.raises(SFTFileError) as raised:
        read_reference(written(tmp_path, stored))
    assert named in str(raised.value)
    assert REFERENCE_FILE in str(raised.value)


def test_a_storage_that_is_too_short_or_missing_is_refused(tmp_path: Path) -> None:
    written(tmp_path, content())
    with pytest.raises(SFTFileError, match="storage 0 has"):
        read_reference(repacked(tmp_path, lambda name, old: old[:-4] if name == "data/0" else old))


def test_a_tensor_that_reaches_outside_its_storage_or_repeats_it_is_refused(tmp_path: Path) -> None:
    stored = {"diffs": {}, "abs": {"w": torch.ones(1).expand(1_000_000)}}
    with pytest.raises(SFTFileError, match="reaches outside its storage"):
        read_reference(written(tmp_path, stored))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    written(tmp_path, content())
    with pytest.raises(SFTFileError, match="is compressed"):
        read_reference(repacked(tmp_path, lambda _, old: old, compression=zipfile.ZIP_DEFLATED))


def test_an_archive_with_two_pickles_or_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    written(tmp_path, content())
    with pytest.raises(SFTFileError, match=r"holds 2 data\.pkl"):
        read_reference(repacked(tmp_path, lambda _, old: old, extra="other/data.pkl"))
    written(tmp_path, content())
    with pytest.raises(SFTFileError, match="byte order"):
        read_reference(repacked(tmp_path, lambda name, old: b"big" if name == "byteorder" else old))


def test_what_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SFTFileError, match="cannot be read"):
        read_reference(tmp_path / "nowhere")
    file = tmp_path / REFERENCE_FILE
    file.write_bytes(pickle.dumps(content()["abs"]))
    with pytest.raises(SFTFileError, match="not a zip archive"):
        read_reference(tmp_path)
    whole = io.BytesIO()
    torch.save(content(), whole)
    file.write_bytes(whole.getvalue()[:-100])
    with pytest.raises(SFTFileError, match=REFERENCE_FILE):
        read_reference(file)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_leaves_a_sound_diff(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = written(tmp_path_factory.mktemp("reference"), content())
    file = folder / REFERENCE_FILE
    damaged = bytearray(file.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(damaged)
    try:
        reference = read_reference(folder)
    except SFTFileError:
        return
    assert torch.equal(reference.diffs[WEIGHT].dense(), sparse((16, 24), 1))
