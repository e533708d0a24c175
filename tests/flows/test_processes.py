"""Several processes, and processes that die: nothing is done twice and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ltsft.project.project import ProjectRef
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration
Open = Callable[[Path], Workspace]

ADAPT = """
import sys
from tasks.quiet import quiet_services
quiet_services()
from flows.adapt_language import adapt_language
from ltsft.project.project import ProjectRef
print(adapt_language(ProjectRef(file=sys.argv[1]), "aa"))
"""


@pytest.fixture
def language_only(tiny_project: Path) -> Path:
    """A project of one language and no target task."""
    project = json.loads(json.dumps(yaml.safe_load(tiny_project.read_text())))
    project["languages"] = {"aa": project["languages"]["aa"]}
    project["target_tasks"] = {}
    del project["recipes"]["pos"]
    tiny_project.write_text(yaml.safe_dump(project))
    return tiny_project


@pytest.fixture
def start(prefect_server: None) -> Callable[..., subprocess.Popen[str]]:
    """Start a child process that talks to the Prefect server of the tests."""
    from prefect.settings import PREFECT_API_URL

    env = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "OMP_NUM_THREADS": "1"}

    def begin(*command: str | Path, stderr: Path) -> subprocess.Popen[str]:
        with stderr.open("w") as file:
            return subprocess.Popen(
                [sys.executable, *map(str, command)],
                env=env,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )

    return begin


def wait_for(condition: Callable[[], bool], *, child: subprocess.Popen[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None, f"the child ended with {child.returncode}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def wait_until_gone(pid: str) -> None:
    """Wait for a process that is nobody's child any more to end."""
    end = time.monotonic() + 20
    while Path("/proc", pid).exists() and " Z " not in Path("/proc", pid, "stat").read_text():
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.1)


def test_two_processes_that_want_the_same_key_make_it_once(
    language_only: Path,
    tmp_path: Path,
    opened: Open,
    runs: Callable[[Workspace], list[Any]],
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    from flows.adapt_language import adapt_language

    workspace = opened(language_only)
    key = workspace.plan.step("language aa").product.key
    log = tmp_path / "child.log"

    with workspace.claim(key, "language aa") as existing:
        assert existing is None
        child = start("-c", ADAPT, language_only, stderr=log)
        wait_for(
            lambda: "language aa is being made by another run; waiting for it" in log.read_text(),
            child=child,
        )
    here = adapt_language(workspace.ref, "aa")
    there = child.communicate(timeout=300)[0].strip()

    found = runs(workspace)
    assert [run.info.status for run in found] == ["FINISHED"]
    assert found[0].data.tags["ltsft.attempts"] == "1"
    assert here == there == found[0].info.run_id
    assert ("sparse phase" in log.read_text()) != ("is up to date" in log.read_text())


def test_a_killed_run_goes_on_in_the_same_mlflow_run_and_ends_completed(
    language_only: Path,
    tmp_path: Path,
    opened: Open,
    runs: Callable[[Workspace], list[Any]],
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    from flows.retrain import retrain

    phase = "{max_steps: 400, min_steps: 400, learning_rate: 0.001}"
    overrides = ("store.checkpoint_minutes=0.001", f"recipes.language.full={phase}")
    making = opened(language_only).store / "making"

    options = [argument for override in overrides for argument in ("--set", override)]
    child = start("-m", "ltsft.cli", "run", language_only, *options, stderr=tmp_path / "killed.log")
    wait_for(lambda: any(making.glob("*/0-full/checkpoint-*/whole.json")), child=child)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    workspace = opened(language_only)
    assert [run.info.status for run in runs(workspace)] == ["RUNNING"]

    state = retrain(ProjectRef(file=str(language_only), overrides=overrides), return_state=True)

    assert state.is_completed(), state.message
    language = [run for run in runs(workspace) if run.data.tags["ltsft.subject"] == "language aa"]
    assert [run.info.status for run in language] == ["FINISHED"]
    assert language[0].data.tags["ltsft.attempts"] == "2"
    for name in ("full.loss", "full.held_out", "sparse.loss"):
        steps = [p.step for p in workspace.tracker.client.get_metric_history(language[0].info.run_id, name)]
        assert steps
        assert len(steps) == len(set(steps)), f"{name} was logged twice"
    assert not list(making.iterdir())


WAIT = """
import signal, time
from prefect import flow
from tasks.orchestration.local_flows import _server, run_locally

@flow
def wait():
    print("server", _server().process.pid, flush=True)
    time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
run_locally(wait)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_signal_to_the_group_leaves_the_prefect_server_to_the_command_that_started_it(
    sent: signal.Signals, tmp_path: Path, prefect_database: Path
) -> None:
    shutil.copy(prefect_database, tmp_path)
    env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    env |= {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
    log = tmp_path / "child.log"
    with log.open("w") as file:
        child = subprocess.Popen(
            [sys.executable, "-c", WAIT],
            env=env,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
        )
    assert child.stdout is not None
    try:
        server = child.stdout.readline().split()[-1]
        os.killpg(child.pid, sent)
        assert child.wait(60) == -sent, log.read_text()  # with no server left Prefect looks for it for longer
    finally:
        child.kill()
        child.stdout.close()
    if sent != signal.SIGKILL:
        assert "Finished in state Crashed('Execution was aborted by an interrupt signal.')" in log.read_text()
        assert "View at" not in log.read_text(), "that server has no pages"
    wait_until_gone(server)
