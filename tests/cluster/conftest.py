"""A cluster on this machine: Prefect's server and workers, MLflow on PostgreSQL, S3 over HTTP, a stand-in for nodes.

Everything that a pod is made of is real: the job template is rendered by prefect-kubernetes' worker, watched by its
observer, and its command runs as a process of its own with the environment that the template gives it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from faulty_proxy import FaultyProxy
from kubernetes_api import Cluster
from servers import BIN, ROOT, Process, answers, free_port, postgres, postgres_programs, wait_until

NAMESPACE = "ltsft"


class Rig:
    """All services, and what tests ask them."""

    def __init__(self, folder: Path, s3: str) -> None:
        self.folder = folder
        self.s3 = FaultyProxy(s3)
        self.processes: dict[str, Process] = {}
        self._opened = contextlib.ExitStack()
        plain = ("PATH", "LANG", "LC_ALL", "TMPDIR")
        self.environment = {name: os.environ[name] for name in plain if name in os.environ} | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder / "home"),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "true",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "10",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        (folder / "home").mkdir()
        self.prefect_url = self._start_prefect()
        self.database, mlflow = self._start_mlflow()
        self.mlflow = FaultyProxy(mlflow)
        self.cluster = Cluster(folder / "node", self.environment, cwd=ROOT)
        self._ports: dict[str, str] = {}
        self.cluster.environment_of = self._meeting_place

    def _start_prefect(self) -> str:
        port = free_port()
        environment = self.environment | {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self.folder}/prefect.db",
            "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "true",
        }
        command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self.processes["prefect"] = Process(command, environment, self.folder / "prefect.log")
        self.environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        return f"http://127.0.0.1:{port}/api"

    def _start_mlflow(self) -> tuple[str, str]:
        port = free_port()
        kind, uri = self._start_postgres() or ("SQLite", f"sqlite:///{self.folder}/mlflow.db")
        command = [str(BIN / "mlflow"), "server", "--backend-store-uri", uri, "--no-serve-artifacts", "--workers", "1"]
        command += ["--default-artifact-root", "s3://ltsft/mlflow", "--host", "127.0.0.1", "--port", str(port)]
        environment = self.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.processes["mlflow"] = Process(command, environment, self.folder / "mlflow.log")
        return kind, f"http://127.0.0.1:{port}"

    def _start_postgres(self) -> tuple[str, str] | None:
        if postgres_programs() is None:
            return None
        address = self._opened.enter_context(postgres("mlflow"))
        return "PostgreSQL", f"postgresql+psycopg2://{address}/mlflow"

    def start(self) -> None:
        """Wait for the servers and start the workers."""
        self.cluster.__enter__()
        self.cluster.environment["KUBECONFIG"] = str(self.cluster.kubeconfig())
        self.settings = {
            "AWS_ENDPOINT_URL": self.s3.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "LTSFT_BUCKET": "s3://ltsft",
            "LTSFT_ARTIFACT_LOCATION": "s3://ltsft/mlflow",
            "LTSFT_TRAININGS": "deployments",
            "LTSFT_POLL_SECONDS": "1",
            "LTSFT_RETRY_SECONDS": "1",
            "LTSFT_LEASE_SECONDS": "20",
            "MLFLOW_TRACKING_URI": self.mlflow.url,
        }
        self.secrets = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        self.cluster.config_maps["ltsft-settings"] = self.settings
        self.cluster.add_secret("ltsft-s3", NAMESPACE, {"access-key": "testing", "secret-key": "testing"})
        wait_until(lambda: answers(f"{self.prefect_url}/health"), "Prefect's server", 90)
        wait_until(lambda: answers(f"{self.mlflow.url}/health"), "MLflow", 90)

    def _meeting_place(self, pod: dict[str, Any]) -> dict[str, str]:
        """Where the nodes of a job meet: all are on this machine, so each job has a port of its own."""
        port = self._ports.setdefault(pod["metadata"]["labels"]["job-name"], str(free_port()))
        return {"LTSFT_FIRST_NODE": "127.0.0.1", "LTSFT_NODES_PORT": port}

    def start_workers(self) -> None:
        environment = self.environment | {
            "KUBECONFIG": str(self.cluster.folder / "kubeconfig"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES": NAMESPACE,
        }
        for pool in ("ltsft-cpu", "ltsft-gpu"):
            command = [str(BIN / "prefect"), "worker", "start", "--pool", pool, "--type", "kubernetes", "--name", pool]
            self.processes[pool] = Process(command, environment, self.folder / f"{pool}.log")

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self.cluster.__exit__(None, None, None)
        for process in reversed(self.processes.values()):
            process.kill()
        self._opened.close()
        self.s3.close()
        self.mlflow.close()

    def ltsft(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the command, as the team does."""
        environment = self.environment | self.settings | self.secrets | more
        command = [sys.executable, "-m", "ltsft.cli", *arguments]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)

    def bootstrap(self, project: Path, *more: str) -> list[str]:
        """Run `ltsft bootstrap` for a project; gives the lines that it printed."""
        import json

        env = {"HOME": str(self.folder / "home"), "PREFECT_HOME": str(self.folder / "prefect"), "OMP_NUM_THREADS": "1"}
        variables = {"env": env | {"HF_HOME": str(self.folder / "hf"), "TMPDIR": "/tmp", "LTSFT_DATA_ROOT": ""}}
        options = [f"--job-variable={name}={json.dumps(value)}" for name, value in variables.items()]
        done = self.ltsft("bootstrap", str(project), *options, f"--app-folder={ROOT}", *more)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """Ask Prefect's server."""
        end = time.monotonic() + 90
        while True:  # SQLite is busy at times, and some tests take the server away
            try:
                answer = httpx.request(method, f"{self.prefect_url}{path}", timeout=60, **more)
                if answer.status_code < 500 or time.monotonic() > end:
                    answer.raise_for_status()
                    return answer.json() if answer.content else None
            except httpx.TransportError:
                if time.monotonic() > end:
                    raise
            time.sleep(1)

    def run(self, flow: str, **parameters: Any) -> str:
        """Start the deployment of a flow for the project; gives the id of the flow run."""
        project = yaml.safe_load(Path(parameters["project"]["file"]).read_text())["name"]
        found = self.ask("GET", f"/deployments/name/{flow}/{project}")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.ask("POST", f"/deployments/{found['id']}/create_flow_run", json=body)["id"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.ask("GET", f"/flow_runs/{run}")["state"])

    def finished(self, run: str, seconds: float = 300.0) -> dict[str, Any]:
        """Wait for the end of a run; gives its last state."""
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return dict(
            wait_until(lambda: s if (s := self.state(run))["type"] in ends else None, f"the end of {run}", seconds)
        )

    def runs(self, project: Path, *states: str) -> list[dict[str, Any]]:
        """All flow runs about a project, in these states or in any."""
        found = self.ask("POST", "/flow_runs/filter", json={"limit": 200, "sort": "START_TIME_ASC"})
        of = [r for r in found if r["parameters"].get("project", {}).get("file") == str(project)]
        return [r for r in of if not states or r["state"]["type"] in states]

    def states(self, run: str) -> list[str]:
        """The types of all states that a run went through."""
        found = self.ask("GET", "/flow_run_states/", params={"flow_run_id": run})
        return [state["type"] for state in sorted(found, key=lambda state: state["timestamp"])]

    def logs(self, project: Path, *, text: str) -> list[str]:
        """Lines of all pods, in the order of their start, that hold a text."""
        return [line for pod in self.cluster.started for line in self.cluster.log(pod).splitlines() if text in line]

    def pods_of(self, flow: str, project: Path, **parameters: Any) -> list[dict[str, Any]]:
        """Running pods of runs of a flow about a project, with these parameters besides."""
        found = []
        for pod in self.cluster.running():
            labels = pod["metadata"]["labels"]
            given = self.ask("GET", f"/flow_runs/{labels['prefect.io/flow-run-id']}")["parameters"]
            is_of = labels["prefect.io/flow-name"] == flow and given["project"]["file"] == str(project)
            if is_of and all(given.get(name) == value for name, value in parameters.items()):
                found.append(pod)
        return found

    def checkpoints(self, project: Path, place: str) -> list[str]:
        """Names of the checkpoints in S3 that hold a file of this place, such as ``0-full/checkpoint-``."""
        import json

        bucket = self.bucket(project)
        names = [e.name for e in bucket.entries("checkpoints") if e.name.endswith(".json")]
        stored = {name: bucket.get(name) for name in names}
        return [n for n, s in stored.items() if s and any(f.startswith(place) for f in json.loads(s.data)["files"])]

    def bucket(self, project: Path) -> Any:
        from tasks.storage import Bucket

        return Bucket("s3://ltsft") / yaml.safe_load(project.read_text())["name"]

    def tracker(self, project: Path) -> Any:
        from tasks.tracking.tracker import Tracker

        return Tracker(self.mlflow.url, experiment=yaml.safe_load(project.read_text())["name"])

    def mlflow_runs(self, project: Path) -> list[Any]:
        tracker = self.tracker(project)
        return list(tracker.client.search_runs([tracker.experiment_id], max_results=1000))


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory, s3_server: str) -> Iterator[Rig]:
    """The services, once for all scenarios."""
    from tasks import storage

    ours = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_ENDPOINT_URL": s3_server}
    os.environ |= ours | {"AWS_DEFAULT_REGION": "us-east-1"}
    storage._client.cache_clear()

    made = Rig(tmp_path_factory.mktemp("rig"), s3_server)
    try:
        made.start()
        print(f"MLflow is on {made.database}")
        yield made
    finally:
        made.stop()


