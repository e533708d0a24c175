"""The matrix as aligned text and as Markdown: its tables, and in words what it shows and what changed."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from rich.cells import cell_len, set_cell_size

from ltsft.evaluation.changes import Change, change_mark, change_text, percent, points, told_changes
from ltsft.evaluation.matrix import Cell, Matrix, MatrixLanguage, Mean

COLUMNS = {
    "task_only": "task SFT alone",
    "score": "composed",
    "gain": "gain",
    "change": "change",
    "live": "live",
    "majority": "majority class",
    "supervised": "supervised",
}
DIFFERENCES = ("change", "live")
"""Columns of `COLUMNS` that compare with another time, and have no mean."""
NARROW = {"task_only": "alone", "majority": "majority"}
"""Shorter titles, where lines are short."""
WIDTH = 80
"""Columns of a terminal: no line of a table is longer."""
_NAME = 24
_LEFT = 3
LEGEND = {
    "task SFT alone": "base + task SFT",
    "composed": "base + language SFT of the language + task SFT",
    "gain": "composed less task SFT alone, in points; within noise (≈) where the 95 % interval holds 0",
    "change": "composed less what it was in the matrix before, in points, with its 95 % interval; ≈ is within noise",
    "live": "score of what is live: of one seed, where composed is the mean over all",
    "majority class": "every answer is the most frequent label; where that has no meaning, nothing",
    "supervised": "trained on labelled data of the language itself; what labels would buy",
}


def role(language: MatrixLanguage, cell: Cell) -> str:
    """Say what a language is to the base and the task SFT: ``source``, ``seen``, ``unseen`` or nothing."""
    if cell.is_source:
        return "source"
    return {True: "seen", False: "unseen", None: ""}[language.is_seen]


def title_of(matrix: Matrix) -> str:
    """Give the title; of artificial languages it says so."""
    return f"{matrix.title} (artificial languages)" if matrix.artificial else matrix.title


def shown_columns(matrix: Matrix, target_task: str) -> list[str]:
    """Name the columns of `COLUMNS` that a target task has: besides the first three those that some cell has."""
    rows = matrix.rows(target_task)
    always, kept_as = {"task_only", "score", "gain"}, {"change": "before"}
    return [c for c in COLUMNS if c in always or any(getattr(x, kept_as.get(c, c)) is not None for _, x in rows)]


def summary(matrix: Matrix, target_task: str) -> list[str]:
    """Say in a sentence or two what the matrix shows for a target task, gaps included."""
    lines = []
    for name, mean in matrix.means(target_task):
        group = name.partition(", ")[2]
        languages = f"{mean.count} {group} {'language' if mean.count == 1 else 'languages'}".replace("  ", " ")
        size, relation = points(abs(mean.gain)).lstrip("+"), "higher" if mean.gain >= 0 else "lower"
        lines.append(
            f"On average over {languages}, the composed model is {size} points {relation} than the task SFT alone "
            f"({percent(mean.score)} % against {percent(mean.task_only)} %).{_wins(mean)}"
        )
    gaps = [language.name for language, cell in matrix.rows(target_task) if cell.is_gap]
    if gaps:
        have = "language has" if len(gaps) == 1 else "languages have"
        lines.append(f"{len(gaps)} {have} no score: {', '.join(gaps)}.")
    return lines


def _wins(mean: Mean) -> str:
    """Say where it wins and loses beyond noise; nothing where no interval is known."""
    noise = mean.judged - mean.wins - mean.losses
    counts = {"wins in": mean.wins, "loses in": mean.losses, "is within noise in": noise}
    said = [f"{verb} {count}" for verb, count in counts.items() if count]
    return f" It {', '.join([f'{said[0]} of {mean.judged}', *said[1:]])}." if said else ""


def told_differences(matrix: Matrix, target_task: str) -> list[tuple[str, list[str]]]:
    """Say what changed since the matrix before, and where what is live is not what is scored here.

    Returns:
        Headings, each with a line for each cell, aligned.
    """
    rows = [(cut(language.name), cell) for language, cell in matrix.rows(target_task) if cell.score is not None]
    told = []
    before = [(name, cell.score or 0.0, cell.before) for name, cell in rows if cell.before is not None]
    changed = [row for row in before if not row[2].is_same]
    if before:
        told.append(
            ("Changed since the matrix before:" if changed else "Nothing changed since the matrix before.", changed)
        )
    live = [
        (f"{name}, {cell.live.name}", cell.score or 0.0, cell.live)
        for name, cell in rows
        if cell.live is not None and not cell.live.is_same
    ]
    if live:
        told.append(("What is live → what is scored here:", live))
    return [(heading, told_changes(differences)) for heading, differences in told]


def table(matrix: Matrix, target_task: str, *, is_narrow: bool = False) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of a target task as plain text cells; the mean rows last.

    A gap has its reason in the column ``composed``; `matrix_text` and `matrix_markdown` lay this out.

    Args:
        matrix: what to show.
        target_task: of which the cells are.
        is_narrow: whether differences are shown by a mark, without their intervals.
    """
    shown, more = shown_columns(matrix, target_task), titles_beside(matrix, target_task)
    titles = [NARROW.get(c, COLUMNS[c]) if is_narrow else COLUMNS[c] for c in shown]
    header = ["language", "code", "base", unit(matrix, target_task), *titles, *more]
    rows = []
    for language, cell in matrix.rows(target_task):
        size = "–" if cell.test_size is None else f"{cell.test_size:,}"
        values = {
            "task_only": percent(cell.task_only, cell.task_only_std),
            "score": f"no score: {cell.reason or 'not scored yet'}" if cell.is_gap else percent(cell.score, cell.std),
            "gain": _gain(cell, is_narrow=is_narrow),
            "change": change_mark(cell.before) if is_narrow else change_text(cell.before),
            "live": _live(cell, is_narrow=is_narrow),
            "majority": percent(cell.majority),
            "supervised": percent(cell.supervised),
        }
        names = [language.name, language.code, role(language, cell), size]
        rows.append([*names, *(values[c] for c in shown), *(percent(cell.beside.get(title)) for title in more)])
    for name, mean in matrix.means(target_task):
        count = f"{mean.count}" if mean.count == mean.total else f"{mean.count} of {mean.total}"
        values = {c: percent(getattr(mean, c, None)) for c in shown} | {"gain": points(mean.gain)}
        averages = ["" if c in DIFFERENCES else values[c] for c in shown]
        rows.append([f"{name} ({count})", "", "", "", *averages, *("" for _ in more)])
    return header, rows


