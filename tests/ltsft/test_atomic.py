"""A small file is there whole, or as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ltsft.atomic import write_whole


def test_many_writers_of_one_file_do_not_meet_and_leave_nothing_else(tmp_path: Path) -> None:
    file, contents = tmp_path / "kept.json", [bytes([65 + i]) * 100_000 for i in range(16)]
    with ThreadPoolExecutor(16) as writers:
        list(writers.map(lambda content: write_whole(file, content), contents * 8))

    assert file.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [file]


def test_what_was_there_stays_where_it_cannot_be_replaced(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    (taken / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_whole(taken, b"new")

    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
