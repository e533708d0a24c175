"""A training in a process of its own that can be killed: `python train_child.py JOB.json`.

The job says what is learnt, where, and a list of attempts; each attempt is a process that is forked here and gets a
SIGKILL at its place, as an eviction would do it. What each attempt reported stands in `progress.log`, one line a step.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from learning import consistent_tagging, make_recipe, masked_lm, tagging
from transformers.utils import logging

from ltsft.base import load_base
from ltsft.config.recipe import PhaseSettings
from ltsft.sft.files import save_sft
from ltsft.training.prepare import Training
from ltsft.training.stages import Progress
from ltsft.training.train import train_sft


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_while_writing(checkpoint: str) -> None:
    """Die when the optimizer's state is half written into a checkpoint."""
    save = torch.save

    def torn(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save(content, file, *args, **kwargs)
        if checkpoint in str(file):
            written = Path(file)
            written.write_bytes(written.read_bytes()[: written.stat().st_size // 2])
            die()

    torch.save = torn


def truncate_newest_checkpoint(folder: Path) -> None:
    """Take the end off the weights in a checkpoint that was whole."""
    newest = max(folder.glob("*/checkpoint-*"), key=lambda c: int(c.name.rpartition("-")[2]))
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def attempt(job: dict[str, Any], place: dict[str, Any]) -> None:
    """Train until the place where this attempt dies, or to the end."""
    base = load_base(job["base"])
    folder = Path(job["folder"])
    language = job["kind"] == "language"
    if place.get("truncate"):
        truncate_newest_checkpoint(folder)
    if "checkpoint" in place:
        kill_while_writing(f"{place['checkpoint']}/")

    def report(progress: Progress) -> None:
        with (folder / "progress.log").open("a") as log:
            log.write(json.dumps([progress.stage, progress.step]) + "\n")
        if [progress.stage, progress.step] == place.get("at") and (folder / place.get("once", ".")).exists():
            die()

    if job["kind"] == "consistent":
        objective, data = consistent_tagging(base.tokenizer, example=5.0, model=1.0)
    else:
        objective, data = masked_lm(base.tokenizer, folder) if language else tagging(base.tokenizer)
    more: dict[str, Any] = (
        {"iterations": 2} if language else {"accumulation": 2, "head": PhaseSettings(min_steps=3, max_steps=3)}
    )
    recipe = make_recipe(steps=8, evaluations=4, **more)
    sft = train_sft(
        base,
        Training(
            objective=objective,
            kind="language" if language else "task",
            subject="aa" if language else "pos",
            recipe=recipe,
            seed=1,
            method=job["method"],
            data=data,
        ),
        folder=folder,
        checkpoint_seconds=0.0,
        device="cpu",
        on_progress=report,
    )
    save_sft(sft, folder / "sft")


def main() -> None:
    """Run the attempts of each job one after the other."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    load_base(jobs[0]["base"]).token_classifier(["A"], seed=0)  # what the first loading of a model looks up stays
    gc.freeze()  # the trainer collects garbage before each phase
    for job in jobs:
        folder = Path(job["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        for place in [*job["kills"], {}]:
            with (folder / "progress.log").open("a") as log:
                log.write(json.dumps(["start", 0]) + "\n")
            process = os.fork()
            if process == 0:
                attempt(job, place)
                return
            _, status = os.waitpid(process, 0)
            wanted = signal.SIGKILL if place else 0
            if os.waitstatus_to_exitcode(status) != -wanted:
                sys.exit(f"attempt {place} of {job['kind']} ended with status {status}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    main()
