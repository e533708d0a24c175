"""Plan a large project whose products all exist."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import yaml

from benchmarks.bases import LABELS, save_base, size_of
from benchmarks.figures import Report, main
from ltsft.project import ProjectRef
from tasks.tracking import Child, NewRun, Tracker
from tasks.workspace import Workspace, open_workspace

SFT_METRICS, CELL_METRICS, MATRIX_METRICS = 60, 40, 6
"""About as many as the runs of each kind have."""


def run(*, quick: bool = False) -> Report:
    """Time the plan of a project with all of its runs in MLflow on SQLite, and the query in it."""
    languages, tasks = (6, 2) if quick else (200, 8)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        file = write_project(folder, languages, tasks, quick=quick)
        ref = ProjectRef(file=str(file))
        runs = make_everything(open_workspace(ref))
        seconds = [_timed_plan(ref) for _ in range(3)]
        queries = [_timed_query(open_workspace(ref)) for _ in range(3)]
        command = 0.0 if quick else _timed_command(file)
        stale = len(open_workspace(ref).plan.stale)
    report = Report("plan", f"{languages} languages x {tasks} target tasks, {runs} runs in MLflow on SQLite")
    report.at_most("plan_seconds", median(seconds), "s", 3.0, limit=median(queries))
    report.at_most("stale_products", float(stale), "", 0.0)
    if not quick:
        report.note("the command, with the start of Python", command, "s")
    return report


def write_project(folder: Path, languages: int, tasks: int, *, quick: bool) -> Path:
    """Write a project of so many languages and target tasks; give its file."""
    codes = [f"l{number:03}" for number in range(languages)]
    for number, code in enumerate(codes):
        (folder / f"{code}.txt").write_text(f"w{number} w{number + 1}\n" * 2000)
        (folder / f"{code}.conllu").write_text(f"1\tw{number}\t_\tL0\t_\t_\t0\troot\t_\t_\n\n" * 200)
    phase = {"max_steps": 10, "min_steps": 10, "learning_rate": 1e-4}
    recipe = {"density": 0.043, "full": phase, "sparse": phase, "batch_size": 8}
    test = {code: f"conllu:{code}.conllu" for code in codes}
    source = {codes[0]: {"train": f"conllu:{codes[0]}.conllu", "dev": f"conllu:{codes[0]}.conllu"}}
    names = [f"pos{number}" for number in range(tasks)]
    project = {
        "name": "large",
        "artificial": True,
        "data_root": str(folder),
        "base": {"id": str(save_base(size_of(quick), folder / "base"))},
        "languages": {c: {"name": c, "script": "Latn", "text": f"text:{c}.txt"} for c in codes},
        "target_tasks": {
            name: {"objective": "pos", "labels": list(LABELS), "sources": source, "test": test} for name in names
        },
        "recipes": {"language": recipe, **dict.fromkeys(names, recipe)},
        "store": {"folder": str(folder / "store")},
    }
    file = folder / "large.yaml"
    file.write_text(yaml.safe_dump(project, sort_keys=False))
    return file


def make_everything(workspace: Workspace) -> int:
    """Log a finished run for each product, and a matrix with a child for each cell; give the number of runs."""
    tracker, cells = workspace.tracker, []
    for step in workspace.plan.steps:
        product = step.product
        count = CELL_METRICS if product.kind == "cell" else SFT_METRICS
        metrics = {f"measured.layer.{number}.value": number / 7 for number in range(count)}
        with tracker.open_run(
            NewRun(
                name=product.subject,
                kind=product.kind,
                subject=product.subject,
                key=product.key,
                parts=product.parts,
                params=product.parts.get("recipe", {"language": product.language}),
            )
        ) as run:
            run.log_metrics(metrics)
        if product.kind == "cell":
            cells.append(Child(product.subject, "cell of matrix", product.subject, dict(list(metrics.items())[:6])))
    with tracker.open_run(NewRun(name="matrix", kind="matrix", subject="matrix", key="0" * 64, parts={})) as run:
        tracker.log_children(run, cells)
    return len(workspace.plan.steps) + len(cells) + 1


def _fresh(workspace: Workspace) -> Tracker:
    """Give a tracker that has read nothing yet."""
    return Tracker.of_project(workspace.project.name, workspace.store)


def _timed_plan(ref: ProjectRef) -> float:
    began = time.perf_counter()
    workspace = open_workspace(ref)
    workspace.tracker = _fresh(workspace)
    assert workspace.plan.steps
    return time.perf_counter() - began


def _timed_query(workspace: Workspace) -> float:
    tracker = _fresh(workspace)
    began = time.perf_counter()
    tracker.records()
    return time.perf_counter() - began


def _timed_command(file: Path) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-m", "ltsft.cli", "plan", str(file), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main("plan", run)
