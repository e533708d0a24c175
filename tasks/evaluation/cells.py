"""The matrix as tasks: score the cells whose parts changed, put all of them together, compare, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from ltsft.base import Base
from ltsft.canonical import hash_json
from ltsft.config import Precision, Source, TargetTask
from ltsft.data import cached_examples, fingerprint
from ltsft.evaluation import Cell, CellData, Matrix, Scorer, interference, matrix_markdown
from ltsft.heap import return_memory
from ltsft.methods import method_named
from ltsft.objectives import OBJECTIVES, MaskedLM
from ltsft.project import Step, cell_subject, language_subject, task_subject
from ltsft.report import Pair, Plot, html_page, interference_figure, matrix_figure
from ltsft.sft import SFT
from ltsft.training import labelled_rows
from tasks.evaluation.changes import ALONE, OUTCOMES, Scored, with_changes
from tasks.evaluation.matrix import PAGE, read_matrix, write_page
from tasks.orchestration import artifact_key, task
from tasks.tracking import Child, RunHandle
from tasks.training import target_objective
from tasks.workspace import HELD_OUT, Workspace

MEASURED_SEED = "ltsft.measured_seed"
"""Tag of a cell: the seed of the task SFT whose interference was measured."""
PRECISION = "ltsft.precision"
"""Tag of a cell: what its forward passes had; of an SFT, what its training had."""
MOST_PAIRED = 40
"""SFTs of which every two are compared: of more, the heat map is not legible and all of them do not fit in memory."""
SOURCE_SENTENCES = 200
"""Dev sentences of the source language on which functional interference is measured."""


@task(name="score cell", task_run_name="score {step.product.subject}")
def score_cell(workspace: Workspace, target: TargetTask, step: Step, run: RunHandle) -> dict[str, float]:
    """Score base + language SFT + task SFTs on the test set of one language; give the metrics."""
    product = step.product
    source = target.source_language
    seeds = workspace.project.recipes[target.name].seeds
    has_languages = method_named(workspace.project.method).has_languages
    supervised = task_subject(target.name, product.language, seeds[0])
    data = CellData(
        test=labelled_examples(workspace, target, target.test[product.language]),
        source_dev=labelled_examples(workspace, target, target.sources[source].dev, SOURCE_SENTENCES),
        text=_held_out_text(workspace, product.language) if has_languages else (),
        majority=_majority(workspace, target),
    )
    scorer = target_scorer(workspace, target)
    scored = scorer.score(
        data,
        language=_sft(workspace, language_subject(product.language)) if has_languages else None,
        tasks=[_sft(workspace, task_subject(target.name, target.source_name, seed)) for seed in seeds],
        source=_sft(workspace, language_subject(source)) if has_languages else None,
        supervised=_sft(workspace, supervised) if product.language in target.supervised else None,
        weights=workspace.project.composition.weights_of(product.language),
    )
    run.log_metrics(scored.metrics)
    run.set_tags({MEASURED_SEED: str(seeds[0]), PRECISION: scorer.precision})
    folder = workspace.working_folder(step) / OUTCOMES
    folder.mkdir(exist_ok=True)
    for name, by_seed in (("", scored.outcomes), (ALONE, scored.alone)):
        for seed, outcomes in by_seed.items():
            np.save(folder / f"{name}seed-{seed}.npy", outcomes, allow_pickle=False)
    run.log_folder(folder, OUTCOMES)
    return_memory()
    return dict(scored.metrics)


def target_scorer(workspace: Workspace, target: TargetTask, *, rule: str | None = None) -> Scorer:
    """Give what scores compositions of a target task on the base of the project, by its rule or by another."""
    recipe = workspace.project.recipes["language"]
    return _scorer(
        workspace.base,
        target.objective,
        OBJECTIVES[target.objective].label_set(target),
        workspace.project.recipes[target.name].max_length,
        recipe.mask_probability,
        recipe.precision,
        workspace.device,
        rule or workspace.project.composition.rule,
    )


@dataclass(frozen=True)
class ScoredMatrix:
    """The matrix with what the report shows beside it."""

    matrix: Matrix
    pairs: tuple[Pair, ...]


@task(name="assemble matrix", task_run_name="assemble matrix")
def assemble_matrix(workspace: Workspace, reasons: Mapping[str, str], live: Mapping[str, Scored]) -> ScoredMatrix:
    """Put together the cells of a project, say what changed, and compare every two SFTs.

    Args:
        workspace: the project.
        reasons: by subject of a product, why it could not be made.
        live: by subject of a cell, what is live.
    """
    matrix = with_changes(workspace, read_matrix(workspace, reasons), live)
    return ScoredMatrix(matrix, _pairs(workspace))


@task(name="log matrix", task_run_name="log matrix", is_retried=True)
def log_matrix(workspace: Workspace, scored: ScoredMatrix, run: RunHandle) -> None:
    """Log the matrix with its cells as child runs, its figures and its page; write the page into the store folder."""
    matrix = scored.matrix
    workspace.tracker.log_children(run, _children(workspace, matrix))
    run.log_metrics(_summary(matrix))
    plots = _plots(scored)
    for name, plot in plots.items():
        run.log_figure(plot.figure, f"figures/{name}.png")
    markdown = matrix_markdown(matrix)
    run.log_text(markdown, "matrix.md")
    page = html_page(matrix, plots=list(plots.values()))
    run.log_text(page, PAGE)
    write_page(workspace, page.encode())
    create_markdown_artifact(
        markdown=markdown, key=artifact_key("matrix", workspace.project.name), description="language matrix"
    )


def _children(workspace: Workspace, matrix: Matrix) -> list[Child]:
    """Give the cells that have a score, with the runs of the SFTs that each is composed of, and what changed."""
    children = []
    shown = {cell_subject(cell.target_task, cell.language): cell for cell in matrix.cells}
    for step in workspace.plan.of_kind("cell"):
        product = step.product
        record = workspace.tracker.find(product.key)
        if record is not None:
            ids = {need: workspace.made(need) for need in product.needs}
            tags = {
                "ltsft.scored_in": record.run_id,
                "ltsft.composed_of": ", ".join(f"{need}: {run_id}" for need, run_id in ids.items()),
                "ltsft.language": product.language,
                "ltsft.target_task": str(product.target_task),
            }
            metrics = {**record.metrics, **_changes(shown[product.subject])}
            children.append(Child(product.subject, "cell of matrix", product.subject, metrics, ids, tags))
    return children


def _changes(cell: Cell) -> dict[str, float]:
    """Give as metrics what a cell was before and what is live, with the intervals."""
    metrics = {}
    for name, change in (("change", cell.before), ("live_change", cell.live)):
        if change is not None and not change.is_same:
            metrics[name] = change.difference
            if change.interval is not None:
                metrics |= {f"{name}_lower": change.interval.lower, f"{name}_upper": change.interval.upper}
    if cell.live is not None:
        metrics["score_live"] = cell.live.other
    return metrics


def _summary(matrix: Matrix) -> dict[str, float]:
    """Average over the cells that have a score, without those of the source language."""
    metrics = {"cells": float(len(matrix.cells)), "gaps": float(sum(c.is_gap for c in matrix.cells))}
    scored = [(c.score, c.task_only) for c in matrix.cells if not c.is_source and c.score is not None]
    if scored:
        metrics["score"] = fmean(score for score, _ in scored)
        metrics["score_task_only"] = fmean(alone or 0.0 for _, alone in scored)
        metrics["gain"] = metrics["score"] - metrics["score_task_only"]
    return metrics


def labelled_examples(
    workspace: Workspace, target: TargetTask, sources: tuple[Source, ...], rows: int | None = None
) -> Sequence[Any]:
    """Tokenise labelled data, or read what was tokenised before from the store folder."""
    objective = target_objective(workspace, target)
    max_length = workspace.project.recipes[target.name].max_length
    parts = [workspace.base.ref.tokenizer_fingerprint, _data_parts(target, sources), objective.labels, max_length, rows]
    key = hash_json(parts)
    return cached_examples(
        workspace.store / "tokenised",
        key,
        lambda: objective.examples(labelled_rows(target, sources)[:rows]),
        kind=objective.example,
    )


def _data_parts(target: TargetTask, sources: tuple[Source, ...]) -> list[Any]:
    """Give what says which rows are read from some sources of a target task."""
    files = [(source.scheme, fingerprint(source)) for source in sources]
    return [target.objective, sorted(target.columns.items()), sorted(target.relabel.items()), files]


def _held_out_text(workspace: Workspace, language: str) -> Sequence[Any]:
    """Give the sequences of a language's text that its SFT was not learnt from."""
    file = workspace.tracker.download(workspace.made(language_subject(language)), HELD_OUT)
    text: Sequence[Any] = np.load(file, allow_pickle=False)
    return text


