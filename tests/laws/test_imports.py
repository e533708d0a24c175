"""The direction of imports, read from the import statements: between rooms, between packages, and for each service.

`flows -> tasks -> ltsft`. Within `ltsft` and `tasks` packages stand on floors, and import what stands below. From
outside a package its face is imported (`__init__.pyi` lists it), from within its modules.
"""

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
ENTRY = "ltsft/cli/"
"""The one package above the flows: what it needs of them and of tasks it imports in functions."""
FLOORS = {
    "ltsft": (
        ("errors", "faces", "heap", "atomic", "canonical", "version"),
        ("config",),
        ("precision",),
        ("data", "sft"),
        ("base",),
        ("methods", "objectives"),
        ("composition",),
        ("project", "training", "evaluation"),
        ("release", "report", "toy"),
        ("serving", "experiments"),
        ("cli",),
    ),
    "tasks": (
        ("credentials", "migrating", "patience", "pod", "quiet", "storage"),
        ("settings",),
        ("tracking", "arrivals"),
        ("orchestration",),
        ("workspace",),
        ("training", "validation"),
        ("evaluation",),
        ("releases",),
    ),
}
"""From below: what stands on a floor imports what stands on lower ones, and nothing beside it."""
MOST_MODULES = 20
FOLDERS = ("ltsft", "tasks", "flows", "benchmarks", "tests")
SERVICES = {"prefect", "mlflow", "boto3", "botocore", "great_expectations"}
ONLY_IMPORTERS = {
    "mlflow": {
        "tasks/tracking/connection.py",
        "tasks/tracking/tracker.py",
        "tasks/migrating.py",  # before its server starts
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
    is_entry = name.startswith(ENTRY)
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


@cache
def homes(package: str) -> dict[str, str]:
    """The names of a package's face, each with its module."""
    stub = ROOT / package.replace(".", "/") / "__init__.pyi"
    nodes = parsed(stub).body if stub.is_file() else []
    return {a.name: str(n.module) for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}


@cache
def ours(file: Path) -> frozenset[tuple[str, str]]:
    """The modules of ours that a file imports, late or for types, too: as they are named, and where the names live."""
    named = []
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            named += [(alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            for alias in node.names:
                full = f"{module}.{alias.name}"
                is_module = any((ROOT / f"{full.replace('.', '/')}{end}").exists() for end in (".py", "/__init__.py"))
                where = full if is_module else homes(module).get(alias.name, module)
                named.append((full if is_module else module, where))
    return frozenset(pair for pair in named if pair[0].partition(".")[0] in ("ltsft", "tasks", "flows"))


def test_no_files_import_each_other_in_a_circle_not_even_late_or_for_types() -> None:
    names = {module_of(file) for file in FILES}
    assert len(names) == len(FILES)
    arrows = {module_of(file): {where for _, where in ours(file)} & names for file in FILES}
    order = list(TopologicalSorter(arrows).static_order())
    assert order.index("ltsft.errors") < order.index("tasks.tracking.tracker") < order.index("ltsft.cli.main")
    with pytest.raises(CycleError):
        TopologicalSorter({**arrows, "ltsft.errors": {"ltsft.cli.main"}}).prepare()


def package_of(module: str) -> str:
    """What stands on a floor: a package, or a module of its own."""
    return ".".join(module.split(".")[:2])


def floor_of(package: str) -> int:
    room, _, name = package.partition(".")
    [floor] = [number for number, names in enumerate(FLOORS[room]) if name in names]
    return floor


def points_up(importer: str, imported: str) -> bool:
    """Whether an import between two packages of a room goes to its own floor, or to a higher one."""
    one, other = package_of(importer), package_of(imported)
    return one != other and floor_of(other) >= floor_of(one)


@pytest.mark.parametrize("room", sorted(FLOORS))
def test_packages_stand_on_floors_and_import_what_stands_below(room: str) -> None:
    on_disk = {package_of(module_of(file)).partition(".")[2] for file in FILES if name_of(file).startswith(f"{room}/")}
    assert sorted(name for floor in FLOORS[room] for name in floor) == sorted(on_disk - {""})
    up = []
    for file in FILES:
        importer = module_of(file)
        if importer.startswith(f"{room}."):
            within = {where for _, where in ours(file) if where.partition(".")[0] == room}
            up += [f"{importer} -> {where}" for where in sorted(within) if where == room or points_up(importer, where)]
    assert not up
    assert points_up("ltsft.sft.files", "ltsft.methods.registry")
    assert points_up("tasks.training.learning", "tasks.validation.quality"), "nor what stands beside it"
    assert not points_up("ltsft.serving.engine", "ltsft.errors")


@pytest.mark.parametrize("file", [*FILES, *sorted((ROOT / "benchmarks").glob("*.py"))], ids=name_of)
def test_from_outside_a_package_its_face_is_imported(file: Path) -> None:
    within = package_of(module_of(file))
    past_the_face = {named for named, _ in ours(file) if named.count(".") > 1 and package_of(named) != within}
    assert not past_the_face


def test_no_folder_has_more_modules_than_one_sees_at_a_glance() -> None:
    folders = [folder for room in FOLDERS for folder in [ROOT / room, *(ROOT / room).rglob("*/")] if folder.is_dir()]
    counts = {name_of(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}


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
    return loaded_by(f"import {modules}")


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return set(done.stdout.split())


def test_what_a_project_file_may_say_is_pydantic_alone() -> None:
    loaded = loaded_by("from ltsft.config import *")
    assert "ltsft.config.recipe" in loaded
    assert not loaded & {"torch", "numpy", "transformers", "datasets", "prefect", "mlflow"}


def test_reading_a_project_and_what_is_released_waits_for_no_transformers_and_no_prefect() -> None:
    loaded = loaded_with("tasks.releases.live, ltsft.methods.registry, ltsft.objectives.registry")
    assert "torch" in loaded
    assert not loaded & {"transformers", "datasets", "prefect", "mlflow", "sklearn", "matplotlib"}


def test_the_processes_and_nodes_of_one_training_wait_for_no_prefect_and_no_mlflow() -> None:
    assert not loaded_with("tasks.training.together, tasks.training.joining") & {"prefect", "mlflow"}
    assert "torch" not in loaded_with("tasks.pod")
