from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ltsft.config.gates import TextGate
from ltsft.data.identity import Identifier
from ltsft.data.measures import Measures
from ltsft.data.text_measures import TEXT_TITLES, Line, measure_text, overlap_key
from ltsft.errors import ConfigError

WORDS = [a + b for a in ("ba", "ke", "di", "mo", "lu", "ná") for b in ("ra", "ti", "sun", "le", "þor", "ga")]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


def good_lines(count: int = 300) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=8)) for _ in range(count)]


def measure(
    lines: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    gate: TextGate | None = None,
    script: str = "Latn",
    test_sentences: Iterable[str] = (),
    hash_limit: int = 500_000,
    identify: Identifier | None = None,
) -> Measures:
    numbered = (Line("xx.txt", i, text) for i, text in enumerate(lines, start=1))
    return measure_text(
        numbered,
        gate or TextGate(),
        script=script,
        tokenizer=tokenizer,
        test_sentences=test_sentences,
        hash_limit=hash_limit,
        identify=identify,
        language="own",
    )


def test_every_threshold_has_a_measure_with_a_title_and_a_reason(tokenizer: PreTrainedTokenizerFast) -> None:
    bounds = {name[4:] for name in TextGate.model_fields if name[:4] in ("min_", "max_")}
    test = ["a test sentence that is long enough"]
    values = measure(good_lines(), tokenizer, test_sentences=test, identify=lambda lines: ["own"] * len(lines)).values
    assert bounds == set(TEXT_TITLES)
    assert bounds <= {name for name, value in values.items() if value is not None}
    assert all(info.description for info in TextGate.model_fields.values())


def test_shares_of_lines_are_counted_exactly_and_point_at_their_lines(tokenizer: PreTrainedTokenizerFast) -> None:
    lines = good_lines(95)
    lines[10:10] = [
        "H\udcf8rt og s\udce6\udcf0",  # Latin-1 bytes
        unicodedata.normalize("NFD", "ná náþor nára með"),
        "Ã¡Ã°ur var lÃ­tiÃ°",
        "kera\x00\x07 luga",
        "ke\ufffda luti mora",
    ]
    measures = measure(lines, tokenizer)
    for name, number in [("undecodable_share", 11), ("not_nfc_share", 12), ("mojibake_share", 13)]:
        assert measures.values[name] == pytest.approx(0.01)
        assert measures.examples[name][0].startswith(f"xx.txt:{number} «")
    assert "H\\xf8rt og s\\xe6\\xf0" in measures.examples["undecodable_share"][0]
    assert "kera\\x00\\x07 luga" in measures.examples["control_share"][0]
    characters = sum(map(len, lines))
    assert measures.values["characters"] == characters
    assert measures.values["control_share"] == pytest.approx(2 / characters)
    assert measures.values["replacement_share"] == pytest.approx(1 / characters)


def test_an_example_is_always_printable_text(tokenizer: PreTrainedTokenizerFast) -> None:
    measures = measure(["\x1b[31m\udcff" + "x" * 500], tokenizer)
    (example,) = measures.examples["undecodable_share"]
    assert example.isprintable()
    example.encode("utf-8")
    assert len(example) < 150


SOUND_MARKS = [
    ("Arab", "می\u200cروم خانه\u200cام کتاب\u200cها"),  # joiners within Persian words
    ("Mlym", "അവര്\u200d പറഞ്ഞു"),
    ("Khmr", "ខ្ញុំ\u200bទៅ\u200bផ្ទះ"),  # invisible spaces between Khmer words
    ("Latn", "We ❤\ufe0f it 👩\u200d🌾"),
]