def _majority(workspace: Workspace, target: TargetTask) -> str | None:
    """Give the most frequent answer of the training data of a target task; it is looked for once in a flow run."""
    sources = tuple(source for labelled in target.sources.values() for source in labelled.train)
    key = json.dumps(_data_parts(target, sources))
    if key not in workspace.majorities:
        workspace.majorities[key] = OBJECTIVES[target.objective].majority(labelled_rows(target, sources))
    return workspace.majorities[key]


@lru_cache(maxsize=1)
def _scorer(
    base: Base,
    objective: str,
    labels: tuple[str, ...],
    max_length: int,
    mask_probability: float,
    precision: Precision,
    device: str,
    rule: str,
) -> Scorer:
    target_objective = OBJECTIVES[objective](base.tokenizer, labels=labels, max_length=max_length)
    masked_lm = MaskedLM(base.tokenizer, mask_probability=mask_probability)
    return Scorer(base, target_objective, masked_lm, precision=precision, device=device, rule=rule)


def _sft(workspace: Workspace, subject: str) -> SFT:
    return workspace.load_sft(workspace.made(subject))


def _plots(scored: ScoredMatrix) -> dict[str, Plot]:
    plots = {"matrix": Plot(matrix_figure(scored.matrix), "Matrix", "the scores of the table as a heat map")}
    for measure in ("overlap", "sign_conflict") if len(scored.pairs) else ():
        figure = interference_figure(scored.pairs, measure, artificial=scored.matrix.artificial)
        title = f"Interference: {measure.replace('_', ' ')}"
        plots[f"interference_{measure}"] = Plot(figure, title, f"{measure.replace('_', ' ')} of every two SFTs")
    return plots


