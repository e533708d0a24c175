"""Weights of a composition searched on held-out data: every setting of a grid, by language and on average."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from ltsft.evaluation import percent, points
from ltsft.report import csv_table, markdown_table, text_table

__all__ = ["Setting", "WeightSearch", "grid_of"]


@dataclass(frozen=True, order=True)
class Setting:
    """One way to compose: a rule, and how much the language SFT and the task SFT count."""

    rule: str
    language: float
    task: float


PLAIN = Setting("sum", 1.0, 1.0)
"""The paper's."""


def grid_of(rules: Sequence[str], language: Sequence[float], task: Sequence[float]) -> list[Setting]:
    """Give every setting of a grid, the paper's first: what the others are compared with."""
    return list(dict.fromkeys([PLAIN, *(Setting(*values) for values in product(rules, language, task))]))


@dataclass(frozen=True)
class WeightSearch:
    """What every setting scored on held-out data.

    Attributes:
        target_task: such as ``pos``.
        metric: what the score is.
        scores: score in [0, 1], mean over seeds, by setting and then by language.
        sentences: of the held-out data, by language.
    """

    target_task: str
    metric: str
    scores: Mapping[Setting, Mapping[str, float]]
    sentences: Mapping[str, int]

    def mean(self, setting: Setting) -> float:
        """Average over the languages."""
        return fmean(self.scores[setting].values())

    @property
    def best(self) -> Setting:
        """The setting with the highest mean; of equals the first, and the paper's before all."""
        return max(self.scores, key=self.mean)

    def best_of(self, language: str) -> Setting:
        """Give the best setting of one language."""
        return max(self.scores, key=lambda setting: self.scores[setting][language])

    def summary(self) -> list[str]:
        """Say which setting is best and what it gains, and write it as the project file takes it."""
        best = self.best
        gain = points(self.mean(best) - self.mean(PLAIN))
        weights = json.dumps({"language": best.language, "task": best.task})
        lines = [
            f"Best on average: rule {best.rule}, language {best.language:g}, task {best.task:g}: "
            f"{percent(self.mean(best))} %, {gain} points over the plain sum. In the project file:",
            f"  composition: {{rule: {best.rule}, weights: {weights}}}",
        ]
        for code in self.sentences:
            own = self.best_of(code)
            gain = points(self.scores[own][code] - self.scores[PLAIN][code])
            lines.append(f"{code}: rule {own.rule}, language {own.language:g}, task {own.task:g} ({gain} points)")
        lines.append("A best of many on few sentences flatters itself: what it is worth, the test sets say.")
        return lines

    def as_rows(self) -> list[dict[str, Any]]:
        """Give plain values, for tables and JSON."""
        return [
            {
                **{"rule": s.rule, "language_weight": s.language, "task_weight": s.task, "mean": self.mean(s)},
                **{f"score.{code}": score for code, score in found.items()},
            }
            for s, found in self.scores.items()
        ]

    def csv(self) -> str:
        """Write the settings as CSV."""
        return csv_table(self.as_rows())

    def text(self) -> str:
        """Lay it out as aligned plain text."""
        header, rows = self._table()
        sizes = ", ".join(f"{code} {count:,}" for code, count in self.sentences.items())
        lines = [f"{self.target_task}: {self.metric} in % on held-out sentences ({sizes})", ""]
        lines += text_table(header, rows, ruler=True)
        return "\n".join([*lines, "", *self.summary()]) + "\n"

    def markdown(self) -> str:
        """Lay it out as Markdown."""
        header, rows = self._table()
        lines = [
            f"# Weights of {self.target_task}, on held-out data",
            "",
            *(f"- {line}" for line in self.summary()),
            "",
        ]
        return "\n".join([*lines, *markdown_table(header, rows)]) + "\n"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        header = ["rule", "language", "task", *self.sentences, "mean"]
        rows = []
        for s, found in self.scores.items():
            mean = f"{percent(self.mean(s))}{' *' if s == self.best else ''}"
            scores = (percent(found[code]) for code in self.sentences)
            rows.append([s.rule, f"{s.language:g}", f"{s.task:g}", *scores, mean])
        return header, rows
