"""Methods against each other: scores over seeds and languages, and how sure one may be of each difference.

What is resampled is said at `ltsft.evaluation.paired`: the sentences of each test set and the seeds; not the languages.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from ltsft.errors import ConfigError
from ltsft.evaluation import Interval, Outcomes, deviation, interval_of, percent, points, resampled_differences
from ltsft.experiments.scope import Scope
from ltsft.report import csv_table, markdown_table, text_table

__all__ = ["Comparison", "ComparisonRow", "MethodScores", "compare_methods"]

MEAN = "mean"
"""What the row over all languages is called."""


@dataclass(frozen=True)
class MethodScores:
    """What a method scored in one language.

    Attributes:
        method: such as ``lora``.
        language: code of the language.
        scores: score by seed, in [0, 1].
        outcomes: (correct, counted) of each test sentence by seed.
        supervised: score with labelled data of the language itself; None where there is none.
    """

    method: str
    language: str
    scores: Mapping[int, float]
    outcomes: Mapping[int, Outcomes] = field(repr=False)
    supervised: float | None = None


@dataclass(frozen=True)
class ComparisonRow:
    """One method in one language, or on average over all.

    Attributes:
        method: the method.
        language: the code, or ``mean``.
        score: mean over seeds.
        std: standard deviation over seeds; of the mean, that of the seeds' means over languages. 0 for one seed.
        difference: to the reference; None for the reference itself.
        supervised: for comparison, where there is one.
    """

    method: str
    language: str
    score: float
    std: float
    difference: Interval | None
    supervised: float | None = None

    def as_row(self) -> dict[str, Any]:
        """Give plain values, for tables and JSON."""
        found = {
            "difference": None,
            "lower": None,
            "upper": None,
            **(asdict(self.difference) if self.difference else {}),
        }
        return {**{n: getattr(self, n) for n in ("method", "language", "score", "std", "supervised")}, **found}


@dataclass(frozen=True)
class Comparison:
    """All rows of a comparison of methods on one target task.

    Attributes:
        target_task: such as ``pos``.
        reference: what the others are compared with.
        metric: what the score is.
        seeds: that every method was trained with.
        names: names of the languages by code; those that the mean is over, in order.
        rows: by method, then by language, the mean last.
        confidence: of the intervals.
        gaps: by method and language, why there is no score; these languages are left out of every mean.
        artificial: whether the languages are artificial.
    """

    target_task: str
    reference: str
    metric: str
    seeds: tuple[int, ...]
    names: Mapping[str, str]
    rows: tuple[ComparisonRow, ...]
    confidence: float
    gaps: Mapping[str, str] = field(default_factory=dict)
    artificial: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, the reference first."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def row(self, method: str, language: str = MEAN) -> ComparisonRow:
        """Give one row."""
        return next(row for row in self.rows if (row.method, row.language) == (method, language))

    def summary(self) -> list[str]:
        """Say in a sentence for each method how it compares with the reference."""
        lines = []
        for method in self.methods[1:]:
            row = self.row(method)
            found = row.difference
            if found is None:
                continue
            decided = [self.row(method, code).difference for code in self.names]
            better = sum(d is not None and d.lower > 0 for d in decided)
            worse = sum(d is not None and d.upper < 0 for d in decided)
            verdict = (
                "not decided at this size" if not found.is_decided else "better" if found.difference > 0 else "worse"
            )
            lines.append(
                f"{method} against {self.reference}: {points(found.difference)} points "
                f"[{points(found.lower)}, {points(found.upper)}], {verdict}; better in {better}, worse in {worse} of "
                f"{len(decided)} languages."
            )
        return lines

    def _scores(self) -> str:
        seeds = f"{len(self.seeds)} {'seeds' if len(self.seeds) > 1 else 'seed'} of the task training"
        return f"{self.metric} in %, mean {'± standard deviation ' if len(self.seeds) > 1 else ''}over {seeds}"

    def _differences(self) -> str:
        drawn = "sentences and seeds" if len(self.seeds) > 1 else "sentences"
        return (
            f"Difference to {self.reference} in points, with its {100 * self.confidence:g} % interval by paired "
            f"bootstrap over {drawn}, not over languages; * where it leaves out 0"
        )

    def markdown(self) -> str:
        """Lay it out as Markdown."""
        title = f"# Methods on {self.target_task}{' (artificial languages)' if self.artificial else ''}"
        lines = [title, "", *(f"- {line}" for line in self.summary()), "", f"{self._scores()}.", ""]
        lines += markdown_table(*self._table(_score), has_names=True)
        if len(self.methods) > 1:
            lines += ["", f"{self._differences()}.", "", *markdown_table(*self._table(_difference), has_names=True)]
        lines += ["", *(f"- no score: {where}: {reason}" for where, reason in self.gaps.items())] if self.gaps else []
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Lay it out as aligned plain text."""
        lines = [f"{self.target_task}: {self._scores()}", ""]
        lines += text_table(*self._table(_score), has_names=True, ruler=True)
        if len(self.methods) > 1:
            lines += ["", self._differences(), ""]
            lines += text_table(*self._table(_difference), has_names=True, ruler=True)
        lines += [f"  no score: {where}: {reason}" for where, reason in self.gaps.items()]
        return "\n".join(line.rstrip() for line in [*lines, "", *self.summary()]) + "\n"

    def csv(self) -> str:
        """Write the rows as CSV."""
        return csv_table([row.as_row() for row in self.rows])

    def _table(self, shown: Callable[[ComparisonRow, int], str]) -> tuple[list[str], list[list[str]]]:
        """Give a row for each language and a column for each method of which something is shown."""
        supervised = [row.supervised for row in self.rows if row.supervised is not None] if shown is _score else []
        methods = self.methods if shown is _score else self.methods[1:]
        header = ["language", *methods, *(["supervised"] if supervised else [])]
        found = []
        for code in (*self.names, MEAN):
            name = f"mean of {len(self.names)}" if code == MEAN else f"{self.names[code]} ({code})"
            cells = [shown(self.row(method, code), len(self.seeds)) for method in methods]
            rows = [self.row(method, code) for method in self.methods]
            best = max((row.supervised for row in rows if row.supervised is not None), default=None)
            found.append([name, *cells, *([percent(best)] if supervised else [])])
        return header, found


