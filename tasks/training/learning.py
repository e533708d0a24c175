"""Training as tasks: fetch the data, learn the SFT, measure it, store it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from ltsft.config import LabelledData, TargetTask
from ltsft.errors import InterruptedTraining
from ltsft.evaluation import sparsity
from ltsft.heap import return_memory
from ltsft.methods import budget, method_named
from ltsft.precision import numerics_of, summarise
from ltsft.project import Language, Step, language_subject
from ltsft.report import density_figure
from ltsft.sft import MANIFEST_FILE, SFT, load_sft, save_sft
from ltsft.training import Progress, Training, train_sft
from tasks.orchestration import ProgressReporter, refuse_if_crashed, run_stoppable, task
from tasks.settings import read_settings
from tasks.tracking import RunHandle
from tasks.training.preparing import Assignment
from tasks.training.together import JointTraining, train_together
from tasks.workspace import HELD_OUT, SFT_FOLDER, Workspace


@task(name="train language SFT", task_run_name="train language SFT {language.code}")
def train_language_sft(workspace: Workspace, language: Language, step: Step, run: RunHandle) -> Path:
    """Learn a language SFT from raw text; give the folder that holds it."""
    folder = workspace.working_folder(step)
    assignment = _assignment(step)
    training = assignment.training(workspace.project, workspace.base, folder)
    [data, *_] = training.rounds
    held_out, sequences = data.held_out, len(data.examples) + len(data.held_out)
    get_run_logger().info("%s: %d sequences of %d sub-words", language.code, sequences, training.recipe.max_length)
    (folder / HELD_OUT).parent.mkdir(exist_ok=True)
    np.save(folder / HELD_OUT, np.stack([held_out[i] for i in range(len(held_out))]), allow_pickle=False)
    return _train(workspace, step, run, assignment, training)


@task(name="train task SFT", task_run_name="train {step.product.subject}")
def train_task_sft(
    workspace: Workspace, target: TargetTask, data: Mapping[str, LabelledData], step: Step, run: RunHandle
) -> Path:
    """Learn a task SFT from labelled data, over base + the source language's SFT; give the folder that holds it.

    From several languages, each batch is of one of them, over base + its SFT. Where the method has no language SFTs, it
    is over the base alone.
    """
    applied = data if method_named(workspace.project.method).has_languages else ()
    sources = {code: workspace.tracker.download(workspace.made(language_subject(code)), SFT_FOLDER) for code in applied}
    assignment = _assignment(step, sources)
    training = assignment.training(workspace.project, workspace.base, workspace.working_folder(step))
    return _train(workspace, step, run, assignment, training)


def _assignment(step: Step, sources: Mapping[str, Path] | None = None) -> Assignment:
    """Give what is told to each process that trains a product."""
    product = step.product
    return Assignment(
        kind=product.kind,
        language=product.language,
        target_task=product.target_task,
        sources=dict(sources or {}),
        seed=product.seed or 0,
        details={
            "key": product.key,
            "data": {name: product.parts[name] for name in ("text", "train", "dev") if name in product.parts},
            "parents": product.parts["upstream"],
            **({"objective": product.parts["objective"]} if product.kind == "task" else {}),
        },
    )


def _train(workspace: Workspace, step: Step, run: RunHandle, assignment: Assignment, training: Training) -> Path:
    folder = workspace.working_folder(step)
    product, recipe = step.product, training.recipe
    checkpoint_seconds = 60.0 * workspace.project.store.checkpoint_minutes
    if recipe.nodes > 1:
        refuse_if_crashed(flow_run.get_id(), crashes=read_settings().crashes)

    def train(should_stop: Callable[[], bool]) -> Path:
        def on_progress(progress: Progress) -> None:
            workspace.check_claim(product.key)
            reporter(progress)

        project, rounds = workspace.project.name, len(training.rounds)
        with (
            ProgressReporter(run, name=product.subject, project=project, iterations=rounds) as reporter,
            workspace.checkpoints(step),
        ):
            if recipe.processes > 1 or recipe.nodes > 1:
                joint = JointTraining(
                    ref=workspace.ref,
                    assignment=assignment,
                    nodes=recipe.nodes,
                    processes=recipe.processes,
                    checkpoint_seconds=checkpoint_seconds,
                    device=workspace.device,
                )
                return train_together(joint, folder, on_progress=on_progress, should_stop=should_stop)
            sft = train_sft(
                workspace.base,
                training,
                folder=folder,
                checkpoint_seconds=checkpoint_seconds,
                device=workspace.device,
                on_progress=on_progress,
                should_stop=should_stop,
            )
            learnt_by = method_named(sft.method).summary
            return save_sft(sft, folder / SFT_FOLDER, values=recipe.values, learnt_by=learnt_by)

    def train_or_hand_over(should_stop: Callable[[], bool]) -> Path:
        try:
            return train(should_stop)
        except InterruptedTraining as stopped:  # its checkpoint is safe; Prefect may need half a minute for all else
            workspace.hand_over(product.key, run, str(stopped))
            raise

    try:
        return run_stoppable(train_or_hand_over)
    finally:
        return_memory()


@task(name="store SFT", task_run_name="store {step.product.subject}", is_retried=True)
def store_sft(workspace: Workspace, step: Step, run: RunHandle, folder: Path) -> None:
    """Measure an SFT, log that and its folder, and close the run: from now on the product exists."""
    sft = load_sft(folder)
    recipe = workspace.project.recipes[step.product.target_task or "language"]
    sizes = {"maskable": sft.maskable, "parameters": sft.parameters, "budget": budget(recipe, sft.maskable)}
    run.log_metrics(sizes)
    if not sft.adapter:
        _log_sparsity(sft, step, run)
    run.log_metrics({f"{h['phase']}.best_score": h["best_score"] for h in sft.details["history"]})
    run.log_metrics({f"{h['phase']}.best_step": h["best_step"] for h in sft.details["history"]})
    for language, score in zip(sft.source_languages, sft.details.get("forgetting", ()), strict=False):
        change = {**score, "change": score["after"] - score["before"]}
        run.log_metrics({f"forgetting.{name}.{language}": value for name, value in change.items()})
    run.set_tags({f"ltsft.{name}": value for name, value in summarise(numerics_of(sft.details)).items()})
    workspace.check_claim(step.product.key)
    run.log_folder(folder, SFT_FOLDER, manifest=MANIFEST_FILE)
    held_out = workspace.working_folder(step) / HELD_OUT
    if held_out.is_file():
        run.log_file(held_out, str(Path(HELD_OUT).parent))
    run.finish()
    workspace.remove_working_folder(step)


def _log_sparsity(sft: SFT, step: Step, run: RunHandle) -> None:
    """Log where an SFT changes its base, and how far."""
    measured = sparsity(sft)
    run.log_metrics({**measured.metrics(), "support_size": sft.support_size})
    figure = density_figure(
        {name: share.density for name, share in measured.layers.items()},
        overall=measured.overall.density,
        title=step.product.subject,
        groups={name: share.density for name, share in measured.groups.items()},
    )
    run.log_figure(figure, "figures/density.png")
