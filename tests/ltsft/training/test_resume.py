"""A training that is killed by SIGKILL and started again ends with the same SFT, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHILD = Path(__file__).parents[2] / "support" / "train_child.py"

KILLS: dict[str, list[dict[str, Any]]] = {
    "language": [  # two rounds of select and train; a place is a stage and a step, `once` that a folder exists
        {"at": ["full", 5]},
        {"checkpoint": "checkpoint-7"},
        {"at": ["selection", 0]},
        {"at": ["sparse", 4]},
        {"at": ["sparse", 7], "truncate": True},
        {"at": ["sparse", 8], "once": "1-sparse"},
    ],
    "task": [{"at": ["head", 2]}, {"at": ["full", 3]}, {"at": ["selection", 0]}, {"at": ["sparse", 6]}],
    "consistent": [{"at": ["full", 3]}, {"at": ["sparse", 4]}],  # with augmentations and a frozen first stage
    "deft_x": [{"at": ["selection", 0]}, {"at": ["sparse", 2]}],
    "rand_sft": [{"at": ["selection", 0]}, {"at": ["sparse", 5]}],
    "mad_x": [{"at": ["full", 3]}, {"at": ["full", 5]}],
    "lora": [{"at": ["head", 2]}, {"at": ["full", 4]}, {"at": ["full", 7], "truncate": True}],
}
"""Where each attempt dies, by kind, or by method for a task SFT of another one.

A checkpoint is written after the report of each step.
"""

LIKE_OTHERS = {"deft_x", "rand_sft"}
"""They differ in how the support is chosen, which is tested without kills."""

KINDS = [pytest.param(kind, marks=[pytest.mark.slow] if kind in LIKE_OTHERS else []) for kind in KILLS]

RESTARTS = {
    "language": [
        ["full", 1],
        ["full", 5],  # killed after the step and before its checkpoint: one step is done again
        ["full", 7],  # the torn checkpoint is not used
        ["selection", 0],  # the full phase is not done again
        ["sparse", 3],  # the checkpoint of step 3 was truncated: from that of step 2
        ["sparse", 7],
        ["sparse", 8],
    ],
    "task": [["head", 1], ["head", 2], ["full", 3], ["selection", 0], ["sparse", 6]],
    "consistent": [["head", 1], ["full", 3], ["sparse", 4]],
    "deft_x": [["head", 1], ["selection", 0], ["sparse", 2]],
    "rand_sft": [["head", 1], ["selection", 0], ["sparse", 5]],
    "mad_x": [["head", 1], ["full", 3], ["full", 5]],
    "lora": [["head", 1], ["head", 2], ["full", 3], ["full", 7]],
}
"""What each attempt reports first."""


def run_jobs(jobs: list[dict[str, Any]], file: Path, *, hash_seed: str) -> None:
    file.write_text(json.dumps(jobs), encoding="utf-8")
    ours = {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHILD.parents[2])}
    environment = {**os.environ, **ours}
    done = subprocess.run(
        [sys.executable, str(CHILD), str(file)], env=environment, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def folders(
    request: pytest.FixtureRequest, tiny_base: Path, unigram_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Folders with a training of each kind that a test asks for: undisturbed, and killed again and again."""
    root = tmp_path_factory.mktemp("resume")
    kinds = {kind for item in request.session.items if (kind := parameters_of(item).get("kind")) in KILLS}
    for name, hash_seed in (("undisturbed", "1"), ("killed", "2")):
        jobs = [
            {
                "kind": kind if kind in ("language", "task", "consistent") else "task",
                "method": kind if kind not in ("language", "task", "consistent") else "lt_sft",
                "base": str(unigram_base if kind == "consistent" else tiny_base),
                "folder": str(root / name / kind),
                "kills": KILLS[kind] if name == "killed" else [],
            }
            for kind in KILLS
            if kind in kinds
        ]
        run_jobs(jobs, root / f"{name}.json", hash_seed=hash_seed)
    return root / "undisturbed", root / "killed"


def parameters_of(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def read_attempts(folder: Path) -> list[list[list[Any]]]:
    """What each attempt reported, in order."""
    attempts: list[list[list[Any]]] = []
    for line in (folder / "progress.log").read_text().splitlines():
        report = json.loads(line)
        if report[0] == "start":
            attempts.append([])
        elif not attempts[-1] or attempts[-1][-1] != report:
            attempts[-1].append(report)
    return attempts


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_killed_again_and_again_ends_with_the_same_bits(kind: str, folders: tuple[Path, Path]) -> None:
    undisturbed, killed = (folder / kind / "sft" for folder in folders)
    names = sorted(file.name for file in undisturbed.iterdir())
    assert names == sorted(file.name for file in killed.iterdir())
    assert {"sft.safetensors", "sft.json"} <= set(names)
    for name in names:
        assert (undisturbed / name).read_bytes() == (killed / name).read_bytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_costs_one_checkpoint_interval_at_most(kind: str, folders: tuple[Path, Path]) -> None:
    attempts = read_attempts(folders[1] / kind)
    assert [attempt[0] for attempt in attempts] == RESTARTS[kind]
    assert [attempt[-1] for attempt, place in zip(attempts, KILLS[kind], strict=False) if "at" in place] == [
        place["at"] for place in KILLS[kind] if "at" in place
    ]


def test_checkpoints_are_gone_when_a_phase_is_done(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        assert not list(folder.glob("*/*/checkpoint-*"))
