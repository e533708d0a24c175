"""The figures of a benchmark: the table for people, and the one line of JSON for programs.

A benchmark is a module with `run(quick) -> Report` that ends with `main("NAME", run)`. Everything that has a goal is a
figure and is in the JSON; what is measured only to be set beside it (the plain procedure, the limit, parts of a whole)
is in the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Figure:
    """One measured value and its goal.

    Attributes:
        name: of the figure, with its unit where that is not obvious, such as "save_seconds".
        value: what was measured.
        unit: such as "s", "GB", "bits", "x".
        goal: what it should be.
        direction: whether the value should be "at most" or "at least" the goal, or "within" the tolerance of it.
        tolerance: of "within".
        plain: the same figure for the plain procedure, where there is one.
        limit: the same figure for what the machine or the method allows, where there is one.
    """

    name: str
    value: float
    unit: str
    goal: float
    direction: str
    tolerance: float = 0.0
    plain: float | None = None
    limit: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the goal is reached; a value that is not a number reaches none."""
        if math.isnan(self.value):
            return False
        if self.direction == "within":
            return abs(self.value - self.goal) <= self.tolerance
        return self.value <= self.goal if self.direction == "at most" else self.value >= self.goal

    @property
    def goal_text(self) -> str:
        """The goal as the table shows it."""
        sign = {"at most": "<= ", "at least": ">= ", "within": ""}[self.direction]
        spread = f" +- {self.tolerance:g}" if self.direction == "within" else ""
        return f"{sign}{self.goal:g}{spread}"


class Report:
    """What a benchmark found: figures with goals, and notes beside them.

    Args:
        name: of the benchmark.
        size: what it was run on, in words.
    """

    def __init__(self, name: str, size: str) -> None:
        self.name = name
        self.size = size
        self.figures: list[Figure] = []
        self.notes: list[tuple[str, float, str]] = []

    def at_most(self, name: str, value: float, unit: str, goal: float, **beside: float | None) -> None:
        """Add a figure that should be at most its goal; `plain` and `limit` stand beside it."""
        self.figures.append(Figure(name, value, unit, goal, "at most", **beside))  # type: ignore[arg-type]

    def at_least(self, name: str, value: float, unit: str, goal: float, **beside: float | None) -> None:
        """Add a figure that should be at least its goal."""
        self.figures.append(Figure(name, value, unit, goal, "at least", **beside))  # type: ignore[arg-type]

    def within(self, name: str, value: float, unit: str, goal: float, tolerance: float, **beside: float | None) -> None:
        """Add a figure that should be its goal, give or take the tolerance."""
        self.figures.append(Figure(name, value, unit, goal, "within", tolerance, **beside))

    def note(self, name: str, value: float, unit: str) -> None:
        """Add a value that has no goal: for the table alone."""
        self.notes.append((name, value, unit))

    def as_json(self) -> dict[str, Any]:
        """Give the object of the last line."""
        figures = {
            f.name: {"value": round(f.value, 6), "unit": f.unit, "goal": f.goal, "met": f.is_met} for f in self.figures
        }
        return {"benchmark": self.name, "figures": figures}

    def table(self) -> str:
        """Give the table: figures first, notes below, the machine above."""
        head = ("figure", "value", "unit", "goal", "met", "plain", "limit")
        rows = [head] + [
            (
                f.name,
                _short(f.value),
                f.unit,
                f.goal_text,
                "yes" if f.is_met else "NO",
                _short(f.plain),
                _short(f.limit),
            )
            for f in self.figures
        ]
        rows += [(name, _short(value), unit, "", "", "", "") for name, value, unit in self.notes]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        if self.notes:
            lines.insert(2 + len(self.figures), "")
        return "\n".join([f"{self.name}: {self.size}; {_machine()}", "", *lines])


def main(name: str, run: Callable[..., Report]) -> None:
    """Run a benchmark as a command: the table, then one line of JSON.

    Args:
        name: of the benchmark, for the help text.
        run: takes `quick` and gives the report.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="a small size, under a minute; its goals say little")
    report = run(quick=parser.parse_args().quick)
    print(report.table())
    print()
    print(json.dumps(report.as_json()))


def _yes(is_met: bool) -> str:
    return "yes" if is_met else "NO"


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _machine() -> str:
    return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