def gain_change(cell: Cell) -> Change | None:
    """Give the gain as a change from the task SFT alone, with its interval; None where one of the two is missing."""
    if cell.gain is None or cell.task_only is None or cell.gain_interval is None:
        return None
    return Change(cell.task_only, "task SFT alone", cell.gain, cell.gain_interval)


def _gain(cell: Cell, *, is_narrow: bool) -> str:
    change = gain_change(cell)
    if change is None:
        return points(cell.gain)
    if is_narrow:
        return points(cell.gain) if change.is_decided else change_mark(change)
    return change_text(change)[2:]


def _live(cell: Cell, *, is_narrow: bool) -> str:
    if cell.live is None:
        return "–"
    score = percent(cell.live.other)
    if is_narrow:
        return score
    shown = f"{score} ({cell.live.name})"
    return shown if cell.live.is_same else f"{shown} {change_text(cell.live)}"


def titles_beside(matrix: Matrix, target_task: str) -> list[str]:
    """Name the other scores that some cell of this target task has."""
    return list(dict.fromkeys(title for _, cell in matrix.rows(target_task) for title in cell.beside))


def unit(matrix: Matrix, target_task: str) -> str:
    """Say what is counted in a target task: words, questions."""
    return matrix.rows(target_task)[0][1].unit


