"""A training step of a language SFT, both phases, beside the dense procedure and forward and backward alone."""

from __future__ import annotations

from benchmarks.bases import size_of
from benchmarks.figures import Report, main
from benchmarks.stepping import Procedure, Stepped, step_in_turn
from benchmarks.training import limit_steps, our_steps, plain_steps

GB = 1e9


def run(quick: bool = False) -> Report:
    """Let the procedures of each phase step in turn."""
    size = size_of(quick)
    batch, length = (4, 64) if quick else (4, 256)
    report = Report("language_step", f"{size.name}, masked LM, {batch} x {length} sub-words")
    rounds = 3 if quick else 4
    for phase, of_time, of_memory in (("sparse", 0.40, 0.45), ("full", 0.55, 0.8)):
        common = ("language", size, batch, length)
        procedures: dict[str, Procedure] = {
            "ours": (our_steps, (*common, phase)),
            "plain": (plain_steps, (*common, phase)),
            "limit": (limit_steps, common),
        }
        if phase == "full":
            del procedures["limit"]
        stepped = step_in_turn(procedures, rounds=rounds)
        report_steps(report, phase, stepped, of_time=of_time, of_memory=of_memory, of_limit=1.08)
    return report


def report_steps(
    report: Report, phase: str, stepped: Stepped, *, of_time: float, of_memory: float, of_limit: float
) -> None:
    """Add the figures of a phase: time and memory of the dense procedure's, and time of the limit's."""
    timings, extra = stepped.timings, stepped.extra_bytes
    report.at_most(f"{phase}_time_of_plain", timings.ratio("ours", "plain"), "x", of_time)
    report.at_most(f"{phase}_memory_of_plain", extra["ours"] / extra["plain"], "x", of_memory)
    if "limit" in extra:
        report.at_most(f"{phase}_time_of_limit", timings.ratio("ours", "limit"), "x", of_limit)
    for name in extra:
        report.note(f"{phase} {name}: seconds a step", timings.median(name), "s")
        report.note(f"{phase} {name}: memory, libraries not counted", extra[name] / GB, "GB")
        report.note(f"{phase} {name}: memory, all", stepped.whole_bytes[name] / GB, "GB")


if __name__ == "__main__":
    main("language_step", run)
