"""Faces of packages: the names that others use, each loaded from its module when somebody asks for it (PEP 562).

A package lists them once, in ``__init__.pyi`` beside its ``__init__.py``, as imports; type checkers read the same file.
So ``import ltsft`` takes no time, and who reads a project file waits for no transformers.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["face"]


def face(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the face of a package from the stub beside its ``__init__.py``.

    Args:
        package: its name.
        file: its ``__init__.py``.

    Returns:
        ``__getattr__``, ``__dir__`` and ``__all__`` of the package; ``__all__`` is sorted.

    Example:
        >>> __getattr__, __dir__, __all__ = face(__name__, __file__)  # doctest: +SKIP
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    homes = {
        alias.name: str(node.module) for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return load, lambda: sorted(homes), sorted(homes)
