"""Processes that train an SFT together: `python together_child.py JOBS.json` forks those of each job.

The first process of a job writes the SFT, and `exchanged.json`: for each phase, the bytes of gradients that it sent in
a step. Forked, all of them share one import of torch and transformers.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from learning import make_recipe, masked_lm, tagging
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from transformers.utils import logging

from ltsft.base import load_base
from ltsft.sft.files import save_sft
from ltsft.training.prepare import Training
from ltsft.training.stages import Progress
from ltsft.training.train import train_sft


def count_exchanged() -> dict[str, int]:
    """Count the bytes of the gradients that are exchanged, from now on."""
    counted = {"bytes": 0}
    build = DistributedDataParallel.__init__

    def counting(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)

        def hook(state, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
            counted["bytes"] += bucket.buffer().nbytes
            return allreduce_hook(state, bucket)

        self.register_comm_hook(None, hook)

    DistributedDataParallel.__init__ = counting  # type: ignore[method-assign]
    return counted


def main() -> None:
    """Run the jobs one after the other."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    load_base(jobs[0]["base"]).token_classifier(["A"], seed=0)  # what the first loading of a model looks up stays
    gc.freeze()  # the trainer collects garbage before each phase
    for job in jobs:
        ranks = range(job["processes"])
        children = []
        for rank in ranks:
            if (child := os.fork()) == 0:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(ranks), "MASTER_PORT": job["port"]}
                if len(ranks) > 1:
                    os.environ.update(
                        {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
                    )
                train(job, rank)
                return
            children.append(child)
        ends = [os.waitpid(child, 0)[1] for child in children]
        if any(ends):
            sys.exit(f"a process of {job['folder']} failed")


def train(job: dict[str, Any], rank: int) -> None:
    """Train as the job says."""
    counted, exchanged = count_exchanged(), {}
    base = load_base(job["base"])
    own = Path(job["folder"]) / f"data-{rank}"
    objective, data = masked_lm(base.tokenizer, own) if job["kind"] == "language" else tagging(base.tokenizer)

    def report(progress: Progress) -> None:
        if progress.step == progress.steps and progress.step:
            exchanged.setdefault(progress.stage, counted["bytes"] / progress.steps)
            counted["bytes"] = 0

    sft = train_sft(
        base,
        Training(
            objective=objective,
            kind=job["kind"],
            subject="aa",
            recipe=make_recipe(**job["recipe"], accumulation=job["micro_batches"] // job["processes"]),
            seed=1,
            data=data,
        ),
        folder=Path(job["folder"]) / "work",
        checkpoint_seconds=0.0,
        device="cpu",
        on_progress=report,
    )
    if rank == 0:
        save_sft(sft, Path(job["folder"]) / "sft")
        (Path(job["folder"]) / "exchanged.json").write_text(json.dumps(exchanged))


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    main()
