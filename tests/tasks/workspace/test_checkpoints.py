"""Checkpoints in S3: a new machine goes on where the last whole one was."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ltsft.base import Base, load_base
from ltsft.errors import InterruptedTraining
from ltsft.sft.files import save_sft
from ltsft.training.checkpoints import checkpoint_progress
from ltsft.training.prepare import Training
from ltsft.training.train import train_sft
from tasks.storage import Bucket, hash_file
from tasks.workspace.checkpoints import Checkpoints

pytestmark = pytest.mark.integration
KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


@pytest.fixture(scope="module")
def learning() -> ModuleType:
    import importlib.util

    file = Path(__file__).parents[2] / "support" / "learning.py"
    spec = importlib.util.spec_from_file_location("learning_for_checkpoints", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(base: Base, learning: ModuleType) -> Any:
    """Train in a folder until `stop_at`, a stage and a step; gives the hashes of the SFT, and what was reported."""

    def run(folder: Path, stop_at: tuple[str, int] | None = None) -> tuple[str | None, list[tuple[str, int]]]:
        objective, data = learning.masked_lm(base.tokenizer, folder)
        seen: list[tuple[str, int]] = []
        sft = train_sft(
            base,
            Training(
                objective=objective,
                kind="language",
                subject="aa",
                recipe=learning.make_recipe(steps=6),
                seed=1,
                data=data,
            ),
            folder=folder,
            checkpoint_seconds=0.0,
            device="cpu",
            on_progress=lambda p: seen.append((p.stage, p.step)),
            should_stop=lambda: stop_at in seen,
        )
        save_sft(sft, folder / "sft")
        return hash_file(folder / "sft/sft.safetensors") + hash_file(folder / "sft/sft.json"), seen

    return run


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads of this machine."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("stop_at", [("full", 3), ("sparse", 2)])
def test_a_training_that_was_asked_to_stop_ends_elsewhere_with_the_same_sft(
    bucket: Bucket, tmp_path: Path, train: Any, stop_at: tuple[str, int], threads: Callable[[int], None]
) -> None:
    undisturbed, _ = train(tmp_path / "undisturbed")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()

    with pytest.raises(InterruptedTraining), Checkpoints(bucket, KEY, first):
        train(first, stop_at)
    checkpoints = Checkpoints(bucket, KEY, second)
    assert checkpoints.restore() is not None
    threads(2)  # as the other machine is set; the training keeps what it was begun with
    moved, seen = train(second)
    checkpoints.remove()

    assert moved == undisturbed
    assert min(step for stage, step in seen if stage == stop_at[0]) == stop_at[1] + 2, "no step was done twice"
    assert list(bucket.entries("checkpoints")) == []


def write_checkpoint(folder: Path, step: int, content: str) -> None:
    checkpoint = folder / "0-full" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_text(content)
    (checkpoint / "whole.json").write_text(json.dumps({"model.safetensors": len(content)}))


@pytest.fixture
def saved(bucket: Bucket, tmp_path: Path) -> Path:
    """A folder whose checkpoints of steps 1, 2 and 3 were copied to S3."""
    folder = tmp_path / "node"
    folder.mkdir()
    checkpoints = Checkpoints(bucket, KEY, folder)
    for step in (1, 2, 3):
        write_checkpoint(folder, step, f"weights {step}")
        checkpoints.save()
    return folder


def restored(bucket: Bucket, folder: Path, key: str = KEY) -> tuple[int | None, list[str]]:
    folder.mkdir(exist_ok=True)
    number = Checkpoints(bucket, key, folder).restore()
    return number, sorted(file.read_text() for file in folder.rglob("model.safetensors"))


def test_two_checkpoints_are_kept_and_the_newest_is_taken(bucket: Bucket, saved: Path, tmp_path: Path) -> None:
    names = [entry.name for entry in bucket.entries(f"checkpoints/{KEY}")]

    assert [Path(name).name for name in names if name.endswith(".json")] == ["0000000002.json", "0000000003.json"]
    assert len(names) == 2 + 3, "two lists, two weights, and one file that both have"
    assert restored(bucket, tmp_path / "new") == (3, ["weights 3"])


@pytest.mark.parametrize("harm", ["damaged", "gone", "list"])
def test_a_corrupt_checkpoint_is_refused_by_name_and_the_one_before_is_taken(
    bucket: Bucket, saved: Path, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    digest = hash_file(saved / "0-full" / "checkpoint-3" / "model.safetensors")
    name = f"checkpoints/{KEY}/files/{digest}"
    if harm == "damaged":
        bucket.put(name, b"weights 8")
    elif harm == "gone":
        bucket.delete([name])
    else:
        bucket.put(f"checkpoints/{KEY}/0000000003.json", b'{"key": ')
    caplog.set_level(logging.WARNING, logger="tasks.workspace.checkpoints")

    assert restored(bucket, tmp_path / "new") == (2, ["weights 2"])
    assert f"checkpoint 3 of key {KEY} is refused" in caplog.text
    assert not list((tmp_path / "new").glob(".fetching*"))


def test_a_checkpoint_of_one_key_is_never_used_by_another(bucket: Bucket, saved: Path, tmp_path: Path) -> None:
    assert restored(bucket, tmp_path / "other", OTHER) == (None, [])

    for entry in list(bucket.entries(f"checkpoints/{KEY}")):  # copied there by hand
        stored = bucket.get(entry.name)
        bucket.put(entry.name.replace(KEY, OTHER), stored.data)
    assert restored(bucket, tmp_path / "other", OTHER) == (None, [])


def test_a_list_that_leads_out_of_the_folder_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    manifest = {
        "key": KEY,
        "files": {"0-full/../../../evil": {"sha256": "0" * 64, "size_bytes": 1}, "0-full/done.json": {}},
    }
    bucket.put(f"checkpoints/{KEY}/0000000001.json", json.dumps(manifest).encode())

    assert restored(bucket, tmp_path / "new") == (None, [])
    assert not (tmp_path / "evil").exists()


def test_a_folder_that_is_as_far_already_stays_as_it_is(bucket: Bucket, saved: Path) -> None:
    write_checkpoint(saved, 4, "weights 4, not copied yet")

    assert Checkpoints(bucket, KEY, saved).restore() is None
    assert (saved / "0-full" / "checkpoint-4" / "model.safetensors").exists()


def test_a_torn_checkpoint_is_not_copied(bucket: Bucket, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, "weights 1")
    write_checkpoint(tmp_path, 2, "weights 2")
    (tmp_path / "0-full" / "checkpoint-2" / "model.safetensors").write_text("weig")

    Checkpoints(bucket, KEY, tmp_path).save()

    assert restored(bucket, tmp_path / "new") == (1, ["weights 1"])


def test_new_checkpoints_are_copied_while_the_training_runs(bucket: Bucket, tmp_path: Path) -> None:
    with Checkpoints(bucket, KEY, tmp_path):
        write_checkpoint(tmp_path, 1, "weights 1")
        end = time.monotonic() + 30
        while not list(bucket.entries(f"checkpoints/{KEY}")) and time.monotonic() < end:
            time.sleep(0.1)

    assert restored(bucket, tmp_path / "new") == (1, ["weights 1"])


def test_the_later_phase_is_further() -> None:
    order = [
        [],
        ["0-full/best.safetensors"],
        ["0-full/checkpoint-9/whole.json"],
        ["0-full/checkpoint-10/whole.json"],
        ["0-full/done.json"],
        ["0-full/done.json", "0-support.safetensors"],
        ["0-support.safetensors", "0-sparse/checkpoint-1/whole.json"],
        ["0-sparse/done.json"],
        ["1-full/checkpoint-1/whole.json"],
    ]

    reached = [checkpoint_progress(names) for names in order]

    assert reached == sorted(reached)
    assert len(set(reached)) == len(order) - 1
