"""Rolling back as tasks: choose the version before, move the alias, write it down."""

from __future__ import annotations

import logging
import uuid

from ltsft.canonical import canonical_json
from ltsft.errors import ConfigError, ReleaseError
from ltsft.release import Slot, UnreadableRelease
from tasks.orchestration import task
from tasks.releases.promotion import hash_of, move_lock
from tasks.releases.registry import (
    CHAMPION,
    FROM_VERSION,
    PROMOTION,
    REASON,
    ROLLBACK,
    ROLLED_BACK,
    TO_VERSION,
    Event,
    open_registry,
    release_subject,
    version_before,
)
from tasks.tracking import NewRun, RunHandle, user_name
from tasks.workspace import Workspace

_LOG = logging.getLogger(__name__)
WITHDRAW = "none"
"""In place of a version: nothing is live any more."""


@task(name="roll back", task_run_name="roll back {slot}", is_retried=True)
def roll_back(workspace: Workspace, slot: Slot, *, to: str | None, reason: str, who: str) -> tuple[int, int | None]:
    """Move the alias ``champion`` back, and mark the version that was live as rolled back.

    Run again after a kill it ends what was begun, and goes back no further.

    Args:
        workspace: the project.
        slot: the (language, target task).
        to: a version that was live once; ``none`` takes the release out of service; the version before without it.
        reason: why.
        who: the user; the one of the process without it.

    Returns:
        The version that was live, and the one that is now.

    Raises:
        ConfigError: `to` is no version that was ever live.
        ReleaseError: nothing is live, or there was nothing before it.
    """
    registry = open_registry(workspace)
    with move_lock(workspace, slot):
        champion = registry.champion(slot)
        events = registry.events(slot)
        begun = _cut_off(events, champion) if to is None else None
        if begun is not None:
            before, after = begun.before or 0, begun.after
            run = _reopened(workspace, begun)
        else:
            before, after = _chosen(events, slot, champion, to)
            run = _record(workspace, slot, before, after, reason=reason, who=who)
        with run:
            left = registry.readable(slot, before)
            if isinstance(left, UnreadableRelease):
                _LOG.warning("%s: version %d cannot be read, and is left all the same: %s", slot, before, left.reason)
            else:
                registry.tag(left, {ROLLED_BACK: reason or "no reason was given"})
            if after is not None:
                registry.forget_rollback(registry.version(slot, after))
            registry.set_alias(slot, CHAMPION, after)
            run.finish()
    return before, after


def _chosen(events: list[Event], slot: Slot, champion: int | None, to: str | None) -> tuple[int, int | None]:
    if champion is None:
        raise ReleaseError(f"{slot}: nothing is live, so there is nothing to roll back")
    if to == WITHDRAW:
        return champion, None
    if to is not None:
        once = sorted({event.after for event in events if event.kind == PROMOTION and event.after is not None})
        if not to.isdecimal() or int(to) not in once or int(to) == champion:
            allowed = ", ".join(str(number) for number in once if number != champion) or "none"
            raise ConfigError(
                f"{slot}: cannot roll back to {to!r}; versions that were live before {champion} are {allowed}"
            )
        return champion, int(to)
    before = version_before(events, champion)
    if before is None:
        raise ReleaseError(
            f"{slot}: version {champion} is the first release, there is nothing before it; --to none takes it out of "
            "service"
        )
    return champion, before


def _cut_off(events: list[Event], champion: int | None) -> Event | None:
    """Give the rollback that was begun last, if it was cut off: before the alias moved or just after."""
    last = next((event for event in reversed(events) if event.kind == ROLLBACK), None)
    return last if last and not last.is_finished and champion in (last.before, last.after) else None


def _reopened(workspace: Workspace, event: Event) -> RunHandle:
    return RunHandle(workspace.tracker, run_id=event.run_id, name=event.subject, is_resumed=True)


def _record(workspace: Workspace, slot: Slot, before: int, after: int | None, *, reason: str, who: str) -> RunHandle:
    parts = {"kind": ROLLBACK, "from": before, "to": after, "at": uuid.uuid4().hex}
    return workspace.tracker.open_run(
        NewRun(
            name=f"roll back {slot}",
            kind=ROLLBACK,
            subject=release_subject(slot),
            key=hash_of(canonical_json(parts)),
            parts=parts,
            tags={
                "ltsft.language": slot.language,
                "ltsft.target_task": slot.target_task,
                "mlflow.user": who or user_name(),
                REASON: reason,
                FROM_VERSION: str(before),
                TO_VERSION: str(after or WITHDRAW),
            },
            params={"from": before, "to": after},
        )
    )
