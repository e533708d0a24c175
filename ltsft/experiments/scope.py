"""What an experiment is about, the same for each of its points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Scope"]


@dataclass(frozen=True)
class Scope:
    """What was scored in an experiment.

    Attributes:
        target_task: such as ``pos``.
        metric: what the score is, for people.
        gaps: by place, what could not be scored and why.
        artificial: whether the languages are artificial.
    """

    target_task: str
    metric: str
    gaps: Mapping[str, str] = field(default_factory=dict)
    artificial: bool = False
