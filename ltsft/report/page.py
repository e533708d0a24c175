"""The report: one HTML page with the matrix, the plots and the notes of a run; it needs no network and no other file.

This module also gathers what a caller needs to make one: the matrix (`ltsft.evaluation.matrix`) and the plots
(`ltsft.report.figures`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from matplotlib.figure import Figure

from ltsft.evaluation import (
    COLUMNS,
    DIFFERENCES,
    LEGEND,
    Cell,
    Change,
    Matrix,
    MatrixLanguage,
    Mean,
    caption,
    change_text,
    gain_change,
    matrix_markdown,
    matrix_text,
    percent,
    points,
    role,
    shown_columns,
    summary,
    title_of,
    titles_beside,
    told_differences,
    unit,
)
from ltsft.report.figures import (
    MEASURES,
    Pair,
    colours,
    density_figure,
    gain_norm,
    interference_figure,
    matrix_figure,
    score_norm,
)

__all__ = [
    "MEASURES",
    "Cell",
    "Matrix",
    "MatrixLanguage",
    "Mean",
    "Note",
    "Pair",
    "Plot",
    "density_figure",
    "html_page",
    "interference_figure",
    "matrix_figure",
    "matrix_markdown",
    "matrix_text",
]

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --faint: #57606a; --line: #d9dde2; --soft: #f5f6f8; --accent: #3b5b92; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main, header, footer { max-width: 70rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { margin: .4rem 0; max-width: 62rem; }
.faint, caption, figcaption { color: var(--faint); }
.badge { display: inline-block; background: #fdf0d5; color: #6b3d00; border: 1px solid #e0b568; border-radius: 1rem;
  padding: 0 .7rem; font-size: .85rem; }
.result { font-size: 1.05rem; }
nav ul { padding: 0; margin: .75rem 0 0; list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: .75rem 0; }
.scroll:focus-visible, a:focus-visible, summary:focus-visible { outline: 3px solid #f1a340; outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 2px; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; padding: .25rem 0 .5rem; }
th { font-weight: 600; text-align: left; padding: .3rem .6rem; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); }
td { padding: .3rem .6rem; text-align: right; white-space: nowrap; }
td.text, th.text { text-align: left; }
thead th.number { text-align: right; }
td.gap { text-align: center; background: repeating-linear-gradient(135deg, #fff 0 6px, #e6e9ed 6px 8px); }
td.gap span { background: #fff; padding: 0 .4rem; }
ol.gaps { margin: .25rem 0; padding-left: 1.5rem; font-size: .92rem; } ol.gaps li { overflow-wrap: anywhere; }
tr.mean > * { font-weight: 700; }
tbody.means > tr:first-child > * { border-top: 2px solid var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; color: var(--faint); }
ul.changes { margin: .1rem 0 .6rem; padding-left: 1.3rem; font-variant-numeric: tabular-nums; }
svg.history { width: 60px; height: 16px; vertical-align: middle; }
svg.history polyline { fill: none; stroke: var(--faint); stroke-width: 1.5; }
svg.history circle { fill: var(--accent); }
figure { margin: 1.25rem 0; }
figure img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: .4rem; }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--accent); }
.note { border-left: 4px solid var(--line); background: var(--soft); padding: .6rem 1rem; margin: .75rem 0; }
.note.problem { border-color: #b35806; background: #fdf3e7; }
.note h3 { margin-top: 0; } .note ul { margin: .25rem 0; padding-left: 1.2rem; } .note li { overflow-wrap: anywhere; }
footer { padding: 2rem 1.5rem 3rem; font-size: .85rem; }
@media print { nav, summary { display: none; } body { font-size: 11pt; } td, td.gap { print-color-adjust: exact; } }
"""


@dataclass(frozen=True)
class Plot:
    """A figure on the page, with the text that says what it shows to those who do not see it."""

    figure: Figure
    title: str
    text: str = ""


@dataclass(frozen=True)
class Note:
    """A section of plain lines on the page, such as what the plan did or what a gate said."""

    title: str
    lines: Sequence[str]
    kind: Literal["information", "problem"] = "information"


