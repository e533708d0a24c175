"""Training procedures side by side: each in a process of its own, stepping in turn, timed and its memory measured."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Timings, read_status

Gate = Callable[[], None]
"""Called by a procedure once it is set up, and after each step."""

Procedure = tuple[Callable[..., None], tuple[Any, ...]]
"""A function at the top of a module, and its arguments after the gate."""


@dataclass(frozen=True)
class Stepped:
    """What procedures cost that stepped in turn.

    Attributes:
        timings: seconds of each step.
        extra_bytes: the most that was resident beyond the interpreter and its libraries: the model, the state, a step.
        whole_bytes: the most that was resident in all.
    """

    timings: Timings
    extra_bytes: Mapping[str, int]
    whole_bytes: Mapping[str, int]


def step_in_turn(procedures: Mapping[str, Procedure], *, rounds: int, warmup: int = 1) -> Stepped:
    """Let procedures step in turn, each in a process of its own; only one of them runs at a time.

    Args:
        procedures: by name, a function at the top of a module and its arguments. It gets the gate before those, sets
            itself up, calls the gate, and calls it again after each step, for ever: it is stopped from outside.
        rounds: steps of each that are timed.
        warmup: steps before that, which do not count.

    Raises:
        RuntimeError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in procedures}
    extra: dict[str, int] = {}
    whole: dict[str, int] = {}
    children: dict[str, tuple[Any, Connection]] = {}
    try:
        for name, (procedure, arguments) in procedures.items():
            ours, theirs = context.Pipe()
            child = context.Process(target=_child, args=(theirs, procedure, arguments), daemon=True)
            child.start()
            theirs.close()
            children[name] = child, ours
            _receive(name, child, ours)  # set up
        for turn in range(-warmup, rounds):
            order = list(children) if turn % 2 == 0 else list(children)[::-1]
            for name in order:
                child, ours = children[name]
                ours.send("step")
                took, extra[name], whole[name] = _receive(name, child, ours)
                if turn >= 0:
                    seconds[name].append(took)
    finally:
        for child, _ in children.values():
            child.kill()
            child.join()
    return Stepped(Timings(seconds), extra, whole)


def _receive(name: str, child: Any, pipe: Connection) -> tuple[float, int, int]:
    try:
        received: tuple[float, int, int] = pipe.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"{name}: the process ended with exit code {child.exitcode}") from None
    return received


def _child(pipe: Connection, procedure: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # the threads and buffers of the libraries
    before = read_status("VmRSS")
    began: float | None = None

    def gate() -> None:
        nonlocal began
        took = 0.0 if began is None else time.perf_counter() - began
        gc.collect()
        if began is None:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # building the model does not count
        peak = read_status("VmHWM")
        pipe.send((took, peak - before, peak))
        pipe.recv()
        began = time.perf_counter()

    procedure(gate, *arguments)
