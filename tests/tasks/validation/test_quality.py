from __future__ import annotations

import gzip
import random
import socket
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tzlocal
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ltsft.config.gates import LabelledGate, TextGate
from ltsft.config.source import Source
from ltsft.config.target_task import TargetTask
from ltsft.config.word_lists import WordLists
from ltsft.data.conll import TaggedRow
from ltsft.data.sources import RowError
from ltsft.errors import ServiceError, SourceError, ValidationError
from ltsft.objectives.token_classification import TokenClassification
from ltsft.project.project import Language
from tasks.validation.quality import GateResult, validate_labelled, validate_text

WORDS = [a + b + c for a in ("ba", "ke", "di", "mo", "lú") for b in ("ra", "ti", "sun", "le") for c in ("ð", "k", "n")]
LABELS = ("NOUN", "VERB", "ADJ", "PUNCT")
UPOS = (
    "ADJ",
    "ADP",
    "ADV",
    "AUX",
    "CCONJ",
    "DET",
    "INTJ",
    "NOUN",
    "NUM",
    "PART",
    "PRON",
    "PROPN",
    "PUNCT",
    "SCONJ",
    "SYM",
    "VERB",
    "X",
)
Judge = Callable[..., GateResult]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", ".", *WORDS])}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


@pytest.fixture
def judge(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Judge:
    def judge(data: bytes, *, gate: TextGate | None = None, test_sentences: Iterator[str] | tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
        path = tmp_path / "fo.txt.gz"
        path.write_bytes(gzip.compress(data))
        return validate_text(
            faroese(path),
            gate=gate or TextGate(),
            tokenizer=tokenizer,
            test_sentences=test_sentences,
            report_folder=tmp_path / "report",
        )

    return judge


def faroese(path: Path, *, script: str = "Latn") -> Language:
    return Language(code="fo", name="Faroese", script=script, text=(Source(scheme="text", location=str(path)),))


def good_lines(count: int = 400, *, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=8)) + " ." for _ in range(count)]


def encode(lines: list[str], encoding: str = "utf-8") -> bytes:
    return "\n".join(lines).encode(encoding)


def rows(count: int = 60, *, seed: int = 0, source: str = "conllu:/data/train.conllu.gz") -> list[TaggedRow]:
    rng = random.Random(seed)
    found = []
    for i in range(count):
        words = (*rng.choices(WORDS[:30], k=7), ".")
        upos = tuple("PUNCT" if word == "." else LABELS[WORDS.index(word) % 3] for word in words)
        found.append(TaggedRow(words, upos, line=10 * i + 1, source=source, text=" ".join(words)))
    return found


def pos(labels: tuple[str, ...] = LABELS) -> TargetTask:
    data = {"train": "conllu:/data/train.conllu.gz"}
    return TargetTask.model_validate(
        {"name": "pos", "objective": "pos", "labels": labels, "sources": {"en": data}, "test": {}}
    )


def thresholds(result: GateResult) -> set[str]:
    return {failure.threshold.rpartition(".")[2] for failure in result.failures}


def test_good_text_passes_and_has_a_report(judge: Judge) -> None:
    result = judge(encode(good_lines()), test_sentences=tuple(good_lines(50, seed=1)))
    assert result.success, result.message()
    assert result.report.is_file()
    assert result.measures["lines"] == 400
    assert result.measures["script_share"] == 1.0
    result.raise_for_failure()


def cyrillic() -> bytes:
    return encode(["Это предложение написано на другом языке, номер " + str(i) for i in range(400)])


BAD_TEXT: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "min_lines"),
    "another script": (cyrillic(), "min_script_share"),
    "Latin-1 bytes": (encode(good_lines(), "latin-1"), "max_undecodable_share"),
    "NFD": (unicodedata.normalize("NFD", encode(good_lines()).decode()).encode(), "max_not_nfc_share"),
    "half duplicates": (encode(good_lines() * 2), "max_duplicate_share"),
    "mojibake": (encode(good_lines()).decode("latin-1").encode(), "max_mojibake_share"),
    "control characters": (encode([line[:9] + "\x00\x1b" + line[9:] for line in good_lines()]), "max_control_share"),
}


@pytest.mark.parametrize("kind", BAD_TEXT)
def test_bad_text_fails_on_its_threshold_and_shows_lines(kind: str, judge: Judge) -> None:
    data, threshold = BAD_TEXT[kind]
    result = judge(data)
    assert not result.success
    (failure,) = [f for f in result.failures if f.threshold == f"gates.text.{threshold}"]
    if kind != "empty":
        assert failure.examples
        assert all(example.startswith("fo.txt.gz:") for example in failure.examples)
    with pytest.raises(ValidationError, match=threshold):
        result.raise_for_failure()


def test_test_sentences_in_the_text_fail_and_are_shown(judge: Judge) -> None:
    tests = good_lines(100, seed=1)
    text = good_lines()
    text[50:50] = [line.replace(" .", ".").upper() for line in tests[:5]]
    result = judge(encode(text), test_sentences=tuple(tests))
    assert thresholds(result) == {"max_test_overlap", "max_test_line_share"}
    assert "fo.txt.gz:51 «" in result.message()


