"""How long what is to be made will take, by what the record says of finished products."""

from __future__ import annotations

from ltsft.project import Expected, Measured, expected_time
from tasks.tracking import ATTEMPTS
from tasks.workspace.workspace import Workspace


def expected(workspace: Workspace) -> Expected:
    """Say how long what is not up to date will take; what was killed on its way, and waited, is not measured."""
    measured = [
        Measured(record.kind, record.parts, (record.end - record.start).total_seconds())
        for record in workspace.tracker.records()
        if record.tags.get(ATTEMPTS) == "1"
    ]
    return expected_time((step.product for step in workspace.plan.stale), measured)
