"""The matrix: the score of each (language, target task), beside what it is compared with.

Scores are shares in [0, 1] (accuracy, LAS, F1: each target task has its own); every page and table shows them in %, and
higher is better. A *gap* is a cell without a score, and its reason is shown in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ltsft.errors import ConfigError
from ltsft.evaluation.changes import Change
from ltsft.evaluation.paired import Interval


@dataclass(frozen=True)
class Cell:
    """One (language, target task) of the matrix.

    Args:
        language: code of the language it is scored on.
        target_task: such as ``pos``.
        score: score of the composition in [0, 1], the mean over seeds; None is a gap.
        std: standard deviation of `score` over seeds.
        task_only: score of the task SFT without a language SFT.
        task_only_std: its standard deviation over seeds.
        majority: score of always answering the most frequent label; None where that has no meaning.
        supervised: score with labelled data of the language itself.
        test_size: number of what was scored, in `unit`.
        seeds: number of seeds of the task SFT.
        reason: why there is a gap.
        is_source: whether the task SFT was learnt from this language.
        interference: measures between the language SFT and the task SFT, by name.
        metric: what the score is.
        unit: what was scored, in the plural.
        beside: other scores of the composition, by their titles.
        gain_interval: where the gain lies; None for a cell of an earlier version, which did not keep it.
        before: against the newest earlier matrix that has this cell; None where none has.
        live: against what is live; None where nothing is.
        history: its scores in all matrices, oldest first, this one last.
    """

    language: str
    target_task: str
    score: float | None = None
    std: float | None = None
    task_only: float | None = None
    task_only_std: float | None = None
    majority: float | None = None
    supervised: float | None = None
    test_size: int | None = None
    seeds: int | None = None
    reason: str = ""
    is_source: bool = False
    interference: Mapping[str, float] = field(default_factory=dict)
    metric: str = "accuracy"
    unit: str = "words"
    beside: Mapping[str, float] = field(default_factory=dict)
    gain_interval: Interval | None = None
    before: Change | None = None
    live: Change | None = None
    history: tuple[float, ...] = ()

    @property
    def gain(self) -> float | None:
        """Composed less task SFT alone, or None where one of them is missing."""
        return None if self.score is None or self.task_only is None else self.score - self.task_only

    @property
    def is_gap(self) -> bool:
        """Whether there is no score."""
        return self.score is None


@dataclass(frozen=True)
class MatrixLanguage:
    """A row: code, name, and whether the base was pre-trained on the language (None: not known)."""

    code: str
    name: str
    is_seen: bool | None = None


@dataclass(frozen=True)
class Mean:
    """The mean over the cells of a group that have both scores.

    Attributes:
        count: cells that have both.
        total: cells of the group.
        task_only: mean score of the task SFT alone.
        score: mean score of the composition.
        judged: cells of which the interval of the gain is known.
        wins: of these, where the whole interval is above 0.
        losses: of these, where it is below 0; the others are within noise.
        majority: mean score of the most frequent answer.
        supervised: mean score with labelled data of the language itself.
    """

    count: int
    total: int
    task_only: float
    score: float
    judged: int
    wins: int
    losses: int
    majority: float | None
    supervised: float | None

    @property
    def gain(self) -> float:
        """Composed less task SFT alone."""
        return self.score - self.task_only


@dataclass(frozen=True)
class Matrix:
    """All cells, and the languages in the order of the project file.

    Args:
        cells: at most one for each (language, target task).
        languages: the rows; every cell's language is among them.
        title: shown on top.
        artificial: whether the languages are artificial; it is said wherever the matrix is shown.
        created: when it was scored.
        base: name of the base.

    Raises:
        ConfigError: a cell is there twice, or its language is not among the rows.
    """

    cells: tuple[Cell, ...]
    languages: tuple[MatrixLanguage, ...]
    title: str
    artificial: bool
    created: datetime
    base: str = ""

    def __post_init__(self) -> None:
        codes = {language.code for language in self.languages}
        seen: set[tuple[str, str]] = set()
        for cell in self.cells:
            where = (cell.language, cell.target_task)
            if cell.language not in codes:
                raise ConfigError(f"matrix: cell {where} is of no language of the matrix; they are {sorted(codes)}")
            if where in seen:
                raise ConfigError(f"matrix: cell {where} is given twice; give the mean over seeds as one cell")
            seen.add(where)

    @property
    def target_tasks(self) -> tuple[str, ...]:
        """The target tasks, in the order in which they first appear."""
        return tuple(dict.fromkeys(cell.target_task for cell in self.cells))

    def rows(self, target_task: str) -> list[tuple[MatrixLanguage, Cell]]:
        """Give the cells of a target task: unseen languages first, then seen ones, the source language last."""
        cells = {cell.language: cell for cell in self.cells if cell.target_task == target_task}
        rows = [(language, cells[language.code]) for language in self.languages if language.code in cells]
        return sorted(rows, key=lambda row: (row[1].is_source, row[0].is_seen is True))

    def mean(self, target_task: str, *, seen: bool | None = False) -> Mean | None:
        """Average over the unseen languages (or the seen ones), without the source language.

        Only cells that have both scores count, so that the two means are over the same languages.

        Args:
            target_task: such as ``pos``.
            seen: False for unseen languages, True for seen ones, None for all.

        Returns:
            The mean; None where no cell counts.
        """
        group = [c for lang, c in self.rows(target_task) if not c.is_source and (seen is None or lang.is_seen is seen)]
        used = [cell for cell in group if cell.gain is not None]
        if not used:
            return None
        intervals = [cell.gain_interval for cell in used if cell.gain_interval is not None]
        return Mean(
            count=len(used),
            total=len(group),
            task_only=_average([cell.task_only for cell in used]) or 0.0,
            score=_average([cell.score for cell in used]) or 0.0,
            judged=len(intervals),
            wins=sum(interval.lower > 0 for interval in intervals),
            losses=sum(interval.upper < 0 for interval in intervals),
            majority=_average([cell.majority for cell in used]),
            supervised=_average([cell.supervised for cell in used]),
        )

    def means(self, target_task: str) -> list[tuple[str, Mean]]:
        """Give the mean rows that there are, with their names."""
        if all(language.is_seen is None for language in self.languages):
            groups: list[tuple[str, bool | None]] = [("mean", None)]
        else:
            groups = [("mean, unseen", False), ("mean, seen", True)]
        found = ((name, self.mean(target_task, seen=seen)) for name, seen in groups)
        return [(name, mean) for name, mean in found if mean is not None]


def _average(values: Sequence[float | None]) -> float | None:
    """Average, or None where a value is missing: a mean over other languages would not compare."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None
