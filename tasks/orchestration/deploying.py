"""Deployments of a project: what ``prefect.yaml`` says, bound to the project, and compared with what is in Prefect.

A deployment is named by its flow and its project: ``retrain/ud``. So projects share an installation, and a flow finds
those of its own project. What is switched off, deployment or schedule, stays off; what does not stand in the file any
more goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, DeploymentSchedule, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from ltsft.errors import ConfigError
from tasks.orchestration.automations import ensure_automation, retire_automations, trigger_automation, trigger_name
from tasks.orchestration.changes import Change, Doing
from tasks.orchestration.deployed import TAG, deployment_name, project_tag

_ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.PAUSED]
_PAGE = 200


@dataclass(frozen=True)
class Wanted:
    """A deployment as it should be.

    Attributes:
        flow: what it runs.
        project: name of the project, and of the deployment.
        facts: what Prefect is told of it.
        schedules: when it runs by itself.
        triggers: on which events, as in ``prefect.yaml``.
    """

    flow: Flow[..., Any]
    project: str
    facts: Mapping[str, Any]
    schedules: Sequence[CronSchedule | IntervalSchedule] = ()
    triggers: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def name(self) -> str:
        """Full name."""
        return deployment_name(self.flow.name, self.project)


def read_wanted(
    rows: Iterable[Mapping[str, Any]],
    project: str,
    *,
    project_file: str,
    app_folder: str,
    schedules: Mapping[str, str],
) -> list[Wanted]:
    """Bind the deployments of ``prefect.yaml`` to a project.

    Args:
        rows: as they stand there.
        project: name of the project.
        project_file: path of its file where flows run.
        app_folder: where flows find the code.
        schedules: other schedules than those of the file, by deployment; see `parse_schedule`.

    Raises:
        ConfigError: a schedule is wrong, or is given for what is not there.
    """
    rows = list(rows)
    names = [row["name"] for row in rows]
    unknown = sorted(schedules.keys() - {*names})
    if unknown:
        raise ConfigError(f"there is no deployment {unknown[0]!r} to schedule; allowed are {', '.join(names)}")
    found = []
    for row in rows:
        flow = cast("Flow[..., Any]", load_flow_from_entrypoint(row["entrypoint"], use_placeholder_flow=False))
        if flow.name != row["name"]:
            raise ConfigError(
                f"prefect.yaml: a deployment is named as its flow, {flow.name!r}, got {row['name']!r}; "
                "a project has one of each flow"
            )
        given = schedules.get(row["name"])
        timed = [_schedule(s) for s in row.get("schedules", ())] if given is None else parse_schedule(given)
        facts = _facts(row, flow, project, project_file, app_folder)
        found.append(Wanted(flow, project, facts, timed, row.get("triggers", ())))
    return found


def parse_schedule(text: str) -> list[CronSchedule | IntervalSchedule]:
    """Read a schedule: an interval (``30s``, ``15m``, ``6h``, ``1d``), five fields of cron in UTC, or ``none``.

    Raises:
        ConfigError: it is none of them.
    """
    if text == "none":
        return []
    if interval := re.fullmatch(r"([1-9]\d*)([smhd])", text):
        return [_schedule({"interval": int(interval[1]) * _SECONDS[interval[2]]})]
    try:
        return [_schedule({"cron": text})]
    except ValueError as error:
        raise ConfigError(f"a schedule is an interval as 30s or 15m, a cron in UTC, or none; got {text!r}") from error


def deploy(client: SyncPrefectClient, doing: Doing, project: str, wanted: Iterable[Wanted]) -> None:
    """Bring the deployments and automations of a project to what is wanted; what is right is not touched."""
    wanted = list(wanted)
    ours = _read_ours(client)
    before = {flow: d for flow, d in ours if d.name == flow and not _is_of_a_project(d)}
    there = {deployment_name(flow, d.name): d for flow, d in ours if _is_of_a_project(d)}
    for one in wanted:
        _deploy_one(client, doing, one, there.get(one.name), before.get(one.flow.name))
    names = {trigger_name(row, project) for one in wanted for row in one.triggers}
    retire_automations(client, doing, project, wanted=names)
    tags, kept = {TAG, project_tag(project)}, {one.name for one in wanted}
    leaving = {n: d for n, d in there.items() if d.name == project and tags <= {*d.tags} and n not in kept}
    leaving |= {deployment_name(flow, d.name): d for flow, d in before.items()}
    _retire(client, doing, leaving)


def _deploy_one(
    client: SyncPrefectClient,
    doing: Doing,
    wanted: Wanted,
    there: DeploymentResponse | None,
    before: DeploymentResponse | None,
) -> None:
    if there is None:
        is_off = before is not None and _is_off(before)
        told = ("switched off, as it was before",) if is_off else ()
        doing(Change("create", f"deployment {wanted.name}", told), lambda: _create(client, wanted, is_off=is_off))
    else:
        id = there.id
        differing = _differing(there, wanted.facts)
        if differing:
            update = DeploymentUpdate(**{n: v for n, v in wanted.facts.items() if n in differing})
            doing(
                Change("update", f"deployment {wanted.name}", differing), lambda: client.update_deployment(id, update)
            )
        _reschedule(client, doing, wanted, there)
    for row in wanted.triggers:
        try:
            id = client.read_deployment_by_name(wanted.name).id
        except ObjectNotFound:  # only asked, and not there yet
            doing(Change("create", f"automation {trigger_name(row, wanted.project)}"), lambda: None)
        else:
            ensure_automation(client, doing, trigger_automation(row, wanted.project, id))


def _facts(
    row: Mapping[str, Any], flow: Flow[..., Any], project: str, project_file: str, app_folder: str
) -> dict[str, Any]:
    limit, options = row.get("concurrency_limit"), None
    if isinstance(limit, Mapping):
        options = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(limit["collision_strategy"]))
        limit = limit["limit"]
    return {
        "entrypoint": row["entrypoint"],
        "description": row.get("description"),
        "tags": list(dict.fromkeys([*row.get("tags", ()), TAG, project_tag(project)])),
        "parameters": {**row.get("parameters", {}), "project": {"file": project_file}},
        "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
        "enforce_parameter_schema": True,
        "work_pool_name": row["work_pool"]["name"],
        "job_variables": row["work_pool"].get("job_variables", {}),
        "concurrency_limit": limit,
        "concurrency_options": options,
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": app_folder}}],
    }


def _create(client: SyncPrefectClient, wanted: Wanted, *, is_off: bool) -> None:
    schedules = _switched(wanted.schedules, is_off=is_off)
    client.create_deployment(
        client.create_flow(wanted.flow), wanted.project, path=".", schedules=schedules, **wanted.facts
    )


def _switched(schedules: Iterable[CronSchedule | IntervalSchedule], *, is_off: bool) -> list[DeploymentScheduleCreate]:
    return [DeploymentScheduleCreate(schedule=schedule, active=not is_off) for schedule in schedules]


def _differing(there: DeploymentResponse, facts: Mapping[str, Any]) -> tuple[str, ...]:
    limit = there.global_concurrency_limit
    now: dict[str, Any] = {
        **there.model_dump(include={*facts} - {"concurrency_limit", "concurrency_options", "pull_steps"}),
        "concurrency_limit": limit.limit if limit is not None else None,
        "concurrency_options": there.concurrency_options,
        "pull_steps": there.pull_steps,
    }
    return tuple(name for name, value in facts.items() if now.get(name) != value)


def _schedule(row: Mapping[str, Any]) -> CronSchedule | IntervalSchedule:
    if "cron" in row:
        return CronSchedule(cron=row["cron"], timezone=row.get("timezone", "UTC"))
    return IntervalSchedule(interval=timedelta(seconds=row["interval"]), anchor_date=_ANCHOR)


def _reschedule(client: SyncPrefectClient, doing: Doing, wanted: Wanted, there: DeploymentResponse) -> None:
    """Bring schedules to what is wanted, one by one: an update of all would switch on what somebody switched off."""
    kept = [_told(schedule) for schedule in wanted.schedules]
    leaving = [schedule for schedule in there.schedules if _told(schedule.schedule) not in kept]
    present = [_told(schedule.schedule) for schedule in there.schedules]
    coming = [schedule for schedule in wanted.schedules if _told(schedule) not in present]
    if not leaving and not coming:
        return
    is_off = bool(there.schedules) and not any(schedule.active for schedule in there.schedules)

    def change() -> None:
        for schedule in leaving:
            client.delete_deployment_schedule(there.id, schedule.id)
        if coming:
            client.create_deployment_schedules(there.id, _switched(coming, is_off=is_off))

    gone = sorted(_told(schedule.schedule) for schedule in leaving)
    details = (*(f"no more {told}" for told in gone), *(f"now {_told(schedule)}" for schedule in coming))
    doing(Change("update", f"schedules of deployment {wanted.name}", details), change)


def _told(schedule: Any) -> str:
    """Say when a schedule runs; not whether it is active, which people switch."""
    if isinstance(schedule, CronSchedule):
        return f"cron {schedule.cron} {schedule.timezone or 'UTC'}"
    if isinstance(schedule, IntervalSchedule):
        return f"every {schedule.interval.total_seconds():g} s"
    return str(schedule)


def _is_off(deployment: DeploymentResponse) -> bool:
    schedules: list[DeploymentSchedule] = deployment.schedules
    return deployment.paused or (bool(schedules) and not any(schedule.active for schedule in schedules))


def _is_of_a_project(deployment: DeploymentResponse) -> bool:
    return project_tag(deployment.name) in deployment.tags


def _read_ours(client: SyncPrefectClient) -> list[tuple[str, DeploymentResponse]]:
    """Give all deployments with our tag, each with the name of its flow."""
    found: list[DeploymentResponse] = []
    while True:
        tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
        page = client.read_deployments(deployment_filter=tagged, limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            break
    flows = {id: client.read_flow(id).name for id in {deployment.flow_id for deployment in found}}
    return [(flows[deployment.flow_id], deployment) for deployment in found]


def _retire(client: SyncPrefectClient, doing: Doing, leaving: Mapping[str, DeploymentResponse]) -> None:
    """Delete deployments; while one of them has a run, they only lose their schedules: a flow may start the others."""
    if not leaving:
        return
    ids = FlowRunFilterDeploymentId(any_=[deployment.id for deployment in leaving.values()])
    live = (
        FlowRunFilterState(type=FlowRunFilterStateType(any_=_LIVE)),
        FlowRunFilterState(name=FlowRunFilterStateName(any_=["AwaitingRetry"])),
    )
    asked = [FlowRunFilter(state=state, deployment_id=ids) for state in live]
    runs = [run for wanted in asked for run in client.read_flow_runs(flow_run_filter=wanted, limit=1)]
    for name, deployment in sorted(leaving.items()):
        if not runs:
            doing(Change("delete", f"deployment {name}"), partial(client.delete_deployment, deployment.id))
        elif deployment.schedules:
            why = f"run {runs[0].name} is not over; the next bootstrap deletes the deployment"
            doing(Change("delete", f"schedules of deployment {name}", (why,)), partial(_unschedule, client, deployment))


def _unschedule(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    for schedule in deployment.schedules:
        client.delete_deployment_schedule(deployment.id, schedule.id)