def html_page(matrix: Matrix, *, plots: Sequence[Plot] = (), notes: Sequence[Note] = ()) -> str:
    """Write the page: what came out, the table of each target task, notes, plots.

    Every text is escaped, so that a language's name or a line of its text cannot become markup. Plots are inside the
    page as PNG; nothing is fetched.

    Args:
        matrix: what was scored.
        plots: figures in the order of the page.
        notes: what the plan, the validation or the training had to say; problems stand first.

    Returns:
        A whole HTML document.
    """
    title = title_of(matrix)
    ordered = sorted(notes, key=lambda note: note.kind != "problem")
    sections = [("", _target_task(matrix, task), f"target-{i}", task) for i, task in enumerate(matrix.target_tasks)]
    body = "".join(f'<section aria-labelledby="{anchor}">{html}</section>' for _, html, anchor, _ in sections)
    links = [f'<li><a href="#{anchor}">{escape(task)}</a></li>' for _, _, anchor, task in sections]
    if ordered:
        links.append('<li><a href="#notes">Notes</a></li>')
        body += f'<section aria-labelledby="notes"><h2 id="notes">Notes</h2>{"".join(map(_note, ordered))}</section>'
    if plots:
        links.append('<li><a href="#plots">Plots</a></li>')
        body += f'<section aria-labelledby="plots"><h2 id="plots">Plots</h2>{"".join(map(_plot, plots))}</section>'
    created = f"{matrix.created:%Y-%m-%d %H:%M} {matrix.created.tzname() or ''}".strip()
    badge = '<p><span class="badge">artificial languages: no result about real ones</span></p>'
    base = f" Base: {escape(matrix.base)}." if matrix.base else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>{badge if matrix.artificial else ''}"
        f'<p class="faint">Scored {escape(created)}.{base}</p>'
        f'<nav aria-label="On this page"><ul>{"".join(links)}</ul></nav></header>\n'
        f"<main>{body}</main>\n<footer>{_legend(matrix)}</footer>\n</body>\n</html>\n"
    )


def _target_task(matrix: Matrix, target_task: str) -> str:
    shown = shown_columns(matrix, target_task)
    anchor = f"target-{matrix.target_tasks.index(target_task)}"
    said_once = caption(matrix, target_task)
    said = "".join(f'<p class="result">{escape(line)}</p>' for line in summary(matrix, target_task))
    said += "".join(_told(heading, lines) for heading, lines in told_differences(matrix, target_task))
    more = titles_beside(matrix, target_task)
    titles = [*(COLUMNS[column] for column in shown), *more]
    head = "".join(f'<th scope="col" class="number">{escape(title)}</th>' for title in titles)
    gaps = [language for language, cell in matrix.rows(target_task) if cell.is_gap]
    rows = "".join(
        _row(matrix, language, cell, shown, more, gap=gaps.index(language) + 1 if cell.is_gap else None)
        for language, cell in matrix.rows(target_task)
    )
    reasons = "".join(
        f"<li>{escape(language.name)}: {escape(cell.reason or 'not scored yet')}</li>"
        for language, cell in matrix.rows(target_task)
        if cell.is_gap
    )
    means = "".join(_mean_row(matrix, name, mean, shown) for name, mean in matrix.means(target_task))
    return (
        f'<h2 id="{anchor}">{escape(target_task)}</h2>{said}'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Scores of {escape(target_task)}"><table>'
        f"<caption>{escape(said_once[0].upper() + said_once[1:])}</caption>"
        f'<thead><tr><th scope="col">language</th><th scope="col">base</th><th scope="col" class="number">'
        f"{escape(unit(matrix, target_task))}</th>{head}</tr></thead><tbody>{rows}</tbody>"
        + (f'<tbody class="means">{means}</tbody>' if means else "")
        + "</table></div>"
        + (f'<ol class="gaps" aria-label="Why there is no score">{reasons}</ol>' if reasons else "")
        + _interference(matrix, target_task)
    )


def _row(
    matrix: Matrix,
    language: MatrixLanguage,
    cell: Cell,
    columns: Sequence[str],
    more: Sequence[str],
    *,
    gap: int | None,
) -> str:
    code = "" if language.code == language.name else f' <span class="faint">{escape(language.code)}</span>'
    words = "–" if cell.test_size is None else f"{cell.test_size:,}"
    html = f'<tr><th scope="row">{escape(language.name)}{code}</th><td class="text">{role(language, cell)}</td>'
    html += f"<td>{words}</td>"
    stds = {"score": cell.std, "task_only": cell.task_only_std}
    for column in columns:
        if gap is not None and column == "score":
            html += f'<td class="gap" colspan="2"><span>no score ({gap})</span></td>'
        elif column in DIFFERENCES:
            html += _difference(cell, column)
        elif gap is None or column != "gain":
            html += _value(matrix, column, getattr(cell, column), std=stds.get(column), change=_change(cell, column))
    html += "".join(f"<td>{percent(cell.beside.get(title))}</td>" for title in more)
    return f"{html}</tr>\n"


def _mean_row(matrix: Matrix, name: str, mean: Mean, columns: Sequence[str]) -> str:
    count = f"{mean.count}" if mean.count == mean.total else f"{mean.count} of {mean.total}"
    values = "".join(
        "<td></td>" if column in DIFFERENCES else _value(matrix, column, getattr(mean, column)) for column in columns
    )
    return f'<tr class="mean"><th scope="row" colspan="3">{escape(name)} ({count})</th>{values}</tr>\n'


