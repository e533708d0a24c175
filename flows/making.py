"""Where the products of a project are made: in this process one by one, or as deployments, many at a time.

Which of the two is a setting of the deployment (``LTSFT_TRAININGS``); what is made, and from what, is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.adapt_language import adapt_language
from flows.adapt_task import adapt_task
from flows.evaluate_matrix import evaluate_matrix
from ltsft.config import Project, ProjectRef
from ltsft.errors import LtsftError
from ltsft.plan import Step
from tasks.deployed import deployment_name
from tasks.launching import Launch, launch_all
from tasks.matrix import gaps, read_matrix
from tasks.progress import show
from tasks.settings import read_settings
from tasks.workspace import open_workspace

Failures = dict[str, str]
"""By subject of a product, why it could not be made."""


class Making(Protocol):
    """A way of making products."""

    def train(self, project: ProjectRef, steps: Sequence[Step]) -> Failures:
        """Make the SFTs of these steps, each after those that it needs."""
        ...

    def evaluate(
        self, project: ProjectRef, failures: Mapping[str, str], *, only: Sequence[str] | None = None
    ) -> Failures:
        """Score what is not up to date and report the matrix; gives its gaps.

        Args:
            project: the project.
            failures: by subject of an SFT, why it could not be made.
            only: subjects of the cells to score, without a report; None for all of them.
        """
        ...


def making() -> Making:
    """Give the way that the settings name."""
    return _AsDeployments() if read_settings().trainings == "deployments" else _Here()


class _Here:
    """One after the other, each as a flow run of its own in this process."""

    def train(self, project: ProjectRef, steps: Sequence[Step]) -> Failures:
        failures: Failures = {}
        for step in steps:
            subject = step.product.subject
            broken = [need for need in step.product.needs if need in failures]
            if broken:
                failures[subject] = f"not tried, because {', '.join(broken)} could not be made"
                get_run_logger().warning("%s: %s", subject, failures[subject])
                continue
            get_run_logger().info("%s: %s", subject, "; ".join(step.reasons))
            show(subject)
            state = self._start(step, project)
            if not state.is_completed():
                failures[subject] = _why(state)
        return failures

    def evaluate(
        self, project: ProjectRef, failures: Mapping[str, str], *, only: Sequence[str] | None = None
    ) -> Failures:
        state: State[Any] = evaluate_matrix(project, failures, None if only is None else list(only), return_state=True)
        return state.result() if state.is_completed() else {"matrix": _why(state)}

    def _start(self, step: Step, project: ProjectRef) -> State[Any]:
        product = step.product
        if product.kind == "language":
            return adapt_language(project, product.language, return_state=True)
        start: Callable[..., State[Any]] = adapt_task
        return start(project, str(product.target_task), product.language, product.seed, return_state=True)


class _AsDeployments:
    """All that can be made at the same time at once; the pools say how many run."""

    def train(self, project: ProjectRef, steps: Sequence[Step]) -> Failures:
        made = {step.product.subject for step in steps}
        opened = open_workspace(project).project
        return self._launch([self._launch_of(step, project, opened, made) for step in steps])

    def evaluate(
        self, project: ProjectRef, failures: Mapping[str, str], *, only: Sequence[str] | None = None
    ) -> Failures:
        parameters: dict[str, Any] = {"project": project.model_dump(mode="json"), "failures": dict(failures)}
        key = f"matrix-of-{flow_run.get_id()}"
        if only is not None:
            parameters["only"] = list(only)
            told = json.dumps(parameters, sort_keys=True).encode()
            key += f"-{hashlib.sha256(told).hexdigest()[:16]}"  # an experiment has many such runs
        name = deployment_name("evaluate-matrix", open_workspace(project).project.name)
        failed = self._launch([Launch(name, "matrix", key, parameters)])
        if failed:
            return failed
        found = gaps(read_matrix(open_workspace(project), failures))
        return {subject: reason for subject, reason in found.items() if only is None or subject in only}

    def _launch(self, launches: Sequence[Launch]) -> Failures:
        settings = read_settings()
        return launch_all(launches, crashes=settings.crashes, poll_seconds=settings.poll_seconds)

    def _launch_of(self, step: Step, project: ProjectRef, opened: Project, made: set[str]) -> Launch:
        product = step.product
        parameters: dict[str, Any] = {"project": project.model_dump(mode="json"), "language": product.language}
        if product.kind == "task":
            parameters |= {"target_task": product.target_task, "seed": product.seed}
        name = deployment_name(f"adapt-{product.kind}", opened.name)
        needs = tuple(need for need in product.needs if need in made)
        recipe = opened.recipes[product.target_task or "language"]
        asked = {"gpu_count": recipe.processes, "nodes": recipe.nodes}
        variables = {variable: count for variable, count in asked.items() if count > 1}
        key = f"{opened.name}:{product.key}"
        return Launch(name, product.subject, key, parameters, needs, variables)


def make_cells(make: Making, project: ProjectRef, cells: Iterable[str]) -> Failures:
    """Make some cells of a project and everything that they are made from; give what could not be made, and why."""
    wanted = set(cells)
    plan = open_workspace(project).plan
    needed = plan.with_needs(wanted)
    stale = [step for step in plan.steps if step.product.subject in needed and not step.is_up_to_date]
    failures = make.train(project, [step for step in stale if step.product.kind != "cell"])
    unscored = [step.product.subject for step in stale if step.product.kind == "cell"]
    return failures | (make.evaluate(project, failures, only=unscored) if unscored else {})


def listed(failures: Mapping[str, str]) -> str:
    """Give a line for each product that could not be made."""
    return "\n".join(f"- {subject}: {reason.removeprefix(f'{subject}: ')}" for subject, reason in failures.items())


def experiment_state(tables: Sequence[str], failures: Mapping[str, str]) -> State[Any]:
    """Give the state that an experiment ends in: its tables, and what is missing in them."""
    told = "\n".join(tables)
    if failures:
        return Failed(message=f"{told}\n{len(failures)} could not be made:\n{listed(failures)}")
    return Completed(message=told)


def _why(state: State[Any]) -> str:
    """Say why a flow run failed: in our own words if they are ours, else in Prefect's."""
    error = state.result(raise_on_failure=False)
    return str(error) if isinstance(error, LtsftError) else state.message or "failed without a message"
