"""What is told of a release: its own score, and the mean that the matrix shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tasks.releases.promotion import Candidate

NOTHING: Any = None


def candidate(**metrics: float) -> Candidate:
    cell: Any = SimpleNamespace(metrics=metrics)
    return Candidate(NOTHING, NOTHING, cell, 2, "")


def test_the_score_of_one_seed_stands_beside_the_mean_that_the_matrix_shows() -> None:
    of_several = candidate(score=0.814, seeds=3.0)

    assert of_several.told_score(0.776) == "score 0.7760 (seed 2; the mean over 3 seeds is 0.8140)"
    assert candidate(score=0.776, seeds=1.0).told_score(0.776) == "score 0.7760"
    assert candidate(score=0.776).told_score(0.776) == "score 0.7760", "a cell of an earlier version"