def compare_methods(
    scored: Sequence[MethodScores],
    *,
    reference: str,
    scope: Scope,
    names: Mapping[str, str],
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Comparison:
    """Compare methods with a reference, by language and on average over the languages that all of them have scored.

    Args:
        scored: every method in every language.
        reference: the method that the others are compared with.
        scope: what was scored.
        names: of the languages, by code, in the order of the table.
        confidence: of the intervals.
        resamples: how often sentences and seeds are drawn.

    Raises:
        ConfigError: nothing is scored by all methods, the reference is missing, or seeds or test sets differ.
    """
    found = {(one.method, one.language): one for one in scored}
    methods = tuple(dict.fromkeys([reference, *(one.method for one in scored)]))
    codes = [code for code in names if all((method, code) in found for method in methods)]
    if not codes:
        raise ConfigError(
            f"{scope.target_task}: no language is scored by all of {', '.join(methods)}; nothing to compare"
        )
    seeds = tuple(sorted(found[reference, codes[0]].scores))
    for (method, code), one in found.items():
        if tuple(sorted(one.scores)) != seeds:
            raise ConfigError(
                f"{method} in {code} was trained with seeds {sorted(one.scores)}, {reference} with {list(seeds)}; "
                "compared are the same seeds"
            )
    rows = _rows(found, methods, codes, seeds, confidence=confidence, resamples=resamples)
    return Comparison(
        target_task=scope.target_task,
        reference=reference,
        metric=scope.metric,
        seeds=seeds,
        names={code: names[code] for code in codes},
        rows=tuple(rows),
        confidence=confidence,
        gaps=dict(scope.gaps),
        artificial=scope.artificial,
    )


def _rows(
    found: Mapping[tuple[str, str], MethodScores],
    methods: Sequence[str],
    codes: Sequence[str],
    seeds: Sequence[int],
    *,
    confidence: float,
    resamples: int,
) -> list[ComparisonRow]:
    """Give a row for each method in each language and on average; the first method is what they are compared with."""
    reference, rows = methods[0], []
    for method in methods:
        drawn = {}
        for code in codes:
            one = found[method, code]
            if method != reference:
                ours, theirs = ([found[name, code].outcomes[seed] for seed in seeds] for name in (method, reference))
                drawn[code] = resampled_differences(ours, theirs, resamples=resamples, seed=zlib.crc32(code.encode()))
            interval = interval_of([drawn[code]], confidence=confidence) if code in drawn else None
            scores = [one.scores[seed] for seed in seeds]
            rows.append(ComparisonRow(method, code, fmean(scores), deviation(scores), interval, one.supervised))
        means = [fmean(found[method, code].scores[seed] for code in codes) for seed in seeds]
        interval = interval_of(list(drawn.values()), confidence=confidence) if drawn else None
        rows.append(ComparisonRow(method, MEAN, fmean(means), deviation(means), interval))
    return rows


def _score(row: ComparisonRow, seeds: int) -> str:
    return percent(row.score, row.std if seeds > 1 else None)


def _difference(row: ComparisonRow, seeds: int) -> str:
    d = row.difference
    if d is None:
        return "–"
    return f"{points(d.difference)} [{points(d.lower)}, {points(d.upper)}]{' *' if d.is_decided else '  '}"
