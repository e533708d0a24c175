"""What is said of a difference: the mark, the interval, and how many of them are more than noise."""

from __future__ import annotations

import pytest

from ltsft.evaluation.changes import Change, change_mark, change_text, summed_up, told_changes
from ltsft.evaluation.paired import Interval

FELL = Change(0.896, "before", -0.016, Interval(-0.016, -0.029, -0.004))
ROSE = Change(0.5, "before", 0.03, Interval(0.03, 0.01, 0.05))
NOISE = Change(0.5, "before", 0.1, Interval(0.1, -0.02, 0.3))
SAME = Change(0.776, "version 1", 0.038, is_same=True)
UNPAIRED = Change(0.5, "before", -0.2, reason="another test set")


@pytest.mark.parametrize(
    ("change", "mark", "text"),
    [
        (FELL, "▼ −1.6", "▼ −1.6 [−2.9, −0.4]"),
        (ROSE, "▲ +3.0", "▲ +3.0 [+1.0, +5.0]"),
        (NOISE, "≈ +10.0", "▲ +10.0 [−2.0, +30.0] within noise"),
        (SAME, "=", "= unchanged"),
        (UNPAIRED, "▼ −20.0", "▼ −20.0 no interval: another test set"),
        (None, "–", "–"),
    ],
)
def test_a_change_is_shown_with_how_sure_it_is(change: Change | None, mark: str, text: str) -> None:
    assert change_mark(change) == mark
    assert change_text(change) == text


def test_what_is_sure_is_told_first_and_what_is_left_out_is_counted() -> None:
    rows = [("noise", 0.6, NOISE), ("fell", 0.88, FELL), ("rose", 0.53, ROSE)]

    assert [line.split()[0] for line in told_changes(rows)] == ["rose", "fell", "noise"]
    assert told_changes(rows, most=1)[1:] == ["and 2 more, of which 1 are beyond noise"]
    assert told_changes([]) == []


def test_cells_are_counted_by_what_became_of_them() -> None:
    assert summed_up([FELL, ROSE, ROSE, NOISE, SAME, UNPAIRED, None]) == (
        "Of 7 cells: 2 higher, 1 lower, 1 within noise, 1 unchanged, 1 without an interval."
    )
    assert summed_up([None]) == "Of 1 cells: none is in both."
