"""Rows as Markdown, as aligned plain text and as CSV: how every experiment lays out its table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len

__all__ = ["csv_table", "markdown_table", "text_table"]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, has_names: bool = False) -> list[str]:
    """Give the lines of a Markdown table, aligned to the right; the first column to the left if it has names."""
    ruler = "|:---|" + "---:|" * (len(header) - 1) if has_names else "|" + "---:|" * len(header)
    return ["| " + " | ".join(header) + " |", ruler, *("| " + " | ".join(row) + " |" for row in rows)]


def text_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    has_names: bool = False,
    names: Sequence[int] = (),
    ruler: bool = False,
) -> list[str]:
    """Give the lines of a plain table, aligned to the right; to the left the first column if it has names, and `names`.

    Args:
        header: a title for each column.
        rows: the cells.
        has_names: whether the first column has names.
        names: numbers of columns that have names, too.
        ruler: whether a line stands under the header.
    """
    widths = [max(cell_len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *([["-" * width for width in widths]] if ruler else []), *rows]:
        cells = [" " * (width - cell_len(cell)) + cell for cell, width in zip(row, widths, strict=True)]
        for i in {*names, *([0] if has_names else [])}:
            cells[i] = row[i] + " " * (widths[i] - cell_len(row[i]))
        lines.append("  ".join(cells).rstrip())
    return lines


def csv_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as CSV; the columns are all names, in the order in which they come up."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
