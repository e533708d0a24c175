"""Making the services ready: work pools, deployments with their limits and schedules, automations, MLflow, the bucket.

Everything is compared with what is there; what is as it should be is not touched, so doing it twice changes nothing.
What stands in Prefect besides, under other names, is left alone; a schedule or automation that somebody switched off
stays off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from ltsft.config import Project
from ltsft.errors import ConfigError, ServiceError
from tasks.settings import Settings, read_settings
from tasks.storage import Bucket
from tasks.tracking import Tracker

HEARTBEAT_SECONDS = 30
"""Of the flow runs in the pods; stands in infra/work-pools, too."""
ZOMBIE_SECONDS = 4 * HEARTBEAT_SECONDS
EXPIRE_DAYS = {"leases": 30, "checkpoints": 30}
INBOX_README = "inbox/README.md"
_ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Change:
    """Something that was, or would be, created or updated."""

    verb: str
    what: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in a line."""
        details = f" ({', '.join(self.details)})" if self.details else ""
        return f"{self.verb} {self.what}{details}"


def bootstrap(
    project: Project,
    *,
    root: Path,
    job_variables: Mapping[str, Any] | None = None,
    app_folder: str = "/app",
    pool_limits: Mapping[str, int] | None = None,
    pool_type: str = "kubernetes",
    dry_run: bool = False,
) -> list[Change]:
    """Create or update everything that a project needs in Prefect, MLflow and S3.

    Args:
        project: whose MLflow experiment and bucket folders are made ready.
        root: folder with ``prefect.yaml`` and ``infra/work-pools``.
        job_variables: new defaults of variables of the pools, such as ``image``, or of one: ``ltsft-gpu.image``.
        app_folder: where the pods find the code; ``/app`` in our image.
        pool_limits: by pool, how many of its runs may run at once.
        pool_type: "kubernetes"; or "process", where a worker runs flows in its own container.
        dry_run: only say what would change.

    Returns:
        What changed or would change, in order.

    Raises:
        ConfigError: a file is missing or wrong.
        ServiceError: a service cannot be reached or refuses.
    """
    settings = read_settings()
    doing = _Doing(dry_run)
    try:
        with get_client(sync_client=True) as client:
            for file in sorted(root.glob("infra/work-pools/*.json")):
                template = _template(file, pool_type, job_variables or {})
                _pool(client, doing, file.stem, pool_type, template, (pool_limits or {}).get(file.stem))
            spec = _read_yaml(root / "prefect.yaml")
            for wanted in spec["deployments"]:
                _deployment(client, doing, wanted, app_folder)
            _automation(client, doing, zombie_automation())
    except httpx.HTTPError as error:
        shown = error.response.text[:500] if isinstance(error, httpx.HTTPStatusError) else str(error)
        raise ServiceError(
            f"Prefect refused or cannot be reached: {type(error).__name__}: {shown}; check PREFECT_API_URL"
        ) from error
    _experiment(doing, project, settings)
    if settings.bucket is not None:
        _bucket(doing, project, settings.bucket)
    return doing.changes


def zombie_automation() -> AutomationCore:
    """Give the automation that ends runs which have stopped to give signs of life.

    A run that was evicted and rescheduled says so (AwaitingRetry) and is not meant; a run that crashes in this way is
    rescheduled by whoever started it, or by the reconciler.
    """
    return AutomationCore(
        name="ltsft zombie runs",
        description="A run that gave no sign of life for four heartbeats has crashed.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=ZOMBIE_SECONDS),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no sign of life for four heartbeats")],
    )


class _Doing:
    """What has to be done; does it, unless it is only asked."""

    def __init__(self, dry_run: bool) -> None:
        self.changes: list[Change] = []
        self._dry_run = dry_run

    def __call__(self, change: Change, act: Callable[[], object]) -> None:
        self.changes.append(change)
        if not self._dry_run:
            act()


