"""What tests of flows share: running a project again, and reading what is in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ltsft.project.project import ProjectRef
from tasks.workspace.workspace import Workspace, open_workspace


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
def prefect_client(prefect_server: None) -> Iterator[Any]:
    """Prefect's API."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client
