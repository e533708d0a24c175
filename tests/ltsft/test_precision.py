"""Precision, threads and processor: known before training, kept while it goes on, and on record in the SFT."""

from __future__ import annotations

import inspect
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ltsft.base import Base, load_base
from ltsft.config.recipe import Precision
from ltsft.errors import InterruptedTraining, TrainingError
from ltsft.evaluation.scoring import Scorer
from ltsft.precision import Numerics, is_native, numerics_of, summarise, usable_precision
from ltsft.sft.card import write_card
from ltsft.sft.files import load_sft, save_sft
from ltsft.sft.sft import SFT
from ltsft.training.checkpoints import NUMERICS, checkpoint_files
from ltsft.training.phase import write_tensors
from ltsft.training.prepare import Training
from ltsft.training.settling import settle_numerics
from ltsft.training.train import train_sft

ROOT = Path(__file__).parents[2]
EMULATED: Precision = "fp16"
"""No CPU trains in it, so that float32 takes its place on every machine that runs these tests."""
Learn = Callable[..., SFT]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


@pytest.fixture
def learn(base: Base, learning: ModuleType) -> Learn:
    def run(folder: Path, precision: Precision, **more: Any) -> SFT:
        objective, data = learning.tagging(base.tokenizer)
        recipe = learning.make_recipe(precision=precision, steps=4)
        return train_sft(
            base,
            Training(objective=objective, kind="task", subject="pos", recipe=recipe, seed=1, data=data),
            folder=folder,
            checkpoint_seconds=0.0,
            device="cpu",
            **more,
        )

    return run


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """What `ltsft` warns of, wherever else its logger was told to write."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ltsft").addHandler(handler)
    yield said
    logging.getLogger("ltsft").removeHandler(handler)


def weights(sft: SFT) -> dict[str, list[int]]:
    """The bits of an SFT."""
    bits = {name: [*d.indices.tolist(), *d.values.view(torch.int32).tolist()] for name, d in sft.diffs.items()}
    return bits | {name: value.view(torch.int32).reshape(-1).tolist() for name, value in sft.head.items()}


def begun(folder: Path, *stretches: Numerics) -> Path:
    """Make the folder of a training that was begun: it has selected its support."""
    folder.mkdir()
    write_tensors({"w": torch.zeros(1)}, folder / "0-support.safetensors")
    if stretches:
        (folder / NUMERICS).write_text(json.dumps([stretch.model_dump() for stretch in stretches]))
    return folder


def elsewhere(precision: Precision, *, threads: int = 1) -> Numerics:
    """What a training computed in on a machine that is not this one."""
    return Numerics(device="cpu", precision=precision, threads=threads, instructions="SVE256", torch="2.13.0")


def ask_in_a_process(**environment: str) -> dict[str, Any]:
    code = """if True:
        import json, torch
        from ltsft.precision import Numerics, is_native
        found = Numerics.of_device("cpu", precision="fp32", threads=torch.get_num_threads())
        print(json.dumps({"bf16": is_native("bf16", "cpu"), **found.model_dump()}))
    """
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **path, **environment}, capture_output=True, text=True,
        check=True, timeout=300,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_torch_still_answers_what_it_is_asked() -> None:
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
    assert "including_emulation" in inspect.signature(torch.cuda.is_bf16_supported).parameters
    assert isinstance(torch.backends.cpu.get_cpu_capability(), str)
    has = torch.cpu.get_capabilities()
    if platform.machine() == "x86_64":
        flags = Path("/proc/cpuinfo").read_text().split()
        for name in ("avx512_bf16", "amx_bf16", "avx2"):
            assert has[name] == (name in flags), name


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the settings of oneDNN are for x86")
def test_a_processor_without_bfloat16_is_known_and_its_threads_are_those_of_the_environment() -> None:
    found = ask_in_a_process(ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2", OMP_NUM_THREADS="1")
    assert found["bf16"] is False
    assert (found["instructions"], found["threads"]) == ("AVX2", 1)


def test_a_processor_is_asked_itself_too_for_onednn_says_yes_to_all_of_avx_512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    cascade_lake = {"avx2": True, "avx512_f": True, "avx512_vnni": True, "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cascade_lake)
    assert not is_native("bf16", "cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**cascade_lake, "avx512_bf16": True})
    assert is_native("bf16", "cpu")


@pytest.mark.parametrize("is_emulated", [True, False])
def test_a_gpu_that_emulates_bfloat16_is_known(is_emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    if not is_emulated:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert usable_precision("bf16", "cuda:0") == ("fp32" if is_emulated else "bf16")
    assert usable_precision("fp16", "cuda:0") == "fp16"
    assert usable_precision("fp32", "cuda:0") == "fp32"


def test_what_would_be_emulated_is_trained_in_float32_said_once_and_on_record(
    learn: Learn, tmp_path: Path, warned: list[str]
) -> None:
    plain = learn(tmp_path / "plain", "fp32")
    assert not warned
    asked = learn(tmp_path / "asked", EMULATED)

    assert weights(asked) == weights(plain), "evaluations, which choose the weights, are in float32 too"
    [said] = warned
    assert said.startswith("trained in float32: this processor (")
    assert "has no float16, which the recipe asks for" in said
    stored = load_sft(save_sft(asked, tmp_path / "sft"))
    [used] = numerics_of(stored.details)
    assert (used.device, used.precision, used.threads) == ("cpu", "fp32", torch.get_num_threads())
    assert (used.instructions, used.torch) == (torch.backends.cpu.get_cpu_capability(), torch.__version__)
    assert stored.details["recipe"]["precision"] == EMULATED, "the recipe, and with it the key, is as it was asked for"
    assert "float32 (the recipe asks for float16), 1 threads, cpu (" in (tmp_path / "sft" / "README.md").read_text()
    assert "(the recipe asks" not in write_card(plain)
    assert "computed in" not in write_card(replace(plain, details={}))


def test_a_cell_is_scored_in_float32_where_its_precision_would_be_emulated(
    base: Base, learning: ModuleType, tmp_path: Path, warned: list[str]
) -> None:
    objectives = (learning.tagging(base.tokenizer)[0], learning.masked_lm(base.tokenizer, tmp_path)[0])
    scorer = Scorer(base, *objectives, precision=EMULATED, device="cpu")
    assert scorer.precision == "fp32"
    assert [text[:17] for text in warned] == ["scored in float32"]
    assert Scorer(base, *objectives, precision="fp32", device="cpu").precision == "fp32"


def test_a_training_keeps_its_threads_wherever_it_goes_on(
    learn: Learn, tmp_path: Path, two_threads: None, warned: list[str]
) -> None:
    torch.set_num_threads(1)
    undisturbed = learn(tmp_path / "undisturbed", "fp32")
    seen: list[tuple[str, int, int]] = []

    def report(progress: Any) -> None:
        seen.append((progress.stage, progress.step, torch.get_num_threads()))

    with pytest.raises(InterruptedTraining):
        learn(tmp_path / "moved", "fp32", on_progress=report, should_stop=lambda: bool(seen) and seen[-1][1] == 2)
    torch.set_num_threads(2)
    begin = len(seen)
    moved = learn(tmp_path / "moved", "fp32", on_progress=report)

    assert seen[begin][:2] == ("full", 4), "it went on"
    assert {threads for _, _, threads in seen} == {1}
    assert torch.get_num_threads() == 2, "what comes after has the threads of this machine"
    assert warned == ["goes on with 1 threads, as it was begun; this machine is set to 2"]
    assert weights(moved) == weights(undisturbed)
    assert moved.details == undisturbed.details


@pytest.mark.parametrize(
    ("was", "asked", "precision", "said"),
    [
        ("fp32", "bf16", "fp32", "goes on in float32, as it was begun; the recipe asks for bfloat16"),
        (EMULATED, EMULATED, "fp32", "goes on in float32: this processor"),
        ("fp32", "fp32", "fp32", ""),
    ],
)
def test_a_training_that_goes_on_elsewhere_never_mixes_precisions_in_silence(
    was: Precision, asked: Precision, precision: Precision, said: str, tmp_path: Path, warned: list[str]
) -> None:
    folder = begun(tmp_path / "moved", elsewhere(was))
    before, now = settle_numerics(folder, asked, "cpu")
    assert before == elsewhere(was), "where it was begun stays on record"
    assert (now.precision, now.threads) == (precision, 1)
    assert [text[: len(said)] for text in warned] == ([said] if said else [])
    assert settle_numerics(folder, asked, "cpu") == (before, now), "once more here adds nothing"
    if was != precision:
        assert summarise((before, now))["precision"] == "fp16, then fp32"


def test_a_training_older_than_this_record_goes_on_as_its_recipe_asks(tmp_path: Path) -> None:
    [now] = settle_numerics(begun(tmp_path / "old"), "fp32", "cpu")
    assert now.precision == "fp32"


def test_what_was_settled_for_a_training_that_left_nothing_is_settled_anew(tmp_path: Path) -> None:
    folder = begun(tmp_path / "lost", elsewhere("fp32", threads=7))
    (folder / "0-support.safetensors").unlink()
    [now] = settle_numerics(folder, "fp32", "cpu")
    assert now.threads == torch.get_num_threads()
    assert checkpoint_files(folder) == [], "alone it is no checkpoint"


def test_what_was_settled_is_part_of_each_checkpoint_and_refused_if_damaged(tmp_path: Path) -> None:
    folder = begun(tmp_path / "moved", elsewhere("fp32"))
    assert folder / NUMERICS in checkpoint_files(folder)
    (folder / NUMERICS).write_text("[{}]")
    with pytest.raises(TrainingError, match=rf"{NUMERICS} is damaged"):
        settle_numerics(folder, "fp32", "cpu")