def _template(file: Path, pool_type: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Give a pool's job template, with other defaults where they are given for it or for all pools."""
    if pool_type == "process":
        return ProcessWorker.get_default_base_job_template()
    if pool_type != "kubernetes":
        raise ConfigError(f"a pool is of type kubernetes or process, got {pool_type!r}")
    template: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    properties = template["variables"]["properties"]
    for name, value in defaults.items():
        pool, _, variable = name.rpartition(".")
        if pool not in ("", file.stem):
            continue
        if variable in properties:
            properties[variable]["default"] = value
        elif pool:
            raise ConfigError(f"{file} has no variable {variable!r}; allowed are {', '.join(properties)}")
    return template


def _pool(
    client: SyncPrefectClient, doing: _Doing, name: str, pool_type: str, template: dict[str, Any], limit: int | None
) -> None:
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        pool = WorkPoolCreate(name=name, type=pool_type, base_job_template=template, concurrency_limit=limit)
        doing(Change("create", f"work pool {name}"), lambda: client.create_work_pool(pool))
        return
    differing = [] if there.base_job_template == template else ["job template"]
    if there.type != pool_type:
        raise ConfigError(f"work pool {name} is of type {there.type}, not {pool_type}; delete it in Prefect first")
    if limit is not None and there.concurrency_limit != limit:
        differing.append(f"concurrency limit {there.concurrency_limit} -> {limit}")
    if differing:
        update = WorkPoolUpdate(base_job_template=template, concurrency_limit=limit or there.concurrency_limit)
        doing(Change("update", f"work pool {name}", tuple(differing)), lambda: client.update_work_pool(name, update))


def _deployment(client: SyncPrefectClient, doing: _Doing, wanted: Mapping[str, Any], app_folder: str) -> None:
    flow = cast("Flow[..., Any]", load_flow_from_entrypoint(wanted["entrypoint"], use_placeholder_flow=False))
    name = f"{flow.name}/{wanted['name']}"
    try:
        there = client.read_deployment_by_name(name)
    except ObjectNotFound:
        there = None
    facts = _facts(wanted, flow, app_folder)
    if there is None:
        doing(Change("create", f"deployment {name}"), lambda: _create(client, flow, wanted, facts))
    else:
        differing = _differing(there, facts)
        if differing:
            doing(Change("update", f"deployment {name}", differing), lambda: _create(client, flow, wanted, facts))
        schedules = _schedules(wanted)
        if _comparable(there.schedules) != _comparable(schedules):
            deployment_id = there.id
            update = DeploymentUpdate(schedules=schedules)
            doing(
                Change("update", f"schedules of deployment {name}"),
                lambda: client.update_deployment(deployment_id, update),
            )
    for trigger in wanted.get("triggers", ()):
        _trigger(client, doing, name, trigger)


def _facts(wanted: Mapping[str, Any], flow: Flow[..., Any], app_folder: str) -> dict[str, Any]:
    limit, options = wanted.get("concurrency_limit"), None
    if isinstance(limit, Mapping):
        options = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(limit["collision_strategy"]))
        limit = limit["limit"]
    return {
        "entrypoint": wanted["entrypoint"],
        "description": wanted.get("description"),
        "tags": wanted.get("tags", []),
        "parameters": wanted.get("parameters", {}),
        "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
        "enforce_parameter_schema": True,
        "work_pool_name": wanted["work_pool"]["name"],
        "job_variables": wanted["work_pool"].get("job_variables", {}),
        "concurrency_limit": limit,
        "concurrency_options": options,
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": app_folder}}],
    }


def _create(client: SyncPrefectClient, flow: Flow[..., Any], wanted: Mapping[str, Any], facts: dict[str, Any]) -> None:
    flow_id = client.create_flow(flow)
    schedules = _schedules(wanted)
    client.create_deployment(flow_id, wanted["name"], path=".", schedules=schedules, paused=False, **facts)


def _differing(there: DeploymentResponse, facts: Mapping[str, Any]) -> tuple[str, ...]:
    is_limit = there.global_concurrency_limit
    now: dict[str, Any] = {
        **there.model_dump(include={*facts} - {"concurrency_limit", "concurrency_options", "pull_steps"}),
        "concurrency_limit": is_limit.limit if is_limit is not None else None,
        "concurrency_options": there.concurrency_options,
        "pull_steps": there.pull_steps,
    }
    return tuple(name for name, value in facts.items() if now.get(name) != value)


