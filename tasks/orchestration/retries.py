"""When a task is worth trying again: a service that is away may come back, a verdict stays."""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from ltsft.errors import ServiceError


def is_service_away(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Say whether a task failed because a service refused or could not be reached."""
    return isinstance(state.data, ServiceError)
