"""A recipe with several processes trains under torchrun, reports and ends as a training of one process does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltsft.project.project import ProjectRef
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration


def test_two_processes_learn_a_language_together(
    tiny_project: Path, prefect_server: None, opened: Callable[[Path], Workspace], set_value: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    from flows.adapt_language import adapt_language

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    phase = {"max_steps": 4, "min_steps": 4, "learning_rate": 1e-3}
    for part in ("full", "sparse"):
        set_value(tiny_project, f"recipes.language.{part}", phase)
    set_value(tiny_project, "recipes.language.dropout", 0.0)
    ref = ProjectRef(file=str(tiny_project))
    alone = adapt_language(ref, "aa")
    set_value(tiny_project, "recipes.language.processes", 2)
    set_value(tiny_project, "recipes.language.precision", "fp16")  # no CPU trains in it

    logging.getLogger("tasks.training.together").addHandler(caplog.handler)
    together = adapt_language(ref, "aa")
    logging.getLogger("tasks.training.together").removeHandler(caplog.handler)

    workspace = opened(tiny_project)
    history: list[Any] = workspace.tracker.client.get_metric_history(together, "full.loss")
    assert [point.step for point in history] == [1, 2, 3, 4], "progress went by way of the flow's process"
    one, two = workspace.load_sft(alone), workspace.load_sft(together)
    assert one.support_size == two.support_size
    assert all(bool(torch.isfinite(diff.values).all()) for diff in two.diffs.values())
    said = {record.getMessage() for record in caplog.records if record.name == "tasks.training.together"}
    assert {text[:20] for text in said} == {"trained in float32: "}, "the processes' warning is in the log of the run"
    tags = workspace.tracker.client.get_run(together).data.tags
    assert (tags["ltsft.precision"], tags["ltsft.threads"], tags["ltsft.device"]) == ("fp32", "1", "cpu")
    keys = [workspace.tracker.client.get_run(run_id).data.tags["ltsft.key"] for run_id in (alone, together)]
    assert keys[0] != keys[1], "sums in another order are another SFT"
