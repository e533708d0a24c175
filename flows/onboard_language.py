"""Onboard a language whose text has arrived: adapt to it, make its row of the matrix, and put the row forward.

Reads the text in the inbox and everything that the row is made from; writes MLflow runs, and versions in the registry
with the alias ``candidate``. What is live stays live: `promote` releases. Started by the event that `watch_inbox`
emits. Locally, for a language of the project file: ``ltsft run PROJECT`` makes the row and all others.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from flows.making import making, told_left
from flows.promote import Promotions, in_turn, offer_slot
from ltsft.project import Plan, ProjectRef, language_subject
from ltsft.release import Slot
from tasks.orchestration import Shortfall, Why, completed, ends_in_words, failed, listed
from tasks.workspace import open_workspace


@flow(name="onboard-language", flow_run_name="onboard-language {language}", validate_parameters=True)
@ends_in_words
def onboard_language(project: ProjectRef, language: str) -> State[Any]:
    """Learn the SFT of a language and what its cells need besides, score its cells and offer them for release.

    Returns:
        Completed, with what the gates say of each cell, as *Refused* where one says no; or Failed with what failed and
        why. A language without test data has no cells, only its SFT.
    """
    make = making(project)
    wanted = _row(make.plan, language)
    stale = [step for step in make.plan.steps if step.product.subject in wanted and not step.is_up_to_date]
    get_run_logger().info("%s: %d products are to be made", language, len(stale))
    missing = make.evaluate(make.train([step for step in stale if step.product.kind != "cell"]))
    failures = {subject: why for subject, why in missing.items() if subject in wanted or subject == "matrix"}
    offers = _offer(project, language)
    offered = "".join(f"\n- {slot}: {told}" for slot, told in {**offers.live, **offers.refused}.items())
    failures |= {f"candidate {slot}": Shortfall(told, Why.UNAVAILABLE) for slot, told in offers.failed.items()}
    if failures:
        told = f"{language}: {len(failures)} products could not be made:\n{listed(failures)}{offered}"
        return failed(told, failures.values())
    left = wanted.intersection(make.left)
    made = ", ".join(sorted(wanted - left)) or "nothing"
    told = f"{language}: {made} are up to date{told_left(sorted(left))}{offered}"
    return completed(told, has_refusals=bool(offers.refused))


def _offer(project: ProjectRef, language: str) -> Promotions:
    """Put each scored cell of a language forward; say what became of it. A refusal is no failure."""
    workspace = open_workspace(project)
    cells = [step for step in workspace.plan.of_kind("cell") if step.product.language == language]
    slots = [Slot(language, str(step.product.target_task)) for step in cells if step.is_up_to_date]
    return in_turn(slots, partial(offer_slot, workspace))


def _row(plan: Plan, language: str) -> set[str]:
    """Give the subjects of a language's SFT, its cells, and everything that the cells are made from."""
    wanted = {step.product.subject for step in plan.of_kind("cell") if step.product.language == language}
    if plan.of_kind("language") or not wanted:
        wanted.add(plan.step(language_subject(language)).product.subject)
    return plan.with_needs(wanted)
