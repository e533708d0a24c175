"""Retrain what is stale: plan, learn the language SFTs, then the task SFTs, then evaluate the matrix.

Reads the project file and everything that it names; writes MLflow runs. What is up to date is not touched; what fails
does not stop the others, and the run as a whole ends as failed. Locally: ``ltsft run PROJECT``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows.adapt_language import adapt_language
from flows.adapt_task import adapt_task
from flows.evaluate_matrix import evaluate_matrix
from ltsft.config import ProjectRef
from ltsft.errors import LtsftError
from ltsft.plan import Step
from tasks.progress import show
from tasks.workspace import open_workspace


@flow(name="retrain", flow_run_name="retrain {project.file}", validate_parameters=True)
def retrain(project: ProjectRef) -> State[Any]:
    """Bring a project up to date.

    Returns:
        Completed, or Failed with what failed and why.
    """
    logger = get_run_logger()
    plan = open_workspace(project).plan
    logger.info("%d of %d products are to be made", len(plan.stale), len(plan.steps))
    failures: dict[str, str] = {}
    for step in (*plan.of_kind("language"), *plan.of_kind("task")):
        if step.is_up_to_date:
            continue
        subject = step.product.subject
        broken = [need for need in step.product.needs if need in failures]
        if broken:
            failures[subject] = f"not tried, because {', '.join(broken)} could not be made"
            logger.warning("%s: %s", subject, failures[subject])
            continue
        logger.info("%s: %s", subject, "; ".join(step.reasons))
        show(subject)
        state = _start(step, project)
        if not state.is_completed():
            failures[subject] = _why(state)
    state = evaluate_matrix(project, failures, return_state=True)
    if state.is_completed():
        failures |= state.result()
    else:
        failures["matrix"] = _why(state)
    if failures:
        told = "\n".join(f"- {subject}: {_without(subject, reason)}" for subject, reason in failures.items())
        return Failed(message=f"{len(failures)} of {len(plan.steps)} products could not be made:\n{told}")
    return Completed(message=f"all {len(plan.steps)} products are up to date")


def _start(step: Step, project: ProjectRef) -> State[Any]:
    product = step.product
    if product.kind == "language":
        return adapt_language(project, product.language, return_state=True)
    start: Callable[..., State[Any]] = adapt_task
    return start(project, str(product.target_task), product.language, product.seed, return_state=True)


def _why(state: State[Any]) -> str:
    """Say why a flow run failed: in our own words if they are ours, else in Prefect's."""
    error = state.result(raise_on_failure=False)
    return str(error) if isinstance(error, LtsftError) else state.message or "failed without a message"


def _without(subject: str, reason: str) -> str:
    return reason.removeprefix(f"{subject}: ")
