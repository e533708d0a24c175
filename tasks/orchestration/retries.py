"""Our tasks: what all of them have in common, and when one is worth trying again: a service may come back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import prefect
from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from ltsft.errors import ServiceError
from tasks.orchestration.stopping import stop_if_asked

_P = ParamSpec("_P")
_R = TypeVar("_R")
_PAUSES: list[float] = [2, 10, 30]


def task(*, name: str, task_run_name: str, is_retried: bool = False) -> Callable[[Callable[_P, _R]], Task[_P, _R]]:
    """Make a task of Prefect's from a function; it does not begin once an order to stop came.

    Args:
        name: of the task.
        task_run_name: of a run, with the function's arguments in braces.
        is_retried: whether it is tried again while a service refuses or cannot be reached: for work on the network,
            which may be done twice.
    """

    def made(function: Callable[_P, _R]) -> Task[_P, _R]:
        @functools.wraps(function)
        def unless_stopped(*arguments: _P.args, **named: _P.kwargs) -> _R:
            stop_if_asked()
            return function(*arguments, **named)

        unless_stopped.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return prefect.task(
            name=name,
            task_run_name=task_run_name,
            cache_policy=NO_CACHE,
            retries=len(_PAUSES) if is_retried else 0,
            retry_delay_seconds=_PAUSES,
            retry_condition_fn=is_service_away if is_retried else None,
        )(unless_stopped)

    return made


def is_service_away(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Say whether a task failed because a service refused or could not be reached."""
    return isinstance(state.data, ServiceError)
