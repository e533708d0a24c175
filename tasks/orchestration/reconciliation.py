"""Bringing Prefect, the cluster and MLflow to agree on what is running.

`decide` says what is wrong, from what they say; it is pure. `apply` mends it. A run that looks dead is given some time
first: they are not read in the same moment. Where a run is says what proves that it is dead: in a Kubernetes pool that
the cluster has no pod of it, in a pool of any other type that it gives no signs of life (tasks/orchestration/signs.py).
One that is a part of another run, in its process, is over when that one is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from ltsft.errors import ServiceError
from tasks.orchestration.cluster import Job, delete_job
from tasks.orchestration.deployed import TAG
from tasks.orchestration.launching import has_crashed, reschedule_crashed
from tasks.orchestration.signs import last_signs, silent
from tasks.tracking import OpenRun, Tracker

CLUSTER = "kubernetes"
"""Type of the pools whose runs are pods."""
_RECENT = timedelta(days=2)
_PAGE = 200


@dataclass(frozen=True)
class Run:
    """A flow run of one of our deployments.

    Attributes:
        id: of the flow run.
        name: for people.
        state: type of its state, such as RUNNING.
        since: when it came into this state (UTC).
        has_waiting_parent: whether a live flow waits for it, and reschedules it when it crashes.
        where: "cluster", "process", "part" of another run, or "elsewhere": started by a person, with no pool.
        sign: the last sign of life of a run in a process, its state counted; None if it never gave any.
        left_since: since when the run is over, or began anew, that a part was a part of; None if that goes on.
    """

    id: str
    name: str
    state: str
    since: datetime
    has_waiting_parent: bool = False
    where: Literal["cluster", "process", "part", "elsewhere"] = "cluster"
    sign: datetime | None = None
    left_since: datetime | None = None

    @property
    def is_live(self) -> bool:
        """Whether it is shown as having a process."""
        return self.state in ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Actions:
    """What is to be done: runs that crashed and why, jobs to delete and why, MLflow runs to close and why."""

    crash: Mapping[str, str]
    reschedule: Sequence[str]
    delete: Mapping[str, str]
    close: Mapping[str, str]


def decide(
    runs: Iterable[Run],
    jobs: Iterable[Job],
    open_runs: Iterable[OpenRun],
    *,
    now: datetime,
    patience: timedelta,
    pending_timeout: timedelta,
    silent: Mapping[str, int] | None = None,
) -> Actions:
    """Compare what Prefect, the cluster and MLflow say.

    Args:
        runs: flow runs that are not scheduled: running, pending, crashed lately; and the final ones that have a job.
        jobs: of flow runs.
        open_runs: MLflow runs that are not ended.
        now: the time (UTC).
        patience: a contradiction that is younger is left alone.
        pending_timeout: of a process, and of a pod whose job does not say its own.
        silent: runs in processes that are dead, and for how many seconds they have been silent.
    """
    by_run: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_run[job.flow_run].append(job)
    known = {run.id: run for run in runs}
    crash: dict[str, str] = {}
    delete: dict[str, str] = {}
    for run in known.values():
        if run.where != "cluster":
            if why := _without_cluster(run, silent or {}, now=now, patience=patience, pending_timeout=pending_timeout):
                crash[run.id] = why
            continue
        active = [job for job in by_run[run.id] if job.is_active]
        for job in active if run.is_live else ():
            if why := _not_started(job, now=now, pending_timeout=pending_timeout):
                crash[run.id] = why
                delete[job.name] = f"its pod did not start, run {run.name}"
        if not active and run.is_live and now - run.since >= patience:
            crash[run.id] = (
                "it is shown as running, but it has no pod in the cluster"
                if run.state == "RUNNING"
                else ("it was submitted, but it has no job in the cluster")
            )
        if active and run.state in _FINAL and now - run.since >= patience:
            delete |= {job.name: f"run {run.name} is over ({run.state})" for job in active}
    for flow_run, theirs in by_run.items():
        if flow_run not in known:
            old = [job for job in theirs if job.is_active and now - job.created >= patience]
            delete |= {job.name: f"Prefect does not know flow run {flow_run}" for job in old}
    pooled = [run for run in known.values() if run.where in ("cluster", "process")]
    reschedule = [run.id for run in pooled if run.state == "CRASHED" or run.id in crash]
    close = {
        open_run.run_id: f"flow run {known[open_run.flow_run].name} is over, and nobody closed this run"
        for open_run in open_runs
        if open_run.flow_run in known
        and known[open_run.flow_run].state in _FINAL
        and now - (known[open_run.flow_run].sign or known[open_run.flow_run].since) >= patience
    }
    close |= {open_run.run_id: "its flow run crashed" for open_run in open_runs if open_run.flow_run in crash}
    return Actions(crash, [id for id in reschedule if not known[id].has_waiting_parent], delete, close)


def _not_started(job: Job, *, now: datetime, pending_timeout: timedelta) -> str:
    """Say for how long a pod has not started, if that is too long; nothing if it may wait."""
    if job.waiting_since is None:
        return ""
    limit = timedelta(seconds=job.pending_timeout) if job.pending_timeout is not None else pending_timeout
    waited = now - job.waiting_since
    if waited < limit:
        return ""
    seconds = round(waited.total_seconds())
    return f"its pod did not start within {seconds} s; the cluster says: {'; '.join(job.told)}"


def _without_cluster(
    run: Run, silent: Mapping[str, int], *, now: datetime, patience: timedelta, pending_timeout: timedelta
) -> str:
    """Say why a run that no cluster knows of is dead; nothing if it may live."""
    if run.where == "process" and run.state == "RUNNING" and run.id in silent:
        return f"it is shown as running, but its process has given no sign of life for {silent[run.id]} s"
    if run.where == "process" and run.state == "PENDING" and now - run.since >= pending_timeout:
        return f"it was submitted, but no process has started it within {(now - run.since).total_seconds():.0f} s"
    if run.where == "part" and run.is_live and run.left_since is not None and now - run.left_since >= patience:
        return "it is shown as running, but the run that it was a part of is over or began anew"
    return ""


_FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def has_cluster() -> bool:
    """Whether a deployment of ours runs in a Kubernetes pool.

    Raises:
        ServiceError: Prefect's server cannot be reached.
    """
    with _prefect() as client:
        ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
        pools = {deployment.work_pool_name for deployment in client.read_deployments(deployment_filter=ours)}
        return any(pool in pools and kind == CLUSTER for pool, kind in _pool_types(client).items())


def find_silent(runs: Iterable[Run], *, silence: timedelta, watch_seconds: float) -> dict[str, int]:
    """Give the runs in processes that are dead, and for how many seconds they have been silent.

    Raises:
        ServiceError: Prefect's server cannot be reached.
    """
    running = [run for run in runs if run.where == "process" and run.state == "RUNNING"]
    with _prefect() as client:
        # One that was killed before its first heartbeat never gives one: it is silent since it began.
        signs = {run.id: run.sign or run.since for run in running}
        return silent(client, signs, silence=silence, watch_seconds=watch_seconds)


def read_runs(jobs: Iterable[Job] | None, open_runs: Iterable[OpenRun]) -> list[Run]:
    """Ask Prefect for all runs that may be of interest.

    Args:
        jobs: of flow runs; None where no cluster was asked, and then nothing is known of the pods of a run.
        open_runs: MLflow runs that are not ended.

    Raises:
        ServiceError: Prefect's server cannot be reached.
    """
    since = datetime.now(UTC) - _RECENT
    live = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CRASHED, StateType.CANCELLING])
    ours = FlowRunFilter(state=FlowRunFilterState(type=live), tags=FlowRunFilterTags(all_=[TAG]))
    named = {*(job.flow_run for job in jobs or ()), *(run.flow_run for run in open_runs if run.flow_run)}
    with _prefect() as client:
        found = {run.id: run for run in _pages(client, ours)}
        ids = [UUID(id) for id in named if UUID(id) not in found]
        for i in range(0, len(ids), _PAGE):
            some = FlowRunFilter(id=FlowRunFilterId(any_=ids[i : i + _PAGE]))
            found |= {run.id: run for run in client.read_flow_runs(flow_run_filter=some, limit=_PAGE)}
        pools = {name: kind for name, kind in _pool_types(client).items() if kind != CLUSTER or jobs is not None}
        shown = [run for run in found.values() if _is_shown(run, since, named)]
        processes = [run for run in shown if _where(run, pools) == "process"]
        signs = last_signs(client, [str(run.id) for run in processes]) if processes else {}
        return [_run(client, run, _where(run, pools), signs.get(str(run.id))) for run in shown]


def _is_shown(run: FlowRun, since: datetime, named: set[str]) -> bool:
    """Whether a run is of interest: live, named by a job or an MLflow run, or crashed lately."""
    if run.state is None:
        return False
    return not run.state.is_crashed() or run.state.timestamp >= since or str(run.id) in named


def _pool_types(client: SyncPrefectClient) -> dict[str, str]:
    return {pool.name: pool.type for pool in client.read_work_pools()}


def _where(run: FlowRun, pools: Mapping[str, str]) -> Literal["cluster", "process", "part", "elsewhere"]:
    if run.work_pool_name is not None:
        kind = pools.get(run.work_pool_name)
        return "elsewhere" if kind is None else "cluster" if kind == CLUSTER else "process"
    return "part" if run.parent_task_run_id is not None else "elsewhere"


def apply(actions: Actions, tracker: Tracker, *, namespace: str, crashes: int) -> list[str]:
    """Do what was decided; give what was done, in words.

    Raises:
        ServiceError: one of the services refused or could not be reached.
    """
    done = []
    with _prefect() as client:
        for id, reason in actions.crash.items():
            run = client.read_flow_run(UUID(id))
            if run.state is not None and not run.state.is_final() and not run.state.is_scheduled():
                crashed: State[Any] = Crashed(message=reason)
                client.set_flow_run_state(run.id, crashed)
                done.append(f"{run.name}: marked as crashed: {reason}")
        for name, reason in actions.delete.items():
            delete_job(namespace, name)
            done.append(f"job {name}: deleted: {reason}")
        for run_id, reason in actions.close.items():
            tracker.interrupt(run_id, reason)
            done.append(f"MLflow run {run_id}: closed as killed: {reason}")
        for id in actions.reschedule:
            run = client.read_flow_run(UUID(id))
            if has_crashed(run.state):
                why_not = reschedule_crashed(client, run, crashes=crashes)
                done.append(f"{run.name}: not rescheduled: {why_not.reason}" if why_not else f"{run.name}: rescheduled")
    return done


def _pages(client: SyncPrefectClient, wanted: FlowRunFilter) -> list[FlowRun]:
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            return found


def _run(
    client: SyncPrefectClient,
    run: FlowRun,
    where: Literal["cluster", "process", "part", "elsewhere"],
    sign: datetime | None,
) -> Run:
    assert run.state is not None  # noqa: S101 - asked for
    state, since = run.state, run.state.timestamp
    is_asked = state.is_crashed() or where == "part"
    parent = _parent(client, run) if is_asked else None
    left_since = None
    if where == "part" and parent is not None and parent.state is not None:
        began_anew = parent.state.timestamp > since  # its state is that of a later attempt, or it is over
        left_since = parent.state.timestamp if began_anew or not parent.state.is_running() else None
    return Run(
        id=str(run.id),
        name=run.name,
        state=state.type.value,
        since=since,
        has_waiting_parent=state.is_crashed()
        and parent is not None
        and parent.state is not None
        and not parent.state.is_final(),
        where=where,
        sign=max(sign, since) if sign is not None else None,
        left_since=left_since,
    )


def _parent(client: SyncPrefectClient, run: FlowRun) -> FlowRun | None:
    """Give the flow run that started this one, if it did so in its process or waits for it."""
    if run.parent_task_run_id is None:
        return None
    try:
        task_run = client.read_task_run(run.parent_task_run_id)
        return client.read_flow_run(task_run.flow_run_id) if task_run.flow_run_id is not None else None
    except ObjectNotFound:
        return None


class _prefect:  # noqa: N801 - used as a context manager
    """A client whose errors are ours."""

    def __enter__(self) -> SyncPrefectClient:
        self._context = get_client(sync_client=True)
        return self._context.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._context.__exit__(kind, error, traceback)
        if isinstance(error, httpx.HTTPError):
            raise ServiceError(f"Prefect refused or is away: {type(error).__name__}: {error}") from error
