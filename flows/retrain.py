"""Retrain what is stale: plan, learn the language SFTs, then the task SFTs, then evaluate the matrix.

Reads the project file and everything that it names; writes MLflow runs. What is up to date is not touched; what fails
does not stop the others, and the run as a whole ends as failed. Locally: ``ltsft run PROJECT``.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows.making import making
from ltsft.config import ProjectRef
from tasks.workspace import open_workspace


@flow(name="retrain", flow_run_name="retrain {project.file}", validate_parameters=True)
def retrain(project: ProjectRef) -> State[Any]:
    """Bring a project up to date.

    Returns:
        Completed, or Failed with what failed and why.
    """
    plan = open_workspace(project).plan
    get_run_logger().info("%d of %d products are to be made", len(plan.stale), len(plan.steps))
    make = making()
    sfts = [step for step in (*plan.of_kind("language"), *plan.of_kind("task")) if not step.is_up_to_date]
    failures = make.train(project, sfts)
    failures |= make.evaluate(project, failures)
    if failures:
        told = "\n".join(f"- {subject}: {reason.removeprefix(f'{subject}: ')}" for subject, reason in failures.items())
        return Failed(message=f"{len(failures)} of {len(plan.steps)} products could not be made:\n{told}")
    return Completed(message=f"all {len(plan.steps)} products are up to date")
