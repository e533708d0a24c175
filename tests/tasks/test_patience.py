"""A flow run that starts while Prefect's server is away waits for it, and is no crash."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FaultyProxy
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.states import Pending

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
FLOW = """
import os
from prefect import flow

print("the module of the flow is read", flush=True)


@flow(name="patient")
def patient(crash: bool = False) -> None:
    if crash:
        os._exit(7)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flow, and the entry point of this project: an installation that is older than the checkout has none."""
    made = tmp_path_factory.mktemp("patience")
    (made / "patient_flow.py").write_text(FLOW)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["prefect.plugins"]
    installed = made / "ltsft_entry_points-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: ltsft-entry-points\nVersion: 1\n")
    lines = [f"{name} = {module}" for name, module in declared.items()]
    (installed / "entry_points.txt").write_text("\n".join(["[prefect.plugins]", *lines, ""]))
    return made


@pytest.fixture
def proxy(prefect_server: None) -> Iterator[FaultyProxy]:
    with FaultyProxy(str(PREFECT_API_URL.value()).removesuffix("/api")) as made:
        yield made


class Execution:
    """What a pod runs, for a new run of the flow, with the settings of the pods."""

    def __init__(self, folder: Path, proxy: FaultyProxy, log: Path, **parameters: Any) -> None:
        step = {"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}
        self.log = log
        with get_client(sync_client=True) as client:
            flow_id = client.create_flow_from_name("patient")
            entrypoint = "patient_flow:patient"
            made = client.create_deployment(flow_id, "patient", entrypoint=entrypoint, path=".", pull_steps=[step])
            self.id = client.create_flow_run_from_deployment(made, parameters=parameters).id
            client.set_flow_run_state(self.id, Pending())
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "PREFECT_API_URL": f"{proxy.url}/api",
            "PREFECT__FLOW_RUN_ID": str(self.id),
            "PREFECT_PLUGINS_ENABLED": "true",
            "PREFECT_PLUGINS_ALLOW": "ltsft",
            "PREFECT_CLIENT_MAX_RETRIES": "0",
        }
        with log.open("w") as output:
            command = [sys.executable, "-m", "prefect", "flow-run", "execute"]
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def until(self, condition: Callable[[], bool], seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended: {self.log.read_text()}"
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)

    def end(self) -> str:
        """Wait for its end; give what it printed."""
        try:
            self.process.wait(180)
        finally:
            self.process.kill()
        return self.log.read_text()

    def states(self) -> list[str]:
        with get_client(sync_client=True) as client:
            return [state.type.value for state in client.read_flow_run_states(self.id)]


def test_a_run_whose_server_goes_away_before_each_of_its_processes_completes(
    folder: Path, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.cut()
    run = Execution(folder, proxy, tmp_path / "log")
    try:
        run.until(lambda: "Prefect's server is away (ConnectError), waiting for it" in run.log.read_text())
        proxy.mend()
        for process in (1, 2):  # this one has read the run: the next one begins while nobody answers
            run.until(lambda: sum(path == f"/api/flow_runs/{run.id}" for _, path, _ in proxy.requests) >= process)  # noqa: B023
            told = run.log.read_text().count("is away (ConnectError)")
            proxy.cut()
            run.until(lambda: run.log.read_text().count("is away (ConnectError)") > told)  # noqa: B023
            proxy.mend()
    finally:
        printed = run.end()

    assert run.process.returncode == 0, printed
    assert run.states() == ["SCHEDULED", "PENDING", "RUNNING", "COMPLETED"], printed


def test_after_a_crash_no_pod_lingers_to_look_for_hooks(folder: Path, proxy: FaultyProxy, tmp_path: Path) -> None:
    run = Execution(folder, proxy, tmp_path / "log", crash=True)

    printed = run.end()

    assert run.states()[-1] == "CRASHED", printed
    assert "was ended (crashed); flows of ltsft have no hooks" in printed
    assert printed.count("the module of the flow is read") == 1, "by the engine alone"
