"""Timing so that two procedures meet the same machine, and the peak memory of work in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Timings:
    """Seconds of each procedure, one value a round."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Give the median seconds of a procedure."""
        return median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """Give the median over the rounds of one procedure's seconds over another's."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True))


def interleaved(
    procedures: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    reset: Callable[[], object] | None = None,
) -> Timings:
    """Time procedures in turn, so that what slows the machine slows all of them.

    Every other round goes through them backwards, so that none always comes after the same one. The garbage collector
    runs between the measurements and not within them.

    Args:
        procedures: what to time, by name. What one returns is dropped.
        rounds: how often each is timed.
        warmup: rounds before that, which do not count.
        reset: called after each, outside the time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in procedures}
    for turn in range(-warmup, rounds):
        order = list(procedures) if turn % 2 == 0 else list(procedures)[::-1]
        for name in order:
            gc.collect()
            gc.disable()
            try:
                began = time.perf_counter()
                procedures[name]()
                took = time.perf_counter() - began
            finally:
                gc.enable()
            if turn >= 0:
                seconds[name].append(took)
            if reset is not None:
                reset()
    return Timings(seconds)


@dataclass(frozen=True)
class Peak:
    """Memory of a process.

    Attributes:
        before_bytes: resident when the work began, with what was prepared for it.
        peak_bytes: the most that was resident while it ran.
        result: what the work returned.
    """

    before_bytes: int
    peak_bytes: int
    result: Any = None

    @property
    def extra_bytes(self) -> int:
        """What the work took beyond what was there."""
        return self.peak_bytes - self.before_bytes


def peak_memory(prepare: Callable[..., Callable[[], object]], *args: object) -> Peak:
    """Measure the peak resident memory of some work in a fresh process (Linux).

    Args:
        prepare: a function at the top of a module: sets everything up and gives the work, a function without
            arguments. What the work returns must be something that can be sent between processes.
        args: passed to `prepare`.

    Raises:
        RuntimeError: the process died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, prepare, args))
    child.start()
    sender.close()
    try:
        before, peak, result = receiver.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"{prepare.__name__}: the process ended with exit code {child.exitcode}") from None
    child.join()
    return Peak(before, peak, result)


def _child(sender: Connection, prepare: Callable[..., Callable[[], object]], args: tuple[object, ...]) -> None:
    work = prepare(*args)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew from what is resident now
    before = read_status("VmRSS")
    result = work()
    sender.send((before, read_status("VmHWM"), result))


def read_status(field: str) -> int:
    """Read a size of this process, in bytes, such as VmRSS or VmHWM (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
