"""The direction of imports, read from the import statements: flows -> tasks -> ltsft, one importer for each service."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file for room in ("ltsft", "tasks", "flows") for file in (ROOT / room).rglob("*.py"))
ENTRY_POINTS = {"ltsft/cli/main.py", "ltsft/cli/experiments.py", "ltsft/cli/flows.py", "ltsft/cli/release.py"}
SERVICES = {"prefect", "mlflow", "boto3", "botocore", "great_expectations"}
ONLY_IMPORTERS = {
    "mlflow": {
        "tasks/tracking/connection.py",
        "tasks/tracking/tracker.py",
        "tasks/tracking/database.py",
        "tasks/tracking/records.py",  # a type alone
        "tasks/tracking/runs.py",
        "tasks/releases/registry.py",
        "tasks/releases/pyfunc.py",
        "tasks/releases/composed_model.py",
    },
    "great_expectations": {"tasks/validation/quality.py"},
    "boto3": {"tasks/storage.py"},
    "botocore": {"tasks/storage.py"},
    "yaml": {"ltsft/project/tree.py", "tasks/orchestration/bootstrapping.py"},  # the project file; prefect.yaml
    "pickle": {"ltsft/sft/torch_archive.py"},
}
NOT_IN_FLOWS = {"torch", "safetensors", "numpy", "transformers", "datasets"}
PICKLES = {"dill", "joblib", "shelve", "cloudpickle", "marshal"}


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module, and whether that happens on import (not in a function, not for type checkers alone)."""
    tree = parsed(file)
    late: set[int] = set()
    for node in ast.walk(tree):
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if is_typing or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            late |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(file)}: imports of ours are absolute"
            yield node.module or "", id(node) not in late


def rooms(file: Path, *, at_once_only: bool = False) -> set[str]:
    return {module.partition(".")[0] for module, at_once in imports(file) if at_once or not at_once_only}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_arrows_between_rooms_point_one_way(file: Path) -> None:
    name = name_of(file)
    is_entry = name in ENTRY_POINTS
    found = rooms(file, at_once_only=is_entry)
    if name.startswith("ltsft/"):
        assert not found & {"tasks", "flows"}, name
        assert not found & SERVICES, name
    if is_entry:
        assert not rooms(file) & SERVICES, name
    if name.startswith("tasks/"):
        assert "flows" not in found, name
    if name.startswith("flows/"):
        assert not found & NOT_IN_FLOWS, name


def module_of(file: Path) -> str:
    return name_of(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_no_files_import_each_other_in_a_circle_not_even_late_or_for_types() -> None:
    ours = {module_of(file) for file in FILES}
    assert len(ours) == len(FILES)
    arrows = {module_of(file): {module for module, _ in imports(file)} & ours for file in FILES}
    order = list(TopologicalSorter(arrows).static_order())
    assert order.index("ltsft.errors") < order.index("tasks.tracking.tracker") < order.index("ltsft.cli")
    with pytest.raises(CycleError):
        TopologicalSorter({**arrows, "ltsft.errors": {"ltsft.cli"}}).prepare()


@pytest.mark.parametrize("module", sorted(ONLY_IMPORTERS))
def test_each_service_has_its_own_importer(module: str) -> None:
    found = {name_of(file) for file in FILES if module in rooms(file)}
    assert found <= ONLY_IMPORTERS[module]


def test_nothing_is_unpickled_outside_the_importer_of_the_reference_format() -> None:
    for file in FILES:
        assert not rooms(file) & PICKLES, name_of(file)
        for node in ast.walk(parsed(file)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}, name_of(file)
            allowing = [k for k in node.keywords if k.arg == "allow_pickle"]
            refuses = [ast.unparse(k.value) == "False" for k in allowing]
            assert all(refuses), name_of(file)
            if called in {"np.load", "np.save", "numpy.load", "numpy.save"}:
                assert refuses, f"{name_of(file)}: {called} must say allow_pickle=False"


def test_errors_imports_nothing_of_ours() -> None:
    assert rooms(ROOT / "ltsft" / "errors.py") == {"__future__"}


def test_the_checker_sees_an_arrow_that_points_back(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("import mlflow.tracking\ndef f():\n    from flows.retrain import retrain\n", encoding="utf-8")
    assert rooms(file) == {"mlflow", "flows"}
    assert rooms(file, at_once_only=True) == {"mlflow"}


def loaded_with(modules: str) -> set[str]:
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    return set(done.stdout.split())


def test_reading_a_project_and_what_is_released_waits_for_no_transformers_and_no_prefect() -> None:
    loaded = loaded_with("tasks.releases.live, ltsft.methods.registry, ltsft.objectives.registry")
    assert "torch" in loaded
    assert not loaded & {"transformers", "datasets", "prefect", "mlflow", "sklearn", "matplotlib"}


def test_the_processes_and_nodes_of_one_training_wait_for_no_prefect_and_no_mlflow() -> None:
    assert not loaded_with("tasks.training.together, tasks.training.joining") & {"prefect", "mlflow"}
    assert "torch" not in loaded_with("tasks.pod")