def matrix_text(matrix: Matrix) -> str:
    """Lay out the matrix as aligned plain text, one table for each target task, in lines of at most `WIDTH` columns.

    Columns that do not fit stand in a second table under the first, after the same names.

    Args:
        matrix: what to show.

    Returns:
        Lines without colour or control characters; reasons of gaps stand below the table.
    """
    lines = [_plain(title_of(matrix))]
    for target_task in matrix.target_tasks:
        header, rows = table(matrix, target_task, is_narrow=True)
        notes, body = _move_reasons(rows)
        body = [[_plain(text) for text in row] for row in body]
        means = len(matrix.means(target_task))
        lines += ["", *wrapped(f"{_plain(target_task)}: {caption(matrix, target_task, is_narrow=True)}")]
        for columns in _blocks([header, *body]):
            some = [[row[i] for i in columns] for row in [header, *body]]
            some = [[cut(row[0]), *row[1:]] for row in some]
            widths = [max(cell_len(row[i]) for row in some) for i in range(len(columns))]
            left = sum(i < _LEFT for i in columns)
            ruler = "  ".join("-" * width for width in widths)
            shown = [_align(row, widths, left) for row in some]
            lines += ["", shown[0], ruler, *shown[1 : len(shown) - means], ruler, *shown[len(shown) - means :]]
        lines += [line for i, note in enumerate(notes, 1) for line in wrapped(f"({i}) {_plain(note)}", "  ")]
        lines += ["", *(line for said in summary(matrix, target_task) for line in wrapped(_plain(said)))]
        for heading, told in told_differences(matrix, target_task):
            lines += ["", heading, *(f"  {_plain(line)}" for line in told)]
    return "\n".join(lines) + "\n"


def wrapped(text: str, indent: str = "") -> list[str]:
    """Break a text into lines of at most `WIDTH` columns; those after the first are indented more."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    " if indent else "", break_on_hyphens=False
    ) or [""]


def _blocks(rows: Sequence[Sequence[str]]) -> list[list[int]]:
    """Share the columns out over tables of at most `WIDTH`; each begins with the names and the codes."""
    widths = [
        2 + max(min(cell_len(row[i]), _NAME) if not i else cell_len(row[i]) for row in rows)
        for i in range(len(rows[0]))
    ]
    names = [0, 1]
    blocks: list[list[int]] = [[*names]]
    for column in range(len(names), len(rows[0])):
        if len(blocks[-1]) > len(names) and sum(widths[i] for i in (*blocks[-1], column)) - 2 > WIDTH:
            blocks.append([*names])
        blocks[-1].append(column)
    return blocks


def cut(name: str) -> str:
    """Shorten a name that is too long for a table in a terminal."""
    return name if cell_len(name) <= _NAME else f"{set_cell_size(name, _NAME - 1)}…"


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
        for heading, told in told_differences(matrix, target_task):
            lines += ["", _markdown(heading), "", *(f"- {_markdown(line)}" for line in told)]
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


def caption(matrix: Matrix, target_task: str, *, is_narrow: bool = False) -> str:
    """Say the unit, the direction and what ± means."""
    metric = matrix.rows(target_task)[0][1].metric
    seeds = max((cell.seeds or 1 for _, cell in matrix.rows(target_task)), default=1)
    spread = f" ± is the standard deviation over {seeds} seeds of the task SFT." if seeds > 1 else ""
    has_intervals = any(cell.gain_interval or cell.before for _, cell in matrix.rows(target_task))
    noise = " ≈ is within noise: the 95 % interval holds 0." if has_intervals and is_narrow else ""
    return f"{metric} in %, higher is better; gain in points.{spread}{noise}"


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


def _align(row: Sequence[str], widths: Sequence[int], left: int) -> str:
    cells = []
    for i, (text, width) in enumerate(zip(row, widths, strict=True)):
        space = " " * (width - cell_len(text))
        cells.append(text + space if i < left else space + text)
    return "  ".join(cells).rstrip()


def _escaper(table: Mapping[int, str]) -> Callable[[str], str]:
    return lambda text: "".join(c if c.isprintable() else " " for c in text).translate(table)


_plain = _escaper({})
_markdown = _escaper({ord(c): f"\\{c}" for c in "\\`*_{}[]<>#|~"})
