"""No function is longer, or takes more, than can be taken in at a glance; no exemptions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 60
MOST_PARAMETERS = 8


def too_large(code: str) -> list[str]:
    """The functions of some code that are too long or take too much, each with its size."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            taken = node.args
            parameters = len([*taken.posonlyargs, *taken.args, *taken.kwonlyargs])
            if lines > MOST_LINES or parameters > MOST_PARAMETERS:
                found.append(f"{node.name}: {lines} lines, {parameters} parameters")
    return found


@pytest.mark.parametrize("room", ["ltsft", "tasks", "flows"])
def test_no_function_is_over_60_lines_or_takes_more_than_8_parameters(room: str) -> None:
    files = (ROOT / room).rglob("*.py")
    found = {str(file.relative_to(ROOT)): too_large(file.read_text(encoding="utf-8")) for file in files}
    assert not {file: names for file, names in found.items() if names}


def test_the_law_sees_what_is_too_large() -> None:
    taken = ", ".join("abcdefgh")
    body = "    pass\n"
    assert too_large(f"def f({taken}, *, i):\n{body}") == ["f: 2 lines, 9 parameters"]
    assert too_large(f"async def f({taken}):\n{body * 60}") == ["f: 61 lines, 8 parameters"]
    assert not too_large(f"def f({taken}):\n{body * 59}")
