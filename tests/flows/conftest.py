"""What tests of flows share: running a project again, and reading what is in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from faulty_proxy import FaultyProxy
from mlflow_server import mlflow_serving

from ltsft.project.project import ProjectRef
from tasks.settings import read_settings
from tasks.workspace.workspace import Workspace, _tracker, open_workspace


@pytest.fixture
def opened() -> Callable[[Path], Workspace]:
    """Open a project file as flows do."""
    return lambda file: open_workspace(ProjectRef(file=str(file)))


@pytest.fixture
def rerun(prefect_server: None) -> Callable[[Path], Any]:
    """Run a project again; gives the state."""
    from flows.retrain import retrain

    return lambda file: retrain(ProjectRef(file=str(file)), return_state=True)


@pytest.fixture
def set_value() -> Callable[[Path, str, Any], None]:
    """Set a value in a project file by its dotted path."""

    def change(file: Path, dotted: str, value: Any) -> None:
        project = json.loads(json.dumps(yaml.safe_load(file.read_text(encoding="utf-8"))))  # no shared mappings
        *parents, last = dotted.split(".")
        node = project
        for name in parents:
            node = node[name]
        node[last] = value
        file.write_text(yaml.safe_dump(project, sort_keys=False), encoding="utf-8")

    return change


@pytest.fixture
def runs() -> Callable[[Workspace], list[Any]]:
    """All MLflow runs of a project, whatever their state."""

    def search(workspace: Workspace) -> list[Any]:
        tracker = workspace.tracker
        return list(tracker.client.search_runs([tracker.experiment_id], max_results=1000))

    return search


@pytest.fixture
def mlflow_proxy(changeable_project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The way to MLflow's server, which holds the record of `changeable_project`; faults are made on it."""
    store = changeable_project.parent / "store"
    with mlflow_serving(store) as address, FaultyProxy(address) as proxy:
        for name, value in {
            "LTSFT_TRACKING_URI": proxy.url,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # or a test would wait for minutes
            "LTSFT_RETRY_SECONDS": "0.01",
        }.items():
            monkeypatch.setenv(name, value)
        read_settings.cache_clear()
        _tracker.cache_clear()
        yield proxy
    read_settings.cache_clear()
    _tracker.cache_clear()


@pytest.fixture
def prefect_client(prefect_server: None) -> Iterator[Any]:
    """Prefect's API."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client
