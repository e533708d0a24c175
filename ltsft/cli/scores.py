"""The commands that compare scores: diff. Thin, as in `ltsft/cli/main.py`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ltsft.cli.console import told_errors
from ltsft.cli.options import AsJson, ProjectFile, ProjectOptions, grouped

if TYPE_CHECKING:
    from tasks.evaluation import CellDifference

scoring = typer.Typer()


@scoring.command()
@grouped
def diff(
    file: ProjectFile,
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [RUN]",
            help="MLflow runs of two matrices, or how their ids begin; with one, it and the newest; the newest and the "
            "one before it without.",
        ),
    ] = None,
    options: ProjectOptions = ProjectOptions(),  # noqa: B008 - it is frozen
    as_json: AsJson = False,
) -> None:
    """Compare two matrices: what each cell was, what it is, and whether that is more than noise."""
    named = runs or []
    if len(named) > 2:
        raise typer.BadParameter(f"two runs at most are compared, got {len(named)}")
    with told_errors():
        from tasks.evaluation import compare_matrices
        from tasks.workspace import open_workspace

        workspace = open_workspace(options.ref(file), needs_data=False)
        before, after, rows = compare_matrices(workspace, named)
    if as_json:
        told = {"before": before.run_id, "after": after.run_id, "cells": [row.as_row() for row in rows]}
        print(json.dumps(told, indent=2))
        return
    for name, matrix in (("before", before), ("after ", after)):
        print(f"{name}  {matrix.run_id[:8]}  {matrix.end:%Y-%m-%d %H:%M}")
    print()
    print("\n".join(_lines(rows)))


def _lines(rows: list[CellDifference]) -> list[str]:
    from ltsft.evaluation import change_text, cut, percent, summed_up
    from ltsft.report import text_table

    shown = [
        [
            cut(row.subject.removeprefix("cell ")),
            percent(row.before),
            percent(row.after),
            "no score" if row.change is None else change_text(row.change),
        ]
        for row in rows
    ]
    table = text_table(["cell", "before", "after", "change"], shown, names=(0, 3), ruler=True)
    return [*table, "", summed_up([row.change for row in rows])]
