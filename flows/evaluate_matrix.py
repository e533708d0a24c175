"""Evaluate the language matrix: score every cell whose parts changed, put all cells together, report.

An experiment has some cells scored that are not those of the project's own matrix, and reports them itself.

Reads the SFTs and the test sets; writes one MLflow run for each new cell and one for the matrix, with figures and a
page. Locally: ``ltsft run PROJECT``.
"""

from __future__ import annotations

from collections.abc import Mapping

from prefect import flow
from prefect.logging import get_run_logger

from ltsft.errors import LtsftError
from ltsft.project import ProjectRef, Step
from tasks.evaluation import ScoredMatrix, assemble_matrix, log_matrix, matrix_key, matrix_parts, score_cell
from tasks.orchestration import show
from tasks.validation import validate_test
from tasks.workspace import Workspace, open_workspace


@flow(name="evaluate-matrix", flow_run_name="evaluate-matrix {project.file}", validate_parameters=True)
def evaluate_matrix(
    project: ProjectRef, failures: Mapping[str, str] | None = None, only: list[str] | None = None
) -> None:
    """Score what is not up to date and report the whole matrix.

    Args:
        project: the project.
        failures: by subject of an SFT, why it could not be made; shown in the gaps of the matrix.
        only: subjects of the cells to score, of which no matrix is reported; all of them, and the matrix, when None.
    """
    workspace = open_workspace(project)
    reasons = dict(failures or {})
    for step in workspace.plan.of_kind("cell"):
        if only is not None and step.product.subject not in only:
            continue
        if step.is_up_to_date or any(workspace.run_of(need) is None for need in step.product.needs):
            continue
        show(step.product.subject)
        try:
            _score(workspace, step)
        except LtsftError as error:
            get_run_logger().error("%s has no score: %s", step.product.subject, error)
            reasons[step.product.subject] = str(error)
    if only is None:
        show("matrix")
        _report(workspace, assemble_matrix(workspace, reasons))


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
            with workspace.tracker.open_run(name=name, kind="matrix", subject="matrix", key=key, parts=parts) as run:
                log_matrix(workspace, scored, run)
