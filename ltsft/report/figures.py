"""Plots: the matrix, interference between SFTs, and where in the network an SFT changed weights.

Drawn with matplotlib's object API (no pyplot, no display, no global state). Values stand in the cells, and the colour
maps (cividis; purple to orange) read the same with any colour vision.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.cells import cell_len

from ltsft.errors import ConfigError
from ltsft.evaluation import (
    COLUMNS,
    DIFFERENCES,
    Cell,
    Matrix,
    MatrixLanguage,
    percent,
    points,
    role,
    shown_columns,
    title_of,
)

INK, FAINT, PAPER, MISSING = "#1b1f24", "#57606a", "#ffffff", "#eef0f2"
BAR, LINE = "#3b5b92", "#b35806"
_ROW, _COLUMN = 0.27, 0.92  # inches


@dataclass(frozen=True)
class Pair:
    """How two SFTs meet: what a square of the interference plot shows.

    Args:
        a: name of one SFT, such as ``fo``.
        b: name of the other.
        intersection: number of weights that both change.
        expected: the intersection that chance alone would give.
        sign_conflict: share of the intersection where they pull in opposite directions, in [0, 1].
        cosine: cosine of the two diffs on the intersection, in [-1, 1].
    """

    a: str
    b: str
    intersection: float
    expected: float
    sign_conflict: float
    cosine: float

    @property
    def over_chance(self) -> float:
        """How many times chance the overlap is; NaN where chance gives nothing."""
        return self.intersection / self.expected if self.expected > 0 else math.nan


@dataclass(frozen=True)
class Measure:
    """How a measure of interference is shown: its value in the unit shown, and the value that says nothing."""

    title: str
    reading: str
    value: Callable[[Pair], float]
    neutral: float
    form: str


MEASURES = {
    "overlap": Measure(
        title="Overlap of supports, relative to chance",
        reading="1× is what chance alone gives; 2× is twice as many shared weights",
        value=lambda pair: pair.over_chance,
        neutral=1.0,
        form="{:.1f}×",
    ),
    "sign_conflict": Measure(
        title="Sign conflict on shared weights",
        reading="% of the shared weights that are pulled in opposite directions; 50 % is chance, lower is better",
        value=lambda pair: 100 * pair.sign_conflict,
        neutral=50.0,
        form="{:.0f}",
    ),
    "cosine": Measure(
        title="Cosine on shared weights",
        reading="1 is the same direction, 0 unrelated, −1 opposite",
        value=lambda pair: pair.cosine,
        neutral=0.0,
        form="{:.2f}",
    ),
}


def score_norm(matrix: Matrix) -> Normalize:
    """Give the colour scale of the scores: from the lowest to the highest shown, in steps of five points."""
    shown = [v for c in matrix.cells for v in (c.score, c.task_only, c.majority, c.supervised) if v is not None]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    low, high = math.floor(low * 20) / 20, math.ceil(high * 20) / 20
    return Normalize(low, high if high > low else low + 0.05)


def gain_norm(matrix: Matrix) -> Normalize:
    """Give the colour scale of the gains: symmetric about 0, at least 15 points either way."""
    gains = [abs(cell.gain) for cell in matrix.cells if cell.gain is not None]
    return Normalize(-max([0.15, *gains]), max([0.15, *gains]))


def colours(value: float | None, norm: Normalize, *, diverging: bool = False) -> tuple[str, str]:
    """Give the colours of a value's background and of its text, as ``#rrggbb``; the text is readable on it."""
    if value is None or math.isnan(value):
        return MISSING, FAINT
    red, green, blue, _ = colormaps["PuOr_r" if diverging else "cividis"](float(norm(value)))
    background = "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2.2, relative luminance
    return background, PAPER if luminance < 0.179 else "#000000"  # either way a contrast of 4.5 or more


