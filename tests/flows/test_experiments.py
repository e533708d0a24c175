"""Experiments: they make what is missing and nothing twice, and leave one run with table and plot."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltsft.project.project import ProjectRef
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration
Open = Callable[[Path], Workspace]
DENSITIES: dict[str, Any] = {"language_densities": [0.2], "task_densities": [0.2, 1.0], "languages": ["bb", "cc"]}


def by_subject(workspace: Workspace, found: list[Any], before: set[str]) -> list[str]:
    new = [run for run in found if run.info.run_id not in before and run.data.tags.get("ltsft.key")]
    return sorted(run.data.tags["ltsft.subject"] for run in new)


def test_a_sweep_makes_what_is_missing_reports_once_and_makes_nothing_again(
    changeable_project: Path, opened: Open, runs: Callable[[Workspace], list[Any]]
) -> None:
    from flows.sweep_density import sweep_density

    workspace, ref = opened(changeable_project), ProjectRef(file=str(changeable_project))
    page = (workspace.store / "report.html").read_bytes()
    before = {run.info.run_id for run in runs(workspace)}

    state = sweep_density(ref, **DENSITIES, return_state=True)

    assert state.is_completed(), state.message
    assert "The best pair is" in str(state.message)
    # what the project's own densities gave is there; the cell of cc is scored without its supervised SFT
    assert by_subject(workspace, runs(workspace), before) == [
        "cell pos bb",
        "cell pos cc",
        "cell pos cc",
        "density sweep pos",
        "fit pos",
        "fit pos",
        "task pos aa seed 1",
    ]
    assert (workspace.store / "report.html").read_bytes() == page, "the project's own page is not touched"
    (sweep,) = [r for r in workspace.tracker.records() if r.kind == "sweep"]
    table = json.loads(workspace.tracker.download(sweep.run_id, "table.json").read_text())
    with workspace.tracker.download(sweep.run_id, "table.csv").open(newline="") as opened_file:
        assert [float(row["task_density"]) for row in csv.DictReader(opened_file)] == [0.2, 1.0]
    for row in table:
        assert row["train_held_out_gap"] == pytest.approx(row["train_score"] - row["held_out_score"])
        assert row["score"] == pytest.approx((row["score.bb"] + row["score.cc"]) / 2)
    assert table[1]["interference.overlap"] == 1.0, "a dense SFT holds every other support"
    assert workspace.tracker.download(sweep.run_id, "figures/sweep.png").read_bytes().startswith(b"\x89PNG")
    children = [r for r in runs(workspace) if r.data.tags.get("mlflow.parentRunId") == sweep.run_id]
    assert sorted(r.info.run_name for r in children) == ["language 0.2 task 0.2", "language 0.2 task 1"]

    after = {run.info.run_id for run in runs(workspace)}
    again = sweep_density(ref, **DENSITIES, return_state=True)
    assert again.message == state.message
    assert {run.info.run_id for run in runs(workspace)} == after


def test_methods_are_compared_on_cells_that_exist_and_their_outcomes(
    changeable_project: Path, opened: Open, runs: Callable[[Workspace], list[Any]]
) -> None:
    from flows.compare_methods import compare_methods

    workspace, ref = opened(changeable_project), ProjectRef(file=str(changeable_project))
    before = {run.info.run_id for run in runs(workspace)}

    state = compare_methods(ref, methods=["task_only"], return_state=True)

    assert state.is_completed(), state.message
    assert by_subject(workspace, runs(workspace), before) == [
        "cell pos bb",
        "cell pos cc",
        "comparison pos",
        "task pos aa seed 1",
    ]
    (record,) = [r for r in workspace.tracker.records() if r.kind == "comparison"]
    rows = json.loads(workspace.tracker.download(record.run_id, "table.json").read_text())
    assert [(row["method"], row["language"]) for row in rows] == [
        (method, language) for method in ("lt_sft", "task_only") for language in ("bb", "cc", "mean")
    ]
    cells = {
        r.tags["ltsft.language"]: r.metrics for r in workspace.tracker.records(kind="cell") if "method" not in r.parts
    }
    assert rows[0]["score"] == cells["bb"]["score"]
    assert rows[1]["supervised"] == cells["cc"]["score_supervised"]
    assert rows[3]["difference"] == pytest.approx(rows[3]["score"] - rows[0]["score"])
    assert rows[3]["lower"] <= rows[3]["difference"] <= rows[3]["upper"]
    assert "supervised" in str(state.message)
    assert workspace.tracker.download(record.run_id, "figures/comparison.png").is_file()

    after = {run.info.run_id for run in runs(workspace)}
    assert compare_methods(ref, methods=["task_only"], return_state=True).message == state.message
    assert {run.info.run_id for run in runs(workspace)} == after


def test_weights_are_searched_on_dev_data_alone_with_what_exists(
    changeable_project: Path,
    opened: Open,
    runs: Callable[[Workspace], list[Any]],
    set_value: Callable[[Path, str, Any], None],
) -> None:
    from flows.search_weights import search_weights

    set_value(changeable_project, "target_tasks.pos.dev", {"bb": "conllu:bb-dev.conllu"})
    workspace, ref = opened(changeable_project), ProjectRef(file=str(changeable_project))
    assert not workspace.plan.stale, "dev data for the search are in no key"
    for code in ("bb", "cc"):
        (changeable_project.parent / "data" / f"{code}-test.conllu").rename(changeable_project.parent / f"{code}.away")
        (changeable_project.parent / "data" / f"{code}-test.conllu").write_text("never read\n")
    before = {run.info.run_id for run in runs(workspace)}
    grid: dict[str, Any] = {"language_weights": [0.0, 1.0], "task_weights": [1.0], "rules": ["sum", "ties"]}

    state = search_weights(ref, **grid, return_state=True)

    assert state.is_completed(), state.message
    assert "composition: {rule:" in str(state.message)
    (made,) = [run for run in runs(workspace) if run.info.run_id not in before]
    rows = json.loads(workspace.tracker.download(made.info.run_id, "table.json").read_text())
    assert [(r["rule"], r["language_weight"]) for r in rows] == [
        ("sum", 1.0),
        ("sum", 0.0),
        ("ties", 0.0),
        ("ties", 1.0),
    ]
    assert all(r["mean"] == pytest.approx((r["score.bb"] + r["score.cc"]) / 2) for r in rows)
    assert rows[1]["score.bb"] == rows[2]["score.bb"], "without a language part there are no signs to elect"
    assert search_weights(ref, **grid, return_state=True).message == state.message
    assert len(runs(workspace)) == len(before) + 1


def test_a_density_or_target_task_that_cannot_be_is_told_before_anything_is_made(
    changeable_project: Path, opened: Open, runs: Callable[[Workspace], list[Any]]
) -> None:
    from flows.compare_methods import compare_methods
    from flows.search_weights import search_weights
    from flows.sweep_density import sweep_density

    workspace, ref = opened(changeable_project), ProjectRef(file=str(changeable_project))
    before = {run.info.run_id for run in runs(workspace)}
    grid = {"language_weights": [1.0], "task_weights": [1.0], "rules": ["sum"]}
    for flow, arguments, message in (
        (sweep_density, {**DENSITIES, "task_densities": [1.5]}, "recipes.pos.density"),
        (sweep_density, {**DENSITIES, "target_task": "ner"}, "no target task 'ner'; allowed are pos"),
        (sweep_density, {**DENSITIES, "languages": ["xx"]}, "no test data in 'xx'"),
        (sweep_density, {**DENSITIES, "method": "full"}, "density does not settle how much full learns"),
        (
            sweep_density,
            {**DENSITIES, "method": "lora", "set": "methods.lora.recipes.pos={rank: 2}"},
            "lora learns by its recipe of pos; leave out rank",
        ),
        (
            sweep_density,
            {**DENSITIES, "method": "task_only", "language_densities": [0.2, 1]},
            "give one language density",
        ),
        (compare_methods, {"methods": ["magic"]}, "there is no method 'magic'"),
        (search_weights, {**grid, "method": "task_only"}, "task_only composes nothing"),
        (search_weights, {**grid, "method": "mad_x"}, "mad_x stacks modules"),
    ):
        values = {"method": arguments.pop("method", None), "overrides": (arguments.pop("set", "name=tiny"),)}
        state = flow(ref.model_copy(update=values), **arguments, return_state=True)
        assert state.is_failed()
        assert re.search(message, str(state.result(raise_on_failure=False)))
    assert {run.info.run_id for run in runs(workspace)} == before
