"""The stages of a training, one after the other: what they have in common, and what is told of how far they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from ltsft.config import PhaseSettings, Recipe
from ltsft.training.phase import Phase, PhaseResult, run_phase
from ltsft.training.prepare import Training, TrainingData
from ltsft.training.processes import is_first_process

__all__ = ["OnProgress", "Progress", "Stages", "derive_seed"]


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        stage: "head", "full", "selection" or "sparse".
        step: optimizer steps done in this stage; `steps` in all. Both 0 in selection.
        metrics: what was measured at this step, names as in MLflow; empty most of the time.
        iteration: which round of full and sparse phase this is, from 0.
    """

    stage: str
    step: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    iteration: int = 0


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What all stages of a training have in common.

    Attributes:
        training: what is learnt.
        model: what trains, with its head.
        head: the head's parameters by full name; they train whole in every phase.
        recipe: that of the training, with the precision that this device computes in.
        folder: for checkpoints.
        checkpoint_seconds: time between them.
        device: of the model.
        on_progress: called after each step.
        should_stop: asked after each step.
    """

    training: Training
    model: PreTrainedModel
    head: Mapping[str, nn.Parameter]
    recipe: Recipe
    folder: Path
    checkpoint_seconds: float
    device: str
    on_progress: OnProgress | None
    should_stop: Callable[[], bool] | None

    def run(
        self,
        name: str,
        data: TrainingData,
        *,
        iteration: int,
        maskable: Mapping[str, nn.Parameter],
        support: Mapping[str, Tensor] | None = None,
        pull_to: Mapping[str, Tensor],
    ) -> PhaseResult:
        """Run a phase and leave its best weights in the model.

        Args:
            name: "head", "full" or "sparse", a section of the recipe.
            data: what it trains on.
            iteration: number of the round.
            maskable: the parameters that train besides the head, by name.
            support: which of their weights train, flat indices by name; None: all.
            pull_to: what the L1 penalty pulls them to; see `Phase`.
        """
        settings: PhaseSettings = getattr(self.recipe, name)
        phase = Phase(
            name=name,
            model=self.model,
            objective=self.training.objective,
            maskable=maskable,
            head=self.head,
            support=support,
            pull_to=pull_to,
            settings=settings,
            recipe=self.recipe,
            seed=derive_seed(self.training.seed, iteration, name),
            examples=data.examples,
            held_out=data.held_out,
            folder=self.folder / f"{iteration}-{name}",
            checkpoint_seconds=self.checkpoint_seconds,
            device=self.device,
            should_stop=self.should_stop,
        )

        def report(step: int, steps: int, metrics: Mapping[str, float]) -> None:
            self.report(Progress(name, step, steps, metrics, iteration))

        return run_phase(phase, report)

    def run_head(self, data: TrainingData, *, iteration: int) -> list[PhaseResult]:
        """Run the head phase, where the recipe has one, before the first round.

        It is not rewound: a head that does not fit yet would bend the encoder to itself (Kumar et al. 2022,
        "Fine-Tuning can Distort Pretrained Features").
        """
        if self.recipe.head is None or iteration > 0:
            return []
        return [self.run("head", data, iteration=iteration, maskable={}, pull_to={})]

    def report(self, progress: Progress) -> None:
        """Tell how far the training is; of processes that train together the first one tells it."""
        if self.on_progress is not None and is_first_process():
            self.on_progress(progress)


def derive_seed(*parts: object) -> int:
    """Give a seed that depends on all of the parts, in [0, 2**31)."""
    digest = hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
