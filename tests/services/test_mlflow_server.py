"""MLflow's real server with basic auth, as the manifests start it: who may ask, and under which names of the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from servers import ROOT, Process, free_port, plain_environment, postgres, postgres_programs, started_as_in, without

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
MANIFESTS = {"kubernetes": ROOT / "infra/k8s/base/mlflow.yaml", "compose": ROOT / "infra/compose.yaml"}
PASSWORD = "a-long-password-of-the-tests"
NAMES = {
    "kubernetes": ["mlflow", "mlflow.ltsft", "mlflow.ltsft.svc", "mlflow.ltsft.svc.cluster.local"],
    "compose": ["mlflow"],
}
"""What pods and containers call it."""
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


@pytest.fixture(scope="module", params=sorted(MANIFESTS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The server of a manifest, on PostgreSQL where that is; gives which, and its address."""
    folder = tmp_path_factory.mktemp("mlflow")
    command, literal = started_as_in(MANIFESTS[request.param], "mlflow")
    port = free_port()
    with contextlib.ExitStack() as stack:
        if postgres_programs() is not None:
            address = stack.enter_context(postgres("mlflow", "mlflow_auth"))
            stores = [f"postgresql+psycopg2://{address}/{name}" for name in ("mlflow", "mlflow_auth")]
        else:
            stores = [f"sqlite:///{folder}/{name}.db" for name in ("mlflow", "mlflow_auth")]
        auth = folder / "basic_auth.ini"
        auth.write_text(_auth_file(stores[1]))
        own = {"MLFLOW_BACKEND_STORE_URI": stores[0], "MLFLOW_AUTH_CONFIG_PATH": str(auth), "HOME": str(folder)}
        secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-of-the-tests"}
        own["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # ten processes for its GenAI jobs
        command = without(command, "--host", "--port", "--workers", "--default-artifact-root")
        command += [f"--port={port}", "--host=127.0.0.1", "--workers=1", f"--default-artifact-root={folder}/artifacts"]
        process = Process(command, literal | plain_environment(folder, **own, **secrets), folder / "log")
        stack.callback(process.kill)
        process.wait_for(f"http://127.0.0.1:{port}/health")
        yield request.param, f"http://127.0.0.1:{port}"


def _auth_file(store: str) -> str:
    """Give the file that make-secrets.sh writes, with another store."""
    lines = (ROOT / "infra/k8s/make-secrets.sh").read_text().splitlines()
    start = lines.index("keep basic_auth.ini <<EOF") + 1
    kept = lines[start : lines.index("EOF", start)]
    return "\n".join(f"database_uri = {store}" if line.startswith("database_uri") else line for line in kept) + "\n"


def ask(address: str, host: str | None = None, *, password: str | None = PASSWORD, path: str = SEARCH) -> int:
    auth = ("ltsft", password) if password is not None else None
    headers = {"Host": host} if host else {}
    return httpx.get(f"{address}{path}", headers=headers, auth=auth, timeout=60).status_code


def test_each_name_of_the_host_is_allowed_with_and_without_a_port(server: tuple[str, str]) -> None:
    which, address = server
    names = [*NAMES[which], "localhost", "127.0.0.1"]  # people, by a forwarded port

    answers = {host: ask(address, host) for name in names for host in (name, f"{name}:5000")}

    assert answers == dict.fromkeys(answers, 200)


def test_other_names_are_refused_those_that_look_like_addresses_too(server: tuple[str, str]) -> None:
    _, address = server
    hosts = ("evil.example", "evil.example:5000", "mlflow.evil.example:5000", "10.evil.example", "172.evil.example")

    assert {host: ask(address, host) for host in hosts} == dict.fromkeys(hosts, 403)
    assert ask(address, "10.1.2.3:5000", path="/health", password=None) == 200, "as a kubelet asks"


@pytest.mark.parametrize("password", [None, "", "another"])
def test_nobody_is_let_in_without_the_password(server: tuple[str, str], password: str | None) -> None:
    assert ask(server[1], password=password) == 401


def test_the_client_of_the_pods_writes_and_reads(
    server: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tasks.tracking.tracker import Tracker

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ltsft")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    tracker = Tracker(server[1], experiment="some-project")

    made = tracker.client.create_run(tracker.experiment_id)
    tracker.client.log_metric(made.info.run_id, "loss", 0.5)

    assert tracker.client.get_run(made.info.run_id).data.metrics == {"loss": 0.5}