def matrix_figure(matrix: Matrix) -> Figure:
    """Draw the matrix as a heat map: for each target task its scores, and the gain over the task SFT alone.

    A gap is hatched and numbered; its reason stands below. Mean rows stand at the bottom.

    Args:
        matrix: what to draw.

    Returns:
        A figure whose height follows from the number of languages.
    """
    tasks = matrix.target_tasks
    languages = _figure_rows(matrix)
    means = max((len(matrix.means(task)) for task in tasks), default=0)
    blocks = [[c for c in shown_columns(matrix, task) if c not in DIFFERENCES] for task in tasks]
    width = 0.1 + sum(len(block) + 0.4 for block in blocks)
    height = len(languages) + (means + 0.4 if means else 0)
    label_width = 0.5 + 0.075 * max((len(_row_label(matrix, language)) for language in languages), default=10)
    notes = _gap_notes(matrix, languages)
    columns = int((label_width + _COLUMN * width) / 0.075)
    wrapped = [line for note in notes for line in textwrap.wrap(note, columns, subsequent_indent="      ")]
    wide = max(label_width + _COLUMN * width, 6.4, 0.3 + 0.11 * cell_len(title_of(matrix)))
    inches = (wide, 1.45 + _ROW * max(height, 1) + 0.35 + 0.17 * len(wrapped))
    right = wide - label_width - _COLUMN * width
    figure, axes = _canvas(inches, left=label_width, top=1.45, bottom=0.35 + 0.17 * len(wrapped), right=right)
    axes.set_xlim(0, width)
    axes.set_ylim(max(height, 1), 0)
    axes.axis("off")
    x = 0.1
    for task, block in zip(tasks, blocks, strict=True):
        _draw_block(axes, matrix, task, block, x=x, languages=languages)
        x += len(block) + 0.4
    for y, language in enumerate(languages):
        axes.text(-0.05, y + 0.5, _row_label(matrix, language), ha="right", va="center", fontsize=8.5, color=INK)
    names = dict.fromkeys(name for task in tasks for name, _ in matrix.means(task))
    for i, name in enumerate(names):
        middle = len(languages) + 0.9 + i
        axes.text(-0.05, middle, name, ha="right", va="center", fontsize=8.5, color=INK, weight="bold")
    metrics = ", ".join(dict.fromkeys(cell.metric for cell in matrix.cells)) or "scores"
    reading = (
        f"{metrics} in %, higher is better; gain in points: orange is a win over the task SFT alone, purple a loss"
    )
    _headline(figure, inches, title_of(matrix), reading)
    for i, line in enumerate(wrapped):
        figure.text(0.15 / inches[0], (0.17 * (len(wrapped) - i)) / inches[1], line, fontsize=7.5, color=FAINT)
    return figure


def interference_figure(pairs: Sequence[Pair], measure: str = "overlap", *, artificial: bool = False) -> Figure:
    """Draw one measure of interference for all pairs of SFTs, as the triangle below the diagonal.

    Args:
        pairs: each pair once, in either order.
        measure: ``overlap`` (relative to chance), ``sign_conflict`` (in %) or ``cosine``.
        artificial: whether the languages are artificial; the title says so.

    Raises:
        ConfigError: the measure is not one of these.
    """
    if measure not in MEASURES:
        raise ConfigError(f"measure of interference must be one of {', '.join(MEASURES)}, got {measure!r}")
    how = MEASURES[measure]
    names = list(dict.fromkeys([n for pair in pairs for n in (pair.a, pair.b)]))
    place = {name: i for i, name in enumerate(names)}
    rows = max(len(names) - 1, 1)
    values = np.full((rows, rows), np.nan)  # row i is the SFT i + 1, column j the SFT j < i + 1
    for pair in pairs:
        low, high = sorted((place[pair.a], place[pair.b]))
        if low != high:
            values[high - 1, low] = how.value(pair)
    cell = 0.46 if len(names) <= 16 else 0.34
    margin = 0.5 + 0.085 * max((len(name) for name in names), default=2)
    is_turned = len(names) > 8
    bottom = margin if is_turned else 0.45
    inches = (max(margin + cell * rows + 0.4, 6.4), 0.85 + cell * rows + bottom)
    figure, axes = _canvas(inches, left=margin, top=0.85, bottom=bottom, right=inches[0] - margin - cell * rows)
    norm = _centred(values, how.neutral)
    axes.pcolormesh(
        np.ma.masked_invalid(values), norm=norm, cmap="PuOr_r", edgecolors="white", linewidth=0.8, rasterized=True
    )
    axes.set_ylim(rows, 0)
    for (i, j), value in np.ndenumerate(values):
        if not math.isnan(value):
            style: dict[str, Any] = {
                "fontsize": 8 if len(names) <= 16 else 6,
                "color": colours(value, norm, diverging=True)[1],
            }
            axes.text(j + 0.5, i + 0.5, _minus(how.form.format(value)), ha="center", va="center", **style)
    _bare(axes)
    axes.set_xticks(np.arange(rows) + 0.5, names[:-1] or [""], rotation=90 if is_turned else 0)
    axes.set_yticks(np.arange(rows) + 0.5, names[1:] or [""])
    title = f"{how.title} (artificial languages)" if artificial else how.title
    _headline(figure, inches, title, how.reading)
    return figure


