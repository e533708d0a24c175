"""The messages on the page of troubleshooting are those that the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"


def test_every_message_on_the_page_stands_in_the_code() -> None:
    files = [file for folder in ("ltsft", "tasks", "flows") for file in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    code = "\0".join(value for value in constants if isinstance(value, str))
    rows = re.findall(r"^- \*\*(`.*?)\*\*:", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    messages = [message for row in rows if "(of " not in row for message in re.findall(r"`([^`]+)`", row)]

    assert len(messages) > 30
    assert [message for message in messages if message not in code] == []
