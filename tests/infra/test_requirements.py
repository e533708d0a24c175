"""The locked files say what pyproject.toml asks for: each package once, in its range, with hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINS = ROOT / "requirements"
LAYERS = ("runtime", "serving", "dev", "torch")
"""Files that are installed together, and share no package."""


def locked(name: str) -> dict[str, Requirement]:
    """Packages of a locked file; each is seen to have a hash."""
    found = {}
    text = (PINS / f"{name}.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            assert "--hash=sha256:" in line, line
            requirement = Requirement(line.partition("--hash")[0].strip())
            found[canonicalize_name(requirement.name)] = requirement
    return found


def version(requirement: Requirement) -> str:
    pinned = re.fullmatch(r"==([^,]+)", str(requirement.specifier))
    assert pinned, requirement
    return pinned[1]


def asked() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(t for extra in project["optional-dependencies"].values() for t in extra)]
    return [r for r in map(Requirement, texts) if r.name != "ltsft"]


def test_each_package_that_the_project_asks_for_is_locked_within_its_range() -> None:
    all_locked = {name: pin for layer in LAYERS for name, pin in locked(layer).items()}
    for requirement in asked():
        name = canonicalize_name(requirement.name)
        assert name in all_locked, f"{name}: run `make lock`"
        assert requirement.specifier.contains(version(all_locked[name])), f"{requirement}: run `make lock`"


def test_no_package_is_locked_twice() -> None:
    names = [name for layer in LAYERS for name in locked(layer)]
    assert len(names) == len(set(names))


def test_both_builds_of_torch_are_the_same_version() -> None:
    assert version(locked("torch-cpu")["torch"]) == version(locked("torch")["torch"]) + "+cpu"


def test_what_builds_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [*project["build-system"]["requires"], *project["dependency-groups"]["build"]]
    for requirement in map(Requirement, groups):
        assert requirement.specifier.contains(version(locked("build")[canonicalize_name(requirement.name)]))


def test_the_image_has_nothing_that_only_tests_and_linters_need() -> None:
    image = {**locked("runtime"), **locked("serving")}
    assert not {"pytest", "mypy", "ruff", "moto", "kubernetes-validate", "onnxruntime", "hypothesis"} & set(image)
    text = (ROOT / "Dockerfile").read_text()
    assert set(re.findall(r"requirements/([\w-]+)\.txt", text)) == {"build", "runtime", "serving", "torch", "torch-cpu"}
