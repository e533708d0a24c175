"""Text is split as treebanks split it, in any script; all sentences are invented but those of the last test."""

from __future__ import annotations

import gzip
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from ltsft.serving.words import split_words

UNSEEN = regex.compile(r"(?V1)[\s\p{Cc}\p{Default_Ignorable_Code_Point}]*")


def words_of(text: str, language: str = "") -> list[str]:
    return [text[start:end] for start, end in split_words(text, language)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hetta er, ein roynd.", ["Hetta", "er", ",", "ein", "roynd", "."]),
        ("l'été 3.14 ... (vel-ok)!", ["l'été", "3.14", "...", "(", "vel-ok", ")", "!"]),
        ("3,14 á 10:30, 1/2 og 5 m².", ["3,14", "á", "10:30", ",", "1/2", "og", "5", "m²", "."]),
        ("'orðið' ''tvey'' 80'ini", ["'", "orðið", "'", "''", "tvey", "''", "80'ini"]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया", "।"]),
        ("അവന്\u200d പോയി.", ["അവന്\u200d", "പോയി", "."]),  # a joiner at the end
        ("क्\u200d सो'हं", ["क्\u200d", "सो'हं"]),
        ("می\u200cروم", ["می\u200cروم"]),
        ("ի՞նչ ուրե՛մն։", ["ի՞նչ", "ուրե՛մն", "։"]),  # marks of Armenian stand within words
        ('זה ש"ס.', ["זה", 'ש"ס', "."]),
        ("\u200fשלום\u200f \u200eworld\u200e\ufeff!", ["שלום", "world", "!"]),
        ("inn\u00adkeyp \u00ad", ["inn\u00adkeyp"]),
        ("👩\u200d🌾🏽 ❤\ufe0f🇫🇴🇮🇸 1\ufe0f\u20e3", ["👩\u200d🌾🏽", "❤\ufe0f", "🇫🇴", "🇮🇸", "1\ufe0f\u20e3"]),
        ("ខ្ញុំ\u200bទៅ ภาษาไทย", ["ខ្ញុំ", "ទៅ", "ภาษาไทย"]),
        ("Hon (東京) segði", ["Hon", "(", "東京", ")", "segði"]),
        (unicodedata.normalize("NFD", "Yorùbá ọ̀rọ̀"), [unicodedata.normalize("NFD", w) for w in ("Yorùbá", "ọ̀rọ̀")]),
        ("\u200b", []),
        (" \n\t", []),
        ("", []),
    ],
)
def test_text_is_split_into_words_in_any_script(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("fr", "L’amie d'aujourd'hui", ["L’", "amie", "d'", "aujourd'hui"]),
        ("it_IT", "dell'alba 'detta", ["dell'", "alba", "'", "detta"]),
        ("cy", "mae'r gath", ["mae", "'r", "gath"]),
        ("de", "Nord-Süd", ["Nord", "-", "Süd"]),
        ("fo", "Norð-Suður", ["Norð-Suður"]),
        ("mt", "tal-baħar m'għandux", ["tal-", "baħar", "m'", "għandux"]),
        ("zh", "今天好", ["今", "天", "好"]),
    ],
)
def test_words_are_parted_where_the_treebanks_of_a_language_part_them(
    language: str, text: str, words: list[str]
) -> None:
    assert words_of(text, language) == words


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
    | st.text("a1'-./: \u200d\u200eé東ก", max_size=12),
    st.sampled_from(["", "fr", "cy", "de", "mt", "zh"]),
)
def test_words_lie_in_order_and_nothing_that_is_seen_is_left_out(text: str, language: str) -> None:
    at = 0
    for start, end in split_words(text, language):
        assert at <= start < end
        assert UNSEEN.fullmatch(text[at:start])
        assert not text[start].isspace()
        assert not UNSEEN.fullmatch(text[start:end])
        at = end
    assert UNSEEN.fullmatch(text[at:])


@pytest.mark.real
@pytest.mark.parametrize(
    ("treebank", "language", "least"),
    [("malayalam_ufal", "ml", 0.97), ("western_armenian_armtdp", "hyw", 0.97), ("sinhala_stb", "si", 0.99)],
)
def test_most_sentences_of_a_treebank_have_its_words(shared: Path, treebank: str, language: str, least: float) -> None:
    found = [
        split_words(text, language) == places
        for text, places in treebank_words(shared / "data" / "ud" / treebank / "test.conllu.gz")
    ]
    assert sum(found) / len(found) > least


def treebank_words(path: Path) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Give each sentence and the places of its words as they are written: a multi-word token is one."""
    text, places, last = "", list[tuple[int, int]](), 0
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        number, _, rest = line.partition("\t")
        if line.startswith("# text = "):
            text, places, last = line[9:].strip(), [], 0
        elif not line.strip():
            yield text, places
        elif not line.startswith("#") and "." not in number and int(number.split("-")[0]) > last:
            last = int(number.split("-")[-1])
            start = text.index(rest.split("\t")[0], places[-1][1] if places else 0)
            places.append((start, start + len(rest.split("\t")[0])))
