"""Prefect's real server as the manifests start it, with all its services, on a database; and two projects in it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import yaml
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from servers import (
    ROOT,
    Process,
    free_port,
    plain_environment,
    postgres,
    started_as_in,
    without,
)
from typer.testing import CliRunner

MANIFESTS = {"sqlite": ROOT / "infra/compose.yaml", "postgresql": ROOT / "infra/k8s/base/prefect-server.yaml"}
PASSWORD = "ltsft:a-password-of-the-tests"
ZOMBIE_SECONDS = 10
QUICKER = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME": "PT1M",  # fewer runs ahead
    "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "30",  # the least that Prefect takes
    "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "10",
}
"""What would take minutes or an hour. The other services look every 5 to 15 seconds, as they do anywhere."""
FLOWS = ("retrain", "evaluate-matrix", "watch-inbox", "reconcile", "onboard-language", "adapt-language")


class Rig:
    """A server, a bucket and two projects, and what tests ask of them."""

    def __init__(self, folder: Path, database: str, url: str, s3: str) -> None:
        self.folder, self.s3 = folder, s3
        command, literal = started_as_in(MANIFESTS[database], "prefect-server")
        port = free_port()
        own = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_UI_STATIC_DIRECTORY": str(folder / "pages")}
        secrets = {
            "PREFECT_API_DATABASE_CONNECTION_URL": url,
            "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
        }
        environment = literal | plain_environment(folder, **own, **secrets, **QUICKER)
        command = [*without(command, "--host", "--port"), "--host", "127.0.0.1", "--port", str(port)]
        self.server = Process(command, environment, folder / "prefect.log")
        self.url = f"http://127.0.0.1:{port}/api"
        self.worker: Process | None = None
        self.projects: dict[str, Path] = {}
        self.http = httpx.Client(
            base_url=self.url, auth=tuple(PASSWORD.split(":")), timeout=300
        )  # SQLite waits for its lock

    def ask(self, method: str, path: str, **more: Any) -> Any:
        answer = self.http.request(method, path, **more)
        end = time.monotonic() + 120
        while answer.status_code == 503 and time.monotonic() < end:  # SQLite is busy; Prefect's own client asks again
            time.sleep(0.5)
            answer = self.http.request(method, path, **more)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def bootstrap(self, project: str, *options: str) -> list[str]:
        """Run `ltsft bootstrap` for a project; gives the lines that it printed."""
        from ltsft.cli.main import app

        arguments = ["bootstrap", str(self.projects[project]), "--root", str(self.folder / "root")]
        arguments += ["--pool-type=process", f"--app-folder={ROOT}", f"--zombie-seconds={ZOMBIE_SECONDS}", *options]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    def write_deployments(self, *without: str) -> None:
        """Write ``prefect.yaml`` as it is, but for what would make a test wait or train."""
        spec = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        spec["deployments"] = [d for d in spec["deployments"] if d["name"] in {*FLOWS} - {*without}]
        for deployment in spec["deployments"]:
            if deployment["name"] == "watch-inbox":
                deployment["parameters"] = {"quiet_seconds": 0}
            else:
                deployment["work_pool"]["name"] = "ltsft-gpu"  # nobody works there
            deployment["work_pool"].pop("job_variables", None)  # those of Kubernetes
        (self.folder / "root" / "prefect.yaml").write_text(yaml.safe_dump(spec))

    def deployment(self, flow: str, project: str) -> dict[str, Any]:
        return dict(self.ask("GET", f"/deployments/name/{flow}/{project}"))

    def runs(self, flow: str, project: str) -> list[dict[str, Any]]:
        """All runs of a deployment, those to come as well."""
        wanted = {"deployments": {"id": {"any_": [self.deployment(flow, project)["id"]]}}}
        return list(self.ask("POST", "/flow_runs/filter", json=wanted | {"limit": 200}))

    def run(self, flow: str, project: str, *, seconds: float = 0.0, **more: Any) -> str:
        """Make a run of a deployment that should start in so many seconds; gives its id."""
        when = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": when}}
        id = self.deployment(flow, project)["id"]
        return str(self.ask("POST", f"/deployments/{id}/create_flow_run", json={"state": state} | more)["id"])

    def set_state(self, run: str, type: str) -> str:
        """Ask for a state as a worker does; gives what it became."""
        answer = self.ask("POST", f"/flow_runs/{run}/set_state", json={"state": {"type": type, "name": type.title()}})
        return str(answer["state"]["type"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(self.ask("GET", f"/flow_runs/{run}")["state"])

    def emit(self, event: str, resource: dict[str, str], *, occurred: datetime | None = None, **more: Any) -> UUID:
        id = more.pop("id", None) or uuid4()
        body = {
            "id": str(id),
            "event": event,
            "resource": resource,
            "occurred": (occurred or datetime.now(UTC)).isoformat(),
        }
        self.ask("POST", "/events", json=[body | more])
        return UUID(str(id))

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events of a name that the server has stored, since long ago."""
        since = (datetime.now(UTC) - timedelta(days=60)).isoformat()
        until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        wanted = {"filter": {"event": {"name": [name]}, "occurred": {"since": since, "until": until}}}
        return list(self.ask("POST", "/events/filter", json=wanted)["events"])

    def start_worker(self) -> None:
        """Start the worker of the CPU pool as Compose does."""
        command, _ = started_as_in(MANIFESTS["sqlite"], "worker-cpu")
        environment = plain_environment(
            self.folder,
            PREFECT_API_URL=self.url,
            PREFECT_API_AUTH_STRING=PASSWORD,
            PREFECT_HOME=str(self.folder / "worker"),
            PREFECT_WORKER_QUERY_SECONDS="2",
            PREFECT_WORKER_HEARTBEAT_SECONDS="2",
            PREFECT_WORKER_WEBSERVER_PORT=str(free_port()),
            **_s3_of(self.s3),
        )
        self.worker = Process([*command, "--name", "worker"], environment, self.folder / "worker.log")

    def close(self) -> None:
        for process in (self.worker, self.server):
            if process is not None:
                process.kill()
        self.http.close()


