"""Augmentation: other sub-words for the same words, translations, and what keeps both aligned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ltsft.base import Base, load_base
from ltsft.config.consistency import Augmentations
from ltsft.config.recipe import Recipe
from ltsft.config.source import Source
from ltsft.data.word_lists import read_word_list
from ltsft.errors import ConfigError, SourceError
from ltsft.objectives.spans import words_by_marks
from ltsft.objectives.token_classification import IGNORE, TokenClassification
from ltsft.project.project import load_project
from ltsft.training.augmentation import Augmenter, check_augmentations
from ltsft.training.unigram import Unigram, unigram_of


@pytest.fixture(scope="module")
def base(unigram_base: Path) -> Base:
    return load_base(str(unigram_base))


SCORES = {"a": (0, -1.0), "b": (1, -2.0), "ab": (2, -1.5), "ba": (3, -3.0), "aba": (4, -4.0)}


def segmentations(word: str) -> Iterator[tuple[str, ...]]:
    if not word:
        yield ()
    for end in range(1, len(word) + 1):
        if word[:end] in SCORES:
            yield from ((word[:end], *rest) for rest in segmentations(word[end:]))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_segmentations_are_drawn_with_the_probabilities_of_the_unigram_model(alpha: float) -> None:
    model = Unigram(SCORES, alpha=alpha)
    weights = {
        tuple(SCORES[piece][0] for piece in way): math.exp(alpha * sum(SCORES[piece][1] for piece in way))
        for way in segmentations("abab")
    }
    total = sum(weights.values())
    random = Random(1)
    drawn = Counter(model.sample("abab", random) for _ in range(20_000))
    assert set(drawn) == set(weights)
    for way, weight in weights.items():
        assert drawn[way] / 20_000 == pytest.approx(weight / total, abs=0.015)
    assert model.sample("abc", random) is None


def test_what_is_drawn_is_settled_by_the_seed_and_spells_the_same_word(base: Base) -> None:
    model = unigram_of(base.tokenizer, alpha=0.3)
    assert model is not None
    first = [model.sample("\u2581bekade", Random(7)) for _ in range(3)]
    assert first[0] == first[1] == first[2]
    found = {model.sample("\u2581bekade", Random(seed)) for seed in range(50)}
    assert len(found) > 5
    assert {"".join(base.tokenizer.convert_ids_to_tokens(list(ids or ()))) for ids in found} == {"\u2581bekade"}


def test_the_label_stays_at_the_first_subword_of_its_word_whatever_the_subwords(base: Base) -> None:
    tagger = TokenClassification(base.tokenizer, labels=("A", "B", "C"), max_length=64)
    (piece,) = tagger.encode([(["bekade", "diti", "."], ["A", "B", "C"])])
    augmenter = Augmenter(base.tokenizer, Augmentations.model_validate({"subword_sampling": {"share": 1.0}}))
    spans = tagger.words(piece)
    seen = set()
    for seed in range(30):
        words = augmenter.augment([piece.input_ids[a:b] for a, b in spans], 20, Random(seed))
        changed = tagger.respelled(piece, [word.ids for word in words])
        seen.add(changed.input_ids)
        assert [label for label in changed.labels if label != IGNORE] == [0, 1, 2]
        assert len(changed.labels) == len(changed.input_ids)
        firsts = [i for i, label in enumerate(changed.labels) if label != IGNORE]
        tokens = base.tokenizer.convert_ids_to_tokens(list(changed.input_ids))
        assert [i for i, token in enumerate(tokens) if token.startswith("\u2581")] == firsts
        assert "".join(tokens[1:-1]) == "\u2581bekade\u2581diti\u2581."
        for (start, stop), word in zip(spans, words, strict=True):
            assert len(word.before) == stop - start
            assert set(word.before) == set(word.after), "both are the same stretches of characters"
    assert len(seen) > 10


def test_a_word_that_does_not_fit_stays_as_it_is(base: Base) -> None:
    augmenter = Augmenter(base.tokenizer, Augmentations.model_validate({"subword_sampling": {"share": 1.0}}))
    words = [tuple(base.tokenizer(word, add_special_tokens=False)["input_ids"]) for word in ("beka", "deki", "mene")]
    size = sum(map(len, words))
    for room in (0, 1, 3):
        for seed in range(20):
            made = augmenter.augment(words, room, Random(seed))
            assert sum(len(word.ids) for word in made) <= size + room


def test_words_are_switched_for_translations_by_their_share(base: Base) -> None:
    settings = Augmentations.model_validate({"code_switch": {"words": "tsv:/none.tsv", "share": 0.4}})
    augmenter = Augmenter(base.tokenizer, settings, [{"beka": ("bi", "di")}, {"beka": ("ko",)}])
    ids = tuple(base.tokenizer("Beka,", add_special_tokens=False)["input_ids"])
    drawn = Counter(
        "".join(base.tokenizer.convert_ids_to_tokens(list(augmenter.augment([ids], 20, Random(seed))[0].ids)))
        for seed in range(3000)
    )
    shares = {word: count / 3000 for word, count in drawn.items()}
    assert shares["\u2581Beka,"] == pytest.approx(0.6, abs=0.03)
    assert shares["\u2581Ko,"] == pytest.approx(0.2, abs=0.03)
    assert shares["\u2581Bi,"] == pytest.approx(0.1, abs=0.03)
    other = tuple(base.tokenizer("teka", add_special_tokens=False)["input_ids"])
    assert augmenter.augment([other], 20, Random(0))[0].ids == other, "what is in no list stays"


def test_wordpieces_are_looked_up_by_the_word_that_they_spell(tiny_base: Path) -> None:
    tokenizer = load_base(str(tiny_base)).tokenizer
    settings = Augmentations.model_validate({"code_switch": {"words": "tsv:/none.tsv", "share": 1.0}})
    ids = tuple(tokenizer("zyx", add_special_tokens=False)["input_ids"])
    assert len(ids) > 1
    augmenter = Augmenter(tokenizer, settings, [{"zyx": ("abc",)}])
    (word,) = augmenter.augment([ids], 20, Random(0))
    assert word.ids == tuple(tokenizer("abc", add_special_tokens=False)["input_ids"])
    assert (set(word.before), set(word.after)) == ({0}, {0})
    running = tokenizer("zyx zyx.", add_special_tokens=False)["input_ids"]
    found = words_by_marks(tokenizer, [tokenizer.cls_token_id, *running, tokenizer.sep_token_id])
    assert [stop - start for start, stop in found] == [len(ids), len(ids), 1]
    assert found[0][0] == 1


def test_sampling_is_refused_for_a_tokenizer_that_has_no_unigram_model(tiny_base: Path, unigram_base: Path) -> None:
    recipe = Recipe.model_validate({"density": 0.5, "consistency": {"augmentations": {"subword_sampling": {}}}})
    with pytest.raises(ConfigError, match=r"recipes\.pos\.consistency\.augmentations\.subword_sampling: .*WordPiece"):
        check_augmentations({"pos": recipe}, lambda: load_base(str(tiny_base)).tokenizer)
    check_augmentations({"pos": recipe}, lambda: load_base(str(unigram_base)).tokenizer)


def test_a_word_list_is_read_whole_or_its_bad_lines_are_counted_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "words.tsv"
    file.write_text("Dog\thund\ndog\tkyon\n\ncat\tkatt\ncat\tkatt\n", encoding="utf-8")
    source = Source.model_validate(f"tsv:{file}")
    assert read_word_list(source) == {"dog": ("hund", "kyon"), "cat": ("katt",)}
    file.write_text("dog\thund\ncat\nbird\tfugl\tx\nfish\t \n", encoding="utf-8")
    with pytest.raises(SourceError, match=r"3 lines of the word list .*words\.tsv:2 «cat».*words\.tsv:3.*words\.tsv:4"):
        read_word_list(source)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipes.pos.consistency={augmentations: {}}", "consistency.augmentations: name one at least"),
        ("recipes.pos.consistency={example: -1, augmentations: {noise: {}}}", "consistency.example: "),
        ("recipes.language.consistency={augmentations: {noise: {}}}", "take it out of recipes.language"),
        ("recipes.pos.consistency={augmentations: {code_switch: {words: 'text:aa.txt'}}}", "is of the scheme tsv:"),
        ("recipes.pos.consistency={augmentations: {code_switch: {words: 'tsv:no.tsv'}}}", "there is no file"),
    ],
)
def test_a_mistake_in_the_project_file_is_told(override: str, message: str, tiny_project: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_project(tiny_project, overrides=[override])
    assert message in str(caught.value)
