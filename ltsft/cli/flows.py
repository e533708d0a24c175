"""How commands run a flow and tell its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ltsft.cli.console import fail, fail_run

if TYPE_CHECKING:
    from tasks.orchestration import FlowEnd


def wants_bars() -> bool:
    """Say whether bars can be shown, and leave out Prefect's log lines then: they are in Prefect."""
    if not sys.stderr.isatty():
        return False
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    return True


def start_server() -> None:
    """Start Prefect's server where none is set, so that it starts while the flow is imported."""
    from tasks.orchestration import start_server as start

    start()


def run_flow(flow: Callable[..., Any], *arguments: Any, has_bars: bool = False, **named: Any) -> FlowEnd:
    """Run a flow in this process and give its end."""
    from ltsft.heap import put_aside
    from tasks.orchestration import run_locally, shown_progress

    put_aside()
    with shown_progress() if has_bars else nullcontext():
        return run_locally(flow, *arguments, **named)


def print_end(end: FlowEnd) -> None:
    """Print what a flow ended with.

    Raises:
        Exit: it failed, which is shown: with 2 after an error of ours, with 1 if something is missing or refused.
    """
    if end.error:
        fail(end.error)
    if end.is_refused or not end.is_completed:
        fail_run(end.message)
    print(end.message)