def _s3_of(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "LTSFT_BUCKET": "s3://services",
    }


@pytest.fixture(scope="module")
def rig(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_project_in: Callable[[Path], Path],
    s3_server: str,
    prefect_database: Path,
) -> Iterator[Rig]:
    """The server on the database that the module names, with two projects bootstrapped."""
    from tasks import storage
    from tasks.settings import read_settings

    database: str = request.module.DATABASE
    folder = tmp_path_factory.mktemp(database)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _s3_of(s3_server).items():
            patch.setenv(name, value)
        storage._client.cache_clear()
        read_settings.cache_clear()
        opened = postgres("prefect") if database == "postgresql" else None
        address = opened.__enter__() if opened is not None else ""
        url = f"postgresql+asyncpg://{address}/prefect" if address else f"sqlite+aiosqlite:///{folder}/prefect.db"
        shutil.copy(prefect_database, folder)  # that of SQLite
        made = Rig(folder, database, url, s3_server)
        try:
            httpx.post(f"{s3_server}/moto-api/reset")
            shutil.copytree(ROOT / "infra" / "work-pools", folder / "root" / "infra" / "work-pools")
            made.write_deployments()
            for name in ("first", "second"):
                (folder / name).mkdir()
                file = tiny_project_in(folder / name)
                file.write_text(file.read_text().replace("name: tiny\n", f"name: {name}\n"))
                made.projects[name] = file
            made.server.wait_for(f"{made.url}/health")
            settings = {PREFECT_API_URL: made.url, PREFECT_API_AUTH_STRING: PASSWORD}
            with temporary_settings(settings):
                for name in made.projects:
                    made.bootstrap(name, "--schedule=watch-inbox=30s", "--pool-limit=ltsft-cpu=1")
                yield made
        finally:
            made.close()
            if opened is not None:
                opened.__exit__(None, None, None)
    storage._client.cache_clear()
    read_settings.cache_clear()
