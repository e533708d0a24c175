"""The page of the Python API names what the package exports, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import ltsft

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_api_page_lists_exactly_what_is_exported() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert sorted([*listed, "__version__"]) == list(ltsft.__all__)
