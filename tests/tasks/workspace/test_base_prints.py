"""The fingerprints of a base are remembered for as long as its files look the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.workspace.base_prints import FILE, BasePrints, base_prints

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    return folder


@pytest.fixture
def read(base: Path) -> Callable[[], BasePrints]:
    def reading() -> BasePrints:
        reads.append(1)
        return BasePrints((base / "model.safetensors").read_text(), "head", "tokenizer", 64)

    reads: list[int] = []
    reading.count = lambda: len(reads)  # type: ignore[attr-defined]
    return reading


def test_a_base_whose_files_look_the_same_is_read_once(base: Path, tmp_path: Path, read: Callable) -> None:
    first = base_prints(str(base), None, tmp_path, read)
    assert base_prints(str(base), None, tmp_path, read) == first
    assert read.count() == 1


def test_a_base_with_a_changed_file_is_read_again(base: Path, tmp_path: Path, read: Callable) -> None:
    base_prints(str(base), None, tmp_path, read)
    (base / "new").write_text("changed")
    (base / "new").replace(base / "model.safetensors")  # as long as before
    assert base_prints(str(base), None, tmp_path, read).encoder == "changed"
    assert base_prints(str(base), None, tmp_path, read).encoder == "changed"
    assert read.count() == 2


@pytest.mark.parametrize(("revision", "reads"), [(COMMIT, 1), ("main", 2), (None, 2)])
def test_of_the_hub_a_commit_alone_is_remembered(
    revision: str | None, reads: int, tmp_path: Path, read: Callable
) -> None:
    for _ in range(2):
        base_prints("owner/name", revision, tmp_path, read)
    assert read.count() == reads


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"stamp": 1}', "\xff"])
def test_what_is_damaged_is_written_anew(content: str, base: Path, tmp_path: Path, read: Callable) -> None:
    (tmp_path / FILE).write_bytes(content.encode("latin-1"))
    for _ in range(2):
        assert base_prints(str(base), None, tmp_path, read).encoder == "weights"
    assert read.count() == 1