def test_the_message_says_what_was_expected_where_to_mend_it_and_which_lines(judge: Judge) -> None:
    message = judge(cyrillic()).message()
    assert "fo: share of letters in Latn is 0, allowed at least 0.9 (gates.text.min_script_share: " in message
    assert "fo.txt.gz:1 «Это предложение" in message


def test_the_report_of_great_expectations_shows_the_reason_and_the_lines_without_trusting_them(
    judge: Judge, tmp_path: Path
) -> None:
    lines = good_lines()
    lines[3] = "<script>alert(1)</script> $styling привет мир как твои дела сегодня"
    result = judge(encode(lines), gate=TextGate(max_foreign_line_share=0.0))
    assert thresholds(result) == {"max_foreign_line_share"}
    assert result.report == tmp_path / "report" / "index.html"
    (page,) = (tmp_path / "report" / "validations").rglob("*.html")
    shown = page.read_text(encoding="utf-8")
    assert "gates.text.max_foreign_line_share" in shown
    assert "fo.txt.gz:4 «" in shown
    assert "привет мир" in shown
    assert "<script>alert" not in shown


def test_the_markdown_lists_failures_and_measures_without_trusting_the_lines(judge: Judge) -> None:
    markdown = judge(encode(["[click](http://x) <b>Привет</b> | мир"] * 200)).markdown()
    assert "# Validation of fo: failed" in markdown
    assert "gates.text.min_script_share" in markdown
    assert "| `lines` | 200 |" in markdown
    assert "<b>" not in markdown
    assert "[click](" not in markdown


def test_a_threshold_from_the_project_file_decides(judge: Judge) -> None:
    assert not judge(encode(good_lines(50))).success
    assert judge(encode(good_lines(50)), gate=TextGate(min_lines=10, min_characters=10)).success


def test_a_new_report_replaces_the_old_one_and_leaves_other_files_alone(judge: Judge, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "notes.txt").write_text("mine")
    judge(b"")
    result = judge(encode(good_lines()))
    assert len(list((tmp_path / "report" / "validations").rglob("*.html"))) == 1
    assert (tmp_path / "report" / "notes.txt").read_text() == "mine"
    size_bytes = sum(path.stat().st_size for path in result.report.parent.rglob("*") if path.is_file())
    assert size_bytes < 1_000_000


def test_validation_is_silent_sends_nothing_and_writes_only_its_report(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the gate must not use the network")

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(home))
    monkeypatch.chdir(home)
    judge(encode(good_lines()))
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fo.txt.gz", "home", "report"]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Calculating" not in captured.err


