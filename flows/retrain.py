"""Retrain what is stale: plan, learn the language SFTs, then the task SFTs, evaluate the matrix, then promote.

Reads the project file and everything that it names; writes MLflow runs and, where releases are asked for, versions and
aliases in the registry. What is up to date is not touched; what fails does not stop the others, and the run as a whole
ends as failed. What arrives or changes meanwhile is the next run's work. Locally: ``ltsft run PROJECT``, which leaves
releases to ``ltsft promote``.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from flows.making import making, told_left
from flows.promote import promote
from ltsft.project import ProjectRef
from tasks.orchestration import Why, completed, ends_in_words, failed, is_refused, listed, shortfall_of


@flow(name="retrain", flow_run_name="retrain {project.file}", validate_parameters=True)
@ends_in_words
def retrain(project: ProjectRef, release: bool = False) -> State[Any]:
    """Bring a project up to date.

    Args:
        project: the project.
        release: whether what is scored then goes through the gates and, where it passes, live. A refusal is the
            outcome of a gate and no failure: it is told, and the champion stays.

    Returns:
        Completed, as *Refused* where a gate kept something from being released; or Failed with what could not be made
        and why, named after what kept it: a verdict, a service, a bug.
    """
    make = making(project)
    plan = make.plan
    get_run_logger().info("%d of %d products are to be made", len(plan.stale), len(plan.steps))
    sfts = [step for step in (*plan.of_kind("language"), *plan.of_kind("task")) if not step.is_up_to_date]
    failures = make.evaluate(make.train(sfts))
    shortfalls = list(failures.values())
    released, has_refusals = "", False
    if release:
        outcome: State[Any] = promote(project, reason="retrain", return_state=True)
        released, has_refusals = f"\nReleases: {outcome.message}", is_refused(outcome)
        get_run_logger().info("releases: %s", outcome.message)
        if (shortfall := shortfall_of(outcome)) is not None and shortfall.why is not Why.REFUSED:
            shortfalls.append(shortfall)
    made = [step for step in plan.steps if step.product.subject not in make.left]
    told = "all" if len(made) == len(plan.steps) else f"{len(made)} of"
    told = f"{told} {len(plan.steps)} products are up to date{told_left(make.left)}"
    if failures:
        told = f"{len(failures)} of {len(plan.steps)} products could not be made:\n{listed(failures)}"
    if shortfalls:
        return failed(f"{told}{released}", shortfalls)
    return completed(f"{told}{released}", has_refusals=has_refusals)