@pytest.mark.parametrize(("script", "line"), SOUND_MARKS)
def test_invisible_characters_that_are_written_are_sound(
    script: str, line: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    values = measure([line], tokenizer, script=script).values
    assert values["invisible_share"] == values["control_share"] == values["byte_order_mark_share"] == 0.0


@pytest.mark.parametrize(
    ("measure_name", "spoil"),
    [
        ("byte_order_mark_share", lambda line: f"\ufeff{line}"),
        ("invisible_share", lambda line: " ".join(f"\u200e{word}" for word in line.split())),
        ("invisible_share", lambda line: line.replace("s", "s\u00ad")),
        ("invisible_share", lambda line: line.replace(" ", " \u200b")),
    ],
)
def test_invisible_characters_that_nobody_writes_are_found_and_shown(
    measure_name: str, spoil: Callable[[str], str], tokenizer: PreTrainedTokenizerFast
) -> None:
    lines = good_lines(100)
    lines[40:60] = map(spoil, lines[40:60])
    measures = measure(lines, tokenizer)
    assert (measures.values[measure_name] or 0.0) > getattr(TextGate(), f"max_{measure_name}")
    place = measures.examples[measure_name][0]
    assert place.startswith("xx.txt:41 «")
    assert "\\u" in place or "\\x" in place


def test_letters_that_python_does_not_know_yet_are_letters(tokenizer: PreTrainedTokenizerFast) -> None:
    values = measure(["\U0001e4d0\U0001e4d1 \U0001e4d2"], tokenizer, script="Nagm").values  # Nag Mundari, Unicode 15
    assert values["control_share"] == 0.0
    assert values["script_share"] == 1.0


def test_letters_are_counted_by_script_and_digits_and_marks_are_neutral(tokenizer: PreTrainedTokenizerFast) -> None:
    measures = measure(["abc 123 — ¿?", "абвгде", "ab́ Ω"], tokenizer)
    assert measures.values["script_share"] == pytest.approx(5 / 12)
    assert measures.values["foreign_line_share"] == pytest.approx(1 / 3)
    assert measures.examples["script_share"] == ("xx.txt:2 «абвгде»",)
    assert measure(["123 — ¿?"], tokenizer).values["script_share"] is None


def test_a_joint_script_code_covers_the_scripts_that_it_joins(tokenizer: PreTrainedTokenizerFast) -> None:
    assert measure(["日本語のテスト"], tokenizer, script="Jpan").values["script_share"] == 1.0
    assert measure(["日本語のテスト"], tokenizer, script="Hira").values["script_share"] == pytest.approx(1 / 7)
    assert measure(["اردو زبان"], tokenizer, script="Aran").values["script_share"] == 1.0


@pytest.mark.parametrize("script", ["Xxxx", "Zyyy", "latn"])
def test_an_unknown_script_is_refused_by_name(script: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=script):
        measure([], tokenizer, script=script)


def test_duplicates_are_counted_exactly_below_the_limit(tokenizer: PreTrainedTokenizerFast) -> None:
    lines = ["una", "dua", "una", "tria", "una", "dua"]
    measures = measure(lines, tokenizer)
    assert measures.values["duplicate_share"] == pytest.approx(0.5)
    assert [place.split()[0] for place in measures.examples["duplicate_share"]] == ["xx.txt:3", "xx.txt:5", "xx.txt:6"]


def test_lines_of_one_template_are_near_duplicates_and_equal_or_other_lines_are_not(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    pages = [f"Hetta er ein lítil síða um bygdina nummar {i}, sum liggur langt burtur úr øllum." for i in range(20)]
    measures = measure([*good_lines(30), *pages, *pages[:1] * 5], tokenizer)
    assert measures.values["near_duplicate_share"] == pytest.approx(19 / 55, abs=0.05)
    assert "ein lítil síða" in measures.examples["near_duplicate_share"][0]
    assert measure(good_lines(30) * 2, tokenizer).values["near_duplicate_share"] == 0.0


def test_duplicates_beyond_the_limit_are_estimated_without_bias(tokenizer: PreTrainedTokenizerFast) -> None:
    unique = [f"line number {i}" for i in range(5_000)]
    lines = unique + unique  # the copies are far apart
    share = measure(lines, tokenizer, hash_limit=500).values["duplicate_share"]
    assert share == pytest.approx(0.5)
    share = measure(unique * 3 + [f"once {i}" for i in range(5_000)], tokenizer, hash_limit=500).values
    assert share["duplicate_share"] == pytest.approx(0.5, abs=0.05)


def test_unknown_subwords_and_subwords_per_word_are_measured_on_lines_from_all_over(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    lines = ["kera, luti"] * 600 + ["xoxo luti"] * 200
    gate = TextGate(tokenizer_lines=100)
    measures = measure(lines, tokenizer, gate=gate)
    assert measures.values["unknown_share"] == pytest.approx((0.75 + 0.25) / (0.75 * 3 + 0.25 * 2), abs=0.02)
    assert measures.values["subwords_per_word"] == pytest.approx((0.75 * 3 + 0.25 * 2) / 2, abs=0.02)
    assert "xoxo" in measures.examples["unknown_share"][0]


def test_characters_of_scripts_without_spaces_count_as_words(tokenizer: PreTrainedTokenizerFast) -> None:
    values = measure(["今天天气很好"], tokenizer, script="Hans").values
    assert values["subwords_per_word"] == pytest.approx(1 / 6)


def test_a_short_line_of_han_says_as_much_as_a_longer_one_of_letters(tokenizer: PreTrainedTokenizerFast) -> None:
    assert measure(["今日天氣好", "我哋去飲茶"], tokenizer, script="Hant").values["short_line_share"] == 0.0
    assert measure(["好", "係"], tokenizer, script="Hant").values["short_line_share"] == 1.0
    assert measure(["stutt", "langt og longri"], tokenizer).values["short_line_share"] == 0.5


def test_a_test_sentence_is_found_whatever_its_case_and_tokenization(tokenizer: PreTrainedTokenizerFast) -> None:
    tests = [
        "Hann segði : « Ja , eg komi í morgin » .",
        "Hetta er ein onnur setning úr tekstinum .",
        "Ja .",
        "Ikki her , og heldur ikki har .",
    ]
    lines = [
        "hann segði: «Ja, eg komi í morgin».",
        "Fyrst eitt annað. Hetta er ein onnur setning úr tekstinum. So enn eitt.",
        "Ja.",
        *good_lines(17),
    ]
    measures = measure(lines, tokenizer, test_sentences=tests)
    # «Ja.» is too short to count, among the test sentences and among the lines.
    assert measures.values["test_overlap"] == pytest.approx(2 / 3)
    assert measures.values["test_line_share"] == pytest.approx(0.1)
    assert [place.split()[0] for place in measures.examples["test_overlap"]] == ["xx.txt:1", "xx.txt:2"]


@pytest.mark.parametrize(
    ("lines", "threshold"),
    [
        (["\t", " "], "min_characters"),
        ([*good_lines(), "ba\udcff"], "max_undecodable_share"),
        ([line.replace("þ", "\ufffd") for line in good_lines()], "max_replacement_share"),
        ([*good_lines(), *(f"Síða {i}" for i in range(300))], "max_short_line_share"),
        ([" ".join(good_lines(3_000))], "max_long_line_share"),
        ([*good_lines(270), *(f"другой язык {i}" for i in range(30))], "max_foreign_line_share"),
        ([line.replace("a", "o") for line in good_lines()], "max_unknown_share"),
        ([".".join(line) for line in good_lines()], "max_subwords_per_word"),
    ],
)
def test_bad_text_is_beyond_its_default_threshold_and_good_text_within(
    lines: list[str], threshold: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    allowed = getattr(TextGate(), threshold)
    good = measure(good_lines(), tokenizer).values[threshold[4:]]
    bad = measure(lines, tokenizer).values[threshold[4:]]
    assert good is not None
    assert bad is not None
    assert (bad < allowed <= good) if threshold.startswith("min") else (good <= allowed < bad)


def test_an_empty_text_has_no_shares_but_is_measured(tokenizer: PreTrainedTokenizerFast) -> None:
    values = measure(["", "   ", "\t"], tokenizer).values
    assert values["lines"] == 0
    assert values["characters"] == 0
    assert values["script_share"] is None
    assert values["subwords_per_word"] is None


@settings(max_examples=50, deadline=None)
@given(lines=st.lists(st.text(st.characters(codec=None), max_size=30), max_size=20))
@example(lines=["\ud800"])
def test_any_text_at_all_can_be_measured_and_every_share_is_one(lines: list[str]) -> None:
    inner = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    values = measure(lines, PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")).values
    for name, value in values.items():
        if value is not None and (name.endswith("share") or name == "test_overlap"):
            assert 0.0 <= value <= 1.0, name


@given(st.text())
def test_the_overlap_key_ignores_case_space_and_punctuation(text: str) -> None:
    assert overlap_key(" «" + text + "» . ") == overlap_key(text)
