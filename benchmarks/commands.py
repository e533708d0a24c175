"""Processor time of commands that start nothing, beside importing the libraries that they use."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.figures import Report, main
from benchmarks.plan import make_everything, write_project
from ltsft.project import ProjectRef
from tasks.workspace import open_workspace

GOALS = {"help": 0.3, "version": 0.3, "plan": 1.5, "releases": 1.0}
"""CPU seconds."""
USED = {
    "help": "import typer, typer.rich_utils",
    "version": "import typer, importlib.metadata",
    "plan": "import torch, mlflow.store.tracking.sqlalchemy_store",
    "releases": "import torch, mlflow.store.tracking.sqlalchemy_store",
}


def run(*, quick: bool = False) -> Report:
    """Time each command and its plain counterpart in turns; nothing is to be made in the project."""
    rounds = 1 if quick else 3
    with tempfile.TemporaryDirectory() as made:
        file = str(write_project(Path(made), 6, 2, quick=True))
        make_everything(open_workspace(ProjectRef(file=file)))
        commands = {
            "help": ["--help"],
            "version": ["--version"],
            "plan": ["plan", file],
            "releases": ["releases", "--project", file],
        }
        if quick:
            commands = {name: commands[name] for name in ("help", "version")}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, arguments in commands.items():
                taken[name].append((_cpu("-m", "ltsft.cli", *arguments), _cpu("-c", USED[name])))
    report = Report("commands", "6 languages x 2 target tasks, all made; CPU seconds of the process and its children")
    for name, times in taken.items():
        report.at_most(
            f"{name}_cpu_seconds", median(t for t, _ in times), "s", GOALS[name], plain=median(p for _, p in times)
        )
    return report


def _cpu(*arguments: str) -> float:
    """Run Python with these arguments; give the processor time that it took."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main("commands", run)
