"""Two processes that train together exchange K gradients and learn what one process learns from the same batches."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ltsft.sft.files import load_sft
from ltsft.sft.sft import SFT

CHILD = Path(__file__).parents[2] / "support" / "together_child.py"
DENSITY = 0.2


def train(root: Path, base: Path, processes: dict[str, int]) -> None:
    """Learn the same SFT in folders of these names, with so many processes in each."""
    recipe = {"density": DENSITY, "steps": 4, "dropout": 0.0, "evaluations": 2}
    jobs: list[dict[str, Any]] = []
    for name, count in processes.items():
        (root / name).mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"processes": count, "port": free.getsockname()[1]}
        asked = {"base": str(base), "folder": str(root / name), "kind": "task", "recipe": recipe, "micro_batches": 2}
        jobs.append({**asked, **place})
    (root / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHILD.parents[2])}
    command = [sys.executable, str(CHILD), str(root / "jobs.json")]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        told = running.communicate(timeout=500)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, 9)  # one that failed leaves others waiting
    assert running.returncode == 0, told[-3000:]


Trained = tuple[SFT, SFT, dict[str, float]]


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same training by one process and by two, and the bytes that each of the two sent in a step."""
    root = tmp_path_factory.mktemp("together")
    train(root, tiny_base, {"alone": 1, "together": 2})
    alone, together = (load_sft(root / name / "sft") for name in ("alone", "together"))
    return alone, together, json.loads((root / "together" / "exchanged.json").read_text())


def test_two_processes_learn_what_one_learns_from_the_same_batches(trained: Trained) -> None:
    alone, together, _ = trained
    assert alone.support_size == together.support_size
    shared = largest = 0
    for name, diff in alone.diffs.items():
        ours = torch.zeros(diff.size)
        theirs = torch.zeros(diff.size)
        ours[diff.indices.long()], theirs[together.diffs[name].indices.long()] = (
            diff.values,
            together.diffs[name].values,
        )
        both = torch.isin(diff.indices, together.diffs[name].indices)
        at = diff.indices[both].long()
        shared += len(at)
        largest = max(largest, float(diff.values.abs().max())) if len(diff.values) else largest
        torch.testing.assert_close(ours[at], theirs[at], rtol=1e-2, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert shared > 0.999 * alone.support_size
    assert largest > 1e-3
    for name, value in alone.head.items():
        torch.testing.assert_close(value, together.head[name], rtol=1e-2, atol=1e-5)


def test_the_bytes_exchanged_fall_to_the_density(trained: Trained) -> None:
    _, together, exchanged = trained
    head = 4 * sum(value.numel() for value in together.head.values())
    assert exchanged["full"] == 4 * together.maskable + head
    assert exchanged["sparse"] == 4 * together.support_size + head
    assert exchanged["sparse"] <= 1.2 * DENSITY * exchanged["full"]
