"""Release what is scored: put a composition forward, measure it, ask the canary, judge it, and move the alias.

Reads the matrix, the registry and the test sets; writes one MLflow run for each promotion, a version in the registry
and, when every gate that decides was passed, the alias ``champion``. Two promotions of one (language, target task) take
turns; one that was killed is ended by the next. Locally: ``ltsft promote``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from ltsft.errors import LtsftError, ReleaseError, ServiceError
from ltsft.project import ProjectRef
from ltsft.release import Composition, Measured, Slot, has_passed
from tasks.orchestration import Shortfall, Why, completed, ends_in_words, failed, in_rounds
from tasks.releases import (
    CANDIDACY,
    PASSED,
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


@dataclass(frozen=True)
class Promotions:
    """What became of the compositions that a promotion was about, by (language, target task), in words.

    Attributes:
        live: those that are live now, or were already.
        refused: those that a gate or another verdict keeps out; what was live stays live.
        failed: those of which a service stayed away: nothing was decided.
    """

    live: Mapping[Slot, str]
    refused: Mapping[Slot, str]
    failed: Mapping[Slot, str]

    @property
    def told(self) -> str:
        """A line for each, for people."""
        every = {**self.live, **self.refused, **self.failed}
        lines = "\n".join(f"- {slot}: {message}" for slot, message in every.items())
        return f"{len(self.live)} of {len(every)} are live as scored:\n{lines}"


class UnreleasedError(ServiceError):
    """A service stayed away from some promotions; says what became of all."""

    def __init__(self, promotions: Promotions) -> None:
        super().__init__(promotions.told)
        self.promotions = promotions


@flow(name="promote", flow_run_name="promote {project.file}", validate_parameters=True)
@ends_in_words
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
        Completed with a line for each release and `Promotions` as its result, as *Refused* where a gate said no. Failed
        where a service stayed away.
    """
    workspace = open_workspace(project)

    def release(slot: Slot) -> str:
        return promote_slot(workspace, slot, reason=reason, who=who, again=again)

    done = in_turn(wanted_slots(workspace, language=language, target_task=target_task), release)
    if done.failed:
        error = UnreleasedError(done)
        return failed(done.told, [Shortfall.of(error)], error)
    return completed(done.told, has_refusals=bool(done.refused), data=done)


def in_turn(slots: Iterable[Slot], act: Callable[[Slot], str]) -> Promotions:
    """Do something with each (language, target task), again where a service stayed away; say what became of each.

    Args:
        slots: in their order.
        act: says what was done; a verdict that it raises is the end of this one alone.
    """
    logger = get_run_logger()
    live: dict[Slot, str] = {}

    def tried(slot: Slot) -> Shortfall | None:
        try:
            live[slot] = act(slot)
        except LtsftError as error:
            found = Shortfall.of(error)
            logger.error("%s: %s: %s", slot, found.why.lower(), error)
            return found
        logger.info("%s: %s", slot, live[slot])
        return None

    missing = in_rounds(slots, tried)

    def of(why: Why) -> dict[Slot, str]:
        return {s: each.reason.removeprefix(f"{s}: ") for s, each in missing.items() if each.why is why}

    return Promotions(live, of(Why.REFUSED), of(Why.UNAVAILABLE))


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
        candidate, measured, stopping = _judge(workspace, composition, run, over=over)
        if stopping:
            raise ReleaseError(f"{composition.slot}: version {candidate.version.number} was refused by {stopping}")
        move_champion(workspace, candidate, run, over=over)
    was = "nothing was" if over is None else f"version {over} was"
    return f"version {candidate.version.number} is live ({was} before), {candidate.told_score(measured.score)}"


def offer_slot(workspace: Workspace, slot: Slot) -> str:
    """Put the composition of one (language, target task) forward without releasing it; give what was done, in words.

    Its version gets the alias ``candidate`` and the verdict of the gates; what is live stays live.

    Raises:
        ReleaseError: its gates would refuse it, or it cannot be released at all.
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
            said = f"version {known.number} is a candidate already"
            if known.tags[VERDICT] == PASSED:
                return said
            raise ReleaseError(f"{slot}: {said}, and would be refused: its page says why")
        with open_promotion(workspace, composition, over=over, reason="", who="", kind=CANDIDACY) as run:
            candidate, measured, stopping = _judge(workspace, composition, run, over=over)
        said = f"version {candidate.version.number} is a candidate, {candidate.told_score(measured.score)}, and"
        if stopping:
            raise ReleaseError(f"{slot}: {said} would be refused by {stopping}")
        return f"{said} passes its gates"


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
