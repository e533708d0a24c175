"""Two processes that train together exchange K gradients and learn what one process learns from the same batches."""

from __future__ import annotations

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


def train(folder: Path, base: Path, *, kind: str, processes: int) -> SFT:
    folder.mkdir(parents=True)
    job: dict[str, Any] = {
        "base": str(base),
        "folder": str(folder),
        "kind": kind,
        "recipe": {"density": DENSITY, "steps": 4, "dropout": 0.0, "evaluations": 2},
        "micro_batches": 2,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHILD.parents[2])}
    running = []
    for rank in range(processes):
        placed = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        together = {**placed, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
        command = [sys.executable, str(CHILD), str(folder / "job.json")]
        environment = {**os.environ, **ours, **together}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [child.communicate(timeout=300)[1] for child in running]
    assert [child.returncode for child in running] == [0] * processes, "\n".join(errors)[-3000:]
    return load_sft(folder / "sft")


Trained = tuple[SFT, SFT, dict[str, float]]


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same training by one process and by two, and the bytes that each of the two sent in a step."""
    root = tmp_path_factory.mktemp("together")
    alone = train(root / "alone", tiny_base, kind="task", processes=1)
    together = train(root / "together", tiny_base, kind="task", processes=2)
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
