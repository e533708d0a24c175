"""Running a flow from the command line, and saying plainly when Prefect itself is the trouble."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL

from ltsft.errors import LtsftError, ServiceError


@dataclass(frozen=True)
class FlowEnd:
    """How a flow run ended.

    Attributes:
        is_completed: whether it did what it should.
        message: of its last state.
        error: our own error that ended it, in words; empty where there is none.
    """

    is_completed: bool
    message: str
    error: str


def run_locally(flow: Callable[..., Any], *arguments: Any, **named: Any) -> FlowEnd:
    """Run a flow in this process and say how it ended.

    Raises:
        KeyboardInterrupt: a person stopped it; says what that means.
        ServiceError: Prefect's API cannot be used; what fails inside the flow is in how it ended.
    """
    if PREFECT_API_URL.value() is None:
        from tasks.ephemeral_server import EphemeralServer  # seconds of imports

        EphemeralServer()
    try:
        state: State[Any] = flow(*arguments, **named, return_state=True)
    except (RuntimeError, httpx.HTTPError) as error:
        raise ServiceError(
            f"Prefect cannot be used: {type(error).__name__}: {error}; check PREFECT_API_URL "
            f"({os.environ.get('PREFECT_API_URL', 'not set: a server is started for the run')}) and that it is up"
        ) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is done is kept, and the same command goes on from there") from None
    if state.is_completed():
        return FlowEnd(True, state.message or "done", "")
    raised = state.result(raise_on_failure=False)
    told = str(raised) if isinstance(raised, LtsftError) else ""
    return FlowEnd(False, state.message or "the run failed", told)
