"""Training as tasks: fetch the data, learn the SFT, measure it, store it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from ltsft.config import LabelledData, Language, Source, TargetTask
from ltsft.figures import density_figure
from ltsft.files import load_sft, save_sft
from ltsft.interference import sparsity
from ltsft.objectives import TargetObjective
from ltsft.objectives.masked_lm import MaskedLM, pack_text, split_held_out
from ltsft.objectives.registry import OBJECTIVES, read_labelled
from ltsft.plan import Step, language_subject
from ltsft.several import FromLanguage, Mixture, SeveralSources, sampling_shares
from ltsft.sources import RowError, read_text
from ltsft.train import TrainingData, train_sft
from tasks.progress import ProgressReporter
from tasks.retries import is_service_away
from tasks.runs import RunHandle
from tasks.workspace import HELD_OUT, SFT_FOLDER, Workspace

HELD_OUT_EVERY = 10
"""Without dev data, every tenth sentence of the training data chooses the best checkpoint."""


@task(name="train language SFT", task_run_name="train language SFT {language.code}", cache_policy=NO_CACHE)
def train_language_sft(workspace: Workspace, language: Language, step: Step, run: RunHandle) -> Path:
    """Learn a language SFT from raw text; give the folder that holds it."""
    folder = workspace.working_folder(step)
    recipe = workspace.project.recipes["language"]
    tokenizer = workspace.base.tokenizer
    packed = pack_text(
        read_text(language.text, documents=True),
        tokenizer,
        max_length=recipe.max_length,
        file=folder / f"{recipe.max_length}.tokens",
    )
    examples, held_out = split_held_out(packed, recipe.held_out)
    get_run_logger().info("%s: %d sequences of %d sub-words", language.code, len(packed), recipe.max_length)
    (folder / HELD_OUT).parent.mkdir(exist_ok=True)
    np.save(folder / HELD_OUT, np.stack([held_out[i] for i in range(len(held_out))]), allow_pickle=False)
    return _train(
        workspace,
        step,
        run,
        objective=MaskedLM(tokenizer, mask_probability=recipe.mask_probability),
        kind="language",
        subject=language.code,
        recipe=recipe,
        data=TrainingData(examples, held_out),
    )


@task(name="train task SFT", task_run_name="train {step.product.subject}", cache_policy=NO_CACHE)
def train_task_sft(
    workspace: Workspace, target: TargetTask, data: Mapping[str, LabelledData], step: Step, run: RunHandle
) -> Path:
    """Learn a task SFT from labelled data, over base + the source language's SFT; give the folder that holds it.

    From several languages, each batch is of one of them, over base + its SFT.
    """
    objective = target_objective(workspace, target)
    split = {language: _split(objective, target, labelled) for language, labelled in data.items()}
    sfts = {language: workspace.load_sft(workspace.made(language_subject(language))) for language in data}
    common = {
        "kind": "task",
        "subject": target.name,
        "recipe": workspace.project.recipes[target.name],
        "source_languages": tuple(data),
        "details": {"objective": target.objective},
    }
    if len(data) == 1:
        (examples,), applied = split.values(), list(sfts.values())
        return _train(workspace, step, run, objective=objective, data=examples, applied=applied, **common)
    several = SeveralSources(objective, sfts, workspace.base)
    held_out = [[FromLanguage(i, example) for example in found.held_out] for i, found in enumerate(split.values())]
    if target.order == "sequential":
        rounds = [
            TrainingData([FromLanguage(i, example) for example in found.examples], held_out[i])
            for i, found in enumerate(split.values())
        ]
        return _train(workspace, step, run, objective=several, data=rounds, **common)
    sampling = target.sampling
    sizes = {language: len(found.examples) for language, found in split.items()}
    shares = sampling_shares(sizes, temperature=sampling.temperature, weights=sampling.weights)
    mixed = Mixture({language: found.examples for language, found in split.items()}, shares)
    return _train(workspace, step, run, objective=several, data=TrainingData(mixed, list(chain(*held_out))), **common)


def _split(objective: TargetObjective, target: TargetTask, data: LabelledData) -> TrainingData:
    """Give what is trained on and what is held out: the dev data, or else every tenth training sentence."""
    examples = objective.examples(labelled_rows(target, data.train))
    if data.dev:
        return TrainingData(examples, objective.examples(labelled_rows(target, data.dev)))
    held_out = [e for e in examples if e.sentence % HELD_OUT_EVERY == 0]
    return TrainingData([e for e in examples if e.sentence % HELD_OUT_EVERY], held_out)


def _train(workspace: Workspace, step: Step, run: RunHandle, **what: Any) -> Path:
    folder = workspace.working_folder(step)
    product = step.product
    recipe = what["recipe"]
    data_prints = {name: product.parts[name] for name in ("text", "train", "dev") if name in product.parts}
    project = workspace.project.name
    details = what.pop("details", {})
    rounds = recipe.iterations if isinstance(what["data"], TrainingData) else len(what["data"])
    with ProgressReporter(run, name=product.subject, project=project, iterations=rounds) as reporter:
        sft = train_sft(
            workspace.base,
            what.pop("objective"),
            **what,
            seed=product.seed or 0,
            folder=folder,
            details={**details, "key": product.key, "data": data_prints, "parents": product.parts["upstream"]},
            checkpoint_seconds=60.0 * workspace.project.store.checkpoint_minutes,
            device=workspace.device,
            on_progress=reporter,
        )
    return save_sft(sft, folder / SFT_FOLDER, values=recipe.values)


@task(
    name="store SFT",
    task_run_name="store {step.product.subject}",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=is_service_away,
)
def store_sft(workspace: Workspace, step: Step, run: RunHandle, folder: Path) -> None:
    """Measure the sparsity of an SFT, log it with its folder, and close the run: from now on the product exists."""
    sft = load_sft(folder)
    measured = sparsity(sft)
    run.log_metrics({**measured.metrics(), "support_size": sft.support_size, "maskable": sft.maskable})
    run.log_metrics({f"{h['phase']}.best_score": h["best_score"] for h in sft.details["history"]})
    run.log_metrics({f"{h['phase']}.best_step": h["best_step"] for h in sft.details["history"]})
    for language, score in zip(sft.source_languages, sft.details.get("forgetting", ()), strict=False):
        change = {**score, "change": score["after"] - score["before"]}
        run.log_metrics({f"forgetting.{name}.{language}": value for name, value in change.items()})
    figure = density_figure(
        {name: share.density for name, share in measured.layers.items()},
        overall=measured.overall.density,
        title=step.product.subject,
        groups={name: share.density for name, share in measured.groups.items()},
    )
    run.log_figure(figure, "figures/density.png")
    run.log_folder(folder, SFT_FOLDER)
    held_out = workspace.working_folder(step) / HELD_OUT
    if held_out.is_file():
        run.log_file(held_out, str(Path(HELD_OUT).parent))
    run.finish()
    workspace.remove_working_folder(step)


def target_objective(workspace: Workspace, target: TargetTask) -> TargetObjective:
    """Give the objective of a target task."""
    objective = OBJECTIVES[target.objective]
    recipe = workspace.project.recipes[target.name]
    return objective(workspace.base.tokenizer, labels=objective.label_set(target), max_length=recipe.max_length)


def labelled_rows(target: TargetTask, sources: tuple[Source, ...]) -> list[Any]:
    """Read the rows of a target task; what the gate let through though it cannot be read is left out, and told."""
    left_out: list[RowError] = []
    rows = list(read_labelled(target, sources, on_error=left_out.append))
    if left_out:
        get_run_logger().warning(
            "%s: %d malformed rows are left out, such as %s", target.name, len(left_out), left_out[0]
        )
    return rows
