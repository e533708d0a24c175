"""Learning an SFT: full phase, selection, rewind, sparse phase (Ansell et al. 2022, section 3).

Each phase runs on Hugging Face's Trainer; which example comes when, and how it is masked, is a pure function of the
seed and the position, so a training that is killed and started again ends with the same SFT.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ltsft.base import Base, Roles, parameter_roles
from ltsft.compose import composed
from ltsft.config import Recipe
from ltsft.errors import TrainingError
from ltsft.mask import select_magnitude, support_size
from ltsft.objectives import Objective
from ltsft.phase import Phase, PhaseResult, newest_whole_checkpoint, run_phase, write_tensors
from ltsft.sft import SFT, Diff, Kind

VERSION = 1
"""Version of the procedure, part of every key: raised when the same inputs would give another SFT."""


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        stage: "full", "selection" or "sparse".
        step: optimizer steps done in this stage; `steps` in all. Both 0 in selection.
        metrics: what was measured at this step, names as in MLflow; empty most of the time.
        iteration: which round of full and sparse phase this is, from 0.
    """

    stage: str
    step: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    iteration: int = 0


_PHASES = {"full": 0, "sparse": 2}
OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, and what chooses the best checkpoint."""

    examples: Sequence[Any]
    held_out: Sequence[Any]


def train_sft(
    base: Base,
    objective: Objective,
    *,
    kind: Kind,
    subject: str,
    recipe: Recipe,
    seed: int,
    data: TrainingData,
    folder: Path,
    applied: Sequence[SFT] = (),
    source_languages: tuple[str, ...] = (),
    details: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = 300.0,
    device: str | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SFT:
    """Learn an SFT.

    Started again on the same folder after a kill, it goes on from the last whole checkpoint and, on CPU, ends with the
    same SFT bit for bit.

    Args:
        base: the base.
        objective: what is learnt.
        kind: "language" or "task".
        subject: the language or the target task.
        recipe: density, phases, batches.
        seed: of the head, the order of examples, masking and dropout.
        data: what is trained on and what is held out.
        folder: for checkpoints; the caller removes it after success. Never shared by two trainings.
        applied: SFTs that are part of the starting point (the source language's, for a task SFT); diffs are counted
            from base + these.
        source_languages: recorded in the SFT.
        details: recorded in the SFT: data fingerprints, parents.
        checkpoint_seconds: time between checkpoints: the most work that a kill can cost.
        device: "cpu" or "cuda"; the accelerator if there is one when None.
        on_progress: called after each step.
        should_stop: asked after each step; once it says yes, a checkpoint is saved and the training ends.

    Returns:
        The SFT, on the CPU.

    Raises:
        TrainingError: nothing to train on, or a loss that is not finite.
        ConfigError: the recipe does not fit the base.
        CompositionError: an applied SFT does not fit the base.
        InterruptedTraining: `should_stop` said so.
    """
    if not len(data.examples):
        raise TrainingError(f"{kind} SFT {subject}: there is nothing to train on")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = objective.build_model(base, seed=seed)
    nn.Module.to(model, device)
    if recipe.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = recipe.dropout
    roles = parameter_roles(model, recipe.freeze)
    k = support_size(density=recipe.density, size=recipe.size, maskable=roles.size)
    with composed(model, [(sft, 1.0) for sft in applied], base=base.ref, heads=False):
        starting_point = _copy(roles.maskable)
        masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in roles.maskable.items()}
        history: list[dict[str, Any]] = []
        for iteration in range(recipe.iterations):
            quota = k * (iteration + 1) // recipe.iterations - k * iteration // recipe.iterations
            training = _Iteration(
                model, objective, roles, recipe, seed, iteration, data, folder, checkpoint_seconds, device, on_progress,
                should_stop,
            )  # fmt: skip
            masks, results = training.run(masks, quota, pull_to=starting_point)
            history += [
                {"phase": r.name, "iteration": iteration, "steps": r.steps, "best_step": r.step, "best_score": r.score}
                for r in results
            ]
        diffs = _diffs(roles.maskable, starting_point, masks)
        head = {name: p.detach().cpu().clone() for name, p in roles.head.items()}
    return SFT(
        kind=kind,
        subject=subject,
        base=base.ref,
        diffs=diffs,
        head=head,
        labels=objective.labels,
        maskable=roles.size,
        source_languages=source_languages,
        details={**(details or {}), "recipe": recipe.of_seed(seed), "history": history},
    )


@dataclass
class _Iteration:
    """One round of full phase, selection, rewind and sparse phase."""

    model: nn.Module
    objective: Objective
    roles: Roles
    recipe: Recipe
    seed: int
    number: int
    data: TrainingData
    folder: Path
    checkpoint_seconds: float
    device: str
    on_progress: OnProgress | None
    should_stop: Callable[[], bool] | None

    def run(
        self, taken: dict[str, Tensor], quota: int, *, pull_to: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[PhaseResult]]:
        """Train, select `quota` more weights, rewind to where this round began and train the selected ones."""
        maskable, head = self.roles.maskable, self.roles.head
        start = {**_copy(maskable), **_copy(head)}
        everything = {name: torch.ones_like(mask) for name, mask in taken.items()}
        results = [self._phase("full", everything, pull_to)]
        mask_file = self.folder / f"{self.number}-support.safetensors"
        if mask_file.is_file():
            masks = load_file(mask_file)
        else:
            self._report("selection")
            earlier = {name: mask.reshape(-1).nonzero().squeeze(1) for name, mask in taken.items()}
            masks = {name: mask.clone() for name, mask in taken.items()}
            for name, indices in select_magnitude(maskable, start, quota, taken=earlier).items():
                masks[name].view(-1)[indices.long()] = True
            write_tensors(masks, mask_file)
        with torch.no_grad():
            for name, p in {**maskable, **head}.items():
                p.copy_(start[name])
        results.append(self._phase("sparse", masks, pull_to))
        return masks, results

    def _phase(self, name: str, masks: dict[str, Tensor], pull_to: dict[str, Tensor]) -> PhaseResult:
        settings = self.recipe.full if name == "full" else self.recipe.sparse
        phase = Phase(
            name=name,
            model=self.model,
            objective=self.objective,
            maskable=self.roles.maskable,
            head=self.roles.head,
            masks=None if name == "full" else masks,
            pull_to=pull_to,
            settings=settings,
            recipe=self.recipe,
            seed=derive_seed(self.seed, self.number, name),
            examples=self.data.examples,
            held_out=self.data.held_out,
            folder=self.folder / f"{self.number}-{name}",
            checkpoint_seconds=self.checkpoint_seconds,
            device=self.device,
            should_stop=self.should_stop,
        )

        def report(step: int, steps: int, metrics: Mapping[str, float]) -> None:
            self._report(name, step, steps, metrics)

        return run_phase(phase, report)

    def _report(self, stage: str, step: int = 0, steps: int = 0, metrics: Mapping[str, float] | None = None) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(stage, step, steps, metrics or {}, self.number))


def checkpoint_files(folder: Path) -> list[Path]:
    """List the files that a training in this folder needs to go on elsewhere: whole checkpoints and finished phases.

    What it can make again (packed text) is not among them, nor a checkpoint that is still being written.
    """
    found = list(folder.glob("[0-9]*-support.safetensors"))
    for phase in (*folder.glob("[0-9]*-full"), *folder.glob("[0-9]*-sparse")):
        found += [file for file in (phase / "best.safetensors", phase / "done.json") if file.is_file()]
        checkpoint = newest_whole_checkpoint(phase)
        if checkpoint is not None:
            found += [file for file in checkpoint.rglob("*") if file.is_file()]
    return found


def checkpoint_progress(names: Iterable[str]) -> tuple[int, int, float]:
    """Say how far a training is that has these files (paths in its folder): iteration, phase, step; for comparison."""
    reached: tuple[int, int, float] = (-1, 0, 0.0)
    for name in names:
        top, _, rest = name.partition("/")
        number, _, what = top.partition("-")
        if what == "support.safetensors":
            reached = max(reached, (int(number), 1, 0.0))
        elif rest == "done.json":
            reached = max(reached, (int(number), _PHASES[what], math.inf))
        elif rest.startswith("checkpoint-"):
            step = rest.partition("/")[0].rpartition("-")[2]
            reached = max(reached, (int(number), _PHASES[what], float(step)))
    return reached


def derive_seed(*parts: object) -> int:
    """Give a seed that depends on all of the parts, in [0, 2**31)."""
    digest = hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _copy(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in parameters.items()}


def _diffs(
    parameters: Mapping[str, nn.Parameter], start: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Diff]:
    diffs = {}
    for name, p in parameters.items():
        indices = masks[name].reshape(-1).nonzero().squeeze(1)
        values = p.detach().cpu().reshape(-1)[indices] - start[name].reshape(-1)[indices]
        diffs[name] = Diff(indices=indices.int(), values=values, shape=tuple(p.shape))
    return diffs
