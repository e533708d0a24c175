"""A training step of a task SFT, sparse phase, beside the dense procedure and the forward and backward pass alone."""

from __future__ import annotations

from benchmarks.bases import size_of
from benchmarks.figures import Report, main
from benchmarks.language_step import report_steps
from benchmarks.stepping import step_in_turn
from benchmarks.training import limit_steps, our_steps, plain_steps


def run(quick: bool = False) -> Report:
    """Let the procedures step in turn."""
    size = size_of(quick)
    batch, length = (8, 32) if quick else (8, 128)
    report = Report("task_step", f"{size.name}, token classification, {batch} x {length} sub-words")
    common = ("task", size, batch, length)
    stepped = step_in_turn(
        {
            "ours": (our_steps, (*common, "sparse")),
            "plain": (plain_steps, (*common, "sparse")),
            "limit": (limit_steps, common),
        },
        rounds=3,
    )
    report_steps(report, "sparse", stepped, of_time=0.75, of_memory=0.5, of_limit=1.10)
    return report


if __name__ == "__main__":
    main("task_step", run)
