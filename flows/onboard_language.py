"""Onboard a language whose text has arrived: adapt to it, make its row of the matrix, and put the row forward.

Reads the text in the inbox and everything that the row is made from; writes MLflow runs, and versions in the registry
with the alias ``candidate``. What is live stays live: `promote` releases. Started by the event that `watch_inbox`
emits. Locally, for a language of the project file: ``ltsft run PROJECT`` makes the row and all others.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows.making import listed, making, told_left
from flows.promote import offer_slot
from ltsft.errors import ReleaseError
from ltsft.project import Plan, ProjectRef, language_subject
from ltsft.release import Slot
from tasks.workspace import open_workspace


@flow(name="onboard-language", flow_run_name="onboard-language {language}", validate_parameters=True)
def onboard_language(project: ProjectRef, language: str) -> State[Any]:
    """Learn the SFT of a language and what its cells need besides, score its cells and offer them for release.

    Returns:
        Completed, with what the gates say of each cell, or Failed with what failed and why. A language without test
        data has no cells, only its SFT.
    """
    make = making(project)
    wanted = _row(make.plan, language)
    stale = [step for step in make.plan.steps if step.product.subject in wanted and not step.is_up_to_date]
    get_run_logger().info("%s: %d products are to be made", language, len(stale))
    missing = make.evaluate(make.train([step for step in stale if step.product.kind != "cell"]))
    failures = {subject: reason for subject, reason in missing.items() if subject in wanted or subject == "matrix"}
    offered = _offer(project, language)
    if failures:
        return Failed(message=f"{language}: {len(failures)} products could not be made:\n{listed(failures)}{offered}")
    left = wanted.intersection(make.left)
    made = ", ".join(sorted(wanted - left)) or "nothing"
    return Completed(message=f"{language}: {made} are up to date{told_left(sorted(left))}{offered}")


def _offer(project: ProjectRef, language: str) -> str:
    """Put each scored cell of a language forward; give what became of it, a line each. A refusal is no failure."""
    workspace = open_workspace(project)
    lines = []
    for step in workspace.plan.of_kind("cell"):
        slot = Slot(step.product.language, str(step.product.target_task))
        if slot.language != language or not step.is_up_to_date:
            continue
        try:
            told = offer_slot(workspace, slot)
        except ReleaseError as error:
            told = str(error).removeprefix(f"{slot}: ")
        get_run_logger().info("%s: %s", slot, told)
        lines.append(f"\n- {slot}: {told}")
    return "".join(lines)


def _row(plan: Plan, language: str) -> set[str]:
    """Give the subjects of a language's SFT, its cells, and everything that the cells are made from."""
    wanted = {step.product.subject for step in plan.of_kind("cell") if step.product.language == language}
    if plan.of_kind("language") or not wanted:
        wanted.add(plan.step(language_subject(language)).product.subject)
    return plan.with_needs(wanted)
