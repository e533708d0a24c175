"""Waiting for Prefect's server wherever it is asked: a plugin of Prefect, in every process of a flow run.

A flow run is three processes in a row (``prefect flow-run execute``, the one that prepares, the engine), each with new
clients, and Prefect's clients wait for a server that is away only if they have reached it before. So a run that starts
meanwhile would be a crash. Here every request waits, with a line in the log, up to `AWAY_SECONDS`.

Prefect loads it by the entry point ``prefect.plugins`` (pyproject.toml) where ``PREFECT_PLUGINS_ENABLED`` is set: in
pods and workers (infra/work-pools, infra/compose.yaml), not for commands, which had better say that they cannot go on.

After a crash or a cancellation Prefect starts one more process, which looks for hooks in the flow's module, and the pod
lingers while that imports torch. Our flows have no hooks; so this says so, and nothing is started.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx
from prefect.plugins import HookContext, register_hook

AWAY_SECONDS = 3600.0
"""How long Prefect's server may be away before waiting for it is given up."""
LONGEST_PAUSE_SECONDS = 30.0


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Make the clients of this process wait, and the one that starts runs look for no hooks."""
    from prefect.client import base

    wait(base.PrefectHttpxSyncClient, base.PrefectHttpxAsyncClient)
    if {"execute", "worker"} & {*sys.argv}:
        from prefect.runner._workspace_hook_runner import WorkspaceHookRunner

        WorkspaceHookRunner._run = _no_hooks  # type: ignore[method-assign,assignment]


async def _no_hooks(runner: Any, kind: str, flow_run: Any, state: Any) -> None:
    _say(f"{flow_run.name} was ended ({kind}); flows of ltsft have no hooks, so none are looked for")


def wait(sync_client: type[httpx.Client], async_client: type[httpx.AsyncClient]) -> None:
    """Make all requests of two kinds of clients wait while the server is away; doing it twice changes nothing."""
    if not hasattr(sync_client.send, "__wrapped__"):
        sync_client.send = _waiting(sync_client.send)  # type: ignore[method-assign]
        async_client.send = _waiting_async(async_client.send)  # type: ignore[method-assign,assignment]


def _waiting(send: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send)
    def patiently(*arguments: Any, **named: Any) -> Any:
        waiting = _Waiting()
        while True:
            try:
                return send(*arguments, **named)
            except httpx.HTTPError as error:
                pause = waiting.after(error)
            time.sleep(pause)

    return patiently


def _waiting_async(send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(send)
    async def patiently(*arguments: Any, **named: Any) -> Any:
        waiting = _Waiting()
        while True:
            try:
                return await send(*arguments, **named)
            except httpx.HTTPError as error:
                pause = waiting.after(error)
            await anyio.sleep(pause)

    return patiently


class _Waiting:
    """The waiting of one request."""

    def __init__(self) -> None:
        self._end = time.monotonic() + AWAY_SECONDS
        self._pause = 0.5

    def after(self, error: httpx.HTTPError) -> float:
        """Say that the server is waited for, and give the pause until it is asked again.

        Raises:
            HTTPError: it is an answer, or there has been enough waiting.
        """
        is_answer = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
        if is_answer or time.monotonic() > self._end:
            raise error
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        name = type(error).__name__
        _say(f"Prefect's server is away ({name}), waiting for it; asked again in {self._pause:.0f} s")
        return self._pause


def _say(line: str) -> None:
    """Write a line to the pod's log: Prefect's own log goes to the server that is away."""
    print(f"ltsft: {line}", file=sys.stderr, flush=True)