@pytest.mark.parametrize("zone", ["UTC0", "CET-1CEST", "Nowhere/City"])
def test_the_report_has_pages_whatever_the_time_zone_is_called(
    zone: str, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    monkeypatch.setattr("tzlocal.unix._cache_tz", None)
    monkeypatch.setattr("great_expectations.render.renderer.site_index_page_renderer.tzlocal", tzlocal)
    pages = list(judge(encode(good_lines())).report.parent.rglob("*.html"))
    assert len(pages) >= 2
    assert all(page.stat().st_size > 1000 for page in pages)


def test_a_report_that_could_not_be_written_is_an_error(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC0")
    monkeypatch.setattr("tzlocal.unix._cache_tz", None)
    monkeypatch.setattr("great_expectations.render.renderer.site_index_page_renderer.tzlocal", tzlocal)
    monkeypatch.setattr("tasks.validation.quality._tell_time_zone", lambda: None)
    with pytest.raises(ServiceError, match="could not write its report"):
        judge(encode(good_lines()))


def test_a_source_that_cannot_be_read_is_an_error_not_a_failed_gate(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(SourceError):
        validate_text(
            faroese(tmp_path / "nothing.txt"),
            gate=TextGate(),
            tokenizer=tokenizer,
            test_sentences=(),
            report_folder=tmp_path / "report",
        )


def test_several_languages_can_be_judged_at_once(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_bytes(encode(good_lines()))
    (tmp_path / "bad.txt").write_bytes(cyrillic())

    def run(i: int) -> bool:
        return validate_text(
            faroese(tmp_path / ("bad.txt" if i % 2 else "good.txt")),
            gate=TextGate(),
            tokenizer=tokenizer,
            test_sentences=(),
            report_folder=tmp_path / f"report-{i}",
        ).success

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(3))) == [True, False, True]


def test_good_labelled_data_passes(tmp_path: Path) -> None:
    splits = {"train": rows(), "dev": rows(seed=1), "test": rows(seed=2)}
    result = validate_labelled(pos(), splits, gate=LabelledGate(), report_folder=tmp_path)
    assert result.success, result.message()
    assert result.subject == "pos"
    assert result.measures["train.sentences"] == 60
    assert result.measures["test.split_overlap"] == 0.0
    assert result.report.is_file()


def test_bad_labelled_data_fails_on_its_threshold_and_names_the_split(tmp_path: Path) -> None:
    good = [rows(seed=seed) for seed in range(9)]
    splits = {
        "train": good[0],
        "undeclared": [replace(good[1][0], labels=("NUON",) * 8), *good[1][1:]],
        "misaligned": [replace(good[2][0], labels=good[2][0].labels[1:]), *good[2][1:]],
        "empty word": [replace(good[3][0], words=("", *good[3][0].words[1:])), *good[3][1:]],
        "slipped": [replace(row, labels=(row.labels[-1], *row.labels[:-1])) for row in good[4]],
        "one label train": [replace(row, labels=("NOUN",) * 8) for row in good[5]],
        "repeated": good[6] * 2,
        "overlap": good[7] + good[0][:20],
        "few": good[8][:5],
        "malformed": [*rows(seed=9)[:40], RowError("conllu:/data/train.conllu.gz", 7, "HEAD of word 2 is 6")],
    }
    result = validate_labelled(pos(), splits, gate=LabelledGate(), report_folder=tmp_path)
    assert not result.success
    assert {(failure.data, failure.threshold) for failure in result.failures} == {
        ("undeclared", "gates.labelled.max_undeclared_share"),
        ("misaligned", "gates.labelled.max_misaligned_share"),
        ("empty word", "gates.labelled.max_empty_word_share"),
        ("slipped", "gates.labelled.min_label_agreement"),
        ("one label train", "gates.labelled.max_label_share"),
        ("one label train", "gates.labelled.min_labels_present"),
        ("repeated", "gates.labelled.max_duplicate_share"),
        ("overlap", "gates.labelled.max_split_overlap"),
        ("few", "gates.labelled.min_sentences"),
        ("malformed", "gates.labelled.max_malformed_share"),
    }
    examples = {failure.data: failure.examples for failure in result.failures}
    assert examples["undeclared"][0].startswith("train.conllu.gz:1 «'NUON' in ")
    assert examples["misaligned"][0].startswith("train.conllu.gz:1 «8 words, 7 labels: ")
    assert examples["malformed"] == ("train.conllu.gz:7 «HEAD of word 2 is 6»",)
    assert examples["repeated"][0].startswith("train.conllu.gz:1 «")
    assert (
        "overlap: share of sentences that occur in an earlier split is 0.25, allowed at most 0.05" in result.message()
    )


def test_a_subject_can_be_given_any_name(tmp_path: Path) -> None:
    result = validate_labelled(
        pos(), {"test": rows()}, gate=LabelledGate(), report_folder=tmp_path, subject="pos/fo: $test"
    )
    assert result.success
    assert result.subject == "pos/fo: $test"


@pytest.mark.real
def test_real_text_and_treebanks_pass_with_the_default_thresholds(shared: Path, tmp_path: Path) -> None:
    read = partial(TokenClassification.read, pos(labels=UPOS))
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "mini-multilingual-6x384")
    # The least text in the script, the most foreign lines, the most unknown sub-words, the most repeated sentences.
    for code, script, treebank in [
        ("mdf", "Cyrl", "moksha_jr"),
        ("sah", "Cyrl", "yakut_yktdt"),
        ("bm", "Latn", "bambara_crb"),
    ]:
        folder = shared / "data" / "ud" / treebank
        splits = {
            name: list(read(Source(scheme="conllu", location=str(folder / f"{name}.conllu.gz"))))
            for name in ("train", "dev", "test")
            if (folder / f"{name}.conllu.gz").is_file()
        }
        text = Source(scheme="text", location=str(shared / "data" / "text" / f"{code}.txt.gz"))
        result = validate_text(
            Language(code=code, name=code, script=script, text=(text,)),
            gate=TextGate(),
            tokenizer=tokenizer,
            test_sentences=(" ".join(row.words) for row in splits["test"]),
            report_folder=tmp_path / code,
        )
        assert result.success, result.message()
        result = validate_labelled(
            pos(labels=UPOS), splits, gate=LabelledGate(), report_folder=tmp_path / f"{code}-pos"
        )
        assert result.success, result.message()


def test_a_text_in_another_language_of_the_same_script_is_stopped_by_its_name(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lines = good_lines()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "own_Latn.txt").write_text("\n".join(WORDS[:30]), encoding="utf-8")
    (tmp_path / "lists" / "near_Latn.txt").write_text("\n".join(WORDS[30:]), encoding="utf-8")
    (tmp_path / "fo.txt").write_bytes(encode(lines))
    results = [
        validate_text(
            faroese(tmp_path / "fo.txt"),
            gate=TextGate(),
            tokenizer=tokenizer,
            test_sentences=(),
            report_folder=tmp_path / "report",
            word_lists=lists,
        )
        for lists in (
            WordLists(folder=str(tmp_path / "lists"), names={"fo": "own_Latn"}),
            WordLists(folder=str(tmp_path / "lists"), names={"fo": "own_Latn"}, sisters={"fo": ("near_Latn",)}),
            None,
        )
    ]
    assert [result.success for result in results] == [False, True, True]
    assert "share of lines in another listed language is 0." in results[0].message()
    assert "«near_Latn: " in results[0].message()
    assert "not looked at" not in results[1].message()
    assert "which language it is was not looked at: word_lists.names.fo names no list" in results[2].message()
