"""Reconcile where a worker runs flows as processes of its own: Prefect and MLflow compared, and no cluster asked."""

from __future__ import annotations

import contextvars
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Pending, Running
from prefect.workers.process import ProcessWorker

from ltsft.project.project import ProjectRef
from tasks.orchestration.deployed import TAG
from tasks.orchestration.signs import HEARTBEAT, last_signs, silent
from tasks.tracking.records import FLOW_RUN, NewRun
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def prefect_client(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[Any]:
    """A server of its own with all its services: the one that other tests share keeps no events."""
    folder = tmp_path_factory.mktemp("prefect")
    shutil.copy(prefect_database, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": "",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.2",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port, "--no-ui"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    try:
        end = time.monotonic() + 300
        while not _answers(f"{url}/health"):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        EventsWorker.drain_all()  # it goes on sending to the server that another test had
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            yield client
            EventsWorker.drain_all()
    finally:
        server.terminate()
        server.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def beat(run: UUID) -> None:
    """Give a sign of life, as the engine does."""
    emit_event(HEARTBEAT, {"prefect.resource.id": f"prefect.flow-run.{run}"})


def heard(client: Any, run: UUID) -> datetime:
    """Wait until the server has heard of a run; give when it did."""
    end = time.monotonic() + 60
    while str(run) not in (signs := last_signs(client, [str(run)])):
        assert time.monotonic() < end, "the sign of life did not arrive"
        time.sleep(0.2)
    return signs[str(run)]


@pytest.fixture
def living(prefect_client: Any) -> Iterator[set[UUID]]:
    """Flow runs that give signs of life as long as the test lasts."""
    runs: set[UUID] = set()
    over = threading.Event()

    def live() -> None:
        while not over.wait(0.3):
            for run in list(runs):
                beat(run)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(live,))  # the context has the server
    thread.start()
    yield runs
    over.set()
    thread.join()


@pytest.fixture(scope="module")
def deployment(prefect_client: Any) -> UUID:
    """A deployment of ours in a pool of processes."""
    name = "processes"
    template = ProcessWorker.get_default_base_job_template()
    prefect_client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    flow = prefect_client.create_flow_from_name("reconciled")
    made = prefect_client.create_deployment(
        flow, "reconciled", entrypoint="x:y", path=".", work_pool_name=name, tags=[TAG]
    )
    return UUID(str(made))


def test_dead_processes_are_rescheduled_living_ones_are_left_and_mlflow_runs_of_the_dead_are_closed(
    prefect_client: Any,
    deployment: UUID,
    living: set[UUID],
    tiny_project: Path,
    opened: Callable[[Path], Workspace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.reconcile import reconcile

    monkeypatch.setenv("KUBECONFIG", "/there/is/no/cluster")
    tracker = opened(tiny_project).tracker

    def started(*states: Any) -> UUID:
        run: UUID = prefect_client.create_flow_run_from_deployment(deployment, tags=[TAG]).id
        for state in (Pending(), *states):
            prefect_client.set_flow_run_state(run, state, force=True)
        return run

    def logged(run: UUID) -> str:
        tags = {FLOW_RUN: str(run)}
        return str(tracker.open_run(NewRun(name="x", kind="x", subject="x", key=str(run), parts={}, tags=tags)).run_id)

    dead, alive, cancelled = started(Running()), started(Running()), started(Running(), Cancelled())
    mute = started(Running())  # killed before its first sign of life
    whole = started(Running())
    task_run = prefect_client.create_task_run(_a_task(), whole, dynamic_key="0", state=Running()).id
    part = prefect_client.create_flow_run(_a_flow(), parent_task_run_id=task_run, state=Running()).id
    prefect_client.set_flow_run_state(whole, Completed(), force=True)
    beat(dead)
    living.add(alive)
    runs = {name: logged(run) for name, run in {"dead": dead, "alive": alive, "cancelled": cancelled}.items()}
    runs["part"] = logged(part)

    heard(prefect_client, dead)
    heard(prefect_client, alive)

    told = reconcile(ProjectRef(file=str(tiny_project)), patience_seconds=0, silence_seconds=0.001, watch_seconds=8)

    states = {id: prefect_client.read_flow_run(id).state for id in (dead, mute, alive, cancelled, part)}
    assert states[dead].name == "AwaitingRetry", told
    assert "no sign of life for" in states[dead].message
    assert states[mute].name == "AwaitingRetry", told
    assert states[alive].is_running(), told
    assert states[part].is_crashed(), told
    ended = {name: tracker.client.get_run(run).info.status for name, run in runs.items()}
    assert ended == {"dead": "KILLED", "alive": "RUNNING", "cancelled": "KILLED", "part": "KILLED"}


def _a_flow() -> Any:
    from prefect import flow

    return flow(name="part")(lambda: None)


def _a_task() -> Any:
    from prefect import task

    return task(name="part")(lambda: None)


def test_a_process_that_is_heard_while_it_is_listened_for_lives(
    prefect_client: Any, deployment: UUID, living: set[UUID]
) -> None:
    alive, dead = (prefect_client.create_flow_run_from_deployment(deployment).id for _ in range(2))
    beat(dead)
    living.add(alive)
    long_ago = datetime.now(UTC) - timedelta(hours=1)  # as after an hour without the server
    signs = {str(alive): long_ago, str(dead): datetime.now(UTC)}

    assert silent(prefect_client, signs, silence=timedelta(minutes=2), watch_seconds=5) == {}
    signs[str(dead)] = heard(prefect_client, dead)
    assert list(silent(prefect_client, signs, silence=timedelta(0), watch_seconds=8)) == [str(dead)]
