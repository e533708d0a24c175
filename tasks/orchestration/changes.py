"""What bootstrap does: each change is told, and done unless it is only asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """Something that was, or would be, created, updated or deleted."""

    verb: str
    what: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in a line."""
        details = f" ({', '.join(self.details)})" if self.details else ""
        return f"{self.verb} {self.what}{details}"


class Doing:
    """What has to be done; does it, unless it is only asked."""

    def __init__(self, dry_run: bool) -> None:
        self.changes: list[Change] = []
        self._dry_run = dry_run

    def __call__(self, change: Change, act: Callable[[], object]) -> None:
        """Take a change down, and make it."""
        self.changes.append(change)
        if not self._dry_run:
            act()
