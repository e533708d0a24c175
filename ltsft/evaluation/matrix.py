"""The matrix: the score of each (language, target task), beside what it is compared with; as text and as Markdown.

Scores are shares in [0, 1] (accuracy, LAS, F1: each target task has its own); every page and table shows them in %, and
higher is better. A *gap* is a cell without a score, and its reason is shown in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.cells import cell_len

from ltsft.errors import ConfigError

COLUMNS = {
    "task_only": "task SFT alone",
    "score": "composed",
    "gain": "gain",
    "majority": "majority class",
    "supervised": "supervised",
}
LEGEND = {
    "task SFT alone": "base + task SFT",
    "composed": "base + language SFT of the language + task SFT",
    "gain": "composed less task SFT alone, in points",
    "majority class": "every answer is the most frequent label; where that has no meaning, nothing",
    "supervised": "trained on labelled data of the language itself; what labels would buy",
}


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
    """The mean over the cells of a group that have both scores; `wins` counts the cells where composed is better."""

    count: int
    total: int
    task_only: float
    score: float
    wins: int
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
        return Mean(
            count=len(used),
            total=len(group),
            task_only=_average([cell.task_only for cell in used]) or 0.0,
            score=_average([cell.score for cell in used]) or 0.0,
            wins=sum((cell.gain or 0.0) > 0 for cell in used),
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


def role(language: MatrixLanguage, cell: Cell) -> str:
    """Say what a language is to the base and the task SFT: ``source``, ``seen``, ``unseen`` or nothing."""
    if cell.is_source:
        return "source"
    return {True: "seen", False: "unseen", None: ""}[language.is_seen]


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


def title_of(matrix: Matrix) -> str:
    """Give the title; of artificial languages it says so."""
    return f"{matrix.title} (artificial languages)" if matrix.artificial else matrix.title


def shown_columns(matrix: Matrix, target_task: str) -> list[str]:
    """Name the columns of `COLUMNS` that a target task has: majority and supervised where some cell has them."""
    rows = matrix.rows(target_task)
    always = {"task_only", "score", "gain"}
    return [c for c in COLUMNS if c in always or any(getattr(cell, c) is not None for _, cell in rows)]


def summary(matrix: Matrix, target_task: str) -> list[str]:
    """Say in a sentence or two what the matrix shows for a target task, gaps included."""
    lines = []
    for name, mean in matrix.means(target_task):
        group = name.partition(", ")[2]
        languages = f"{mean.count} {group} {'language' if mean.count == 1 else 'languages'}".replace("  ", " ")
        size, relation = points(abs(mean.gain)).lstrip("+"), "higher" if mean.gain >= 0 else "lower"
        lines.append(
            f"On average over {languages}, the composed model is {size} points {relation} than the task SFT alone "
            f"({percent(mean.score)} % against {percent(mean.task_only)} %). It wins in {mean.wins} of {mean.count}."
        )
    gaps = [language.name for language, cell in matrix.rows(target_task) if cell.is_gap]
    if gaps:
        have = "language has" if len(gaps) == 1 else "languages have"
        lines.append(f"{len(gaps)} {have} no score: {', '.join(gaps)}.")
    return lines


def table(matrix: Matrix, target_task: str) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of a target task as plain text cells; the mean rows last.

    A gap has its reason in the column ``composed``; `matrix_text` and `matrix_markdown` lay this out.
    """
    shown, more = shown_columns(matrix, target_task), titles_beside(matrix, target_task)
    header = ["language", "code", "base", unit(matrix, target_task), *(COLUMNS[column] for column in shown), *more]
    rows = []
    for language, cell in matrix.rows(target_task):
        size = "–" if cell.test_size is None else f"{cell.test_size:,}"
        values = {
            "task_only": percent(cell.task_only, cell.task_only_std),
            "score": f"no score: {cell.reason or 'not scored yet'}" if cell.is_gap else percent(cell.score, cell.std),
            "gain": points(cell.gain),
            "majority": percent(cell.majority),
            "supervised": percent(cell.supervised),
        }
        names = [language.name, language.code, role(language, cell), size]
        rows.append([*names, *(values[c] for c in shown), *(percent(cell.beside.get(title)) for title in more)])
    for name, mean in matrix.means(target_task):
        count = f"{mean.count}" if mean.count == mean.total else f"{mean.count} of {mean.total}"
        averages = [points(mean.gain) if c == "gain" else percent(getattr(mean, c)) for c in shown]
        rows.append([f"{name} ({count})", "", "", "", *averages, *("" for _ in more)])
    return header, rows


