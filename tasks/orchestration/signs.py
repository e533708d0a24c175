"""Signs of life of flow runs whose processes no cluster knows of: Prefect's heartbeats.

A process pool has no record of its processes, so that one is dead is told by its silence. The server, or the way to it,
may have been away, though: then all are silent, and take up to a heartbeat to be heard again. So silence counts only
once events are seen to arrive, and after they have been listened for, for longer than two heartbeats.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.events import emit_event
from prefect.events.filters import EventFilter, EventIDFilter, EventNameFilter, EventResourceFilter

HEARTBEAT = "prefect.flow-run.heartbeat"
_PREFIX = "prefect.flow-run."
_PAGE = 50  # the most that Prefect gives at once
_LOOK_SECONDS = 1.0


def last_signs(client: SyncPrefectClient, ids: Iterable[str]) -> dict[str, datetime]:
    """Give when the server last heard of flow runs, by its own clock; nothing for one that it never heard of."""
    wanted = sorted(ids)
    found: dict[str, datetime] = {}
    for i in range(0, len(wanted), _PAGE):
        named = [f"{_PREFIX}{id}" for id in wanted[i : i + _PAGE]]
        heartbeats = EventFilter(
            event=EventNameFilter(name=[HEARTBEAT]), resource=EventResourceFilter(id=named, distinct=True)
        )
        for event in client.read_events(heartbeats, limit=_PAGE).events:
            found[event.resource.id.removeprefix(_PREFIX)] = event.received
    return found


def silent(
    client: SyncPrefectClient, signs: dict[str, datetime], *, silence: timedelta, watch_seconds: float
) -> dict[str, int]:
    """Give the flow runs that are dead, and for how many seconds they have been silent.

    Args:
        client: of Prefect.
        signs: by id of a running flow run, its last sign of life.
        silence: one that is shorter is no reason to look.
        watch_seconds: how long to listen, from when events are seen to arrive; more than two heartbeats.
    """
    now = datetime.now(UTC)
    suspects = [id for id, sign in signs.items() if now - sign >= silence]
    if not suspects or not _events_arrive(client, watch_seconds):
        return {}
    time.sleep(watch_seconds)
    again = last_signs(client, suspects)
    now = datetime.now(UTC)
    dead = [id for id in suspects if again.get(id, signs[id]) <= signs[id]]
    return {id: round((now - signs[id]).total_seconds()) for id in dead}


def _events_arrive(client: SyncPrefectClient, seconds: float) -> bool:
    """Send an event and see whether the server has it in time."""
    sent = emit_event("ltsft.reconciled", {"prefect.resource.id": "ltsft.reconciler"}, id=uuid.uuid4())
    mine = EventFilter(id=EventIDFilter(id=[sent.id])) if sent is not None else None
    end = time.monotonic() + seconds
    while mine is not None and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        if client.read_events(mine, limit=1).events:
            return True
    return False
