"""Training as tasks: fetch the data, learn the SFT, measure it, store it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from ltsft.augmentation import Augmenter
from ltsft.base import Base
from ltsft.config import Language, Project
from ltsft.consistent import Consistent
from ltsft.figures import density_figure
from ltsft.files import MANIFEST_FILE, load_sft, save_sft
from ltsft.heap import return_memory
from ltsft.interference import sparsity
from ltsft.methods import budget
from ltsft.methods.registry import method_named
from ltsft.named_source import Source
from ltsft.objectives import Objective, TargetObjective
from ltsft.objectives.masked_lm import MaskedLM, pack_text, split_held_out
from ltsft.objectives.registry import OBJECTIVES, read_labelled
from ltsft.plan import Step, language_subject
from ltsft.recipe import Recipe
from ltsft.several import FromLanguage, Mixture, SeveralSources, sampling_shares
from ltsft.sft import SFT
from ltsft.sources import RowError, read_text
from ltsft.target_task import LabelledData, TargetTask
from ltsft.train import Progress, TrainingData, train_sft
from ltsft.word_lists import read_word_list
from tasks.launching import refuse_if_crashed
from tasks.progress import ProgressReporter
from tasks.retries import is_service_away
from tasks.runs import RunHandle
from tasks.settings import read_settings
from tasks.stopping import run_stoppable
from tasks.together import Job, train_together
from tasks.workspace import HELD_OUT, SFT_FOLDER, Workspace

_LOG = logging.getLogger(__name__)
HELD_OUT_EVERY = 10
"""Without dev data, every tenth sentence of the training data chooses the best checkpoint."""


@task(name="train language SFT", task_run_name="train language SFT {language.code}", cache_policy=NO_CACHE)
def train_language_sft(workspace: Workspace, language: Language, step: Step, run: RunHandle) -> Path:
    """Learn a language SFT from raw text; give the folder that holds it."""
    folder = workspace.working_folder(step)
    what = language_training(workspace.project, workspace.base, language, folder)
    examples, held_out = what["data"].examples, what["data"].held_out
    length = workspace.project.recipes["language"].max_length
    get_run_logger().info("%s: %d sequences of %d sub-words", language.code, len(examples) + len(held_out), length)
    (folder / HELD_OUT).parent.mkdir(exist_ok=True)
    np.save(folder / HELD_OUT, np.stack([held_out[i] for i in range(len(held_out))]), allow_pickle=False)
    return _train(workspace, step, run, what, {})


@task(name="train task SFT", task_run_name="train {step.product.subject}", cache_policy=NO_CACHE)
def train_task_sft(
    workspace: Workspace, target: TargetTask, data: Mapping[str, LabelledData], step: Step, run: RunHandle
) -> Path:
    """Learn a task SFT from labelled data, over base + the source language's SFT; give the folder that holds it.

    From several languages, each batch is of one of them, over base + its SFT. Where the method has no language SFTs, it
    is over the base alone.
    """
    applied = data if method_named(workspace.project.method).has_languages else ()
    sources = {code: workspace.tracker.download(workspace.made(language_subject(code)), SFT_FOLDER) for code in applied}
    what = task_training(workspace.project, workspace.base, target, step.product.language, sources)
    return _train(workspace, step, run, what, sources)


def language_training(project: Project, base: Base, language: Language, folder: Path) -> dict[str, Any]:
    """Give what `train_sft` needs to know of a language SFT; the packed text goes to the folder."""
    recipe = project.recipes["language"]
    packed = pack_text(
        read_text(language.text, documents=True),
        base.tokenizer,
        max_length=recipe.max_length,
        file=folder / f"{recipe.max_length}.tokens",
    )
    return {
        "objective": MaskedLM(base.tokenizer, mask_probability=recipe.mask_probability),
        "kind": "language",
        "subject": language.code,
        "method": project.method,
        "recipe": recipe,
        "data": TrainingData(*split_held_out(packed, recipe.held_out)),
    }


def task_training(
    project: Project, base: Base, target: TargetTask, language: str, sources: Mapping[str, Path]
) -> dict[str, Any]:
    """Give what `train_sft` needs to know of a task SFT.

    Args:
        project: the project.
        base: its base.
        target: what is learnt.
        language: what the product is learnt from: a language, or several by their name together.
        sources: folder of the SFT of each of these languages; none where the method has no language SFTs.
    """
    recipe = project.recipes[target.name]
    objective = objective_of(target, base, recipe.max_length)
    split = {code: split_examples(objective, target, labelled) for code, labelled in target.labelled(language).items()}
    learnt = _with_consistency(objective, recipe, base)
    sfts = {code: load_sft(folder) for code, folder in sources.items()}
    common = {
        "kind": "task",
        "subject": target.name,
        "method": project.method,
        "recipe": recipe,
        "apart_from": list(sfts.values()),
        "source_languages": tuple(split),
    }
    if len(split) == 1:
        (data,), applied = split.values(), list(sfts.values())
        return {**common, "objective": learnt, "data": data, "applied": applied}
    several = SeveralSources(learnt, {code: sfts.get(code) for code in split}, base)
    examples = {code: found.examples for code, found in split.items()}
    held_out = [[FromLanguage(i, example) for example in found.held_out] for i, found in enumerate(split.values())]
    if target.order == "sequential":
        rounds = [
            TrainingData([FromLanguage(i, example) for example in found], held_out[i])
            for i, found in enumerate(examples.values())
        ]
        return {**common, "objective": several, "data": rounds}
    sizes = {code: len(found) for code, found in examples.items()}
    shares = sampling_shares(sizes, temperature=target.sampling.temperature, weights=target.sampling.weights)
    return {
        **common,
        "objective": several,
        "data": TrainingData(Mixture(examples, shares), list(chain(*held_out))),
    }


def _with_consistency(objective: TargetObjective, recipe: Recipe, base: Base) -> Objective:
    if recipe.consistency is None:
        return objective
    word_lists = [read_word_list(source) for source in recipe.consistency.sources]
    augmenter = Augmenter(base.tokenizer, recipe.consistency.augmentations, word_lists)
    return Consistent(objective, recipe.consistency, augmenter, max_length=recipe.max_length)


def split_examples(objective: TargetObjective, target: TargetTask, data: LabelledData) -> TrainingData:
    """Give what is trained on and what is held out: the dev data, or else every tenth training sentence."""
    examples = objective.examples(labelled_rows(target, data.train))
    if data.dev:
        return TrainingData(examples, objective.examples(labelled_rows(target, data.dev)))
    held_out = [e for e in examples if e.sentence % HELD_OUT_EVERY == 0]
    return TrainingData([e for e in examples if e.sentence % HELD_OUT_EVERY], held_out)


def _train(workspace: Workspace, step: Step, run: RunHandle, what: dict[str, Any], sources: Mapping[str, Path]) -> Path:
    folder = workspace.working_folder(step)
    product = step.product
    recipe = what["recipe"]
    more: dict[str, Any] = {
        "seed": product.seed or 0,
        "details": {
            "key": product.key,
            "data": {name: product.parts[name] for name in ("text", "train", "dev") if name in product.parts},
            "parents": product.parts["upstream"],
            **({"objective": product.parts["objective"]} if product.kind == "task" else {}),
        },
        "checkpoint_seconds": 60.0 * workspace.project.store.checkpoint_minutes,
        "device": workspace.device,
    }
    if recipe.nodes > 1:
        refuse_if_crashed(flow_run.get_id(), crashes=read_settings().crashes)
    project = workspace.project.name
    rounds = recipe.iterations if isinstance(what["data"], TrainingData) else len(what["data"])

    def train(should_stop: Callable[[], bool]) -> Path:
        def on_progress(progress: Progress) -> None:
            workspace.check_claim(product.key)
            reporter(progress)

        with (
            ProgressReporter(run, name=product.subject, project=project, iterations=rounds) as reporter,
            workspace.checkpoints(step),
        ):
            if recipe.processes > 1 or recipe.nodes > 1:
                folders = {code: str(folder) for code, folder in sources.items()}
                job = Job(workspace.ref, product.kind, product.language, product.target_task, folders, more)
                train_together(
                    job, folder, processes=recipe.processes, nodes=recipe.nodes, on_progress=on_progress,
                    should_stop=should_stop,
                )  # fmt: skip
                return folder / SFT_FOLDER
            sft = train_sft(
                workspace.base, folder=folder, on_progress=on_progress, should_stop=should_stop, **what, **more
            )
            return save_sft(sft, folder / SFT_FOLDER, values=recipe.values)

    try:
        return run_stoppable(train)
    finally:
        return_memory()


@task(
    name="store SFT",
    task_run_name="store {step.product.subject}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=is_service_away,
)
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


def target_objective(workspace: Workspace, target: TargetTask) -> TargetObjective:
    """Give the objective of a target task."""
    return objective_of(target, workspace.base, workspace.project.recipes[target.name].max_length)


def objective_of(target: TargetTask, base: Base, max_length: int) -> TargetObjective:
    """Give the objective of a target task on a base."""
    objective = OBJECTIVES[target.objective]
    return objective(base.tokenizer, labels=objective.label_set(target), max_length=max_length)


def labelled_rows(target: TargetTask, sources: tuple[Source, ...]) -> list[Any]:
    """Read the rows of a target task; what the gate let through though it cannot be read is left out, and told."""
    left_out: list[RowError] = []
    rows = list(read_labelled(target, sources, on_error=left_out.append))
    if left_out:
        _LOG.warning("%s: %d malformed rows are left out, such as %s", target.name, len(left_out), left_out[0])
    return rows
