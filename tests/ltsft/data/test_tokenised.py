"""Tokenised sentences in a file: what was made is what is read, and a damaged file is made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ltsft.data.tokenised import cached_examples
from ltsft.objectives.entities import EntityPiece
from ltsft.objectives.question_answering import Window
from ltsft.objectives.token_classification import TaggedPiece

PIECES = [TaggedPiece(0, (1, 5, 6, 2), (-100, 3, -100, -100), 2), TaggedPiece(4, (1, 2), (-100, -100), 1)]


def kept(folder: Path, key: str, make: Callable[[], list[TaggedPiece]]) -> Sequence[TaggedPiece]:
    return cached_examples(folder, key, make, kind=TaggedPiece)


def never() -> list[TaggedPiece]:
    pytest.fail("tokenised again")


def test_pieces_are_made_once_and_read_after_that(tmp_path: Path) -> None:
    assert kept(tmp_path / "new", "key", lambda: PIECES) == PIECES
    assert kept(tmp_path / "new", "key", never) == PIECES
    assert kept(tmp_path / "new", "other", lambda: PIECES[:1]) == PIECES[:1]


def test_no_sentences_are_kept_too(tmp_path: Path) -> None:
    assert kept(tmp_path, "key", list) == []
    assert kept(tmp_path, "key", never) == []


@pytest.mark.parametrize("keep", [0, 20, -4])
def test_a_damaged_file_is_made_again(tmp_path: Path, keep: int) -> None:
    kept(tmp_path, "key", lambda: PIECES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    assert kept(tmp_path, "key", lambda: PIECES) == PIECES
    assert kept(tmp_path, "key", never) == PIECES


def test_entities_are_kept_and_what_holds_text_is_made_each_time(tmp_path: Path) -> None:
    entity = EntityPiece(0, (1, 5, 2), (-100, 3, -100), 2, (3, 0), (1, 0))
    assert cached_examples(tmp_path, "ner", lambda: [entity], kind=EntityPiece) == [entity]
    assert cached_examples(tmp_path, "ner", never, kind=EntityPiece) == [entity]
    window = Window(0, (1, 2), (), ((-1, -1), (0, 1)), 0, 0, "a", ("a",))
    assert cached_examples(tmp_path, "qa", lambda: [window], kind=Window) == [window]
    assert len(list(tmp_path.iterdir())) == 1
