"""Starting flows as deployments, many at a time, and waiting for them.

A run is found again by its key: a run of the same key that is under way is waited for rather than started twice, also
when two flows start it at the same moment. A run that crashed (its pod vanished, ran out of memory, never started) is
rescheduled as the same flow run, and after a number of crashes it has failed for good. A run that was evicted in good
order reschedules itself and does not count. How many run at once is for the concurrency limits of pools and
deployments.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterTags,
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort, LogSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import AwaitingRetry

from ltsft.errors import ServiceError, TrainingError
from tasks.orchestration.ends import LONGER, Shortfall, Shortfalls, Why, causes, is_away, shortfall_of, worst
from tasks.patience import AWAY_SECONDS
from tasks.settings import read_settings

_PAGE = 200
_T = TypeVar("_T")


@dataclass(frozen=True)
class Launch:
    """A deployment to run.

    Attributes:
        deployment: as ``flow-name/deployment-name``.
        subject: what it makes; failures are told by it.
        key: runs with the same key are the same run.
        parameters: of the flow.
        needs: subjects that have to be made before.
        job_variables: of the pod, where it is not as the deployment says.
    """

    deployment: str
    subject: str
    key: str
    parameters: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    job_variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Progress:
    waiting: dict[str, Launch]
    running: dict[UUID, Launch] = field(default_factory=dict)
    failures: dict[str, Shortfall] = field(default_factory=dict)


def launch_all(launches: Iterable[Launch], *, crashes: int, poll_seconds: float) -> dict[str, Shortfall]:
    """Run deployments, each after those that it needs, and wait for all of them.

    Args:
        launches: what to run.
        crashes: a run that crashed so often is not rescheduled any more.
        poll_seconds: pause between two looks at the runs.

    Returns:
        By subject, why it failed; nothing for those that completed.

    Raises:
        ServiceError: there is no such deployment, or Prefect's server is away for too long.
    """
    progress = _Progress({launch.subject: launch for launch in launches})
    with get_client(sync_client=True) as client:
        while progress.waiting or progress.running:
            for launch in list(progress.waiting.values()):
                _start_if_ready(client, launch, progress, crashes)
            runs = _patiently(lambda: _read(client, list(progress.running)))
            for run in runs:
                _look(client, run, progress, crashes)
            if progress.running:
                time.sleep(poll_seconds)
    return progress.failures


def has_crashed(state: State[Any] | None) -> bool:
    """Whether a run ended without a verdict: its process is gone, or a service was away for too long."""
    return state is not None and (state.is_crashed() or is_away(state))


def reschedule_crashed(client: SyncPrefectClient, run: FlowRun, *, crashes: int) -> Shortfall | None:
    """Reschedule a run that crashed, unless it crashed too often.

    Returns:
        Nothing if it is rescheduled, else why it is not.
    """
    run = client.read_flow_run(run.id)  # another flow that waits for it may have been quicker
    state = run.state
    if state is None or not has_crashed(state):
        return None
    reason = state.message or "it crashed without a message"
    count = sum(has_crashed(each) for each in client.read_flow_run_states(run.id))
    if count >= crashes:
        if is_away(state):
            return Shortfall(_given_up("tried", count, reason), Why.UNAVAILABLE)
        return Shortfall(_given_up("crashed", count, _diagnosis(client, run) or reason), Why.FAILED)
    pause = read_settings().retry_seconds * LONGER ** (count - 1)
    when = datetime.now(UTC) + timedelta(seconds=pause)
    what = "a service was away" if is_away(state) else "crashed"
    again: State[Any] = AwaitingRetry(
        scheduled_time=when, message=f"{what} ({reason}); attempt {count + 1} of {crashes}"
    )
    client.set_flow_run_state(run.id, again)
    return None


def refuse_if_crashed(flow_run: str | None, *, crashes: int) -> None:
    """Give a flow run up that crashed too often, from within.

    Where a run has several pods and loses one, the first pod reschedules the run while it is ended itself; whoever
    counts crashes may then not have seen this one.

    Args:
        flow_run: id of the run that asks; without one there is nothing to refuse.
        crashes: a run that crashed so often is given up.

    Raises:
        TrainingError: it did.
    """
    if flow_run is None:
        return
    with get_client(sync_client=True) as client:
        found = _patiently(lambda: client.read_flow_run_states(UUID(flow_run)))
        crashed = [state for state in found if has_crashed(state)]
        if len(crashed) >= crashes:
            told = _diagnosis(client, client.read_flow_run(UUID(flow_run))) or crashed[-1].message or "no message"
            raise TrainingError(_given_up("crashed", len(crashed), told))


def _given_up(what: str, count: int, told: str) -> str:
    times = "once" if count == 1 else f"{count} times"
    return f"{what} {times}, which is the most that is allowed; the last time: {told}"


def _diagnosis(client: SyncPrefectClient, run: FlowRun) -> str:
    """Give what the worker's observer logged of the run's last pod: out of memory, no node, no image."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]), level=LogFilterLevel(ge_=logging.WARNING))
    logs = client.read_logs(wanted, limit=_PAGE, sort=LogSort.TIMESTAMP_DESC)
    return next((log.message for log in logs if log.name.endswith(".observer")), "")