def _schedules(wanted: Mapping[str, Any]) -> list[Any]:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    made = []
    for row in wanted.get("schedules", ()):
        schedule = (
            CronSchedule(cron=row["cron"], timezone=row.get("timezone", "UTC"))
            if "cron" in row
            else IntervalSchedule(interval=timedelta(seconds=row["interval"]), anchor_date=_ANCHOR)
        )
        made.append(DeploymentScheduleCreate(schedule=schedule, active=True))
    return made


def _comparable(schedules: Sequence[Any]) -> list[Any]:
    """Give when schedules run; not whether they are active, which people switch."""
    rows = [schedule.schedule.model_dump(mode="json", include={"cron", "interval"}) for schedule in schedules]
    return sorted(rows, key=str)


def _trigger(client: SyncPrefectClient, doing: _Doing, name: str, row: Mapping[str, Any]) -> None:
    trigger = DeploymentEventTrigger.model_validate(row)
    try:
        trigger.set_deployment_id(client.read_deployment_by_name(name).id)
    except ObjectNotFound:  # only asked, and not there yet
        doing(Change("create", f"automation {trigger.name}"), lambda: None)
        return
    _automation(client, doing, trigger.as_automation())


def _automation(client: SyncPrefectClient, doing: _Doing, wanted: AutomationCore) -> None:
    there = client.read_automations_by_name(wanted.name)
    if not there:
        doing(Change("create", f"automation {wanted.name}"), lambda: client.create_automation(wanted))
        return
    found = there[0]
    if _plain(found) != _plain(wanted):
        doing(
            Change("update", f"automation {wanted.name}"),
            lambda: client.update_automation(found.id, wanted.model_copy(update={"enabled": found.enabled})),
        )


def _plain(automation: AutomationCore) -> Any:
    """Give what an automation does; the server adds ids, and leaves out what is not set."""

    def without_ids(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_ids(v) for k, v in sorted(value.items()) if k != "id" and v not in (None, [], {})}
        if isinstance(value, list):
            return sorted((without_ids(v) for v in value), key=str)
        return value

    return without_ids(automation.model_dump(mode="json", include={"name", "description", "trigger", "actions"}))


def _experiment(doing: _Doing, project: Project, settings: Settings) -> None:
    if not Tracker.exists(project.name, project.store.folder, settings=settings):
        location = settings.resolve_artifact_location(project.store.folder) or "where the server keeps them"
        doing(
            Change("create", f"MLflow experiment {project.name}", (f"artifacts: {location}",)),
            lambda: Tracker.of_project(project.name, project.store.folder, settings=settings),
        )


def _bucket(doing: _Doing, project: Project, location: str) -> None:
    bucket = Bucket(location) / project.name
    if not bucket.exists():
        doing(Change("create", f"bucket {bucket.bucket}"), lambda: bucket.create(expire_days=EXPIRE_DAYS))
        doing(Change("create", f"inbox {bucket.location}/inbox"), lambda: bucket.put(INBOX_README, _README.encode()))
        return
    if bucket.missing_rules(EXPIRE_DAYS) is not None:
        doing(
            Change("update", f"lifecycle of bucket {bucket.bucket}", tuple(EXPIRE_DAYS)),
            lambda: bucket.create(expire_days=EXPIRE_DAYS),
        )
    stored = bucket.get(INBOX_README)
    if stored is None or stored.data != _README.encode():
        doing(Change("create", f"inbox {bucket.location}/inbox"), lambda: bucket.put(INBOX_README, _README.encode()))


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {file}; give the folder that holds prefect.yaml and infra/ with --root"
        ) from error


_README = """\
Text of new languages. One folder a language, named by its code:

    <code>/anything.txt or .txt.gz          raw text, one sentence or paragraph a line, UTF-8
    <code>/<target task>.test.conllu[.gz]   test data, if there are any: without them the language has no cell
    <code>/language.json                    {"name": "Faroese", "script": "Latn"}, if wanted

A language is noticed when its newest file has not changed for some minutes.
"""
