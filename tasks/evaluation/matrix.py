"""The matrix as the record has it: cells with their scores, gaps with their reasons, and the page that shows it.

Nothing here needs Prefect, so that showing what is up to date is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ltsft.atomic import write_whole
from ltsft.canonical import hash_json
from ltsft.config import LT_SFT, TargetTask
from ltsft.evaluation import Cell, Interval, Matrix, MatrixLanguage
from ltsft.objectives import OBJECTIVES
from ltsft.project import Plan, Step, cell_subject
from tasks.tracking import FinishedRun
from tasks.workspace import Workspace

PAGE = "report.html"


def read_matrix(workspace: Workspace, reasons: Mapping[str, str] | None = None) -> Matrix:
    """Give the matrix as MLflow has it.

    Args:
        workspace: the project.
        reasons: by subject of a product, why it could not be made; where it is silent, the newest attempt says why.

    Returns:
        The matrix; a cell without a score says why it or what it is made from is missing.
    """
    records = {record.key: record for record in workspace.tracker.records()}
    why = _Reasons(workspace, records, reasons or {})
    project, plan = workspace.project, workspace.plan
    cells = tuple(
        _cell(step, records, project.target_tasks[str(step.product.target_task)], why) for step in _cells(plan)
    )
    languages = tuple(
        MatrixLanguage(code, language.name, None if not project.unseen else code not in project.unseen)
        for code, language in project.languages.items()
        if any(cell.language == code for cell in cells)
    )
    return Matrix(
        cells=cells,
        languages=languages,
        title=project.name if project.method == LT_SFT else f"{project.name}, {project.method}",
        artificial=project.artificial,
        created=datetime.now(UTC),
        base=project.base.id,
    )


def gaps(matrix: Matrix) -> dict[str, str]:
    """Give, by subject of the cell, why it has no score."""
    return {cell_subject(cell.target_task, cell.language): cell.reason for cell in matrix.cells if cell.is_gap}


def matrix_parts(plan: Plan, matrix: Matrix) -> dict[str, Any]:
    """Give everything that determines what the run of a matrix shows."""
    return {
        "kind": "matrix",
        "cells": sorted(step.product.key for step in _cells(plan)),
        "gaps": [cell.reason for cell in matrix.cells if cell.is_gap],
        "shown": [
            matrix.title,
            matrix.artificial,
            matrix.base,
            [(x.code, x.name, x.is_seen) for x in matrix.languages],
        ],
    }


def matrix_key(parts: Mapping[str, Any]) -> str:
    """Give the key of the run of a matrix."""
    return hash_json(parts)


def restore_page(workspace: Workspace, matrix: Matrix) -> Path | None:
    """Put the page of this very matrix into the store folder; None if it has not been reported yet."""
    record = workspace.tracker.find(matrix_key(matrix_parts(workspace.plan, matrix)))
    if record is None:
        return None
    return write_page(workspace, workspace.tracker.download(record.run_id, PAGE).read_bytes())


def write_page(workspace: Workspace, page: bytes) -> Path:
    """Write the page into the store folder, whole or not at all."""
    target = workspace.store / PAGE
    if not target.is_file() or target.read_bytes() != page:
        write_whole(target, page)
    return target


class _Reasons:
    """Why products are missing: traced back to what could not be made, each reason said once."""

    def __init__(self, workspace: Workspace, records: Mapping[str, FinishedRun], told: Mapping[str, str]) -> None:
        self._steps = {step.product.subject: step for step in workspace.plan.steps}
        self._made = records.keys()
        self._told = told
        self._failed = workspace.tracker.latest_failed()

    def of(self, step: Step) -> str:
        """Say why a cell has no score."""
        causes = self._causes(step)
        if list(causes) == [step.product.subject]:
            return causes[step.product.subject]
        subjects: dict[str, list[str]] = {}
        for subject, reason in causes.items():
            subjects.setdefault(reason, []).append(subject)
        return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in subjects.items())

    def _causes(self, step: Step) -> dict[str, str]:
        missing = [self._steps[need] for need in step.product.needs if self._steps[need].product.key not in self._made]
        if not missing:
            return {step.product.subject: self._own(step)}
        return {subject: reason for need in missing for subject, reason in self._causes(need).items()}

    def _own(self, step: Step) -> str:
        product = step.product
        failure = self._failed.get(product.subject)
        reason = self._told.get(product.subject, "")
        if not reason and failure is not None and failure.key == product.key:
            reason = failure.reason
        first_line = reason.strip().partition("\n")[0].removeprefix(f"{product.subject}: ")
        return first_line or ("not scored yet" if product.kind == "cell" else "not made yet")


def _cells(plan: Plan) -> tuple[Step, ...]:
    return plan.of_kind("cell")


def _cell(step: Step, records: Mapping[str, FinishedRun], target: TargetTask, why: _Reasons) -> Cell:
    product = step.product
    is_source = product.language in target.sources
    record = records.get(product.key)
    objective = OBJECTIVES[target.objective]
    if record is None:
        return Cell(
            product.language,
            target.name,
            reason=why.of(step),
            is_source=is_source,
            metric=objective.metric,
            unit=objective.unit,
        )
    m = record.metrics
    seeds = int(m["seeds"])
    return Cell(
        product.language,
        target.name,
        score=m["score"],
        std=m["score_std"] if seeds > 1 else None,
        task_only=m["score_task_only"],
        task_only_std=m["score_task_only_std"] if seeds > 1 else None,
        majority=m.get("score_majority"),
        supervised=m.get("score_supervised"),
        test_size=int(m["test_size"]),
        seeds=seeds,
        is_source=is_source,
        beside={title: m[f"test.{name}"] for name, title in objective.shown.items()},
        metric=objective.metric,
        unit=objective.unit,
        gain_interval=(
            Interval(m["gain"], m["gain_lower"], m["gain_upper"])
            if {"gain", "gain_lower", "gain_upper"} <= m.keys()
            else None
        ),
        interference={n: v for n, v in m.items() if n.startswith(("interference.", "functional."))},
    )
