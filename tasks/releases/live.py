"""What is live, since when, and what stands behind it: for people. Reads the registry alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ltsft.canonical import canonical_json
from ltsft.project import cell_subject
from ltsft.release import Slot, UnreadableRelease
from tasks.evaluation import Scored
from tasks.releases.registry import CELL_RUN, SCORE, SEED, TEST, Event, Version, open_registry, release_subject
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Live:
    """What is live for a (language, target task), for people.

    Attributes:
        slot: the (language, target task).
        version: the live one; None where there is none.
        candidate: the number that was put forward last.
        event: the move that made it live; None where it is not on record.
        trouble: what is wrong with the version that should be live; None where nothing is.
    """

    slot: Slot
    version: Version | None
    candidate: int | None
    event: Event | None
    trouble: UnreadableRelease | None = None

    @property
    def since(self) -> datetime | None:
        """Since when it is live (UTC)."""
        return self.event.when if self.event else None

    def as_row(self) -> dict[str, Any]:
        """Give plain values, for tables and JSON."""
        version, event = self.version, self.event
        tags = version.tags if version else {}
        return {
            "release": str(self.slot),
            "language": self.slot.language,
            "target_task": self.slot.target_task,
            "version": version.number if version else self.trouble.version if self.trouble else None,
            "trouble": self.trouble.reason if self.trouble else None,
            "since": event.when.isoformat(timespec="seconds") if event else None,
            "who": event.who if event else None,
            "how": event.kind if event else None,
            "why": event.reason if event else None,
            "score": float(tags[SCORE]) if SCORE in tags else None,
            "parents": ", ".join(part.subject for part in version.composition.parts) if version else None,
            "parent_runs": {part.subject: part.run_id for part in version.composition.parts} if version else {},
            "composition": version.composition.key if version else None,
            "candidate": self.candidate,
        }


def read_releases(workspace: Workspace) -> list[Live]:
    """Say what is live, since when, and what stands behind it; in the order of the project's cells."""
    registry = open_registry(workspace)
    events: dict[str, list[Event]] = {}
    for event in registry.events():
        events.setdefault(event.subject, []).append(event)
    found = []
    for slot, champion, candidate in registry.aliases():
        version = registry.readable(slot, champion) if champion is not None else None
        moves = [event for event in events.get(release_subject(slot), []) if event.after == champion]
        move = moves[-1] if moves else None
        if isinstance(version, UnreadableRelease):
            found.append(Live(slot, None, candidate, move, version))
        else:
            found.append(Live(slot, version, candidate, move))
    return sorted(found, key=lambda live: (live.slot.target_task, live.slot.language))


def live_scores(workspace: Workspace) -> dict[str, Scored]:
    """Give, by subject of the cell, what is live and was scored in a matrix of this project."""
    registry = open_registry(workspace)
    found = {}
    for slot, champion, _ in registry.aliases():
        version = registry.readable(slot, champion) if champion is not None else None
        if isinstance(version, Version) and {CELL_RUN, SCORE, SEED, TEST} <= version.tags.keys():
            found[cell_subject(slot.target_task, slot.language)] = Scored(
                run_id=version.tags[CELL_RUN],
                score=float(version.tags[SCORE]),
                seeds=(int(version.tags[SEED]),),
                test=canonical_json(json.loads(version.tags[TEST])),
                name=f"version {version.number}",
            )
    return found
