"""Compare methods: make every method's part of the matrix, and say how sure one may be of each difference.

Reads what `retrain` reads; writes the products of each method, each under its own key, and one MLflow run with a table
and a plot. Killed and started again, it goes on where it was; run again, it trains and scores nothing.
Locally: ``ltsft compare-methods PROJECT --methods lt_sft,task_only,lora --seeds 1,2,3``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from flows.making import experiment_state, make_cells
from ltsft.experiments import Comparison, MethodScores, Scope, comparison_figure
from ltsft.experiments import compare_methods as compare
from ltsft.objectives import OBJECTIVES
from ltsft.project import ProjectRef
from tasks.evaluation import Reported, cell_steps, chosen_tasks, log_experiment, method_variant, read_cells
from tasks.orchestration import Shortfall, Shortfalls, ends_in_words, reasons, show
from tasks.tracking import Child
from tasks.workspace import open_workspace


@flow(name="compare-methods", flow_run_name="compare-methods {project.file}", validate_parameters=True)
@ends_in_words
def compare_methods(
    project: ProjectRef,
    methods: list[str],
    reference: str = "lt_sft",
    seeds: list[int] | None = None,
    target_task: str | None = None,
    languages: list[str] | None = None,
) -> State[Any]:
    """Compare methods with a reference on the same data, seeds and test sentences.

    Args:
        project: the project.
        methods: to compare.
        reference: what the others are compared with; it is made too.
        seeds: of the task trainings, in place of those of the recipes.
        target_task: only this one.
        languages: target languages; all that have test data, without source languages, when None.

    Returns:
        Completed with the tables, or Failed with them and what could not be made.
    """
    told: list[str] = []
    failures: dict[str, Shortfall] = {}
    for target in chosen_tasks(project.load(), target_task):
        comparison, missing = _compare(project, target.name, methods, reference, seeds, languages)
        told.append(comparison.text())
        failures |= missing
    return experiment_state(told, failures)


def _compare(
    project: ProjectRef,
    target_task: str,
    methods: Sequence[str],
    reference: str,
    seeds: Sequence[int] | None,
    languages: Sequence[str] | None,
) -> tuple[Comparison, Shortfalls]:
    names = list(dict.fromkeys([reference, *methods]))
    variants = {
        name: method_variant(project, target_task, name, seeds=seeds, is_reference=name == reference) for name in names
    }
    asked = open_workspace(project)
    target = asked.project.target_tasks[target_task]
    wanted = languages or [code for code in target.test if code not in target.sources]
    failures: dict[str, Shortfall] = {}
    scored: list[MethodScores] = []
    keys: dict[str, str] = {}
    for number, (method, ref) in enumerate(variants.items(), 1):
        get_run_logger().info("method %d of %d: %s", number, len(variants), method)
        show(f"method {number} of {len(variants)}: {method}")
        workspace = open_workspace(ref)
        cells = cell_steps(workspace, workspace.project.target_tasks[target_task], wanted)
        missing = make_cells(ref, cells)
        failures |= {f"{method}: {subject}": why for subject, why in missing.items()}
        for code, (record, cell) in read_cells(workspace, cells).items():
            scores = {seed: cell.metrics[f"score.seed.{seed}"] for seed in cell.outcomes}
            scored.append(MethodScores(method, code, scores, cell.outcomes, cell.metrics.get("score_supervised")))
            keys[f"{method} {code}"] = record.key
    gate = asked.project.gates.release
    comparison = compare(
        scored,
        reference=reference,
        scope=Scope(target_task, OBJECTIVES[target.objective].metric, reasons(failures), asked.project.artificial),
        names={code: language.name for code, language in asked.project.languages.items()},
        confidence=gate.confidence,
        resamples=gate.resamples,
    )
    show(f"comparison {target_task}")
    log_experiment(asked, _reported(comparison, keys, reasons(failures)))
    return comparison, failures


def _reported(comparison: Comparison, keys: dict[str, str], failures: dict[str, str]) -> Reported:
    children: list[Child] = []
    metrics: dict[str, float] = {}
    for method in comparison.methods:
        mean = comparison.row(method)
        found = {"score": mean.score, "score_std": mean.std}
        if mean.difference is not None:
            d = mean.difference
            found |= {"difference": d.difference, "difference.lower": d.lower, "difference.upper": d.upper}
        metrics |= {f"{method}.{name}": value for name, value in found.items()}
        found |= {f"score.{code}": comparison.row(method, code).score for code in comparison.names}
        children.append(
            Child(method, "method of comparison", f"comparison {comparison.target_task}", found, {"method": method})
        )
    return Reported(
        name=f"comparison {comparison.target_task}",
        kind="comparison",
        parts={
            "cells": keys,
            "reference": comparison.reference,
            "methods": list(comparison.methods),
            "confidence": comparison.confidence,
            "gaps": failures,
        },
        result=comparison,
        figure=comparison_figure(comparison),
        children=children,
        metrics=metrics,
    )