def _pairs(workspace: Workspace) -> tuple[Pair, ...]:
    """Compare every pair of language SFTs, and each with the first task SFT of each target task, if they are few."""
    plan = workspace.plan
    if method_named(workspace.project.method).is_stacked:
        return ()
    wanted = list(plan.of_kind("language"))
    wanted += [
        s for s in plan.of_kind("task") if not s.product.is_supervised and s.product.seed == _first_seed(workspace, s)
    ]
    runs = {_short_name(step): workspace.run_of(step.product.subject) for step in wanted}
    made = {name: run_id for name, run_id in runs.items() if run_id is not None}
    if len(made) > MOST_PAIRED:
        get_run_logger().info("%d SFTs are too many to compare every two of them (at most %d)", len(made), MOST_PAIRED)
        return ()
    loaded = {name: workspace.load_sft(run_id) for name, run_id in made.items()}
    names = list(loaded)
    pairs = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            met = interference(loaded[a], loaded[b]).overall
            pairs.append(Pair(a, b, met.intersection, met.expected, met.sign_conflict, met.cosine_on_intersection))
    return tuple(pairs)


def _short_name(step: Step) -> str:
    return step.product.language if step.product.kind == "language" else str(step.product.target_task)


def _first_seed(workspace: Workspace, step: Step) -> int:
    return workspace.project.recipes[str(step.product.target_task)].seeds[0]