@pytest.fixture
def project(tiny_project: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A project of one language and a target task, under a name of its own; texts and base on this machine."""
    settings = yaml.safe_load(tiny_project.read_text())
    settings["name"] = request.node.name.replace("[", "-").replace("]", "")[:60]
    for section in (settings["languages"], settings["target_tasks"]["pos"]["test"]):
        del section["bb"], section["cc"]
    settings["store"] = {"folder": str(tmp_path / "store"), "checkpoint_minutes": 0.005}
    tiny_project.write_text(yaml.safe_dump(settings, sort_keys=False))
    return tiny_project


@pytest.fixture
def cluster(rig: Rig, project: Path) -> Iterator[Rig]:
    """The services, ready for the project and with workers; faults are taken back afterwards."""
    rig.bootstrap(project)
    if "ltsft-gpu" not in rig.processes:
        rig.start_workers()
    for name in ("evaluate-matrix", "retrain", "watch-inbox", "reconcile"):  # only what a test starts runs
        found = rig.ask("GET", f"/deployments/name/{name}/{yaml.safe_load(project.read_text())['name']}")
        rig.ask("POST", f"/deployments/{found['id']}/pause_deployment")
        rig.ask("POST", f"/deployments/{found['id']}/resume_deployment")
        for schedule in found["schedules"]:
            rig.ask("PATCH", f"/deployments/{found['id']}/schedules/{schedule['id']}", json={"active": False})
    yield rig
    nothing = lambda *_: None  # noqa: E731
    rig.s3.fault = rig.mlflow.fault = nothing
    rig.cluster.keep_pending, rig.cluster.on_start = nothing, nothing
