"""Where the products of a project are made: in this process one by one, or as deployments, many at a time.

Which of the two is a setting of the deployment (``LTSFT_TRAININGS``); what is made, and from what, is the same.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.adapt_language import adapt_language
from flows.adapt_task import adapt_task
from flows.evaluate_matrix import evaluate_matrix
from ltsft.project import Plan, ProjectRef, Step
from tasks.evaluation import gaps, read_matrix
from tasks.orchestration import (
    Launch,
    Shortfall,
    Shortfalls,
    Why,
    causes,
    completed,
    deployment_name,
    failed,
    in_rounds,
    launch_all,
    listed,
    not_tried,
    reasons,
    shortfall_of,
    show,
    worst,
)
from tasks.settings import read_settings
from tasks.workspace import open_workspace


class Making(ABC):
    """A way of making the products of a project, as the project stands when this is made.

    A flow plans once. What arrives or changes while it runs is seen by the runs that it starts, which plan anew, but is
    not what this flow has to answer for.

    Args:
        project: the project.

    Attributes:
        left: subjects that have no score and are left to the next run; known once the matrix is evaluated.
    """

    def __init__(self, project: ProjectRef) -> None:
        self.project = project
        self.workspace = open_workspace(project)
        self.left: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        """What there is to do."""
        return self.workspace.plan

    @abstractmethod
    def train(self, steps: Sequence[Step]) -> dict[str, Shortfall]:
        """Make the SFTs of these steps, each after those that it needs; give what could not be made."""

    def evaluate(self, failures: Shortfalls, *, only: Sequence[str] | None = None) -> dict[str, Shortfall]:
        """Score what is not up to date and report the matrix.

        Args:
            failures: by subject of an SFT, why it could not be made.
            only: subjects of the cells to score, without a report; None for all of them.

        Returns:
            All that could not be made, the SFTs included; cells that this flow did not plan are left out.
        """
        shortfall = self._score(reasons(failures), None if only is None else list(only))
        if shortfall is not None:
            return {**failures, "matrix": shortfall}
        return self._outstanding(failures)

    @abstractmethod
    def _score(self, failures: Mapping[str, str], only: list[str] | None) -> Shortfall | None:
        """Run `evaluate_matrix`; give why it failed, nothing if it did not."""

    def _outstanding(self, failures: Shortfalls) -> dict[str, Shortfall]:
        """Give what of the plan could not be made, for the same inputs; say what is left to the next run."""
        now = open_workspace(self.project)
        found = dict(failures)
        for subject, reason in gaps(read_matrix(now, reasons(failures))).items():
            broken = {need: failures[need] for need in now.plan.with_needs([subject]) if need in failures}
            # what has no other cause is a verdict on the cell
            found[subject] = Shortfall(reason, worst(broken.values()), causes(broken))
        keys = {step.product.subject: step.product.key for step in now.plan.steps}
        planned = {step.product.subject: step.product.key for step in self.plan.steps}
        self.left = tuple(subject for subject in found if planned.get(subject) != keys.get(subject))
        return {subject: shortfall for subject, shortfall in found.items() if subject not in self.left}


def making(project: ProjectRef) -> Making:
    """Give the way that the settings name."""
    return _AsDeployments(project) if read_settings().trainings == "deployments" else _Here(project)


class _Here(Making):
    """One after the other, each as a flow run of its own in this process."""

    def train(self, steps: Sequence[Step]) -> dict[str, Shortfall]:
        by_subject = {step.product.subject: step for step in steps}
        failures: dict[str, Shortfall] = {}

        def make(subject: str) -> Shortfall | None:
            failures.pop(subject, None)
            step = by_subject[subject]
            broken = {need: failures[need] for need in step.product.needs if need in failures}
            if broken:
                failures[subject] = not_tried(broken)
                get_run_logger().warning("%s: %s", subject, failures[subject].reason)
                return failures[subject]
            get_run_logger().info("%s: %s", subject, "; ".join(step.reasons))
            show(subject)
            if (shortfall := shortfall_of(self._start(step))) is not None:
                failures[subject] = shortfall
            return shortfall

        return in_rounds(by_subject, make)

    def _score(self, failures: Mapping[str, str], only: list[str] | None) -> Shortfall | None:
        return shortfall_of(evaluate_matrix(self.project, failures, only, return_state=True))

    def _start(self, step: Step) -> State[Any]:
        product = step.product
        if product.kind == "language":
            return adapt_language(self.project, product.language, return_state=True)
        start: Callable[..., State[Any]] = adapt_task
        return start(self.project, str(product.target_task), product.language, product.seed, return_state=True)


class _AsDeployments(Making):
    """All that can be made at the same time at once; the pools say how many run."""

    def train(self, steps: Sequence[Step]) -> dict[str, Shortfall]:
        made = {step.product.subject for step in steps}
        return self._launch([self._launch_of(step, made) for step in steps])

    def _score(self, failures: Mapping[str, str], only: list[str] | None) -> Shortfall | None:
        parameters: dict[str, Any] = {"project": self.project.model_dump(mode="json"), "failures": dict(failures)}
        key = f"matrix-of-{flow_run.get_id()}"
        if only is not None:
            parameters["only"] = only
            told = json.dumps(parameters, sort_keys=True).encode()
            key += f"-{hashlib.sha256(told).hexdigest()[:16]}"  # an experiment has many such runs
        name = deployment_name("evaluate-matrix", self.workspace.project.name)
        return self._launch([Launch(name, "matrix", key, parameters)]).get("matrix")

    def _launch(self, launches: Sequence[Launch]) -> dict[str, Shortfall]:
        settings = read_settings()
        return launch_all(launches, crashes=settings.crashes, poll_seconds=settings.poll_seconds)

    def _launch_of(self, step: Step, made: set[str]) -> Launch:
        product, project = step.product, self.workspace.project
        parameters: dict[str, Any] = {"project": self.project.model_dump(mode="json"), "language": product.language}
        if product.kind == "task":
            parameters |= {"target_task": product.target_task, "seed": product.seed}
        name = deployment_name(f"adapt-{product.kind}", project.name)
        needs = tuple(need for need in product.needs if need in made)
        recipe = project.recipes[product.target_task or "language"]
        asked = {"gpu_count": recipe.processes, "nodes": recipe.nodes}
        variables = {variable: count for variable, count in asked.items() if count > 1}
        key = f"{project.name}:{product.key}"
        return Launch(name, product.subject, key, parameters, needs, variables)


def make_cells(project: ProjectRef, cells: Iterable[Step]) -> dict[str, Shortfall]:
    """Make some cells of a project and everything that they are made from; give what could not be made, and why.

    Args:
        project: the project.
        cells: as the experiment planned them; one whose inputs changed since could not be made.
    """
    make = making(project)
    planned = {step.product.subject: step.product.key for step in cells}
    needed = make.plan.with_needs(planned)
    stale = [step for step in make.plan.steps if step.product.subject in needed and not step.is_up_to_date]
    failures = make.train([step for step in stale if step.product.kind != "cell"])
    unscored = [step.product.subject for step in stale if step.product.kind == "cell"]
    if unscored:
        missing = make.evaluate(failures, only=unscored)
        failures = {subject: why for subject, why in missing.items() if subject in (*needed, "matrix")}
    if "matrix" in failures:
        return failures
    made = {record.key for record in make.workspace.tracker.records(kind="cell")}
    lost = [subject for subject, key in planned.items() if key not in made and subject not in failures]
    changed = Shortfall("its data or recipe changed while this ran; start it again", Why.REFUSED)
    return failures | dict.fromkeys(lost, changed)


def told_left(subjects: Iterable[str]) -> str:
    """Say what arrived or changed while a flow ran; nothing if that was nothing."""
    told = ", ".join(subjects)
    return f"; arrived or changed meanwhile and left to the next run: {told}" if told else ""


def experiment_state(tables: Sequence[str], failures: Shortfalls) -> State[Any]:
    """Give the state that an experiment ends in: its tables, and what is missing in them."""
    told = "\n".join(tables)
    if failures:
        return failed(f"{told}\n{len(failures)} could not be made:\n{listed(failures)}", failures.values())
    return completed(told)
