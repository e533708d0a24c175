"""The artificial family: the same bytes each time, valid treebanks, nothing in two places, one grammar for all."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from ltsft.config.gates import LabelledGate, TextGate
from ltsft.config.source import Source
from ltsft.data.labelled_measures import Sentence, measure_labelled
from ltsft.data.sources import Row, read_rows
from ltsft.data.text_measures import Line, measure_text
from ltsft.errors import ConfigError
from ltsft.project.project import load_project
from ltsft.toy.family import SPLITS, STAMP, make_toy, toy_family, write_family
from ltsft.toy.grammar import AFFIXES, CLOSED_CLASSES, ORDERS
from ltsft.toy.pretraining import build_tokenizer
from ltsft.toy.settings import BASE, BaseSettings, ToyConfig

SMALL = ToyConfig(seed=3, seen=3, unseen=2, text_lines=300, train=60, dev=20, test=40)
CODES = (*SMALL.seen_codes, *SMALL.unseen_codes)
TOY = Path(__file__).parents[3] / "configs" / "toy.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_family(folder, SMALL)
    return folder


def rows(folder: Path, code: str, split: str) -> list[Row]:
    return list(read_rows(Source(scheme="conllu", location=str(folder / "treebanks" / code / f"{split}.conllu.gz"))))


def lines(folder: Path, code: str) -> list[str]:
    with gzip.open(folder / "text" / f"{code}.txt.gz", "rt", encoding="utf-8") as opened:
        return opened.read().splitlines()


def letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def broken(gate: TextGate | LabelledGate, values: dict[str, float | None]) -> list[str]:
    found = []
    for name in type(gate).model_fields:
        side, _, measure = name.partition("_")
        value, bound = values.get(measure), getattr(gate, name)
        if value is not None and ((side == "max" and value > bound) or (side == "min" and value < bound)):
            found.append(f"{name}: {value}")
    return found


def test_the_same_config_gives_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    write_family(tmp_path / "again", SMALL)
    write_family(tmp_path / "other", replace(SMALL, seed=4))
    name = "text/qac.txt.gz"
    assert contents(tmp_path / "again") == contents(folder)
    assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_treebanks_are_valid_and_have_the_sizes_asked_for(folder: Path) -> None:
    for code in CODES:
        for split in SPLITS:
            found = rows(folder, code, split)
            assert len(found) == getattr(SMALL, split)
            assert all(len(row.words) == len(row.upos) == len(row.deprels) for row in found)
            assert all(row.deprels[row.heads.index(0)] == "root" for row in found)


def test_text_of_a_treebank_is_its_words_with_marks_glued_on(folder: Path) -> None:
    for row in rows(folder, "qaa", "train"):
        assert letters(row.text) == letters("".join(row.words))
        assert (
            row.text.split()
            == "".join(
                word if tag == "PUNCT" else f" {word}" for word, tag in zip(row.words, row.upos, strict=True)
            ).split()
        )


def test_no_sentence_of_a_treebank_stands_in_the_text_or_in_another_split(folder: Path) -> None:
    for code in CODES:
        said = [letters(line) for line in lines(folder, code)]
        said += [letters(row.text) for split in SPLITS for row in rows(folder, code, split)]
        assert len(said) == len(set(said))


def test_languages_inherit_the_share_of_words_and_affixes_that_was_set() -> None:
    family = toy_family(SMALL)
    for language in family.values():
        for upos, size in SMALL.sizes.items():
            kept = sum(1 for key in language.cognates if key[0] == upos)
            share = 1.0 if upos == "PROPN" else SMALL.closed_share if upos in CLOSED_CLASSES else SMALL.open_share
            assert kept == round(share * size), (language.code, upos)
        assert set(language.affixes) == set(AFFIXES)


def test_no_string_means_two_things_in_the_family() -> None:
    meanings: defaultdict[str, set[object]] = defaultdict(set)
    for language in toy_family(SMALL).values():
        for key, stem in language.stems.items():
            meanings[stem].add(key)
        for name, affix in language.affixes.items():
            meanings[f"##{affix}"].add(name)
    assert all(len(meaning) == 1 for meaning in meanings.values())


def test_every_order_of_an_unseen_language_is_that_of_a_seen_one() -> None:
    for seed in range(5):
        family = toy_family(replace(SMALL, seed=seed))
        for trait, values in ORDERS.items():
            seen = {family[code].order[trait] for code in SMALL.seen_codes}
            assert seen == set(values)
            assert {family[code].order[trait] for code in SMALL.unseen_codes} <= seen


def test_the_grammar_is_the_same_in_all_languages_and_words_stand_on_the_side_their_order_says(folder: Path) -> None:
    family = toy_family(SMALL)
    relations = []
    for code in CODES:
        found = rows(folder, code, "train")
        relations.append({(d, u) for row in found for d, u in zip(row.deprels, row.upos, strict=True)})
        for row in found:
            for place, (head, deprel) in enumerate(zip(row.heads, row.deprels, strict=True), start=1):
                if deprel in ORDERS:
                    side = "before" if place < head else "after"
                    assert side == family[code].order[deprel], (code, row.text)
    common = set.intersection(*relations)
    assert {("det", "DET"), ("amod", "ADJ"), ("case", "ADP"), ("obj", "NOUN"), ("nsubj", "NOUN")} <= common


def test_every_form_is_its_stem_and_its_affix_to_the_tokenizer_and_no_latin_word_is_unknown() -> None:
    family = toy_family(SMALL)
    tokenizer = build_tokenizer(family)
    for language in family.values():
        for stem in language.stems.values():
            assert tokenizer.tokenize(stem) == [stem]
            for affix in language.affixes.values():
                assert tokenizer.tokenize(stem + affix) == [stem, f"##{affix}"]
    assert tokenizer.unk_token_id not in tokenizer("Quixotic Zebra, why?")["input_ids"]


def test_the_data_pass_the_gates_with_their_default_thresholds(folder: Path) -> None:
    tokenizer = build_tokenizer(toy_family(SMALL))
    for code in CODES:
        test = [row.text for row in rows(folder, code, "test")]
        text = [Line(code, number, line) for number, line in enumerate(lines(folder, code), start=1)]
        gate = TextGate()
        measured = measure_text(text, gate, script="Latn", tokenizer=tokenizer, test_sentences=test)
        assert broken(gate, measured.values) == []
    splits = {
        split: [Sentence(row.source, row.line, row.words, row.upos) for row in rows(folder, "qaa", split)]
        for split in ("train", "dev", "test")
    }
    for split, measures in measure_labelled(splits, LabelledGate(), labels=[*SMALL.sizes, "PUNCT"]).items():
        assert broken(LabelledGate(), measures.values) == [], split


def test_a_family_is_made_once_and_made_again_when_a_file_is_missing_or_the_config_differs(tmp_path: Path) -> None:
    tiny = BaseSettings(hidden=16, layers=1, heads=2, steps=3, batch_size=4)
    config = replace(SMALL, text_lines=100, base=tiny)
    told: list[str] = []
    make_toy(tmp_path, config, on_progress=told.append)
    first = contents(tmp_path)
    assert not any(name.startswith("pretraining") for name in first)
    assert {STAMP, "README.md", f"{BASE}/config.json", f"{BASE}/tokenizer.json"} <= set(first)
    assert b"artificial" in first[STAMP]

    told.clear()
    make_toy(tmp_path, config, on_progress=told.append)
    assert [message for message in told if "there already" in message] == told != []

    (tmp_path / BASE / "config.json").unlink()
    make_toy(tmp_path, config)
    assert contents(tmp_path) == first

    make_toy(tmp_path, replace(config, test=41))
    assert contents(tmp_path)[STAMP] != first[STAMP]


def test_making_what_is_there_needs_no_torch(tmp_path: Path) -> None:
    config = replace(SMALL, text_lines=100, base=BaseSettings(hidden=16, layers=1, heads=2, steps=1, batch_size=4))
    make_toy(tmp_path, config)
    code = (
        "import sys; from ltsft.toy.family import make_toy; from ltsft.toy.settings import BaseSettings, ToyConfig\n"
        f"make_toy({str(tmp_path)!r}, {config!r})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_family_that_cannot_be_made_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match="at least one of them seen"):
        ToyConfig(seen=0)
    with pytest.raises(ConfigError, match="open_share must be in"):
        ToyConfig(open_share=1.5)
    with pytest.raises(ConfigError, match="no free PROPN"):
        toy_family(replace(SMALL, names=10_000))


def test_the_demo_project_fits_the_family_that_the_command_makes(tmp_path: Path) -> None:
    config = ToyConfig()
    write_family(tmp_path, replace(config, text_lines=1, train=1, dev=1, test=1))
    project = load_project(TOY, data_root=str(tmp_path))
    pos = project.target_tasks["pos"]
    assert project.artificial
    assert project.unseen == config.unseen_codes
    assert len(project.unseen) >= 3
    assert pos.source_language == config.seen_codes[0]
    assert set(pos.labels) == {*config.sizes, "PUNCT"}
    assert set(project.unseen) <= set(pos.test)