def titles_beside(matrix: Matrix, target_task: str) -> list[str]:
    """Name the other scores that some cell of this target task has."""
    return list(dict.fromkeys(title for _, cell in matrix.rows(target_task) for title in cell.beside))


def unit(matrix: Matrix, target_task: str) -> str:
    """Say what is counted in a target task: words, questions."""
    return matrix.rows(target_task)[0][1].unit


def matrix_text(matrix: Matrix) -> str:
    """Lay out the matrix as aligned plain text, one table for each target task.

    Args:
        matrix: what to show.

    Returns:
        Lines without colour or control characters; reasons of gaps stand below the table.
    """
    lines = [_plain(title_of(matrix))]
    for target_task in matrix.target_tasks:
        header, rows = table(matrix, target_task)
        notes, body = _move_reasons(rows)
        body = [[_plain(text) for text in row] for row in body]
        widths = [max(cell_len(row[i]) for row in [header, *body]) for i in range(len(header))]
        lines += ["", f"{_plain(target_task)}: {caption(matrix, target_task)}", ""]
        lines.append(_align(header, widths))
        lines.append("  ".join("-" * width for width in widths))
        means = len(matrix.means(target_task))
        lines += [_align(row, widths) for row in body[: len(body) - means]]
        lines.append("  ".join("-" * width for width in widths))
        lines += [_align(row, widths) for row in body[len(body) - means :]]
        lines += [f"  ({i}) {_plain(note)}" for i, note in enumerate(notes, 1)]
        lines += ["", *summary(matrix, target_task)]
    return "\n".join(lines) + "\n"


def matrix_markdown(matrix: Matrix) -> str:
    """Lay out the matrix as Markdown, for a Prefect artifact or a document."""
    lines = [f"# {_markdown(title_of(matrix))}"]
    for target_task in matrix.target_tasks:
        header, rows = table(matrix, target_task)
        notes, body = _move_reasons(rows)
        means = len(matrix.means(target_task))
        lines += [
            "",
            f"## {_markdown(target_task)}",
            "",
            *(f"{_markdown(line)}" for line in summary(matrix, target_task)),
        ]
        lines += ["", caption(matrix, target_task), ""]
        lines.append("| " + " | ".join(header) + " |")
        lines.append("|" + "|".join(":---" if i < 3 else "---:" for i in range(len(header))) + "|")
        for i, row in enumerate(body):
            cells = [_markdown(text) for text in row]
            bold = i >= len(body) - means
            lines.append("| " + " | ".join(f"**{text}**" if bold and text else text for text in cells) + " |")
        lines += ["", *(f"{i}. {_markdown(note)}" for i, note in enumerate(notes, 1))] if notes else []
    created = f"{matrix.created:%Y-%m-%d %H:%M} {matrix.created.tzname() or ''}".strip()
    return "\n".join([*lines, "", f"Scored {created}{f' on {_markdown(matrix.base)}' if matrix.base else ''}."]) + "\n"


def caption(matrix: Matrix, target_task: str) -> str:
    """Say the unit, the direction and what ± means."""
    metric = matrix.rows(target_task)[0][1].metric
    seeds = max((cell.seeds or 1 for _, cell in matrix.rows(target_task)), default=1)
    spread = f" ± is the standard deviation over {seeds} seeds of the task SFT." if seeds > 1 else ""
    return f"{metric} in %, higher is better; gain in points.{spread}"


def _average(values: Sequence[float | None]) -> float | None:
    """Average, or None where a value is missing: a mean over other languages would not compare."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def _move_reasons(rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Replace each reason by a number in brackets, so that the columns stay narrow."""
    notes: list[str] = []
    body = []
    for row in rows:
        new = list(row)
        for i, text in enumerate(row):
            if text.startswith("no score: "):
                notes.append(f"{row[0]}: {text.removeprefix('no score: ')}")
                new[i] = f"no score ({len(notes)})"
        body.append(new)
    return notes, body


def _align(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = []
    for i, (text, width) in enumerate(zip(row, widths, strict=True)):
        space = " " * (width - cell_len(text))
        cells.append(text + space if i < 3 else space + text)
    return "  ".join(cells).rstrip()


def _escaper(table: Mapping[int, str]) -> Callable[[str], str]:
    return lambda text: "".join(c if c.isprintable() else " " for c in text).translate(table)


_plain = _escaper({})
_markdown = _escaper({ord(c): f"\\{c}" for c in "\\`*_{}[]<>#|~"})
