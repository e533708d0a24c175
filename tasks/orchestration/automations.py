"""Automations in Prefect: what starts a deployment on an event, and what ends runs that have died.

One of a project has its tag, and is about events of that project alone. Somebody who switches one off has it stay off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger

from tasks.arrivals import PROJECT_LABEL
from tasks.orchestration.changes import Change, Doing
from tasks.orchestration.deployed import TAG, project_tag

HEARTBEAT_SECONDS = 30
"""Of the flow runs in the pods; stands in infra/work-pools, too."""
ZOMBIE_SECONDS = 4.0 * HEARTBEAT_SECONDS
_BEFORE = frozenset({"ltsft onboard a language when its text arrives"})
"""Of a version that had one for all projects: with that of a project an event would start two runs."""
_PAGE = 200


def zombie_automation(seconds: float = ZOMBIE_SECONDS) -> AutomationCore:
    """Give the automation that ends runs which have stopped to give signs of life, of whatever project.

    A run that was evicted and rescheduled says so (AwaitingRetry) and is not meant; a run that crashes in this way is
    rescheduled by whoever started it, or by the reconciler.

    Args:
        seconds: longest silence; Prefect takes 10 or more.
    """
    return AutomationCore(
        name="ltsft zombie runs",
        description=f"A run that gave no sign of life for {seconds:g} seconds has crashed.",
        tags=[TAG],
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no sign of life for {seconds:g} seconds")],
    )


def trigger_name(row: Mapping[str, Any], project: str) -> str:
    """Name the automation of a trigger that stands in ``prefect.yaml``."""
    return f"ltsft {project}: {row['name']}"


def trigger_automation(row: Mapping[str, Any], project: str, deployment: UUID) -> AutomationCore:
    """Give the automation of a trigger, for events of one project.

    The project is matched by its label: a pattern of names would take those that begin alike.
    """
    bound = {**row, "name": trigger_name(row, project), "match": {**row["match"], PROJECT_LABEL: project}}
    trigger = DeploymentEventTrigger.model_validate(bound)
    trigger.set_deployment_id(deployment)
    return trigger.as_automation().model_copy(update={"tags": [TAG, project_tag(project)]})


def ensure_automation(client: SyncPrefectClient, doing: Doing, wanted: AutomationCore) -> None:
    """Create or update an automation; a second one of its name goes."""
    there = client.read_automations_by_name(wanted.name)
    if not there:
        doing(Change("create", f"automation {wanted.name}"), lambda: client.create_automation(wanted))
        return
    found, *more = there
    if _plain(found) != _plain(wanted):
        doing(
            Change("update", f"automation {wanted.name}"),
            lambda: client.update_automation(found.id, wanted.model_copy(update={"enabled": found.enabled})),
        )
    _delete(client, doing, more)


def retire_automations(client: SyncPrefectClient, doing: Doing, project: str, *, wanted: Collection[str]) -> None:
    """Delete automations of a project that are not wanted any more, and those of the version before projects.

    Args:
        client: of Prefect's server.
        doing: takes the changes.
        project: its name.
        wanted: names of the automations that it has.
    """
    ours = {TAG, project_tag(project)}
    _delete(
        client,
        doing,
        [a for a in _all(client) if (ours <= {*a.tags} and a.name not in wanted) or (not a.tags and a.name in _BEFORE)],
    )


def _delete(client: SyncPrefectClient, doing: Doing, automations: Collection[Automation]) -> None:
    for automation in automations:
        doing(Change("delete", f"automation {automation.name}"), partial(client.delete_automation, automation.id))


def _all(client: SyncPrefectClient) -> list[Automation]:
    found: list[Automation] = []
    while True:
        page = client.read_automations(limit=_PAGE, offset=len(found))
        found += page
        if len(page) < _PAGE:
            return found


def _plain(automation: AutomationCore) -> Any:
    """Give what an automation does; the server adds ids, and leaves out what is not set."""

    def without_ids(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_ids(v) for k, v in sorted(value.items()) if k != "id" and v not in (None, [], {})}
        if isinstance(value, list):
            return sorted((without_ids(v) for v in value), key=str)
        return value

    shown = {"name", "description", "tags", "trigger", "actions"}
    return without_ids(automation.model_dump(mode="json", include=shown))
