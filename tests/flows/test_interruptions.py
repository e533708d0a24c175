"""Ctrl-C at random moments of a whole run: none is lost, and nothing is told as failed because of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltsft.project.project import ProjectRef
from tasks.workspace.workspace import open_workspace

pytestmark = pytest.mark.integration
COMMAND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from ltsft.cli import app; app()"


def run_and_stop(file: Path, after: float) -> tuple[bool, int, float, str]:
    """Start the command and press Ctrl-C; say whether it still ran, its exit code, how long it took, and its words."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", COMMAND, "run", str(file)]
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        try:
            run.wait(after)
            still_ran = False
        except subprocess.TimeoutExpired:
            still_ran = True
            run.send_signal(signal.SIGINT)
        begin = time.monotonic()
        output, errors = run.communicate(timeout=600)
    return still_ran, run.returncode, time.monotonic() - begin, output + errors


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_of_two_hundred_interruptions_none_is_lost(
    tiny_project: Path, prefect_server: None, set_value: Callable[[Path, str, Any], None]
) -> None:
    phase = {"max_steps": 150, "min_steps": 150, "learning_rate": 1e-3}
    for name in ("language", "pos"):
        for stage in ("full", "sparse"):
            set_value(tiny_project, f"recipes.{name}.{stage}", phase)
    begin = time.monotonic()
    rng = random.Random(1)
    stopped: list[float] = []
    longest = 20.0
    for number in range(int(os.environ.get("LTSFT_INTERRUPTIONS", "200"))):
        still_ran, code, seconds, told = run_and_stop(tiny_project, rng.uniform(3.0, longest))
        print(f"{number}: {'stopped' if still_ran else 'ended'} with {code} after {seconds:.1f} s", flush=True)
        if not still_ran:  # it was quicker: make it learn anew
            assert code == 0, told
            set_value(tiny_project, "recipes.language.batch_size", rng.randrange(4, 64))
            continue
        stopped.append(seconds)
        assert code == 130, told[-3000:]
        assert "stopped" in told
        assert "could not be made" not in told
        tracker = open_workspace(ProjectRef(file=str(tiny_project))).tracker
        assert not tracker.latest_failed()
    print(f"{len(stopped)} were stopped, in {max(stopped):.1f} s at most; {time.monotonic() - begin:.0f} s in all")
    assert stopped