def not_tried(broken: Shortfalls) -> Shortfall:
    """Say that something was not tried, because what it needs could not be made."""
    return Shortfall(
        f"not tried, because {', '.join(broken)} could not be made", worst(broken.values()), causes(broken)
    )


def _start_if_ready(client: SyncPrefectClient, launch: Launch, progress: _Progress, crashes: int) -> None:
    broken = [need for need in launch.needs if need in progress.failures]
    if broken:
        progress.failures[launch.subject] = not_tried({need: progress.failures[need] for need in broken})
        del progress.waiting[launch.subject]
        return
    unmade = {*progress.waiting, *(other.subject for other in progress.running.values())}
    if any(need in unmade for need in launch.needs):
        return
    run = _patiently(lambda: _start(client, launch, crashes))
    get_run_logger().info("%s: flow run %s (%s)", launch.subject, run.name, run.id)
    progress.running[run.id] = launch
    del progress.waiting[launch.subject]


def _start(client: SyncPrefectClient, launch: Launch, crashes: int) -> FlowRun:
    tag = f"key:{launch.key}"
    before = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=_PAGE,
    )
    for run in before:
        if run.state is not None and not run.state.is_final():
            get_run_logger().info("%s is under way already in flow run %s", launch.subject, run.name)
            return run
    # One that another flow left behind goes on; how often it crashed before counts.
    if before and has_crashed(before[0].state) and not reschedule_crashed(client, before[0], crashes=crashes):
        return before[0]
    try:
        started = run_deployment(
            launch.deployment,
            parameters=dict(launch.parameters),
            job_variables=dict(launch.job_variables),
            timeout=0,
            tags=[tag],
            # Two that start at the same moment see the same runs before, and get the same run.
            idempotency_key=f"{launch.key}-{len(before)}",
        )
        return cast(FlowRun, started)  # it is no coroutine: this is no async context
    except ObjectNotFound as error:
        raise ServiceError(f"Prefect knows no deployment {launch.deployment}; run ltsft bootstrap") from error


def _look(client: SyncPrefectClient, run: FlowRun, progress: _Progress, crashes: int) -> None:
    launch = progress.running[run.id]
    state = run.state
    if state is None or not state.is_final():
        return
    if has_crashed(state):
        shortfall = _patiently(lambda: reschedule_crashed(client, run, crashes=crashes))
        if shortfall is None:
            get_run_logger().warning("%s crashed (%s) and is tried again", launch.subject, state.message)
            return
    else:
        shortfall = shortfall_of(state)
    if shortfall is not None:
        progress.failures[launch.subject] = shortfall
    del progress.running[run.id]


def _read(client: SyncPrefectClient, ids: Sequence[UUID]) -> list[FlowRun]:
    found: list[FlowRun] = []
    for i in range(0, len(ids), _PAGE):
        some = FlowRunFilter(id=FlowRunFilterId(any_=list(ids[i : i + _PAGE])))
        found += client.read_flow_runs(flow_run_filter=some, limit=_PAGE)
    return found


def _patiently(ask: Callable[[], _T]) -> _T:
    """Ask Prefect's server, and wait while it is away; what is asked may be asked twice."""
    end = time.monotonic() + AWAY_SECONDS
    pause = 1.0
    while True:
        try:
            return ask()
        except httpx.HTTPError as error:
            refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
            if refused or time.monotonic() > end:
                raise ServiceError(f"Prefect's server refused or is away: {type(error).__name__}: {error}") from error
            get_run_logger().warning("Prefect's server is away, waiting for it: %s", type(error).__name__)
            time.sleep(pause)
            pause = min(2 * pause, 30.0)
