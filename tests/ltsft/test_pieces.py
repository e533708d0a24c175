"""Tokenised sentences in a file: what was made is what is read, and a damaged file is made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltsft.objectives.token_classification import TaggedPiece
from ltsft.pieces import cached_pieces

PIECES = [TaggedPiece(0, (1, 5, 6, 2), (-100, 3, -100, -100), 2), TaggedPiece(4, (1, 2), (-100, -100), 1)]


def never() -> list[TaggedPiece]:
    pytest.fail("tokenised again")


def test_pieces_are_made_once_and_read_after_that(tmp_path: Path) -> None:
    assert cached_pieces(tmp_path / "new", "key", lambda: PIECES) == PIECES
    assert cached_pieces(tmp_path / "new", "key", never) == PIECES
    assert cached_pieces(tmp_path / "new", "other", lambda: PIECES[:1]) == PIECES[:1]


def test_no_sentences_are_kept_too(tmp_path: Path) -> None:
    assert cached_pieces(tmp_path, "key", list) == []
    assert cached_pieces(tmp_path, "key", never) == []


@pytest.mark.parametrize("keep", [0, 20, -4])
def test_a_damaged_file_is_made_again(tmp_path: Path, keep: int) -> None:
    cached_pieces(tmp_path, "key", lambda: PIECES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    assert cached_pieces(tmp_path, "key", lambda: PIECES) == PIECES
    assert cached_pieces(tmp_path, "key", never) == PIECES
