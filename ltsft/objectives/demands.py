"""What objectives demand of a target task in the project file, each said as a problem with what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ltsft.config import TargetTask


def count_labels(target: TargetTask, least: int) -> list[str]:
    """Ask for so many labels at least."""
    if len(target.labels) >= least:
        return []
    return [f"labels: objective {target.objective} needs {least} or more, got {len(target.labels)}"]


def no_labels(target: TargetTask) -> list[str]:
    """Ask for no labels."""
    return [f"labels: objective {target.objective} has none; leave them out"] if target.labels else []


def schemes_within(target: TargetTask, schemes: Sequence[str]) -> list[str]:
    """Ask for sources of some schemes alone."""
    allowed = ", ".join(f"{scheme}:" for scheme in schemes)
    return [
        f"{path}: objective {target.objective} reads {allowed}; got {source.scheme}:"
        for path, source in target.all_sources().items()
        if source.scheme not in schemes
    ]


def columns_within(target: TargetTask, defaults: Mapping[str, str], optional: Sequence[str] = ()) -> list[str]:
    """Ask for columns that the objective knows."""
    known = [*defaults, *optional]
    return [
        f"columns: objective {target.objective} has no column {name!r}; allowed are {', '.join(known)}"
        for name in target.columns
        if name not in known
    ]


def no_columns(target: TargetTask) -> list[str]:
    """Ask for no names of columns: the format says which is which."""
    if not target.columns:
        return []
    return [f"columns: objective {target.objective} reads formats that say which column is which; leave them out"]
