"""The commands that compare: diff (matrices), compare (SFTs). Thin, as in `ltsft/cli/main.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ltsft.cli.console import console, escaped, fail, told_errors
from ltsft.cli.options import AsJson, ProjectFile, ProjectOptions, grouped

if TYPE_CHECKING:
    from ltsft.sft import SFT
    from tasks.evaluation import CellDifference

comparing = typer.Typer()


@comparing.command()
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


@comparing.command()
def compare(
    sfts: Annotated[list[Path], typer.Argument(help="Two or more SFT folders.")], as_json: AsJson = False
) -> None:
    """Show how every two of the SFTs interfere: overlap, sign conflict, collision."""
    if len(sfts) < 2:
        fail(f"compare takes two SFT folders or more, got {len(sfts)}")
    with told_errors():
        from ltsft.evaluation import interference
        from ltsft.sft import load_sft

        loaded = [load_sft(folder) for folder in sfts]
        pairs = [(a, b, interference(a, b)) for i, a in enumerate(loaded) for b in loaded[i + 1 :]]
    if as_json:
        rows: list[dict[str, Any]] = [
            {"a": a.path, "b": b.path, "a_subject": a.subject, "b_subject": b.subject, **met.to_dict()}
            for a, b, met in pairs
        ]
        print(json.dumps(rows, indent=2))
        return
    names = _told_apart(loaded)
    table = Table("a", "b", "in both", "x chance", "overlap %", "conflict %", "cosine", "energy %", box=None)
    for a, b, met in pairs:
        o = met.overall
        table.add_row(
            escaped(names[str(a.path)]),
            escaped(names[str(b.path)]),
            f"{o.intersection:,}",
            f"{o.intersection / o.expected:.2f}" if o.expected else "-",
            f"{100 * o.overlap:.2f}",
            f"{100 * o.sign_conflict:.2f}",
            f"{o.cosine_on_intersection:.3f}",
            f"{100 * o.energy:.2f}",
        )
    out = console()
    out.print(table)
    for folder, name in names.items():
        out.print(f"{escaped(name)}: {escaped(folder)}", soft_wrap=True)


def _told_apart(sfts: Sequence[SFT]) -> dict[str, str]:
    """Give, by folder, the subject of each SFT; a number is added where there are several of one subject."""
    subjects = [sft.subject for sft in sfts]
    numbers = {subject: count(1) for subject in subjects}
    return {
        str(sft.path): f"{sft.subject} #{next(numbers[sft.subject])}"
        if subjects.count(sft.subject) > 1
        else sft.subject
        for sft in sfts
    }
