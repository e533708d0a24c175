"""From raw text to a scored matrix: what a whole run leaves in MLflow and in Prefect, and what a second run does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltsft.sft.files import load_sft
from tasks.evaluation.matrix import read_matrix
from tasks.tracking.records import FinishedRun
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration
Open = Callable[[Path], Workspace]

PHASE_METRICS = ("loss", "held_out", "held_out_score", "learning_rate", "l1_distance", "tokens_per_second")
SUBJECTS = {
    *(f"language {code}" for code in ("aa", "bb", "cc")),
    *("task pos aa seed 1", "task pos cc seed 1"),
    *(f"cell pos {code}" for code in ("aa", "bb", "cc")),
}


@pytest.fixture
def finished(finished_project: Path, opened: Open) -> Workspace:
    return opened(finished_project)


def record_of(workspace: Workspace, subject: str) -> FinishedRun:
    return next(record for record in workspace.tracker.records() if record.subject == subject and record.key)


def test_every_product_is_a_finished_run_and_there_is_one_matrix(
    finished: Workspace, runs: Callable[[Workspace], list[Any]]
) -> None:
    found = runs(finished)

    assert {run.info.status for run in found} == {"FINISHED"}
    with_key = [run.data.tags["ltsft.subject"] for run in found if run.data.tags.get("ltsft.key")]
    assert sorted(with_key) == sorted([*SUBJECTS, "matrix"])
    assert not finished.plan.stale
    assert not list((finished.store / "making").iterdir())


@pytest.mark.parametrize("subject", ["language bb", "task pos aa seed 1"])
def test_an_sft_run_holds_recipe_tags_metrics_of_both_phases_and_sparsity(finished: Workspace, subject: str) -> None:
    record = record_of(finished, subject)

    recipe = finished.plan.step(subject).product.parts["recipe"]
    assert record.params["density"] == "0.2"
    assert record.params["full.learning_rate"] == record.params["sparse.learning_rate"] == "0.001"
    flat = {
        f"{k}.{n}" if isinstance(v, dict) else k
        for k, v in recipe.items()
        for n in (v if isinstance(v, dict) else (0,))
    }
    assert flat <= set(record.params)
    assert record.tags["ltsft.base"] == finished.project.base.id
    assert record.tags["ltsft.base_fingerprint"] == finished.base.ref.fingerprint
    assert record.tags["ltsft.language"] in ("aa", "bb")
    assert record.tags["mlflow.user"]
    for phase in ("full", "sparse"):
        for name in PHASE_METRICS:
            history = finished.tracker.client.get_metric_history(record.run_id, f"{phase}.{name}")
            steps = [point.step for point in history]
            assert steps, f"{phase}.{name} was never logged"
            assert len(set(steps)) == len(steps)
            assert max(steps) <= 12
        assert f"{phase}.best_score" in record.metrics
    assert record.metrics["sparsity.density"] == pytest.approx(0.2, abs=1e-3)
    assert record.metrics["sparsity.layer.0.density"] > 0
    assert any(name.startswith("sparsity.group.") and name.endswith(".l2") for name in record.metrics)


def test_a_task_sft_names_its_parent_by_run(finished: Workspace) -> None:
    parent = record_of(finished, "language aa")
    task = record_of(finished, "task pos aa seed 1")

    assert task.tags["ltsft.parents"] == f"language aa: {parent.run_id}"
    assert task.tags["ltsft.target_task"] == "pos"


def test_the_runs_name_the_commit_of_the_code(finished: Workspace) -> None:
    from tasks.tracking.records import COMMIT, git_tags

    if COMMIT not in git_tags(Path.cwd()):
        pytest.skip("this is no git checkout")
    assert re.fullmatch("[0-9a-f]{40}", record_of(finished, "language aa").tags[COMMIT])


def test_the_artifacts_of_an_sft_are_its_folder_the_report_and_the_density_plot(finished: Workspace) -> None:
    run_id = record_of(finished, "language bb").run_id

    sft = load_sft(finished.tracker.download(run_id, "sft"))
    assert sft.kind == "language"
    assert sft.subject == "bb"
    assert sft.support_size == record_of(finished, "language bb").metrics["support_size"]
    assert finished.tracker.download(run_id, "validation/index.html").is_file()
    assert finished.tracker.download(run_id, "figures/density.png").read_bytes().startswith(b"\x89PNG")
    assert finished.tracker.download(run_id, "held_out/sequences.npy").is_file()


def test_the_matrix_is_a_run_whose_children_are_the_cells(
    finished: Workspace, runs: Callable[[Workspace], list[Any]]
) -> None:
    matrix = record_of(finished, "matrix")
    children = [run for run in runs(finished) if run.data.tags.get("mlflow.parentRunId") == matrix.run_id]

    assert sorted(child.info.run_name for child in children) == ["cell pos aa", "cell pos bb", "cell pos cc"]
    for child in children:
        m, code = child.data.metrics, child.data.tags["ltsft.language"]
        assert 0 < m["score"] <= 1
        assert m["test_size"] > 100
        assert m["test_sentences"] == 50
        assert {"interference.overlap", "functional.language_loss_change", "functional.source_score_change"} <= set(m)
        assert ("score_supervised" in m) == (code == "cc")
        assert child.data.params[f"language {code}"] == record_of(finished, f"language {code}").run_id
        assert child.data.params["task pos aa seed 1"] == record_of(finished, "task pos aa seed 1").run_id
    assert matrix.metrics["cells"] == 3
    assert matrix.metrics["gaps"] == 0
    cells = [record_of(finished, f"cell pos {code}").metrics["score"] for code in ("bb", "cc")]
    assert matrix.metrics["score"] == pytest.approx(sum(cells) / 2)
    for name in ("figures/matrix.png", "figures/interference_overlap.png", "report.html", "matrix.md"):
        assert finished.tracker.download(matrix.run_id, name).is_file()


@pytest.fixture
def in_prefect(finished_project: Path) -> dict[str, Any]:
    """What Prefect's server said of this project's runs."""
    found: dict[str, Any] = json.loads((finished_project.parent / "prefect.json").read_text())
    return found


def test_flow_and_task_runs_say_what_they_are(finished: Workspace, in_prefect: dict[str, Any]) -> None:
    flow_runs, task_runs = set(in_prefect["flow_runs"]), set(in_prefect["task_runs"])

    assert {"adapt-language aa", "adapt-task pos aa seed 1", f"evaluate-matrix {finished.ref.file}"} <= flow_runs
    assert {"validate text bb", "train language SFT bb", "train task pos cc seed 1", "score cell pos cc"} <= task_runs


def test_progress_validation_and_matrix_are_prefect_artifacts(in_prefect: dict[str, Any]) -> None:
    artifacts = in_prefect["artifacts"]

    assert artifacts["validation-tiny-language-aa"]["type"] == "markdown"
    assert "passed" in artifacts["validation-tiny-language-aa"]["data"]
    assert "composed" in artifacts["matrix-tiny"]["data"]
    assert artifacts["training-tiny-language-aa"]["type"] == "progress"
    assert artifacts["training-tiny-language-aa"]["data"] == 100.0


def test_what_the_training_says_is_in_prefects_log(in_prefect: dict[str, Any]) -> None:
    assert {"full phase", "selection of the support", "sparse phase"} <= set(in_prefect["logs"])


def test_a_second_run_makes_nothing_and_logs_nothing(
    changeable_project: Path, opened: Open, runs: Callable[[Workspace], list[Any]], rerun: Callable[[Path], Any]
) -> None:
    before = {run.info.run_id for run in runs(opened(changeable_project))}

    state = rerun(changeable_project)

    assert state.is_completed()
    assert {run.info.run_id for run in runs(opened(changeable_project))} == before


def test_one_changed_line_makes_that_sft_and_its_cell_and_nothing_else(
    changeable_project: Path, opened: Open, runs: Callable[[Workspace], list[Any]], rerun: Callable[[Path], Any]
) -> None:
    before = {run.info.run_id for run in runs(opened(changeable_project))}
    text = changeable_project.parent / "data" / "bb.txt"
    text.write_text("bako " + text.read_text())

    plan = opened(changeable_project).plan
    assert {step.product.subject: step.reasons for step in plan.stale} == {
        "language bb": ("text changed",),
        "cell pos bb": ("upstream changed: language bb",),
    }

    assert rerun(changeable_project).is_completed()

    workspace = opened(changeable_project)
    assert not workspace.plan.stale
    made = [run.data.tags["ltsft.subject"] for run in runs(workspace) if run.info.run_id not in before]
    assert sorted(name for name in made if name != "matrix" and not name.startswith("cell")) == ["language bb"]
    keyed = [
        r.data.tags["ltsft.subject"]
        for r in runs(workspace)
        if r.data.tags.get("ltsft.key") and r.info.run_id not in before
    ]
    assert sorted(keyed) == ["cell pos bb", "language bb", "matrix"]


def test_the_page_follows_the_project_when_a_change_is_taken_back(
    changeable_project: Path, opened: Open, rerun: Callable[[Path], Any], set_value: Callable[[Path, str, Any], None]
) -> None:
    from tasks.evaluation.matrix import restore_page

    set_value(changeable_project, "languages.bb.name", "Renamed")
    workspace = opened(changeable_project)
    assert not workspace.plan.stale
    assert restore_page(workspace, read_matrix(workspace)) is None
    assert rerun(changeable_project).is_completed()
    page = workspace.store / "report.html"
    assert "Renamed" in page.read_text()

    set_value(changeable_project, "languages.bb.name", "Language bb")
    workspace = opened(changeable_project)
    assert restore_page(workspace, read_matrix(workspace)) == page
    assert "Renamed" not in page.read_text()


def test_of_many_sfts_not_every_two_are_compared(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.logging import disable_run_logger

    from tasks.evaluation import cells as evaluation

    with disable_run_logger():
        assert len(evaluation.assemble_matrix.fn(finished, {}, {}).pairs) == 6  # three languages and a target task
        monkeypatch.setattr(evaluation, "MOST_PAIRED", 3)
        assert not evaluation.assemble_matrix.fn(finished, {}, {}).pairs