def density_figure(
    layers: Mapping[str, float], *, overall: float, title: str, groups: Mapping[str, float] | None = None
) -> Figure:
    """Draw how dense an SFT is in each layer, and in each parameter group where they are given.

    Args:
        layers: density in [0, 1] by layer name; numbered layers are put in order, the others before them.
        overall: density over all maskable weights, drawn as a line.
        title: such as ``language fo``.
        groups: density by parameter group, the same parameter over all layers.
    """
    bars = sorted(layers.items(), key=lambda item: (item[0].isdecimal(), int(item[0]) if item[0].isdecimal() else 0))
    grouped = sorted((groups or {}).items(), key=lambda item: -item[1])
    left = 0.5 + 0.075 * max((len(name) for name, _ in [*bars, *grouped]), default=4)
    tall = _ROW * len(bars) + (0.75 + _ROW * len(grouped) if grouped else 0)
    inches = (max(6.4, left + 4.6), 0.85 + tall + 0.65)
    figure, axes = _canvas(inches, left=left, top=0.85, bottom=inches[1] - 0.85 - _ROW * max(len(bars), 1), right=0.75)
    _draw_bars(axes, bars, overall)
    if grouped:
        space = inches[1] - (0.85 + _ROW * len(bars) + 0.75) - 0.65
        width = inches[0] - left - 0.75
        below = figure.add_axes((left / inches[0], 0.65 / inches[1], width / inches[0], space / inches[1]))
        _draw_bars(below, grouped, overall)
        below.set_title("by parameter, over all layers", loc="left", fontsize=8.5, color=FAINT)
    reading = f"% of the weights of each layer that change; the line is the density overall, {_share(overall)} %"
    _headline(figure, inches, f"Where the weights changed: {title}", reading)
    return figure


def _draw_block(
    axes: Axes, matrix: Matrix, task: str, columns: Sequence[str], *, x: float, languages: Sequence[MatrixLanguage]
) -> None:
    """Draw the columns of one target task."""
    cells = {language.code: cell for language, cell in matrix.rows(task)}
    axes.text(x, -1.55, task, ha="left", va="bottom", fontsize=10, weight="bold", color=INK)
    for i, column in enumerate(columns):
        heading = "\n".join(textwrap.wrap(COLUMNS[column], 10))
        axes.text(x + i + 0.5, -0.2, heading, ha="center", va="bottom", fontsize=7.5, color=INK)
    numbers = {cell: i for i, cell in enumerate(_gaps(matrix, languages), 1)}
    for y, language in enumerate(languages):
        cell = cells.get(language.code)
        number = numbers.get((task, language.code))
        for i, column in enumerate(columns):
            if number is not None and column in ("score", "gain"):
                label = f"({number})" if column == "score" else ""
                _draw_cell(axes, matrix, column, None, x=x + i, y=y, label=label)
            else:
                _draw_cell(axes, matrix, column, getattr(cell, column) if cell else None, x=x + i, y=y)
    for j, (_, mean) in enumerate(matrix.means(task)):
        for i, column in enumerate(columns):
            _draw_cell(axes, matrix, column, getattr(mean, column), x=x + i, y=len(languages) + 0.4 + j, bold=True)


def _draw_cell(
    axes: Axes,
    matrix: Matrix,
    column: str,
    value: float | None,
    *,
    x: float,
    y: float,
    bold: bool = False,
    label: str | None = None,
) -> None:
    """Draw a value in its colour; with a label, a hatched gap."""
    is_gain = column == "gain"
    face, ink = colours(value, gain_norm(matrix) if is_gain else score_norm(matrix), diverging=is_gain)
    box: dict[str, Any] = {"facecolor": face, "edgecolor": PAPER, "linewidth": 1.2}
    if label is not None:
        box |= {"hatch": "////", "edgecolor": "#c3c8ce", "linewidth": 0}
    axes.add_patch(Rectangle((x, y), 1, 1, **box))
    text = label if label is not None else (points(value) if is_gain else percent(value))
    weight = "bold" if bold else "normal"
    backing = {"facecolor": MISSING, "edgecolor": "none", "pad": 1.0} if label else None
    axes.text(
        x + 0.5, y + 0.5, text, ha="center", va="center_baseline", fontsize=8, color=ink, weight=weight, bbox=backing
    )


