"""A sweep of densities: for each pair of a language SFT's and a task SFT's, the score, interference and overfitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from ltsft.errors import ConfigError
from ltsft.evaluation import Interval, Outcomes, deviation, interval_of, percent, points, resampled_differences
from ltsft.experiments.scope import Scope
from ltsft.report import csv_table, markdown_table, text_table

__all__ = ["LOSS_CHANGE", "MEASURES", "DensityPoint", "DensitySweep", "ScoredCell", "sweep_points"]

LOSS_CHANGE = "functional.language_loss_change"
MEASURES = {
    "interference.overlap": "overlap",
    "interference.sign_conflict": "sign conflict",
    "interference.energy": "collision energy",
    LOSS_CHANGE: "loss change",
}
"""What of a cell is averaged over languages, each with its title. Overlap is of the smaller support."""


@dataclass(frozen=True)
class ScoredCell:
    """What a sweep reads of one cell.

    Attributes:
        metrics: as in MLflow.
        outcomes: (correct, counted) of each test sentence by seed.
    """

    metrics: Mapping[str, float]
    outcomes: Mapping[int, Outcomes] = field(repr=False)


@dataclass(frozen=True)
class DensityPoint:
    """One pair of densities.

    Attributes:
        language_density: of the language SFTs.
        task_density: of the task SFT.
        score: mean over the target languages, and over seeds.
        std: over seeds, of that mean.
        task_only: the task SFT without a language SFT, the same mean.
        source_score: score in the source language's test set; None where there is none.
        train_score: of the source language's composition on what it was trained on.
        held_out_score: the same on what was held out.
        measures: means over the target languages, by the names of `MEASURES`.
        by_language: score by language.
    """

    language_density: float
    task_density: float
    score: float
    std: float
    task_only: float
    source_score: float | None
    train_score: float
    held_out_score: float
    measures: Mapping[str, float]
    by_language: Mapping[str, float]

    @property
    def gap(self) -> float:
        """Score on what was trained on less score on what was held out: how much is learnt by heart."""
        return self.train_score - self.held_out_score

    def as_row(self) -> dict[str, Any]:
        """Give plain values, for tables and JSON."""
        names = ("language_density", "task_density", "score", "std", "task_only", "source_score")
        return {
            **{name: getattr(self, name) for name in names},
            **{"train_score": self.train_score, "held_out_score": self.held_out_score, "train_held_out_gap": self.gap},
            **self.measures,
            **{f"score.{code}": score for code, score in self.by_language.items()},
        }


@dataclass(frozen=True)
class DensitySweep:
    """All points of a sweep on one target task.

    Attributes:
        target_task: such as ``pos``.
        metric: what the score is.
        languages: target languages that every mean is over: scored at every point, none of them a source language.
        seeds: of the task SFT.
        points: by language density, then task density.
        against_dense: the best point less the densest, where these are two and each has some languages.
        gaps: by point, what could not be scored and why.
        artificial: whether the languages are artificial.
    """

    target_task: str
    metric: str
    languages: tuple[str, ...]
    seeds: tuple[int, ...]
    points: tuple[DensityPoint, ...]
    against_dense: Interval | None
    gaps: Mapping[str, str] = field(default_factory=dict)
    artificial: bool = False

    @property
    def best(self) -> DensityPoint:
        """The point with the highest score; of equals the sparser one."""
        return max(self.points, key=lambda p: (p.score, -p.language_density * p.task_density))

    @property
    def densest(self) -> DensityPoint:
        """The point with the highest densities."""
        return max(self.points, key=lambda p: (p.language_density * p.task_density, p.language_density))

    def summary(self) -> list[str]:
        """Say where the optimum is, what the dense end costs, and whether interference and overfitting rise."""
        best, dense = self.best, self.densest
        lines = [f"The best pair is {_pair(best)}: {percent(best.score)} %, mean of {len(self.languages)} languages."]
        if best is dense:
            lines.append("It is the densest pair of the sweep: here the optimum is not at a lower density.")
        elif self.against_dense is not None:
            d = self.against_dense
            verdict = "more than chance" if d.is_decided else "not decided at this size"
            lines.append(
                f"The densest pair, {_pair(dense)}, has {percent(dense.score)} %: the best one is "
                f"{points(d.difference)} points better [{points(d.lower)}, {points(d.upper)}], {verdict}."
            )
        measured: dict[str, list[float | None]] = {
            "the score": [p.score for p in self.points],
            "the overlap of supports": [p.measures.get("interference.overlap") for p in self.points],
            "the collision energy": [p.measures.get("interference.energy") for p in self.points],
            "the masked-LM loss that the task SFT adds": [p.measures.get(LOSS_CHANGE) for p in self.points],
            "the gap between train and held-out score": [p.gap for p in self.points],
        }
        language, task = [p.language_density for p in self.points], [p.task_density for p in self.points]
        for name, values in measured.items():
            found = {
                "language": _mean_rank_correlation(language, values, at=task),
                "task": _mean_rank_correlation(task, values, at=language),
            }
            told = [f"{known:+.2f} with that of the {kind} SFT" for kind, known in found.items() if known is not None]
            if told:
                lines.append(f"Rank correlation of {name} with density: {', '.join(told)}.")
        return lines

    def caption(self) -> str:
        """Say what the figures are."""
        return (
            f"{self.metric} in %, mean over {', '.join(self.languages)} and {len(self.seeds)} "
            f"{'seeds' if len(self.seeds) > 1 else 'seed'}, ± standard deviation over seeds; the pair that is best was "
            "picked on these very scores"
        )

    def markdown(self) -> str:
        """Lay it out as Markdown."""
        header, rows = self._table()
        lines = [f"# Densities on {self.target_task}{' (artificial languages)' if self.artificial else ''}", ""]
        lines += [*(f"- {line}" for line in self.summary()), "", f"{self.caption()}.", ""]
        lines += markdown_table(header, rows)
        lines += ["", *(f"- {where}: {reason}" for where, reason in self.gaps.items())] if self.gaps else []
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Lay it out as aligned plain text."""
        header, rows = self._table()
        lines = [f"{self.target_task}: {self.caption()}", "", *text_table(header, rows)]
        lines += [f"  {where}: {reason}" for where, reason in self.gaps.items()]
        return "\n".join([*lines, "", *self.summary()]) + "\n"

    def csv(self) -> str:
        """Write the points as CSV."""
        return csv_table([point.as_row() for point in self.points])

    def _table(self) -> tuple[list[str], list[list[str]]]:
        header = ["language density", "task density", "score", "task SFT alone", "train", "held out", "gap"]
        header += MEASURES.values()
        rows = []
        for p in self.points:
            score = percent(p.score, p.std if len(self.seeds) > 1 else None)
            row = [_density(p.language_density), _density(p.task_density), f"{score}{' *' if p is self.best else ''}"]
            row += [percent(p.task_only), percent(p.train_score), percent(p.held_out_score), points(p.gap)]
            row += [_measure(name, p.measures.get(name)) for name in MEASURES]
            rows.append(row)
        return header, rows


