"""What changed in a cell, and how sure that is: a score beside another one of the same cell, in words and marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from ltsft.evaluation.paired import Interval

__all__ = [
    "CONFIDENCE",
    "Change",
    "change_mark",
    "change_text",
    "interval_text",
    "percent",
    "points",
    "summed_up",
    "told_changes",
]

CONFIDENCE = 0.95
"""Of every interval that is shown beside a difference."""
UP, DOWN, NOISE, SAME = "▲", "▼", "≈", "="
_MOST_TOLD = 8


@dataclass(frozen=True)
class Change:
    """The score of a cell less another score of the same cell.

    Attributes:
        other: the other score, in [0, 1].
        name: what it is of, such as ``version 3``.
        difference: the score less the other one.
        interval: where the difference lies, sentence by sentence; None where the two do not pair.
        is_same: whether both are of the very same products.
        reason: why they do not pair.
    """

    other: float
    name: str
    difference: float
    interval: Interval | None = None
    is_same: bool = False
    reason: str = ""

    @property
    def is_decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and self.interval.is_decided

    @property
    def verdict(self) -> str:
        """Say in a word or two how sure the difference is."""
        if self.is_same:
            return "unchanged"
        if self.interval is None:
            return f"no interval: {self.reason}"
        if not self.interval.is_decided:
            return "within noise"
        return "higher" if self.difference > 0 else "lower"


def percent(value: float | None, std: float | None = None) -> str:
    """Show a share in % with one decimal, and its standard deviation: ``71.3 ±0.4``."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if std is None else f" ±{100 * std:.1f}")


def points(value: float | None) -> str:
    """Show a difference of shares in points, with its sign: ``+12.3``, ``−0.4``."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def interval_text(interval: Interval) -> str:
    """Show an interval in points: ``[−2.9, −0.4]``."""
    return f"[{points(interval.lower)}, {points(interval.upper)}]"


def change_mark(change: Change | None) -> str:
    """Show a change in little room: ``▲ +1.6``, ``▼ −1.6``, ``≈ +0.2`` within noise, ``=`` for the very same."""
    if change is None:
        return "–"
    if change.is_same:
        return SAME
    return f"{_arrow(change) if change.is_decided or change.interval is None else NOISE} {points(change.difference)}"


def change_text(change: Change | None) -> str:
    """Show a change whole: ``▼ −1.6 [−2.9, −0.4]``, ``▲ +0.2 [−0.9, +1.2] within noise``."""
    if change is None:
        return "–"
    if change.is_same:
        return "= unchanged"
    shown = f"{_arrow(change)} {points(change.difference)}"
    if change.interval is not None:
        shown += f" {interval_text(change.interval)}"
    return shown if change.is_decided else f"{shown} {change.verdict}"


def told_changes(changes: Sequence[tuple[str, float, Change]], *, most: int = _MOST_TOLD) -> list[str]:
    """Give a line for each change, the surest and largest first, aligned; of more than `most`, how many more there are.

    Args:
        changes: of each cell its name, its score and how it differs from another one.
        most: lines at most.
    """
    ordered = sorted(changes, key=lambda row: (not row[2].is_decided, -abs(row[2].difference)))
    width = max((cell_len(name) for name, _, _ in ordered[:most]), default=0)
    lines = []
    for name, score, change in ordered[:most]:
        space = " " * (width - cell_len(name))
        lines.append(f"{name}{space}  {percent(change.other)} → {percent(score)}  {change_text(change)}")
    left = ordered[most:]
    if left:
        decided = sum(change.is_decided for _, _, change in left)
        lines.append(f"and {len(left)} more, of which {decided} are beyond noise")
    return lines


def summed_up(changes: Sequence[Change | None]) -> str:
    """Count in a sentence what rose, what fell, what is within noise and what did not change."""
    compared = [change for change in changes if change is not None]
    counts = {
        "higher": sum(change.is_decided and change.difference > 0 for change in compared),
        "lower": sum(change.is_decided and change.difference < 0 for change in compared),
        "within noise": sum(change.verdict == "within noise" for change in compared),
        "unchanged": sum(change.is_same for change in compared),
        "without an interval": sum(change.interval is None and not change.is_same for change in compared),
    }
    said = [f"{count} {name}" for name, count in counts.items() if count]
    return f"Of {len(changes)} cells: {', '.join(said) or 'none is in both'}."


def _arrow(change: Change) -> str:
    return UP if change.difference > 0 else DOWN if change.difference < 0 else SAME