def _draw_bars(axes: Axes, bars: Sequence[tuple[str, float]], overall: float) -> None:
    values = [100 * value for _, value in bars]
    axes.barh(range(len(bars)), values, color=BAR, height=0.72)
    axes.axvline(100 * overall, color=LINE, linewidth=1.2, linestyle=(0, (4, 2)))
    high = max([*values, 100 * overall, 1e-9])
    for i, (_, value) in enumerate(bars):
        axes.text(100 * value + 0.012 * high, i, _share(value), ha="left", va="center", fontsize=7.5, color=INK)
    axes.set_xlim(0, high * 1.02)
    axes.set_ylim(max(len(bars), 1) - 0.5, -0.5)
    _bare(axes)
    axes.set_yticks(range(len(bars)), [f"layer {name}" if name.isdecimal() else name for name, _ in bars])
    axes.tick_params(axis="x", length=3, labelsize=7.5, colors=FAINT)
    axes.set_xlabel("density in %", fontsize=8, color=FAINT)


def _figure_rows(matrix: Matrix) -> list[MatrixLanguage]:
    """Give the languages with a cell: unseen, then seen, then those that some task SFT was learnt from."""
    roles = {cell.language: cell.is_source for cell in matrix.cells}
    for cell in matrix.cells:
        roles[cell.language] |= cell.is_source
    used = [language for language in matrix.languages if language.code in roles]
    return sorted(used, key=lambda language: (roles[language.code], language.is_seen is True))


def _row_label(matrix: Matrix, language: MatrixLanguage) -> str:
    cells = [cell for cell in matrix.cells if cell.language == language.code]
    roles = [role(language, cell) for cell in cells]
    shown = "source" if "source" in roles else (roles or [""])[0]
    name = language.name if language.name == language.code else f"{language.name} ({language.code})"
    return _literal(f"{name} · {shown}" if shown else name)


def _gaps(matrix: Matrix, languages: Sequence[MatrixLanguage]) -> dict[tuple[str, str], Cell]:
    """Give the gaps by (target task, language), in the order in which they are numbered."""
    found = {}
    for task in matrix.target_tasks:
        cells = {language.code: cell for language, cell in matrix.rows(task) if cell.is_gap}
        found.update({(task, lang.code): cells[lang.code] for lang in languages if lang.code in cells})
    return found


def _gap_notes(matrix: Matrix, languages: Sequence[MatrixLanguage]) -> list[str]:
    names = {language.code: language.name for language in languages}
    gaps = enumerate(_gaps(matrix, languages).items(), 1)
    return [
        _literal(f"({i}) {names[code]}, {task}: {cell.reason or 'not scored yet'}") for i, ((task, code), cell) in gaps
    ]


def _centred(values: np.ndarray[Any, np.dtype[np.float64]], neutral: float) -> Normalize:
    """Give a colour scale with the neutral value in its middle, as wide on either side as the values go."""
    known = values[~np.isnan(values)]
    reach = max(float(np.abs(known - neutral).max()) if known.size else 0.0, 0.1 * max(abs(neutral), 1.0))
    return TwoSlopeNorm(neutral, neutral - reach, neutral + reach)


def _canvas(
    inches: tuple[float, float], *, left: float, top: float, bottom: float, right: float = 0.15
) -> tuple[Figure, Axes]:
    """Make a figure with one set of axes inside margins given in inches."""
    width, height = inches
    figure = Figure(figsize=inches, facecolor=PAPER)
    FigureCanvasAgg(figure)
    rect = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(rect)


def _headline(figure: Figure, inches: tuple[float, float], title: str, reading: str) -> None:
    width, height = inches
    figure.text(0.15 / width, 1 - 0.3 / height, _literal(title), fontsize=11.5, weight="bold", color=INK)
    figure.text(0.15 / width, 1 - 0.52 / height, reading, fontsize=8, color=FAINT)


def _bare(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)


def _literal(text: str) -> str:
    """Keep matplotlib from reading dollars as formulas, and from drawing control characters."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _share(value: float) -> str:
    return f"{100 * value:.3g}"


__all__ = [
    "MEASURES",
    "Measure",
    "Pair",
    "colours",
    "density_figure",
    "gain_norm",
    "interference_figure",
    "matrix_figure",
    "score_norm",
]
