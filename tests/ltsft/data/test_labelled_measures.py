from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest

from ltsft.config.gates import LabelledGate
from ltsft.data.labelled_measures import LABELLED_TITLES, OPTIONAL, Sentence, measure_labelled
from ltsft.data.measures import Measures

LABELS = ("NOUN", "VERB", "ADJ", "PUNCT")
LEXICON = {
    "hús": "NOUN",
    "bátur": "NOUN",
    "fer": "VERB",
    "sær": "VERB",
    "stór": "ADJ",
    "lítil": "ADJ",
    ".": "PUNCT",
} | {f"orð{i}": LABELS[i % 3] for i in range(20)}


def good_sentences(count: int = 60, *, seed: int = 0, source: str = "train.conllu") -> list[Sentence]:
    rng = random.Random(seed)
    sentences = []
    for i in range(count):
        words = (*rng.choices(list(LEXICON), k=rng.randint(5, 9)), ".")
        sentences.append(Sentence(source, 10 * i + 1, words, tuple(LEXICON[word] for word in words)))
    return sentences


def measure(sentences: Iterable[Sentence], *, gate: LabelledGate | None = None, split: str = "train") -> Measures:
    return measure_labelled({split: sentences}, gate or LabelledGate(), labels=LABELS)[split]


def sentence(words: str, labels: Sequence[str] | None = None, *, number: int = 1) -> Sentence:
    split = tuple(words.split(" "))
    return Sentence("dev.conllu", number, split, labels if labels is not None else ("NOUN",) * len(split))


def test_every_threshold_has_a_measure_with_a_title_and_a_reason() -> None:
    bounds = {name[4:] for name in LabelledGate.model_fields if name[:4] in ("min_", "max_")}
    splits = {"train": good_sentences(), "dev": good_sentences(seed=1)}
    measured = measure_labelled(splits, LabelledGate(), labels=LABELS, measures=OPTIONAL)
    found = {name for measures in measured.values() for name, value in measures.values.items() if value is not None}
    assert bounds == set(LABELLED_TITLES)
    assert bounds <= found
    assert all(info.description for info in LabelledGate.model_fields.values())


def test_undeclared_labels_are_named_with_their_sentence() -> None:
    measures = measure([sentence("eitt tvey trý", ("NOUN", "VREB", "ADJ"), number=7)])
    assert measures.values["undeclared_share"] == pytest.approx(1 / 3)
    assert measures.examples["undeclared_share"] == ("dev.conllu:7 «'VREB' in eitt tvey trý»",)


def test_a_sentence_with_a_label_too_few_is_misaligned() -> None:
    measures = measure([sentence("eitt tvey", ("NOUN",), number=4), sentence("eitt tvey")])
    assert measures.values["misaligned_share"] == 0.5
    assert measures.examples["misaligned_share"] == ("dev.conllu:4 «2 words, 1 labels: eitt tvey»",)


def test_empty_words_and_empty_sentences_are_counted() -> None:
    empty = Sentence("dev.conllu", 1, (), ())
    assert measure([empty, sentence("a  b"), sentence("a b")]).values["empty_word_share"] == pytest.approx(2 / 3)


def test_labels_that_slipped_by_one_word_no_longer_agree() -> None:
    good = good_sentences()
    slipped = [s._replace(labels=(s.labels[-1], *s.labels[:-1])) for s in good]
    threshold = LabelledGate().min_label_agreement
    assert measure(good).values["label_agreement"] == 1.0
    agreement = measure(slipped).values["label_agreement"]
    assert agreement is not None
    assert agreement < threshold


def test_agreement_is_not_judged_on_a_handful_of_words() -> None:
    assert measure([sentence("eitt tvey")] * 10).values["label_agreement"] is None


def test_balance_is_the_share_of_the_most_frequent_label() -> None:
    measures = measure([sentence("a b c d", ("NOUN", "NOUN", "NOUN", "VERB"))])
    assert measures.values["label_share"] == 0.75
    assert measures.values["labels_present"] == 0.5


def test_labels_need_be_present_only_in_a_split_to_train_on() -> None:
    assert measure([sentence("a b")], split="en/train").values["labels_present"] == 0.25
    assert measure([sentence("a b")], split="test").values["labels_present"] is None


def test_a_label_must_occur_as_often_as_the_gate_says() -> None:
    gate = LabelledGate(label_occurrences=2)
    assert measure([sentence("a b c", ("NOUN", "NOUN", "VERB"))], gate=gate).values["labels_present"] == 0.25


def test_duplicates_are_looked_for_among_long_sentences_within_and_between_splits() -> None:
    long, other, short = sentence("ein tvey trý fýra fimm"), sentence("EIN tvey trý fýra FIMM"), sentence("ja .")
    fresh = sentence("seks sjey átta níggju tíggju")
    measured = measure_labelled(
        {"train": [long, other, short, short], "test": [fresh, long, short]}, LabelledGate(), labels=LABELS
    )
    assert measured["train"].values["duplicate_share"] == 0.5
    assert measured["train"].values["split_overlap"] is None
    assert measured["test"].values["duplicate_share"] == 0.0
    assert measured["test"].values["split_overlap"] == 0.5
    assert len(measured["test"].examples["split_overlap"]) == 1


def test_an_empty_split_is_measured() -> None:
    values = measure([]).values
    assert values["sentences"] == 0
    assert values["label_share"] is None
    assert values["duplicate_share"] is None
