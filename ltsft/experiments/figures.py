"""Plots of experiments: densities against score, interference and overfitting; methods against a reference.

Drawn as in ``ltsft/report/figures.py``: no pyplot, no display, colours that read the same with any colour vision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from ltsft.experiments.comparison import MEAN, Comparison
from ltsft.experiments.sweep import LOSS_CHANGE, DensityPoint, DensitySweep
from ltsft.report import BAR, FAINT, INK, LINE, PAPER

__all__ = ["comparison_figure", "sweep_figure"]

_MARKS = "osD^vPX*"
_PANELS: tuple[tuple[str, str, Callable[[DensityPoint], float | None]], ...] = (
    ("Target score", "mean over languages, %", lambda p: 100 * p.score),
    ("Overfitting", "train less held-out score, points", lambda p: 100 * p.gap),
    ("Collision", "% of both diffs' energy on shared weights", lambda p: _percent(p, "interference.energy")),
    ("Functional interference", "nats that the task SFT adds", lambda p: p.measures.get(LOSS_CHANGE)),
)


def sweep_figure(sweep: DensitySweep) -> Figure:
    """Draw a sweep: score, overfitting and interference over the density of one kind, a line for each of the other.

    The axis is the density that was swept more finely, that of the task SFT where both were.

    Args:
        sweep: what to draw.
    """
    tasks = sorted({p.task_density for p in sweep.points})
    languages = sorted({p.language_density for p in sweep.points})
    along_task = len(tasks) >= len(languages)
    lines, ticks = (languages, tasks) if along_task else (tasks, languages)
    figure = Figure(figsize=(9.6, 7.0), facecolor=PAPER)
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex=True)
    figure.subplots_adjust(left=0.09, right=0.975, top=0.83, bottom=0.09, wspace=0.22, hspace=0.3)
    for axes, (title, reading, value) in zip(panels.flat, _PANELS, strict=True):
        for i, density in enumerate(lines):
            row = [p for p in sweep.points if (p.language_density if along_task else p.task_density) == density]
            row = sorted(row, key=lambda p: p.task_density if along_task else p.language_density)
            shown = [(p.task_density if along_task else p.language_density, value(p), p) for p in row]
            known = [(x, y, p) for x, y, p in shown if y is not None]
            xs, ys, colour = [x for x, _, _ in known], [y for _, y, _ in known], _colour(i, len(lines))
            marks: dict[str, Any] = {"marker": _MARKS[i % len(_MARKS)], "markersize": 5, "linewidth": 1.6}
            axes.plot(xs, ys, label=f"{100 * density:.3g} %", color=colour, **marks)
            if title == "Target score" and len(sweep.seeds) > 1:
                spread = [100 * p.std for _, _, p in known]
                axes.errorbar(xs, ys, yerr=spread, fmt="none", ecolor=colour, elinewidth=1.0, capsize=2.5)
        _dress(axes, title, reading, ticks)
        if not any(value(p) is not None for p in sweep.points):
            axes.set_yticks([])
            middle = {"ha": "center", "va": "center", "transform": axes.transAxes, "fontsize": 8.5, "color": FAINT}
            axes.text(0.5, 0.5, "not measured for this method", **middle)
            continue
        low, high = axes.get_ylim()
        axes.set_ylim(low - max(0.0, 1.0 - high + low) / 2, high + max(0.0, 1.0 - high + low) / 2)  # noise looks small
    best = sweep.best
    at = best.task_density if along_task else best.language_density
    panels[0, 0].plot([at], [100 * best.score], marker="o", markersize=13, fillstyle="none", color=LINE, linestyle="")
    kind, other = ("task SFT", "language SFT") if along_task else ("language SFT", "task SFT")
    for axes in panels[1]:
        axes.set_xlabel(f"density of the {kind}", fontsize=8, color=FAINT)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), title=f"density of the {other}", title_fontsize=8, fontsize=8,
        ncols=len(lines), loc="upper right", bbox_to_anchor=(0.985, 0.99), frameon=False,
    )  # fmt: skip
    title = f"Densities on {sweep.target_task}{' (artificial languages)' if sweep.artificial else ''}"
    figure.text(0.02, 0.955, title, fontsize=11.5, weight="bold", color=INK)
    reading = "the ring marks the best pair; a claim of moderate density says: a peak before 100 %,"
    figure.text(0.02, 0.925, reading, fontsize=8, color=FAINT)
    figure.text(0.02, 0.9, "and the three others rising to the right", fontsize=8, color=FAINT)
    return figure


def comparison_figure(comparison: Comparison) -> Figure:
    """Draw each method's difference to the reference with its interval: a panel for each, a row for each language.

    Args:
        comparison: what to draw; with one method there is a panel that says so.
    """
    methods = comparison.methods[1:]
    codes = [*comparison.names, MEAN]
    label = 0.6 + 0.075 * max(len(f"{name} ({code})") for code, name in comparison.names.items())
    width, height = max(6.4, label + 2.1 * max(1, len(methods)) + 0.2), 1.55 + 0.27 * len(codes)
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    panels: Sequence[Axes] = figure.subplots(1, max(1, len(methods)), sharey=True, sharex=True, squeeze=False)[0]
    figure.subplots_adjust(left=label / width, right=1 - 0.15 / width, top=1 - 1.0 / height, bottom=0.5 / height)
    for axes, method in zip(panels, methods, strict=False):
        for y, code in enumerate(codes):
            found = comparison.row(method, code).difference
            if found is None:
                continue
            low, middle, high = (100 * value for value in (found.lower, found.difference, found.upper))
            colour = FAINT if not found.is_decided else BAR if middle > 0 else LINE
            size = 7 if code == MEAN else 4.5
            axes.plot([low, high], [y, y], color=colour, linewidth=2.4 if code == MEAN else 1.4)
            axes.plot([middle], [y], marker="D" if code == MEAN else "o", markersize=size, color=colour)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_title(method, fontsize=9.5, loc="left", color=INK, weight="bold")
    if not methods:
        alone = f"{comparison.reference} alone: there is nothing to compare it with"
        panels[0].text(0.5, 0.5, alone, transform=panels[0].transAxes, ha="center", fontsize=8, color=FAINT)
    for axes in panels:
        axes.set_ylim(len(codes) - 0.4, -0.6)
        axes.axhline(len(codes) - 1.5, color="#d9dde2", linewidth=0.8)
        axes.grid(axis="x", color="#e6e9ed", linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    names = [f"{name} ({code})" for code, name in comparison.names.items()] + [f"mean of {len(comparison.names)}"]
    panels[0].set_yticks(range(len(codes)), [name.replace("$", r"\$") for name in names])
    artificial = " (artificial languages)" if comparison.artificial else ""
    title = f"Methods on {comparison.target_task}: difference to {comparison.reference}{artificial}"
    figure.text(0.15 / width, 1 - 0.3 / height, title, fontsize=11.5, weight="bold", color=INK)
    reading = (
        f"points of {comparison.metric} and {100 * comparison.confidence:g} % intervals; blue is better, orange worse, "
        "grey not decided"
    )
    figure.text(0.15 / width, 1 - 0.52 / height, reading, fontsize=8, color=FAINT)
    return figure


def _percent(point: DensityPoint, name: str) -> float | None:
    value = point.measures.get(name)
    return None if value is None else 100 * value


def _colour(i: int, count: int) -> str:
    red, green, blue, _ = colormaps["cividis"](0.05 + 0.85 * i / max(1, count - 1))
    return "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))


def _dress(axes: Axes, title: str, reading: str, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, weight="bold")
    axes.set_ylabel(reading, fontsize=8, color=FAINT)
    axes.grid(color="#e6e9ed", linewidth=0.6)
    axes.tick_params(labelsize=8, labelcolor=INK, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