def sweep_points(
    cells: Mapping[tuple[float, float], Mapping[str, ScoredCell]],
    fits: Mapping[tuple[float, float], tuple[float, float]],
    *,
    scope: Scope,
    languages: Sequence[str],
    source: str,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> DensitySweep:
    """Put the cells of a sweep together.

    Args:
        cells: by (language density, task density), then by language.
        fits: by the same, the score on what was trained on and on what was held out.
        scope: what was scored.
        languages: target languages, without source languages; those that some point has no score of are left out.
        source: the source language.
        confidence: of the interval of the best pair less the densest.
        resamples: how often sentences and seeds are drawn for it.

    Raises:
        ConfigError: no language is scored at every point.
    """
    pairs = sorted(pair for pair in cells if pair in fits)
    codes = tuple(code for code in languages if pairs and all(code in cells[pair] for pair in pairs))
    if not codes:
        raise ConfigError(
            f"{scope.target_task}: no target language is scored at every pair of densities; nothing to show"
        )
    seeds = tuple(sorted(cells[pairs[0]][codes[0]].outcomes))
    sweep = DensitySweep(
        scope.target_task,
        scope.metric,
        codes,
        seeds,
        tuple(_point(pair, cells[pair], fits[pair], codes=codes, seeds=seeds, source=source) for pair in pairs),
        None,
        dict(scope.gaps),
        scope.artificial,
    )
    if sweep.best is sweep.densest:
        return sweep
    best, dense = (cells[p.language_density, p.task_density] for p in (sweep.best, sweep.densest))
    drawn = [
        resampled_differences(
            [best[code].outcomes[seed] for seed in seeds],
            [dense[code].outcomes[seed] for seed in seeds],
            resamples=resamples,
        )
        for code in codes
    ]
    return replace(sweep, against_dense=interval_of(drawn, confidence=confidence))


def _point(
    pair: tuple[float, float],
    cells: Mapping[str, ScoredCell],
    fit: tuple[float, float],
    *,
    codes: Sequence[str],
    seeds: Sequence[int],
    source: str,
) -> DensityPoint:
    """Put the cells of a pair of densities together, on average over some languages."""
    here = [cells[code].metrics for code in codes]
    by_seed = [fmean(m[f"score.seed.{seed}"] for m in here) for seed in seeds]
    at_source = cells.get(source)
    return DensityPoint(
        *pair,
        score=fmean(by_seed),
        std=deviation(by_seed),
        task_only=fmean(m.get("score_task_only", 0.0) for m in here),
        source_score=at_source.metrics["score"] if at_source is not None else None,
        train_score=fit[0],
        held_out_score=fit[1],
        measures={n: fmean(m[n] for m in here) for n in MEASURES if all(n in m for m in here)},
        by_language={code: cells[code].metrics["score"] for code in codes},
    )


def _pair(point: DensityPoint) -> str:
    return f"language {_density(point.language_density)} x task {_density(point.task_density)}"


def _density(value: float) -> str:
    return f"{100 * value:.3g} %"


def _measure(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:+.2f}" if name.startswith("functional.") else percent(value)


def _mean_rank_correlation(
    densities: Sequence[float], values: Sequence[float | None], *, at: Sequence[float]
) -> float | None:
    """Give the mean of the rank correlations with one density at each value of the other; None if there is none."""
    found = []
    for fixed in sorted(set(at)):
        here = [i for i, other in enumerate(at) if other == fixed]
        found.append(_rank_correlation([densities[i] for i in here], [values[i] for i in here]))
    known = [value for value in found if value is not None]
    return fmean(known) if known else None


def _rank_correlation(a: Sequence[float], b: Sequence[float | None]) -> float | None:
    """Give Spearman's rank correlation; None where one of the two does not vary or has a gap."""
    known = [value for value in b if value is not None]
    if len(known) != len(a) or len(set(a)) < 2 or len(set(known)) < 2:
        return None
    ranks = [_ranks(a), _ranks(known)]
    means = [fmean(one) for one in ranks]
    x, y = ([value - mean for value in one] for one, mean in zip(ranks, means, strict=True))
    norm = (sum(v * v for v in x) * sum(v * v for v in y)) ** 0.5
    return float(sum(p * q for p, q in zip(x, y, strict=True)) / norm)


def _ranks(values: Sequence[float]) -> list[float]:
    """Give the rank of each value; equals share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
