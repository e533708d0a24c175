"""Sweep densities: for each pair of densities make what is missing, score it, and put all pairs side by side.

Reads what `retrain` reads; writes the SFTs and cells of each pair, each under its own key, and one MLflow run with a
table and a plot. Killed and started again, it goes on where it was; run again, it trains and scores nothing.
Locally: ``ltsft sweep-density PROJECT --language-densities 0.05,0.3,1 --task-densities 0.05,0.3,1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from flows.making import experiment_state, make_cells
from ltsft.errors import LtsftError
from ltsft.experiments import DensitySweep, Scope, ScoredCell, sweep_figure, sweep_points
from ltsft.objectives import OBJECTIVES
from ltsft.project import ProjectRef
from tasks.evaluation import (
    Reported,
    cell_steps,
    chosen_tasks,
    density_variants,
    log_experiment,
    measure_fit,
    read_cells,
)
from tasks.orchestration import Shortfall, Shortfalls, ends_in_words, reasons, show
from tasks.tracking import Child
from tasks.workspace import open_workspace


@flow(name="sweep-density", flow_run_name="sweep-density {project.file}", validate_parameters=True)
@ends_in_words
def sweep_density(
    project: ProjectRef,
    language_densities: list[float],
    task_densities: list[float],
    target_task: str | None = None,
    languages: list[str] | None = None,
) -> State[Any]:
    """Sweep the densities of a project's language and task SFTs.

    Args:
        project: the project.
        language_densities: of language SFTs, in (0, 1]; 1 is dense.
        task_densities: of task SFTs.
        target_task: only this one.
        languages: target languages; all that have test data without it.

    Returns:
        Completed with the tables, or Failed with them and what could not be made.
    """
    told: list[str] = []
    failures: dict[str, Shortfall] = {}
    for target in chosen_tasks(project.load(), target_task):
        sweep, missing = _sweep(project, target.name, language_densities, task_densities, languages)
        told.append(sweep.text())
        failures |= missing
    return experiment_state(told, failures)


def _sweep(
    project: ProjectRef,
    target_task: str,
    language_densities: Sequence[float],
    task_densities: Sequence[float],
    languages: Sequence[str] | None,
) -> tuple[DensitySweep, Shortfalls]:
    variants = density_variants(project, target_task, language=language_densities, task=task_densities)
    asked = open_workspace(project)
    target = asked.project.target_tasks[target_task]
    wanted = languages or list(target.test)
    failures: dict[str, Shortfall] = {}
    cells: dict[tuple[float, float], dict[str, ScoredCell]] = {}
    fits: dict[tuple[float, float], tuple[float, float]] = {}
    keys: dict[str, str] = {}
    for number, (pair, ref) in enumerate(variants.items(), 1):
        name = f"language {pair[0]:g} task {pair[1]:g}"
        get_run_logger().info("pair %d of %d: %s", number, len(variants), name)
        show(f"pair {number} of {len(variants)}: {name}")
        workspace = open_workspace(ref)
        varied = workspace.project.target_tasks[target_task]
        steps = cell_steps(workspace, varied, wanted)
        missing = make_cells(ref, steps)
        failures |= {f"{name}: {subject}": why for subject, why in missing.items()}
        found = read_cells(workspace, steps)
        cells[pair] = {code: cell for code, (_, cell) in found.items()}
        keys |= {f"{name} {code}": record.key for code, (record, _) in found.items()}
        if found:
            try:
                fits[pair] = measure_fit(workspace, varied)
            except LtsftError as error:
                failures[f"fit {target_task} {name}"] = Shortfall.of(error)
    sweep = sweep_points(
        cells,
        fits,
        scope=Scope(target_task, OBJECTIVES[target.objective].metric, reasons(failures), asked.project.artificial),
        languages=[code for code in wanted if code not in target.sources],
        source=target.source_language,
    )
    show(f"density sweep {target_task}")
    log_experiment(asked, _reported(sweep, keys, fits, reasons(failures)))
    return sweep, failures


def _reported(
    sweep: DensitySweep,
    keys: dict[str, str],
    fits: dict[tuple[float, float], tuple[float, float]],
    failures: dict[str, str],
) -> Reported:
    children = [
        Child(
            f"language {p.language_density:g} task {p.task_density:g}",
            "point of sweep",
            f"sweep {sweep.target_task}",
            {name: value for name, value in p.as_row().items() if value is not None},
            {"language_density": p.language_density, "task_density": p.task_density},
        )
        for p in sweep.points
    ]
    best = sweep.best
    metrics = {"score": best.score, "language_density": best.language_density, "task_density": best.task_density}
    if sweep.against_dense is not None:
        d = sweep.against_dense
        metrics |= {"against_dense": d.difference, "against_dense.lower": d.lower, "against_dense.upper": d.upper}
    return Reported(
        name=f"density sweep {sweep.target_task}",
        kind="sweep",
        parts={"cells": keys, "fits": [[*pair, *fit] for pair, fit in fits.items()], "gaps": dict(failures)},
        result=sweep,
        figure=sweep_figure(sweep),
        children=children,
        metrics=metrics,
    )
