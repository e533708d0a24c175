"""From a request to pieces and from logits to an answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ltsft.base import Base
from ltsft.objectives.token_classification import TokenClassification
from ltsft.release.release import ComposedPart, Composition
from ltsft.serving.answers import Input, RefusedInputError
from ltsft.serving.limits import Limits
from ltsft.serving.readers.words import TokenReader

LABELS = ("NOUN", "VERB", "ADJ", "PUNCT")
PART = ComposedPart(kind="task", subject="task pos", key="0" * 64, sha256="0" * 64, run_id="r")


@pytest.fixture
def reader(base: Base, make_composition: Callable[..., Composition]) -> Callable[..., TokenReader]:
    """Make the reader of words for texts of at most 16 sub-words."""
    composition = make_composition("aa", "pos", PART, max_length=16)
    return lambda **limits: TokenReader(base.tokenizer, composition, Limits.model_validate(limits))


def test_pieces_are_those_that_the_objective_trains_and_scores_on(
    base: Base, reader: Callable[..., TokenReader]
) -> None:
    words = ["bako", "dedas", "gilik", "."] * 9
    objective = TokenClassification(base.tokenizer, labels=LABELS, max_length=16)

    prepared = reader().prepare(Input(words=tuple(words)))

    expected = objective.encode([(words, ["NOUN"] * len(words))])
    assert len(expected) > 2
    assert [piece.input_ids for piece in prepared.pieces] == [piece.input_ids for piece in expected]
    places = [[i for i, label in enumerate(piece.labels) if label >= 0] for piece in expected]
    assert [list(piece.firsts) for piece in prepared.pieces] == places


def test_each_word_gets_the_best_label_at_its_first_subword_over_all_pieces(
    base: Base, reader: Callable[..., TokenReader]
) -> None:
    tagger = reader()
    prepared = tagger.prepare(Input(text="bako  dedas\n" * 8))
    torch.manual_seed(0)
    logits = [torch.randn(len(piece.input_ids), len(LABELS)) for piece in prepared.pieces]

    answer = tagger.read(prepared, [(values,) for values in logits]).words

    assert [word.text for word in answer] == ["bako", "dedas"] * 8
    assert (answer[2].start, answer[2].end) == (12, 16)
    at = 0
    for piece, values in zip(prepared.pieces, logits, strict=True):
        for first in piece.firsts:
            row = values[first].double().softmax(-1)
            assert answer[at].label == LABELS[int(row.argmax())]
            assert answer[at].score == pytest.approx(float(row.max()), rel=1e-5)
            at += 1
    assert at == len(answer)


def test_a_word_without_a_subword_has_no_label(base: Base, reader: Callable[..., TokenReader]) -> None:
    tagger = reader()
    prepared = tagger.prepare(Input(words=("bako", " ", ".")))
    answer = tagger.read(prepared, [(torch.zeros(len(prepared.pieces[0].input_ids), 4),)]).words
    assert (answer[1].label, answer[1].score) == (None, None)
    assert answer[2].label is not None


def test_what_cannot_be_answered_is_refused_with_the_bound(base: Base, reader: Callable[..., TokenReader]) -> None:
    with pytest.raises(RefusedInputError, match="has no words"):
        reader().prepare(Input(text=" \n"))
    with pytest.raises(RefusedInputError, match="has 5 words, at most 4 are allowed"):
        reader(max_words=4).prepare(Input(text="a b c d e"))
    with pytest.raises(RefusedInputError, match="longer than the 16 sub-words"):
        reader(long_texts="refuse").prepare(Input(text="bako dedas " * 20))
