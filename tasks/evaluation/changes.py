"""What changed between two scores of a cell, sentence by sentence: against the matrix before, and against what is live.

Nothing here needs Prefect, so that showing what is up to date is quick. The interval of two runs never changes: it is
kept in the store folder, so that a matrix of many cells is shown at once the second time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ltsft.atomic import write_whole
from ltsft.canonical import canonical_json
from ltsft.config import LT_SFT
from ltsft.errors import ConfigError, StoredFileError
from ltsft.evaluation import CONFIDENCE, Change, Interval, Matrix, Outcomes, difference_of_means
from ltsft.project import cell_subject
from tasks.evaluation.matrix import matrix_key, matrix_parts
from tasks.tracking import FinishedRun
from tasks.workspace import Workspace

OUTCOMES = "outcomes"
"""Artifact of a cell: (correct, counted) of each test sentence, a file for each seed."""
ALONE = "alone-"
"""Begins the names of those of the task SFT without a language SFT."""
_SEED = "score.seed."


@dataclass(frozen=True)
class Scored:
    """A score of a cell at some time, with what a paired comparison needs.

    Attributes:
        run_id: of the cell that was scored.
        score: in [0, 1].
        seeds: of the task SFTs.
        test: what says which test set it was.
        name: for people, such as ``version 3``.
    """

    run_id: str
    score: float
    seeds: tuple[int, ...]
    test: str
    name: str


@dataclass(frozen=True)
class CellDifference:
    """A cell in two matrices: what it was, what it is, and how sure the difference is.

    Attributes:
        subject: of the cell.
        before: its score in the first matrix; None where it has none.
        after: its score in the second one.
        change: the difference; None where one of the two has no score.
    """

    subject: str
    before: float | None
    after: float | None
    change: Change | None

    def as_row(self) -> dict[str, Any]:
        """Give plain values, for JSON."""
        change = self.change
        interval = asdict(change.interval) if change is not None and change.interval is not None else None
        return {
            "cell": self.subject,
            "before": self.before,
            "after": self.after,
            "difference": change.difference if change is not None else None,
            "interval": interval and {"lower": interval["lower"], "upper": interval["upper"]},
            "verdict": change.verdict if change is not None else "no score in one of the two",
        }


def with_changes(workspace: Workspace, matrix: Matrix, live: Mapping[str, Scored]) -> Matrix:
    """Put beside each score what it was in the matrix before, what is live, and all that it was.

    Args:
        workspace: the project.
        matrix: as `read_matrix` gives it.
        live: by subject of the cell, what is live.
    """
    records = workspace.tracker.records()
    by_key = {record.key: record for record in records}
    mine = by_key.get(matrix_key(matrix_parts(workspace.plan, matrix)))
    earlier = [
        _shown(record, by_key)
        for record in _matrices(records, matrix.title)
        if mine is None or (record.run_id != mine.run_id and record.end < mine.end)
    ]
    cells = []
    for cell in matrix.cells:
        subject = cell_subject(cell.target_task, cell.language)
        record = by_key.get(workspace.plan.step(subject).product.key)
        if record is None:
            cells.append(cell)
            continue
        before = [shown[subject] for shown in earlier if subject in shown]
        now, over = scored_in(record), live.get(subject)
        cells.append(
            replace(
                cell,
                before=difference(workspace, now, scored_in(before[0])) if before else None,
                live=difference(workspace, now, over) if over is not None else None,
                history=tuple(each.metrics["score"] for each in [*reversed(before), record]),
            )
        )
    return replace(matrix, cells=tuple(cells))


def compare_matrices(
    workspace: Workspace, runs: Sequence[str]
) -> tuple[FinishedRun, FinishedRun, list[CellDifference]]:
    """Compare two matrices of a project, cell by cell.

    Args:
        workspace: the project, of which data are not needed.
        runs: ids of the runs of the matrices, or how they begin: two, or one for it and the newest, or none for the
            newest and the one before it.

    Returns:
        The two runs, the first before the second as they were given, and the cells of both.

    Raises:
        ConfigError: there is no such matrix, or there are not two of them.
    """
    project = workspace.project
    title = project.name if project.method == LT_SFT else f"{project.name}, {project.method}"
    records = workspace.tracker.records()
    matrices = _matrices(records, title)
    if len(runs) < 2 and len(matrices) < 2:
        count = "no matrix" if not matrices else "one matrix"
        raise ConfigError(f"{title} has {count} so far, and two are compared; ltsft run makes another when data change")
    chosen = [_named(matrices, run) for run in runs]
    before, after = [*chosen, matrices[0]][:2] if chosen else (matrices[1], matrices[0])
    by_key = {record.key: record for record in records}
    first, second = _shown(before, by_key), _shown(after, by_key)
    rows = []
    for subject in sorted({**first, **second}):
        a, b = first.get(subject), second.get(subject)
        change = difference(workspace, scored_in(b), scored_in(a)) if a is not None and b is not None else None
        rows.append(CellDifference(subject, _score(a), _score(b), change))
    return before, after, rows


def scored_in(record: FinishedRun) -> Scored:
    """Say what a cell scored."""
    seeds = (name.removeprefix(_SEED) for name in record.metrics if name.startswith(_SEED))
    return Scored(
        run_id=record.run_id,
        score=record.metrics["score"],
        seeds=tuple(sorted(int(seed) for seed in seeds)),
        test=canonical_json(record.parts.get("test")),
        name=f"matrix before ({record.end:%Y-%m-%d %H:%M})",
    )


def difference(workspace: Workspace, now: Scored, other: Scored) -> Change:
    """Compare two scores of a cell on the same sentences."""
    if now.run_id == other.run_id:
        return Change(other.score, other.name, now.score - other.score, is_same=True)
    interval, reason = _interval(workspace, now, other)
    return Change(other.score, other.name, now.score - other.score, interval, reason=reason)


def stored_outcomes(workspace: Workspace, cell_run: str, seed: int, *, is_alone: bool = False) -> Outcomes | None:
    """Give (correct, counted) of each test sentence of a cell; None where the cell did not keep it."""
    name = f"{OUTCOMES}/{ALONE if is_alone else ''}seed-{seed}.npy"
    try:
        file = workspace.tracker.download(cell_run, name)
    except StoredFileError:  # a cell of an earlier version, or one whose run was deleted
        return None
    found: Outcomes = np.load(file, allow_pickle=False)
    return found


def _interval(workspace: Workspace, now: Scored, other: Scored) -> tuple[Interval | None, str]:
    if now.test != other.test:
        return None, "another test set"
    asked = json.dumps([now.run_id, now.seeds, other.run_id, other.seeds, CONFIDENCE])
    kept = workspace.store / "intervals" / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
    try:
        return Interval(**json.loads(kept.read_text(encoding="utf-8"))), ""
    except (OSError, ValueError, TypeError):  # not computed yet, or a file that a full disk cut off
        pass
    outcomes = [
        {seed: stored_outcomes(workspace, scored.run_id, seed) for seed in scored.seeds} for scored in (now, other)
    ]
    whole = [{seed: kept for seed, kept in by_seed.items() if kept is not None} for by_seed in outcomes]
    if any(len(found) < max(1, len(by_seed)) for found, by_seed in zip(whole, outcomes, strict=True)):
        return None, "outcomes of single sentences were not kept"
    if len({found.shape for by_seed in whole for found in by_seed.values()}) > 1:
        return None, "other sentences"
    interval = difference_of_means(*whole, confidence=CONFIDENCE)
    kept.parent.mkdir(exist_ok=True)
    write_whole(kept, json.dumps(asdict(interval)).encode())
    return interval, ""


def _matrices(records: Sequence[FinishedRun], title: str) -> list[FinishedRun]:
    """List the matrices of a title, newest first."""
    return [r for r in records if r.kind == "matrix" and r.parts.get("shown", [""])[0] == title]


def _named(matrices: Sequence[FinishedRun], run: str) -> FinishedRun:
    found = [record for record in matrices if record.run_id.startswith(run)]
    if len(found) != 1:
        allowed = ", ".join(f"{r.run_id[:8]} ({r.end:%Y-%m-%d %H:%M})" for r in matrices[:10])
        many = f"{len(found)} matrices begin with" if found else "there is no matrix"
        raise ConfigError(f"{many} {run!r}; the newest are {allowed or 'none'}")
    return found[0]


def _shown(matrix: FinishedRun, by_key: Mapping[str, FinishedRun]) -> dict[str, FinishedRun]:
    """Give the cells that a matrix shows, by subject: those that had been scored by then."""
    found = [by_key[key] for key in matrix.parts.get("cells", ()) if key in by_key]
    return {record.subject: record for record in found if record.end <= matrix.end}


def _score(record: FinishedRun | None) -> float | None:
    return None if record is None else record.metrics["score"]
