"""Ctrl-C at random moments of a whole run: none is lost, and nothing is told as failed because of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltsft.project.project import ProjectRef
from tasks.workspace.workspace import open_workspace

pytestmark = pytest.mark.integration
COMMAND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from ltsft.cli import app; app()"
LINES = 60
"""About so many lines a run of the tiny project says."""


def run_and_stop(file: Path, lines: int, pause: float) -> tuple[bool, int, float, str]:
    """Start the command and press Ctrl-C once it has said so many lines, and a pause is over.

    Returns:
        Whether it still ran, its exit code, how many seconds it took to end, and its words.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-u", "-c", COMMAND, "run", str(file)]
    said: list[str] = []
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        reader = threading.Thread(target=lambda: said.extend(run.stdout or ()))
        reader.start()
        while run.poll() is None and len(said) < lines:
            time.sleep(0.02)
        time.sleep(pause)
        still_ran = run.poll() is None
        if still_ran:
            run.send_signal(signal.SIGINT)
        begin = time.monotonic()
        run.wait(600)
        seconds = time.monotonic() - begin
        reader.join()
    return still_ran, run.returncode, seconds, "".join(said)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_of_two_hundred_interruptions_none_is_lost(
    tiny_project: Path, prefect_server: None, set_value: Callable[[Path, str, Any], None]
) -> None:
    phase = {"max_steps": 150, "min_steps": 150, "learning_rate": 1e-3}
    for name in ("language", "pos"):
        for stage in ("full", "sparse"):
            set_value(tiny_project, f"recipes.{name}.{stage}", phase)
    rng = random.Random(int(os.environ.get("LTSFT_SEED", "1")))
    stopped: list[float] = []
    for number in range(int(os.environ.get("LTSFT_INTERRUPTIONS", "200"))):
        still_ran, code, seconds, told = run_and_stop(tiny_project, rng.randrange(1, LINES), rng.uniform(0.0, 2.0))
        print(f"{number}: {'stopped' if still_ran else 'ended'} with {code} after {seconds:.1f} s", flush=True)
        if not still_ran or number % 10 == 9:  # there is less and less left to do
            set_value(tiny_project, "recipes.language.batch_size", rng.randrange(4, 64))
        if not still_ran:
            assert code == 0, told
            continue
        assert "Traceback" not in told, told[-3000:]
        assert "could not be made" not in told
        if "Report:" in told:  # it was over
            continue
        stopped.append(seconds)
        assert code == 130, told[-3000:]
        assert "stopped" in told
        tracker = open_workspace(ProjectRef(file=str(tiny_project))).tracker
        assert not tracker.latest_failed()
    print(f"{len(stopped)} were stopped, in {max(stopped):.1f} s at most")
    assert stopped
