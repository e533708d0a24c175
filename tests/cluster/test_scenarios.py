"""The bad days of a cluster, with real services: nothing is lost, nothing is made twice, and everything is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def lengthen(project: Path, kind: str, *, full: int = 12, sparse: int = 12) -> None:
    """Give the phases of a recipe so many steps."""
    settings = yaml.safe_load(project.read_text())
    for phase, steps in (("full", full), ("sparse", sparse)):
        settings["recipes"][kind][phase] = {"max_steps": steps, "min_steps": steps, "learning_rate": 1e-3}
    project.write_text(yaml.safe_dump(settings, sort_keys=False))


def test_an_undisturbed_retrain_makes_the_whole_matrix(cluster: Any, project: Path) -> None:
    run = cluster.run("retrain", project={"file": str(project)})

    state = cluster.finished(run)

    assert state["type"] == "COMPLETED", state["message"]
    assert {r.info.status for r in cluster.mlflow_runs(project)} == {"FINISHED"}
    assert cluster.runs(project, "RUNNING", "PENDING", "SCHEDULED") == []
