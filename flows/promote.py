"""Release what is scored: put a composition forward, measure it, ask the canary, judge it, and move the alias.

Reads the matrix, the registry and the test sets; writes one MLflow run for each promotion, a version in the registry
and, when every gate that decides was passed, the alias ``champion``. Two promotions of one (language, target task) take
turns; one that was killed is ended by the next. Locally: ``ltsft promote``.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from ltsft.errors import LtsftError, ReleaseError
from ltsft.project import ProjectRef
from ltsft.release import Composition, Measured, Slot, has_passed
from tasks.releases import (
    CANDIDACY,
    VERDICT,
    Candidate,
    ChampionMovedError,
    ask_canary,
    close_records,
    compose_recipe,
    judge_candidate,
    measure,
    move_champion,
    open_promotion,
    open_registry,
    promotion_lock,
    put_forward,
    wanted_slots,
)
from tasks.tracking import RunHandle
from tasks.workspace import Workspace, open_workspace

TRIES = 5
"""Times that a promotion starts over because another release was made while it was measured."""


@flow(name="promote", flow_run_name="promote {project.file}", validate_parameters=True)
def promote(
    project: ProjectRef,
    language: str | None = None,
    target_task: str | None = None,
    reason: str = "",
    who: str = "",
    again: bool = False,
) -> State[Any]:
    """Release the scored compositions of a project that are not live yet.

    Args:
        project: the project.
        language: only this one.
        target_task: only this one.
        reason: why, for the record.
        who: the user, for the record; the one of the process without it.
        again: also what was rolled back.

    Returns:
        Completed with a line for each release, or Failed with what was refused and why.
    """
    logger = get_run_logger()
    workspace = open_workspace(project)
    told: dict[Slot, str] = {}
    refused: dict[Slot, str] = {}
    for slot in wanted_slots(workspace, language=language, target_task=target_task):
        try:
            told[slot] = promote_slot(workspace, slot, reason=reason, who=who, again=again)
            logger.info("%s: %s", slot, told[slot])
        except LtsftError as error:
            refused[slot] = str(error).removeprefix(f"{slot}: ")
            logger.error("%s: %s", slot, refused[slot])
    lines = [f"- {slot}: {message}" for slot, message in {**told, **refused}.items()]
    summary = f"{len(told)} of {len(lines)} are live as scored:\n" + "\n".join(lines)
    return Failed(message=summary) if refused else Completed(message=summary)


def promote_slot(workspace: Workspace, slot: Slot, *, reason: str, who: str, again: bool) -> str:
    """Release the composition of one (language, target task); give what was done, in words.

    Raises:
        ReleaseError: it was refused, and why.
    """
    with promotion_lock(workspace, slot):
        composition = compose_recipe(workspace, slot)
        registry = open_registry(workspace)
        for _ in range(TRIES):
            over = registry.champion(slot)
            known = registry.find(composition)
            if known is not None and known.number == over:
                close_records(workspace, slot, over)
                return f"version {over} is live already"
            if known is not None and registry.is_rolled_back(known):
                if not again:
                    raise ReleaseError(
                        f"{slot}: version {known.number} is this composition, and was rolled back; "
                        "make a better one, or say --again"
                    )
                registry.forget_rollback(known)
            try:
                return _try(workspace, composition, over, reason=reason, who=who)
            except ChampionMovedError as error:
                get_run_logger().warning("%s; comparing again", error)
        raise ReleaseError(f"{slot}: the champion changed {TRIES} times while this one was measured; try again")


def _try(workspace: Workspace, composition: Composition, over: int | None, *, reason: str, who: str) -> str:
    with open_promotion(workspace, composition, over=over, reason=reason, who=who) as run:
        candidate, measured, failed = _judge(workspace, composition, run, over=over)
        if failed:
            raise ReleaseError(f"{composition.slot}: version {candidate.version.number} was refused by {failed}")
        move_champion(workspace, candidate, run, over=over)
    was = "nothing was" if over is None else f"version {over} was"
    return f"version {candidate.version.number} is live ({was} before), score {measured.score:.4f}"


def offer_slot(workspace: Workspace, slot: Slot) -> str:
    """Put the composition of one (language, target task) forward without releasing it; give what was done, in words.

    Its version gets the alias ``candidate`` and the verdict of the gates; what is live stays live.

    Raises:
        ReleaseError: it cannot be released at all.
    """
    with promotion_lock(workspace, slot):
        composition = compose_recipe(workspace, slot)
        registry = open_registry(workspace)
        over, known = registry.champion(slot), registry.find(composition)
        if known is not None and known.number == over:
            return f"version {over} is live already"
        if known is not None and registry.is_rolled_back(known):
            return f"version {known.number} is this composition, and was rolled back"
        if known is not None and known.number == registry.candidate(slot) and VERDICT in known.tags:
            return f"version {known.number} is a candidate already"
        with open_promotion(workspace, composition, over=over, reason="", who="", kind=CANDIDACY) as run:
            candidate, measured, failed = _judge(workspace, composition, run, over=over)
        verdict = f"would be refused by {failed}" if failed else "passes its gates"
        return f"version {candidate.version.number} is a candidate, score {measured.score:.4f}, and {verdict}"


def _judge(
    workspace: Workspace, composition: Composition, run: RunHandle, *, over: int | None
) -> tuple[Candidate, Measured, str]:
    """Put a composition forward and ask the gates; the last value says which of them stop it, if any."""
    candidate = put_forward(workspace, composition, run)
    canary = ask_canary(workspace, candidate)
    measured = measure(workspace, candidate, canary)
    verdicts = judge_candidate(workspace, candidate, measured, run, over=over)
    stopping = () if has_passed(verdicts) else (verdict for verdict in verdicts if verdict.stops)
    return candidate, measured, "; ".join(f"{verdict.gate}: {verdict.message}" for verdict in stopping)
