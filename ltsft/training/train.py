"""Learning an SFT: its stages on a model with what is applied, and the SFT that comes of them.

Each phase runs on Hugging Face's Trainer; which example comes when, and how it is masked, is a pure function of the
seed and the position, so a training that is killed and started again ends with the same SFT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ltsft.base import Base, Roles, parameter_roles
from ltsft.composition import composed
from ltsft.errors import TrainingError
from ltsft.methods import AdapterMethod, Method, SupportMethod, method_named
from ltsft.precision import DETAIL, Numerics, autocast, keep_threads
from ltsft.sft import SFT
from ltsft.training.phase import PhaseResult
from ltsft.training.prepare import Training, TrainingData
from ltsft.training.procedures import Learnt, learn_diffs, learn_modules
from ltsft.training.processes import join_processes
from ltsft.training.settling import settle_numerics
from ltsft.training.stages import OnProgress, Stages

__all__ = ["train_sft"]


def train_sft(
    base: Base,
    training: Training,
    *,
    folder: Path,
    checkpoint_seconds: float = 300.0,
    device: str | None = None,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SFT:
    """Learn an SFT.

    Started again on the same folder after a kill, it goes on from the last whole checkpoint and, on CPU, ends with the
    same SFT bit for bit. It keeps the precision and the number of threads that it was begun with. A precision that the
    device would emulate gives way to float32; `details["numerics"]` says what was used (`ltsft.training.settling`).

    Args:
        base: the base.
        training: what is learnt, from what, and how.
        folder: for checkpoints; the caller removes it after success. Never shared by two trainings.
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
    _refuse_nothing(training)
    method, recipe = method_named(training.method), training.recipe
    device = join_processes(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = _build_model(base, training, device)
    roles = parameter_roles(model, recipe.freeze, has_norm_biases=method.has_norm_biases)
    numerics = settle_numerics(folder, recipe.precision, device)
    stages = Stages(
        training=training,
        model=model,
        head=roles.head,
        recipe=recipe.model_copy(update={"precision": numerics[-1].precision}),
        folder=folder,
        checkpoint_seconds=checkpoint_seconds,
        device=device,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    with (
        keep_threads(numerics[-1].threads),
        composed(model, [(sft, 1.0) for sft in training.applied], base=base.ref, heads=False),
    ):
        learnt = _learn(stages, method, roles)
        forgetting = _forgetting(stages, model, learnt.rounds)
        head = {name: p.detach().cpu().clone() for name, p in roles.head.items()}
    details = {**_details(training, method, numerics, learnt), **forgetting}
    return _as_sft(base, training, learnt, head=head, maskable=roles.size, details=details)


def _refuse_nothing(training: Training) -> None:
    if not all(len(data.examples) for data in training.rounds):
        raise TrainingError(f"{training.title}: there is nothing to train on")


def _learn(stages: Stages, method: Method, roles: Roles) -> Learnt:
    match method:
        case SupportMethod():
            return learn_diffs(stages, method, roles)
        case AdapterMethod():
            return learn_modules(stages, method, roles)
    raise TypeError(f"method {method.name} is neither a SupportMethod nor an AdapterMethod")


def _as_sft(
    base: Base, training: Training, learnt: Learnt, *, head: dict[str, Tensor], maskable: int, details: dict[str, Any]
) -> SFT:
    return SFT(
        kind=training.kind,
        subject=training.subject,
        base=base.ref,
        diffs=learnt.diffs,
        head=head,
        labels=training.objective.labels,
        maskable=maskable,
        source_languages=training.source_languages,
        method=training.method,
        adapter=learnt.adapter,
        details=details,
    )


def _build_model(base: Base, training: Training, device: str) -> PreTrainedModel:
    """Load the base with the head of what is learnt, with the dropout of the recipe, on a device."""
    model = training.objective.build_model(base, seed=training.seed)
    nn.Module.to(model, device)
    if training.recipe.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = training.recipe.dropout
    return model


def _details(training: Training, method: Method, numerics: Sequence[Numerics], learnt: Learnt) -> dict[str, Any]:
    """Give what the SFT records of its training."""
    history = [
        {"phase": r.name, "iteration": iteration, "steps": r.steps, "best_step": r.step, "best_score": r.score}
        for iteration, results in enumerate(learnt.rounds)
        for r in results
    ]
    return {
        **training.details,
        "recipe": method.used(training.recipe, training.seed),
        DETAIL: [stretch.model_dump() for stretch in numerics],
        "history": history,
    }


def _forgetting(stages: Stages, model: PreTrainedModel, rounds: Sequence[Sequence[PhaseResult]]) -> dict[str, Any]:
    """Score what was learnt first once more, where the data of the rounds differ."""
    if isinstance(stages.training.data, TrainingData):
        return {}
    model.train(False)
    scores = []
    with autocast(stages.recipe.precision, stages.device):
        for data, results in zip(stages.training.rounds, rounds, strict=True):
            after = stages.training.objective.evaluate(model, data.held_out).score
            scores.append({"before": results[-1].score, "after": after})
    return {"forgetting": scores}
