"""Training steps on a GPU in bf16, for mBERT's and XLM-R base's sizes and both phases, beside the dense procedure.

Every step is run to its end before the next, so that a step's time is its own. Without a GPU nothing is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from statistics import median

import torch

from benchmarks.bases import MBERT, QUICK, Size
from benchmarks.figures import Report, main
from benchmarks.training import our_steps, plain_steps

XLM_R = Size("XLM-R base (277.5 M parameters)", 250_002, 768, 12, 12, 3072, 7_667_712, 14_155_776)
BATCH, LENGTH = 32, 256
GB = 1e9


class _EnoughError(Exception):
    """Ends a procedure that would go on for ever."""


def run(quick: bool = False) -> Report:
    """Measure each size, phase and procedure one after the other, three times in turn."""
    if not torch.cuda.is_available():
        return Report("gpu", "there is no GPU here, so nothing was measured")
    report = Report("gpu", f"{torch.cuda.get_device_name()}, bf16, masked LM, {BATCH} x {LENGTH} sub-words")
    for label, size in (("small", QUICK),) if quick else (("mbert", MBERT), ("xlmr", XLM_R)):
        for phase, of_time, of_memory in (("sparse", 0.40, 0.45), ("full", 0.55, 0.8)):
            seconds: dict[str, list[float]] = {"ours": [], "plain": []}
            peaks: dict[str, int] = {}
            for turn in range(3):
                for name in ("ours", "plain") if turn % 2 == 0 else ("plain", "ours"):
                    took, peaks[name] = _measure(name, size, phase, steps=3 if quick else 10)
                    seconds[name].append(took)
            ratio = median(a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True))
            report.at_most(f"{label}_{phase}_time_of_plain", ratio, "x", of_time)
            report.at_most(f"{label}_{phase}_memory_of_plain", peaks["ours"] / peaks["plain"], "x", of_memory)
            for name in ("ours", "plain"):
                report.note(f"{label} {phase} {name}: a step", 1000 * median(seconds[name]), "ms")
                report.note(f"{label} {phase} {name}: peak memory", peaks[name] / GB, "GB")
    return report


def _measure(name: str, size: Size, phase: str, *, steps: int) -> tuple[float, int]:
    """Give the median seconds of a step and the peak memory of some steps, after two that do not count."""
    torch.cuda.empty_cache()
    marks: list[float] = []

    def gate() -> None:
        torch.cuda.synchronize()
        if len(marks) == 2:
            torch.cuda.reset_peak_memory_stats()
        marks.append(time.perf_counter())
        if len(marks) > steps + 2:
            raise _EnoughError

    common = (gate, "language", size, BATCH, LENGTH, phase, "cuda")
    procedure: Callable[[], None] = (
        (lambda: our_steps(*common, "bf16")) if name == "ours" else (lambda: plain_steps(*common, True))
    )
    with suppress(_EnoughError):
        procedure()
    took = [after - before for before, after in pairwise(marks[2:])]
    return median(took), torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main("gpu", run)
