"""Running a flow from the command line, and saying plainly when Prefect itself is the trouble."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import httpx
from prefect.client.schemas.objects import State

from ltsft.errors import ServiceError


def run_locally(flow: Callable[..., Any], *arguments: Any, **named: Any) -> State[Any]:
    """Run a flow in this process and give its last state.

    Raises:
        ServiceError: Prefect's API cannot be used; what fails inside the flow is in its state.
    """
    try:
        state: State[Any] = flow(*arguments, **named, return_state=True)
    except (RuntimeError, httpx.HTTPError) as error:
        raise ServiceError(
            f"Prefect cannot be used: {type(error).__name__}: {error}; check PREFECT_API_URL "
            f"({os.environ.get('PREFECT_API_URL', 'not set: a server is started for the run')}) and that it is up"
        ) from error
    return state
