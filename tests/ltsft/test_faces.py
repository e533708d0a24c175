"""Packages' faces: what they list is there, in order, and costs nothing until it is asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ltsft
from ltsft.faces import face

ROOT = Path(ltsft.__file__).parents[1]
FACES = sorted(file for room in ("ltsft", "tasks") for file in (ROOT / room).rglob("__init__.pyi"))


@pytest.mark.parametrize("file", FACES, ids=lambda file: file.parent.relative_to(ROOT).as_posix())
def test_every_name_of_a_face_is_there_and_the_names_are_sorted(file: Path) -> None:
    package = import_module(".".join(file.parent.relative_to(ROOT).parts))
    assert package.__all__ == sorted(set(package.__all__)) == dir(package)
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_a_face_says_which_name_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "__init__.pyi").write_text("from json import dumps as dumps\n", encoding="utf-8")
    load, names, listed = face("some.package", str(tmp_path / "__init__.py"))
    assert (load("dumps")([1]), names(), listed) == ("[1]", ["dumps"], ["dumps"])
    with pytest.raises(AttributeError, match=r"'some[.]package' has no attribute 'loads'"):
        load("loads")


def test_importing_ltsft_loads_no_torch() -> None:
    code = "import sys, ltsft; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert not {"torch", "numpy", "transformers", "pydantic"} & set(done.stdout.split())
