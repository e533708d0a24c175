"""A training that is asked to stop ends between two steps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

import pytest
from sigterm import Stopped

from ltsft.errors import InterruptedTraining
from tasks.orchestration.stopping import run_stoppable


def test_sigterm_waits_for_the_end_of_a_step_and_then_goes_up(sigterm_raises: None) -> None:
    steps = []

    def train(should_stop: Callable[[], bool]) -> None:
        for step in range(200):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)
            steps.append(step)
            if should_stop():
                raise InterruptedTraining("asked to stop")

    with pytest.raises(Stopped):
        run_stoppable(train)

    assert 3 <= steps[-1] < 199
    assert steps == list(range(len(steps))), "no step was cut"


def test_the_handler_of_sigterm_stays_in_place(sigterm_raises: None) -> None:
    """Prefect acknowledges an order to stop only while its own handler is the one."""
    before = signal.getsignal(signal.SIGTERM)

    assert run_stoppable(lambda should_stop: signal.getsignal(signal.SIGTERM)) is before


def test_what_the_work_raises_goes_up_and_what_it_gives_comes_back() -> None:
    def fail(should_stop: Callable[[], bool]) -> None:
        raise ValueError("lost its way")

    with pytest.raises(ValueError, match="lost its way"):
        run_stoppable(fail)
    assert run_stoppable(lambda should_stop: should_stop()) is False


def test_the_work_sees_the_context_of_its_caller() -> None:
    variable = ContextVar("variable", default="none")
    variable.set("set")

    assert run_stoppable(lambda should_stop: variable.get()) == "set"


def test_outside_the_main_thread_the_work_runs_where_it_is() -> None:
    found: list[threading.Thread] = []
    thread = threading.Thread(target=lambda: found.append(run_stoppable(lambda _: threading.current_thread())))
    thread.start()
    thread.join()

    assert found == [thread]


PARENT = """
import subprocess, sys, time
child = "import time, tasks.orchestration.stopping as s; s.end_with_parent(); print(1, flush=True); time.sleep(60)"
running = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
running.stdout.readline()
print(running.pid, flush=True)
time.sleep(60)
"""


def test_a_process_in_a_session_of_its_own_ends_when_the_one_that_started_it_is_killed() -> None:
    def is_alive(pid: str) -> bool:
        try:
            return " Z " not in Path("/proc", pid, "stat").read_text()
        except OSError:
            return False

    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = parent.stdout.readline().strip()
        assert is_alive(child)
        parent.kill()
    end = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < end
        time.sleep(0.1)
