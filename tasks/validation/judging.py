"""The validation gate as tasks: judge the data, keep the report, stop what failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from ltsft.config import LabelledData, Source, TargetTask
from ltsft.data import RowError
from ltsft.objectives import OBJECTIVES, read_labelled
from ltsft.project import Language, Step
from tasks.orchestration import artifact_key, task
from tasks.tracking import RunHandle
from tasks.validation.quality import GateResult, validate_labelled, validate_text
from tasks.workspace import REPORT_FOLDER, Workspace


@task(name="validate text", task_run_name="validate text {language.code}")
def validate_language(workspace: Workspace, language: Language, step: Step, run: RunHandle) -> None:
    """Judge the raw text of a language, against all its test and dev sets too.

    Raises:
        ValidationError: saying which expectation failed, with example lines; the report is kept with the run.
    """
    result = validate_text(
        language,
        gate=workspace.project.gates.text,
        tokenizer=workspace.base.tokenizer,
        test_sentences=_evaluation_sentences(workspace, language.code),
        report_folder=_report_folder(workspace, step),
        word_lists=workspace.project.word_lists,
    )
    _keep(workspace, replace(result, subject=step.product.subject), step, run)


@task(name="validate labels", task_run_name="validate labels {step.product.subject}")
def validate_target_task(
    workspace: Workspace, target: TargetTask, data: Mapping[str, LabelledData], step: Step, run: RunHandle
) -> None:
    """Judge labelled data, by language, and the test set of the same language.

    Raises:
        ValidationError: saying which expectation failed, with example lines; the report is kept with the run.
    """
    splits: dict[str, Iterator[Any]] = {}
    for language, labelled in data.items():
        splits[f"{language} train"] = _rows(target, labelled.train)
        if labelled.dev:
            splits[f"{language} dev"] = _rows(target, labelled.dev)
        if language in target.test:
            splits[f"{language} test"] = _rows(target, target.test[language])
    result = validate_labelled(
        target,
        splits,
        gate=workspace.project.gates.labelled,
        report_folder=_report_folder(workspace, step),
        subject=step.product.subject,
    )
    _keep(workspace, result, step, run)


@task(name="validate test", task_run_name="validate test set {step.product.subject}")
def validate_test(workspace: Workspace, target: TargetTask, step: Step, run: RunHandle) -> None:
    """Judge the test set of a cell.

    Raises:
        ValidationError: saying which expectation failed, with example lines; the report is kept with the run.
    """
    language = step.product.language
    result = validate_labelled(
        target,
        {f"{language} test": _rows(target, target.test[language])},
        gate=workspace.project.gates.labelled,
        report_folder=_report_folder(workspace, step),
        subject=step.product.subject,
    )
    _keep(workspace, result, step, run)


def _keep(workspace: Workspace, result: GateResult, step: Step, run: RunHandle) -> None:
    run.log_folder(result.report.parent, REPORT_FOLDER)
    run.log_metrics({f"validation.{_metric(name)}": value for name, value in result.measures.items()})
    create_markdown_artifact(
        markdown=result.markdown(),
        key=artifact_key("validation", workspace.project.name, result.subject),
        description=f"validation of {result.subject}",
    )
    logger = get_run_logger()
    tell = logger.error if not result.success else logger.warning if result.tolerated else logger.info
    tell(result.message())
    if not result.success:
        workspace.remove_working_folder(step)
    result.raise_for_failure()


def _metric(name: str) -> str:
    return name.replace(" ", ".")


def _report_folder(workspace: Workspace, step: Step) -> Path:
    return workspace.working_folder(step) / REPORT_FOLDER


def _rows(target: TargetTask, sources: tuple[Source, ...]) -> Iterator[Any]:
    """Read the rows of a target task, and between them what is wrong with those that are malformed."""
    malformed: list[RowError] = []
    for row in read_labelled(target, sources, on_error=malformed.append):
        yield from malformed
        malformed.clear()
        yield row
    yield from malformed


def _evaluation_sentences(workspace: Workspace, language: str) -> Iterator[str]:
    for target in workspace.project.target_tasks.values():
        dev = target.sources[language].dev if language in target.sources else ()
        objective = OBJECTIVES[target.objective]
        for row in _rows(target, (*target.test.get(language, ()), *dev)):
            if not isinstance(row, RowError):
                yield from objective.texts(row)
