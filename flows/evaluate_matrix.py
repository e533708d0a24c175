"""Evaluate the language matrix: score every cell whose parts changed, put all cells together, report.

An experiment has some cells scored that are not those of the project's own matrix, and reports them itself.

Reads the SFTs and the test sets; writes one MLflow run for each new cell and one for the matrix, with figures and a
page. Locally: ``ltsft run PROJECT``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from ltsft.errors import LtsftError, ServiceError
from ltsft.project import ProjectRef, Step
from tasks.evaluation import Scored, ScoredMatrix, assemble_matrix, log_matrix, matrix_key, matrix_parts, score_cell
from tasks.orchestration import (
    Shortfall,
    Why,
    completed,
    ends_in_words,
    failed,
    in_rounds,
    listed,
    reasons,
    show,
    worst,
)
from tasks.releases import live_scores
from tasks.tracking import NewRun
from tasks.validation import validate_test
from tasks.workspace import Workspace, open_workspace


@flow(name="evaluate-matrix", flow_run_name="evaluate-matrix {project.file}", validate_parameters=True)
@ends_in_words
def evaluate_matrix(
    project: ProjectRef, failures: Mapping[str, str] | None = None, only: list[str] | None = None
) -> State[Any]:
    """Score what is not up to date and report the whole matrix.

    Args:
        project: the project.
        failures: by subject of an SFT, why it could not be made; shown in the gaps of the matrix.
        only: subjects of the cells to score, of which no matrix is reported; all of them, and the matrix, when None.

    Returns:
        Completed, as *Refused* where data did not pass; such a cell is a gap of the matrix. Failed where a service kept
        cells from being scored; the matrix is reported without them.
    """
    workspace = open_workspace(project)
    cells = {step.product.subject: step for step in workspace.plan.of_kind("cell")}
    wanted = [s for s in cells if only is None or s in only]

    def score(subject: str) -> Shortfall | None:
        step = cells[subject]
        if step.is_up_to_date or any(workspace.run_of(need) is None for need in step.product.needs):
            return None
        show(subject)
        try:
            _score(workspace, step)
        except LtsftError as error:
            get_run_logger().error("%s has no score: %s", subject, error)
            return Shortfall.of(error)
        return None

    missing = in_rounds(wanted, score)
    if only is None:
        show("matrix")
        why = {**(failures or {}), **reasons(missing)}
        _report(workspace, assemble_matrix(workspace, why, _live(workspace)))
    told = f"{len(missing)} of {len(wanted)} cells"
    if worst(missing.values()) is not Why.REFUSED:
        return failed(f"{told} could not be scored:\n{listed(missing)}", missing.values())
    if missing:
        return completed(f"{told} were refused:\n{listed(missing)}", has_refusals=True)
    return completed("no cell is left to score")


def _live(workspace: Workspace) -> dict[str, Scored]:
    """Give what is live, to stand beside the scores; a matrix is not lost where the registry cannot say."""
    try:
        return live_scores(workspace)
    except ServiceError as error:
        get_run_logger().warning("the matrix does not say what is live: %s", error)
        return {}


def _score(workspace: Workspace, step: Step) -> None:
    target = workspace.project.target_tasks[str(step.product.target_task)]
    with workspace.claim(step.product.key, step.product.subject) as existing:
        if existing is None:
            with workspace.open_run(step) as run:
                validate_test(workspace, target, step, run)
                score_cell(workspace, target, step, run)
            workspace.remove_working_folder(step)


def _report(workspace: Workspace, scored: ScoredMatrix) -> None:
    parts = matrix_parts(workspace.plan, scored.matrix)
    key, name = matrix_key(parts), f"matrix {workspace.project.name}"
    with workspace.claim(key, name) as existing:
        if existing is None:
            with workspace.tracker.open_run(
                NewRun(name=name, kind="matrix", subject="matrix", key=key, parts=parts)
            ) as run:
                log_matrix(workspace, scored, run)
