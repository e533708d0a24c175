"""Every method goes through the whole loop: plan, training, record, cells, matrix, release; what cannot, says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForTokenClassification

from ltsft.errors import ReleaseError
from ltsft.methods.registry import METHODS
from ltsft.project.project import ProjectRef
from ltsft.release.release import Release, Slot
from ltsft.serving.answers import Input
from ltsft.serving.engine import Engine
from ltsft.serving.limits import Limits
from tasks.evaluation.matrix import read_matrix
from tasks.releases.composing import compose_recipe
from tasks.releases.exports import export_release
from tasks.releases.registry import Registry
from tasks.workspace.workspace import Workspace, open_workspace

pytestmark = pytest.mark.integration
LIKE_OTHERS = {"bitfit", "deft_x", "rand_sft"}
"""They differ in their support alone, which is tested without flows."""
OTHERS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_OTHERS else []) for name in METHODS if name != "lt_sft"
]


@pytest.fixture(scope="module")
def project_file(tiny_project_in: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with a few steps and two languages, the methods of which share a store."""
    file = tiny_project_in(tmp_path_factory.mktemp("methods"))
    project = yaml.safe_load(file.read_text(encoding="utf-8"))
    phase = {"min_steps": 3, "max_steps": 3, "learning_rate": 1e-3}
    for recipe in project["recipes"].values():
        recipe |= {"full": phase, "sparse": phase, "evaluations": 1}
    del project["languages"]["cc"]
    project["target_tasks"]["pos"]["test"] = {"bb": project["target_tasks"]["pos"]["test"]["bb"]}
    file.write_text(yaml.safe_dump(project, sort_keys=False), encoding="utf-8")
    return file


def opened_with(file: Path, method: str) -> Workspace:
    return open_workspace(ProjectRef(file=str(file), method=method))


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_goes_through_the_loop(method: str, project_file: Path, prefect_server: None) -> None:
    from flows.retrain import retrain

    assert {step.reasons for step in opened_with(project_file, method).plan.steps} == {("new",)}
    state: Any = retrain(ProjectRef(file=str(project_file), method=method), return_state=True)
    assert state.is_completed(), state.message
    workspace = opened_with(project_file, method)
    assert not workspace.plan.stale
    matrix = read_matrix(workspace)
    assert matrix.title == f"tiny, {method}"
    assert [cell.score is not None for cell in matrix.cells] == [True]
    for step in workspace.plan.steps:
        record = workspace.tracker.find(step.product.key)
        assert record is not None
        assert record.tags["ltsft.method"] == record.params["method"] == method
        if step.product.kind != "cell":
            sft = workspace.load_sft(record.run_id)
            assert sft.method == method
            assert record.metrics["parameters"] == sft.parameters
            assert record.metrics["budget"] == int(0.2 * sft.maskable)
            if method in ("rand_sft", "deft_x", "task_only"):
                assert sft.parameters == record.metrics["budget"]
            assert ("sparsity.density" in record.metrics) == (not sft.adapter)


@pytest.mark.parametrize("method", ["task_only", "lora", "mad_x"])
def test_what_can_be_released_is_and_what_cannot_says_so(
    method: str, project_file: Path, prefect_server: None, tmp_path: Path
) -> None:
    """After the loops above: compose what would be released, write it as a folder, and answer with it."""
    workspace = opened_with(project_file, method)
    if workspace.plan.stale:
        pytest.skip("needs the products of the test before")
    if METHODS[method].is_stacked:
        with pytest.raises(ReleaseError, match=r"pos bb: method mad_x puts modules beside the weights.*--method"):
            compose_recipe(workspace, Slot("bb", "pos"))
        with pytest.raises(ReleaseError, match="neither released, exported nor served"):
            export_release(workspace, "bb", "pos", to="hf", folder=tmp_path / "out", version=None)
        return
    composition = compose_recipe(workspace, Slot("bb", "pos"))
    assert [part.kind for part in composition.parts] == (["task"] if method == "task_only" else ["language", "task"])
    export_release(workspace, "bb", "pos", to="hf", folder=tmp_path / "out", version=None)
    exported = AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    engine = Engine(workspace.base, limits=Limits())
    admitted = engine.admit(Release(1, composition), Registry(workspace.tracker, "tiny"))
    prepared = admitted.reader.prepare(Input(text="bado fes ."))
    (served,) = engine.run(admitted, prepared.pieces)
    with torch.no_grad():
        (logits,) = admitted.reader.forward(exported, prepared.pieces)
    torch.testing.assert_close(served, logits, rtol=1e-4, atol=1e-5)
