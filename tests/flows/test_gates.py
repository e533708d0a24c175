"""An upset gate stops what it judges, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ltsft.cli.main import app
from ltsft.evaluation.changes import change_text
from ltsft.evaluation.matrix import Matrix
from tasks.evaluation.changes import with_changes
from tasks.evaluation.matrix import read_matrix
from tasks.workspace.workspace import Workspace

pytestmark = pytest.mark.integration
Open = Callable[[Path], Workspace]


def statuses(workspace: Workspace, found: list[Any]) -> dict[str, str]:
    """The state of the newest run of each product."""
    ordered = sorted((run for run in found if run.data.tags.get("ltsft.key")), key=lambda run: run.info.end_time)
    return {run.data.tags["ltsft.subject"]: run.info.status for run in ordered}


def test_bad_text_stops_its_language_only_and_mending_it_completes_the_run(
    changeable_project: Path, opened: Open, runs: Callable[[Workspace], list[Any]], rerun: Callable[[Path], Any]
) -> None:
    data = changeable_project.parent / "data"
    good = {code: (data / f"{code}.txt").read_text() for code in ("bb", "cc")}
    cyrillic = [f"это другой алфавит и другой язык {'абвгд'[i % 5] * (i // 5 + 1)}" for i in range(100)]
    (data / "bb.txt").write_text(good["bb"] + "\n".join(cyrillic) + "\n")
    rows = [line.split("\t") for line in (data / "cc-test.conllu").read_text().splitlines()]
    words = " ".join(row[1] if len(row) > 1 else "\n" for row in rows)
    leaked = "".join(f"{' '.join(line.split())}\n" for line in words.splitlines() if line.strip())
    (data / "cc.txt").write_text(good["cc"] + leaked)
    before = {run.info.run_id for run in runs(opened(changeable_project))}

    state = rerun(changeable_project)

    assert state.is_failed()
    assert "language bb: the data did not pass the validation gate: share of letters in Latn is" in state.message
    assert "bb.txt:" in state.message, "example lines are shown"
    assert "language cc: the data did not pass the validation gate:" in state.message
    assert "gates.text.max_test_overlap" in state.message
    workspace = opened(changeable_project)
    new = [run for run in runs(workspace) if run.info.run_id not in before]
    assert statuses(workspace, new) == {
        "language bb": "FAILED",
        "language cc": "FAILED",
        "matrix": "FINISHED",
    }
    failed = next(run for run in new if run.data.tags.get("ltsft.subject") == "language bb")
    assert workspace.tracker.download(failed.info.run_id, "validation/index.html").is_file()
    cells = {cell.language: cell for cell in read_matrix(workspace).cells}
    assert cells["aa"].score is not None
    assert cells["bb"].is_gap
    assert cells["bb"].reason.startswith("language bb: the data did not pass the validation gate: share of letters")
    assert "share of letters in Latn" in (workspace.store / "report.html").read_text()
    assert "the last attempt failed" in "".join(workspace.plan.step("language bb").reasons)
    assert not list((workspace.store / "making").iterdir())

    (data / "bb.txt").write_text(good["bb"] + "kato bako.\n")
    (data / "cc.txt").write_text(good["cc"])
    assert rerun(changeable_project).is_completed()

    workspace = opened(changeable_project)
    assert not workspace.plan.stale
    matrix = with_changes(workspace, read_matrix(workspace), {})
    assert not any(cell.is_gap for cell in matrix.cells)
    _what_changed_is_told_with_its_interval(changeable_project, workspace, matrix)


def _what_changed_is_told_with_its_interval(file: Path, workspace: Workspace, matrix: Matrix) -> None:
    """The matrix with the gaps is passed over: what a cell was before is what an earlier one says."""
    cells = {cell.language: cell for cell in matrix.cells}
    change = cells["bb"].before
    assert change is not None
    assert change.interval is not None
    assert change.interval.difference == pytest.approx(change.difference)
    assert change.interval.lower <= change.difference <= change.interval.upper
    assert cells["bb"].history == (change.other, cells["bb"].score)
    assert cells["cc"].before is not None
    assert cells["cc"].before.is_same
    gain = cells["bb"].gain_interval
    assert gain is not None
    assert gain.lower <= (cells["bb"].gain or 0.0) <= gain.upper
    assert change_text(change) in (workspace.store / "report.html").read_text()
    first, *_, last = reversed(workspace.tracker.records(kind="matrix"))
    shown = CliRunner().invoke(app, ["diff", str(file), first.run_id[:12], "--json"])
    told = {row["cell"]: row for row in json.loads(shown.stdout)["cells"]}
    assert (json.loads(shown.stdout)["before"], json.loads(shown.stdout)["after"]) == (first.run_id, last.run_id)
    assert told["cell pos cc"]["verdict"] == "unchanged"
    assert told["cell pos bb"]["difference"] == pytest.approx(change.difference)
    assert told["cell pos bb"]["interval"]["lower"] == pytest.approx(change.interval.lower)
    newest = CliRunner().invoke(app, ["diff", str(file)]).stdout
    assert max(map(len, newest.splitlines())) <= 80
    assert "no score" in newest, "the one before the newest has gaps"
    assert CliRunner().invoke(app, ["diff", str(file), "none"]).exit_code == 2


def test_bad_labels_stop_the_task_sft_and_language_sfts_are_still_made(
    changeable_project: Path, opened: Open, runs: Callable[[Workspace], list[Any]], rerun: Callable[[Path], Any]
) -> None:
    data = changeable_project.parent / "data"
    train = data / "aa-train.conllu"
    train.write_text(train.read_text().replace("\tVERB\t", "\tVREB\t"))
    text = data / "bb.txt"
    text.write_text("kato bako.\n" + text.read_text())
    before = {run.info.run_id for run in runs(opened(changeable_project))}

    state = rerun(changeable_project)

    assert state.is_failed()
    assert "task pos aa seed 1: the data did not pass the validation gate: aa train:" in state.message
    workspace = opened(changeable_project)
    new = [run for run in runs(workspace) if run.info.run_id not in before]
    assert statuses(workspace, new) == {
        "language bb": "FINISHED",
        "task pos aa seed 1": "FAILED",
        "matrix": "FINISHED",
    }
    reasons = {cell.language: cell.reason for cell in read_matrix(workspace).cells}
    assert all(reason.startswith("task pos aa seed 1: the data did not pass") for reason in reasons.values())
    assert len(reasons) == 3


def test_a_bad_test_set_is_a_gap_and_the_sfts_stay(
    changeable_project: Path, opened: Open, rerun: Callable[[Path], Any]
) -> None:
    test = changeable_project.parent / "data" / "bb-test.conllu"
    test.write_text(test.read_text().replace("\tNOUN\t", "\tNUON\t"))

    state = rerun(changeable_project)

    assert state.is_failed()
    assert "cell pos bb: the data did not pass the validation gate: bb test:" in state.message
    workspace = opened(changeable_project)
    assert [step.product.subject for step in workspace.plan.stale] == ["cell pos bb"]
    gap = next(cell for cell in read_matrix(workspace).cells if cell.is_gap)
    assert gap.reason.startswith("the data did not pass the validation gate: bb test:")
