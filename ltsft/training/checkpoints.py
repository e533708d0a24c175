"""The files that a training in a folder goes on from: whole checkpoints, finished phases, and how far they reach."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

WHOLE = "whole.json"
"""The file of a checkpoint that is written last: sizes of all others."""

NUMERICS = "numerics.json"
"""What a training computes in (ltsft/training/settling.py); part of each of its checkpoints."""

_PHASES = {"head": 0, "full": 1, "sparse": 3}
"""Where each phase stands in an iteration; 2 is the selection."""


def newest_checkpoint(folder: Path) -> str | None:
    """Find the newest checkpoint of a phase that was written to its end, and remove those that were not.

    Trainer counts checkpoints to keep two; a torn one that stays would push out a whole one.
    """
    for checkpoint in folder.glob("checkpoint-*"):
        if not _is_whole(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
    newest = _newest_whole(folder)
    return None if newest is None else str(newest)


def _newest_whole(folder: Path) -> Path | None:
    """Find the newest checkpoint of a phase that was written to its end; None if there is none."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda f: int(f.name.rpartition("-")[2]), reverse=True)
    return next((checkpoint for checkpoint in found if _is_whole(checkpoint)), None)


def _is_whole(checkpoint: Path) -> bool:
    marker = checkpoint / WHOLE
    if not marker.is_file():
        return False
    sizes: dict[str, int] = json.loads(marker.read_text())
    return all((checkpoint / n).is_file() and (checkpoint / n).stat().st_size == s for n, s in sizes.items())


def checkpoint_files(folder: Path) -> list[Path]:
    """List the files that a training in this folder needs to go on elsewhere: whole checkpoints and finished phases.

    With them goes what it computes in. What it can make again (packed text, the starting point) is not among them, nor
    a checkpoint that is still being written.
    """
    found = list(folder.glob("[0-9]*-support.safetensors"))
    for phase in (path for name in _PHASES for path in folder.glob(f"[0-9]*-{name}")):
        found += [file for file in (phase / "best.safetensors", phase / "done.json") if file.is_file()]
        checkpoint = _newest_whole(phase)
        if checkpoint is not None:
            found += [file for file in checkpoint.rglob("*") if file.is_file()]
    numerics = folder / NUMERICS
    return [numerics, *found] if found and numerics.is_file() else found


def checkpoint_progress(names: Iterable[str]) -> tuple[int, int, float]:
    """Say how far a training is that has these files (paths in its folder): iteration, phase, step; for comparison."""
    reached: tuple[int, int, float] = (-1, 0, 0.0)
    for name in names:
        top, _, rest = name.partition("/")
        number, _, what = top.partition("-")
        if what == "support.safetensors":
            reached = max(reached, (int(number), 2, 0.0))
        elif rest == "done.json":
            reached = max(reached, (int(number), _PHASES[what], math.inf))
        elif rest.startswith("checkpoint-"):
            step = rest.partition("/")[0].rpartition("-")[2]
            reached = max(reached, (int(number), _PHASES[what], float(step)))
    return reached
