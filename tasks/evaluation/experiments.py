"""Experiments as tasks: variants of a project, what their cells scored, how well task SFTs fit, and one run to show it.

A variant is the same project with some values set otherwise. Its products have the keys that these values give, so
what exists already, in whichever way it was made, is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from prefect.artifacts import create_markdown_artifact

from ltsft.canonical import hash_json
from ltsft.composition import Part
from ltsft.config import TargetTask
from ltsft.errors import ConfigError, ServiceError, StoredFileError
from ltsft.evaluation import Outcomes
from ltsft.experiments import Comparison, DensitySweep, ScoredCell
from ltsft.methods import method_named
from ltsft.project import Project, ProjectRef, Step, language_subject, task_subject
from ltsft.training import split_examples
from tasks.evaluation.cells import target_scorer
from tasks.evaluation.changes import OUTCOMES
from tasks.orchestration import artifact_key, task
from tasks.tracking import Child, FinishedRun, NewRun
from tasks.training import target_objective
from tasks.workspace import Workspace

VERSION = 1
"""Version of what experiments measure themselves, part of their keys."""
FIT_SENTENCES = 500
"""Pieces of training data, evenly spread, on which the fit is measured."""


@dataclass(frozen=True)
class Reported:
    """An experiment to log.

    Attributes:
        name: of its run, such as ``density sweep pos``.
        kind: of its run.
        parts: everything that determines what it shows.
        result: its table.
        figure: its plot.
        children: what it is made of, shown below it.
        metrics: of the experiment as a whole.
    """

    name: str
    kind: str
    parts: Mapping[str, Any]
    result: DensitySweep | Comparison
    figure: Figure = field(repr=False)
    children: Sequence[Child] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


def chosen_tasks(project: Project, target_task: str | None) -> list[TargetTask]:
    """Give the target task of this name, or every one.

    Raises:
        ConfigError: the project has none of this name, or none at all.
    """
    found = [t for name, t in project.target_tasks.items() if target_task in (None, name)]
    if not found:
        allowed = ", ".join(project.target_tasks) or "none"
        raise ConfigError(f"the project has no target task {target_task or ''!r}; allowed are {allowed}")
    return found


def density_variants(
    ref: ProjectRef, target_task: str, *, language: Sequence[float], task: Sequence[float]
) -> dict[tuple[float, float], ProjectRef]:
    """Give, by each pair of densities, the project with them, sparse ones first.

    No supervised SFTs are asked for, which a sweep has no use for.

    Raises:
        ConfigError: a density is out of range, or does not settle what the project's method learns.
    """
    pairs = [(a, b) for a in sorted(set(language)) for b in sorted(set(task))]
    return {pair: _with_densities(ref, target_task, *pair, is_one=len(set(language)) == 1) for pair in pairs}


def _with_densities(ref: ProjectRef, target_task: str, language: float, task: float, *, is_one: bool) -> ProjectRef:
    sizes = {"language": language, target_task: task}
    overrides = [f"target_tasks.{target_task}.supervised={{}}"]
    for part, density in sizes.items():
        overrides += [f"recipes.{part}.density={density}", f"recipes.{part}.size=null"]
    varied = ref.model_copy(update={"overrides": (*ref.overrides, *overrides)})
    project = varied.load(check_files=False)
    method = method_named(project.method)
    if not (method.has_languages or is_one):
        raise ConfigError(f"{method.name} has no language SFTs whose density could be swept; give one language density")
    for part, density in sizes.items():
        if not method.follows_density(project.recipes[part]):
            own = ", ".join(sorted(method.settings.model_fields))
            remedy = f"leave out {own}" if own else "sweep lt_sft, for example"
            raise ConfigError(
                f"density does not settle how much {method.name} learns by its recipe of {part}; {remedy}"
            )
        if project.recipes[part].density != density:
            raise ConfigError(
                f"the density of recipes.{part} is {project.recipes[part].density}, not {density}: "
                f"methods.*.recipes.{part} of the project file sets it; take it out for the sweep"
            )
    return varied


def method_variant(
    ref: ProjectRef, target_task: str, method: str, *, seeds: Sequence[int] | None, is_reference: bool
) -> ProjectRef:
    """Give the project with another method, and other seeds of the task trainings where some are given.

    Supervised SFTs are asked for of the reference alone: they stand beside the table, and are not compared.

    Raises:
        ConfigError: there is no such method, or the file sets other seeds for the method.
    """
    overrides = [] if is_reference else [f"target_tasks.{target_task}.supervised={{}}"]
    if seeds:
        overrides.append(f"recipes.{target_task}.seeds={list(seeds)}")
    varied = ref.model_copy(update={"method": method, "overrides": (*ref.overrides, *overrides)})
    found = varied.load(check_files=False).recipes[target_task].seeds
    if seeds and found != tuple(seeds):
        raise ConfigError(
            f"the seeds of {method} are {list(found)}, not {list(seeds)}: methods.{method}.recipes.{target_task}.seeds "
            "of the project file sets them; take them out for the comparison"
        )
    return varied


def cell_steps(workspace: Workspace, target: TargetTask, languages: Sequence[str] | None = None) -> list[Step]:
    """Give the steps of the cells of a target task, in all languages or in these.

    Raises:
        ConfigError: a language has no test data.
    """
    for code in languages or ():
        if code not in target.test:
            raise ConfigError(f"{target.name} has no test data in {code!r}; allowed are {', '.join(target.test)}")
    steps = [s for s in workspace.plan.of_kind("cell") if s.product.target_task == target.name]
    return [step for step in steps if languages is None or step.product.language in languages]


def read_cells(workspace: Workspace, steps: Iterable[Step]) -> dict[str, tuple[FinishedRun, ScoredCell]]:
    """Give, by language, the cells that have a score by now, with the outcome of each test sentence.

    Raises:
        ConfigError: a cell was scored before outcomes were kept.
    """
    known = {record.key: record for record in workspace.tracker.records(kind="cell")}
    found = {}
    for step in steps:
        record = known.get(step.product.key)
        if record is None:
            continue
        seeds = [int(name.removeprefix("score.seed.")) for name in record.metrics if name.startswith("score.seed.")]
        outcomes = {seed: _outcomes(workspace, record, seed) for seed in seeds}
        found[step.product.language] = (record, ScoredCell(record.metrics, outcomes))
    return found


@task(name="measure fit", task_run_name="measure fit {target.name}")
def measure_fit(workspace: Workspace, target: TargetTask) -> tuple[float, float]:
    """Score the task SFTs in their source languages on what they were trained on, and on what was held out.

    The mean over source languages and seeds of each; kept as a product of its own, so it is measured once.
    """
    seeds = workspace.project.recipes[target.name].seeds
    tasks = {seed: task_subject(target.name, target.source_name, seed) for seed in seeds}
    languages = list(target.sources) if method_named(workspace.project.method).has_languages else []
    subjects = [*tasks.values(), *map(language_subject, languages)]
    parts = {
        "kind": "fit",
        "procedure": VERSION,
        "sentences": FIT_SENTENCES,
        "composition": workspace.project.composition.rule,
        "upstream": {subject: workspace.plan.step(subject).product.key for subject in subjects},
    }
    key = hash_json(parts)
    with workspace.claim(key, f"fit {target.name}") as existing:
        if existing is None:
            name = f"fit {target.name}"
            with workspace.tracker.open_run(NewRun(name=name, kind="fit", subject=name, key=key, parts=parts)) as run:
                run.log_metrics(_fit(workspace, target, tasks))
    record = workspace.tracker.find(key)
    if record is None:
        raise ServiceError(f"the run of fit {target.name} is gone from MLflow; run the experiment again")
    return record.metrics["train_score"], record.metrics["held_out_score"]


@task(name="log experiment", task_run_name="log {reported.name}", is_retried=True)
def log_experiment(workspace: Workspace, reported: Reported) -> str:
    """Log an experiment with its table, its plot and its children, unless this very one is logged; give its run."""
    key = hash_json({"kind": reported.kind, "procedure": VERSION, **reported.parts})
    with workspace.claim(key, reported.name) as existing:
        if existing is not None:
            return existing
        with workspace.tracker.open_run(
            NewRun(name=reported.name, kind=reported.kind, subject=reported.name, key=key, parts=reported.parts)
        ) as run:
            workspace.tracker.log_children(run, reported.children)
            run.log_metrics(reported.metrics)
            run.log_figure(reported.figure, f"figures/{reported.kind}.png")
            run.log_text(reported.result.markdown(), "table.md")
            run.log_text(reported.result.csv(), "table.csv")
            run.log_text(json.dumps(_rows(reported.result), indent=2) + "\n", "table.json")
    create_markdown_artifact(
        markdown=reported.result.markdown(),
        key=artifact_key(workspace.project.name, reported.name),
        description=reported.name,
    )
    return run.run_id


def _rows(result: DensitySweep | Comparison) -> list[dict[str, Any]]:
    return [row.as_row() for row in (result.points if isinstance(result, DensitySweep) else result.rows)]


def _outcomes(workspace: Workspace, record: FinishedRun, seed: int) -> Outcomes:
    try:
        file = workspace.tracker.download(record.run_id, f"{OUTCOMES}/seed-{seed}.npy")
    except StoredFileError as error:
        raise ConfigError(
            f"{record.subject} (run {record.run_id}) has no outcomes of single sentences for seed {seed}; delete that "
            "run in MLflow, and the experiment scores the cell again"
        ) from error
    found: Outcomes = np.load(file, allow_pickle=False)
    return found


def _fit(workspace: Workspace, target: TargetTask, tasks: Mapping[int, str]) -> dict[str, float]:
    scorer, objective = target_scorer(workspace, target), target_objective(workspace, target)
    has_languages = method_named(workspace.project.method).has_languages
    scores: dict[str, list[float]] = {"train_score": [], "held_out_score": []}
    for code, labelled in target.sources.items():
        split = split_examples(objective, target, labelled)
        every = max(1, len(split.examples) // FIT_SENTENCES)
        sets = {"train_score": split.examples[::every], "held_out_score": split.held_out}
        for subject in tasks.values():
            parts: list[Part] = [(workspace.load_sft(workspace.made(subject)), 1.0)]
            if has_languages:
                parts.insert(0, (workspace.load_sft(workspace.made(language_subject(code))), 1.0))
            for name, examples in sets.items():
                correct, counted = scorer.outcomes(examples, parts).sum(axis=0)
                scores[name].append(float(correct / counted))
    return {name: fmean(found) for name, found in scores.items()}
