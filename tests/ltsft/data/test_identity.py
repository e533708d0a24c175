"""Which language a text is in, by lists of words; all languages are invented."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ltsft.data.identity import by_word_lists
from ltsft.errors import SourceError


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    (tmp_path / "own_Latn.txt.gz").write_bytes(gzip.compress("tað\nið\nfyri\nsegði\n".encode()))
    (tmp_path / "near_Latn.txt").write_text("það\nsem\nfyrir\nsagði\n", encoding="utf-8")
    (tmp_path / "far_Latn.txt").write_text("the\nand\nwhich\n", encoding="utf-8")
    return tmp_path


def test_each_line_is_named_by_the_list_that_most_of_its_words_are_in(lists: Path) -> None:
    identify = by_word_lists(str(lists), "own_Latn")
    assert identify(["tað, ið hann segði", "það sem hún sagði", "það sem tað ið", "the and tað", "12 3", ""]) == [
        *("own_Latn", "near_Latn", "own_Latn", "own_Latn"),
        *(None, None),
    ]


def test_a_sister_counts_as_the_own_language(lists: Path) -> None:
    identify = by_word_lists(str(lists), "own_Latn", ["near_Latn"])
    assert identify(["það sem hún sagði", "the and which"]) == ["own_Latn", "far_Latn"]


def test_a_list_that_is_not_there_is_told(lists: Path) -> None:
    with pytest.raises(SourceError, match=r"has no word list gone_Latn \(.* among 3 lists\); mend word_lists"):
        by_word_lists(str(lists), "gone_Latn")
    with pytest.raises(SourceError, match="cannot be read"):
        by_word_lists(str(lists / "nowhere"), "own_Latn")
