"""Running a flow from the command line, and saying plainly when Prefect itself is the trouble."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from prefect.client.schemas.objects import State
from prefect.context import refresh_global_settings_context
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

from ltsft.errors import ConfigError, LtsftError, ServiceError
from tasks.orchestration.ends import is_refused
from tasks.orchestration.ephemeral_server import EphemeralServer
from tasks.orchestration.stopping import remembering_orders, stop_if_asked


@dataclass(frozen=True)
class FlowEnd:
    """How a flow run ended.

    Attributes:
        is_completed: whether it did what it should.
        is_refused: whether a gate said no to something.
        message: of its last state.
        error: our own error that ended it, in words; empty where there is none.
    """

    is_completed: bool
    is_refused: bool
    message: str
    error: str


def run_locally(flow: Callable[..., Any], *arguments: Any, **named: Any) -> FlowEnd:
    """Run a flow in this process and say how it ended.

    Raises:
        KeyboardInterrupt: a person stopped it; says what that means.
        ConfigError: Prefect's folder cannot be written.
        ServiceError: Prefect's API cannot be used; what fails inside the flow is in how it ended.
    """
    try:
        with remembering_orders():
            stop_if_asked()
            state = _run(flow, *arguments, **named)
            stop_if_asked()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is done is kept, and the same command goes on from there") from None
    if state.is_completed():
        return FlowEnd(True, is_refused(state), state.message or "done", "")
    raised = state.result(raise_on_failure=False)
    told = str(raised) if isinstance(raised, LtsftError) else ""
    return FlowEnd(False, is_refused(state), state.message or "the run failed", told)


def _run(flow: Callable[..., Any], *arguments: Any, **named: Any) -> State[Any]:
    start_server()
    if _is_our_own():
        _server().wait(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    try:
        state: State[Any] = flow(*arguments, **named, return_state=True)
    except (RuntimeError, httpx.HTTPError) as error:
        stop_if_asked()  # it may be what an interruption became
        raise ServiceError(
            f"Prefect cannot be used: {type(error).__name__}: {error}; check PREFECT_API_URL "
            f"({_told_url()}) and that it is up"
        ) from error
    return state


def start_server() -> None:
    """Start a server for this process and those that it starts, once; nothing where one is set.

    It takes seconds until it answers, which `run_locally` waits for: who calls this early imports flows meanwhile.

    Raises:
        ConfigError: Prefect's folder cannot be written.
    """
    _check_home()
    if PREFECT_API_URL.value() is None:
        os.environ["PREFECT_API_URL"] = _server().url
        os.environ["PREFECT_UI_URL"] = ""  # it has no pages, and is gone when somebody would look
        refresh_global_settings_context()


@cache
def _server() -> EphemeralServer:
    return EphemeralServer()


def _is_our_own() -> bool:
    return _server.cache_info().currsize > 0


def _told_url() -> str:
    """Say which address of Prefect's API is used, and who sets it."""
    url = PREFECT_API_URL.value()
    if url is None or _is_our_own():
        return "not set: a server is started for the run"
    shown = re.sub(r"//[^/@]*@", "//***@", url)
    return shown if os.environ.get("PREFECT_API_URL") else f"{shown}, which `prefect config view` shows the origin of"


def _check_home() -> None:
    """Make sure that Prefect can keep its files; it would look for its server for minutes otherwise.

    Raises:
        ConfigError: the folder cannot be written.
    """
    home = Path(PREFECT_HOME.value())
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ConfigError(
            f"Prefect's folder {home} cannot be written: {error.strerror}; set PREFECT_HOME to one that can"
        ) from error