def _change(cell: Cell, column: str) -> Change | None:
    return gain_change(cell) if column == "gain" else None


def _difference(cell: Cell, column: str) -> str:
    """Write how a cell differs from the matrix before, with its history, or from what is live."""
    if column == "change":
        text = escape(change_text(cell.before)) if cell.before is not None else "–"
        return f'<td class="change">{_sparkline(cell.history)}{text}</td>'
    if cell.live is None:
        return "<td>–</td>"
    text = "" if cell.live.is_same else f" {change_text(cell.live)}"
    return f"<td>{percent(cell.live.other)} <small>{escape(cell.live.name + text)}</small></td>"


def _sparkline(history: Sequence[float]) -> str:
    """Draw the scores of a cell over its matrices, oldest first, without a script."""
    if len(history) < 2:
        return ""
    low, high = min(history), max(history)
    step, spread = 56 / (len(history) - 1), (high - low) or 1.0
    points_ = [(2 + i * step, 14 - 12 * (score - low) / spread) for i, score in enumerate(history)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points_)
    told = escape(f"score over {len(history)} matrices: from {percent(history[0])} to {percent(history[-1])} %")
    last = points_[-1]
    return (
        f'<svg class="history" viewBox="0 0 60 16" role="img" aria-label="{told}"><polyline points="{line}"></polyline>'
        f'<circle cx="{last[0]:.1f}" cy="{last[1]:.1f}" r="2"></circle></svg> '
    )


def _told(heading: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(' '.join(line.split()))}</li>" for line in lines)
    return f"<p>{escape(heading)}</p>" + (f'<ul class="changes">{items}</ul>' if items else "")


def _value(
    matrix: Matrix, column: str, value: float | None, *, std: float | None = None, change: Change | None = None
) -> str:
    is_gain = column == "gain"
    face, ink = colours(value, gain_norm(matrix) if is_gain else score_norm(matrix), diverging=is_gain)
    spread = "" if std is None or value is None else f" <small>±{100 * std:.1f}</small>"
    text = points(value) if is_gain else percent(value)
    if change is not None:
        text, spread = change_text(change)[2:].partition(" [")[0], f" <small>{_sureness(change)}</small>"
    return f'<td style="background:{face};color:{ink}">{text}{spread}</td>'


def _sureness(change: Change) -> str:
    _, separator, interval = change_text(change).partition("[")
    return escape(separator + interval)


def _interference(matrix: Matrix, target_task: str) -> str:
    """Write the overall measures of interference of the cells that have some, folded away."""
    rows = [(language, cell) for language, cell in matrix.rows(target_task) if cell.interference]
    if not rows:
        return ""
    every = dict.fromkeys(name for _, cell in rows for name in cell.interference)
    names = [
        name for name in every if ".layer." not in name and ".group." not in name
    ]  # those fill hundreds of columns
    shown_as = (name.removeprefix("interference.").replace("_", " ") for name in names)
    head = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in shown_as)
    body = ""
    for language, cell in rows:
        values = (cell.interference.get(name) for name in names)
        shown = "".join(f"<td>{'–' if value is None else f'{value:.4g}'}</td>" for value in values)
        body += f'<tr><th scope="row">{escape(language.name)}</th>{shown}</tr>\n'
    return (
        "<details><summary>Interference between the language SFT and the task SFT</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Interference of {escape(target_task)}"><table>'
        f'<thead><tr><th scope="col">language</th>{head}</tr></thead><tbody>{body}</tbody></table></div></details>'
    )


def _note(note: Note) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in note.lines)
    kind = " problem" if note.kind == "problem" else ""
    return f'<div class="note{kind}"><h3>{escape(note.title)}</h3><ul>{lines}</ul></div>'


def _plot(plot: Plot) -> str:
    buffer = io.BytesIO()
    plot.figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    width = round(plot.figure.get_size_inches()[0] * 100)
    image = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = f"<figcaption>{escape(plot.text)}</figcaption>" if plot.text else ""
    alt = escape(f"{plot.title}. {plot.text}".strip())
    return (
        f'<figure><h3>{escape(plot.title)}</h3><img alt="{alt}" width="{width}" '
        f'src="data:image/png;base64,{image}">{text}</figure>'
    )


def _legend(matrix: Matrix) -> str:
    used = {column for task in matrix.target_tasks for column in shown_columns(matrix, task)}
    shown = [column for column in COLUMNS if column in used]
    terms = "".join(f"<dt>{escape(COLUMNS[c])}</dt><dd>{escape(LEGEND[COLUMNS[c]])}</dd>" for c in shown)
    base = "seen or unseen: whether the base was pre-trained on the language; source: the task SFT was learnt from it"
    means = "over the languages that have both scores, without the source language"
    return f"<dl>{terms}<dt>base</dt><dd>{base}</dd><dt>mean</dt><dd>{means}</dd></dl>"
