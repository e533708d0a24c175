"""Token classification: labels on first sub-words, long sentences cut without loss, accuracy as counted by hand."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltsft.base import load_base
from ltsft.data.conll import TaggedRow
from ltsft.errors import SourceError
from ltsft.objectives.token_classification import IGNORE, SUBWORDS_AT_ONCE, TaggedPiece, TokenClassification

LABELS = ("NOUN", "VERB", "PUNCT")
NO_SUBWORD = "\u200b"  # removed by the tokenizer below


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    from tokenizers import normalizers

    tokenizer = load_base(str(tiny_base)).tokenizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(NO_SUBWORD, "")
    return tokenizer


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> PreTrainedModel:
    return load_base(str(tiny_base)).token_classifier(LABELS, seed=3).eval()


def objective(tokenizer: PreTrainedTokenizerBase, max_length: int = 24) -> TokenClassification:
    return TokenClassification(tokenizer, labels=LABELS, max_length=max_length)


def sentences(count: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        words = ["".join(rng.choices("abdeiklmnorstu", k=rng.randint(1, 9))) for _ in range(rng.randint(1, 12))]
        made.append((words, [rng.choice(LABELS) for _ in words]))
    return made


def test_the_label_stands_at_the_first_subword_of_each_word(tokenizer: PreTrainedTokenizerBase) -> None:
    words, labels = ["qzx", "bado", "."], ["NOUN", "VERB", "PUNCT"]
    (piece,) = objective(tokenizer).encode([(words, labels)])
    of_words = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    assert len(of_words[0]) > 1
    expected_ids, expected_labels = [tokenizer.cls_token_id], [IGNORE]
    for number, ids in enumerate(of_words):
        expected_ids += ids
        expected_labels += [number, *[IGNORE] * (len(ids) - 1)]
    assert piece.input_ids == (*expected_ids, tokenizer.sep_token_id)
    assert piece.labels == (*expected_labels, IGNORE)
    assert (piece.sentence, piece.words) == (0, 3)


def test_a_long_sentence_is_cut_between_words_and_no_word_is_lost(tokenizer: PreTrainedTokenizerBase) -> None:
    made = sentences(40)
    pieces = objective(tokenizer, max_length=10).encode(made)
    assert len(pieces) > len(made)
    for number, (words, labels) in enumerate(made):
        own = [piece for piece in pieces if piece.sentence == number]
        assert sum(piece.words for piece in own) == len(words)
        assert [LABELS[label] for piece in own for label in piece.labels if label != IGNORE] == labels
        assert all(len(piece.input_ids) == len(piece.labels) <= 10 for piece in own)
        assert all(piece.labels[1] != IGNORE for piece in own), "a piece begins inside a word"
        ids = [i for piece in own for i in piece.input_ids[1:-1]]
        of_words = [tokenizer(word, add_special_tokens=False)["input_ids"][:8] for word in words]
        assert ids == [i for word in of_words for i in word]


def test_a_word_longer_than_a_piece_keeps_its_first_subwords(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = objective(tokenizer, max_length=10).encode([(["bado", "qzxvw" * 6, "."], ["NOUN", "VERB", "PUNCT"])])
    assert all(len(piece.input_ids) <= 10 for piece in pieces)
    assert [label for piece in pieces for label in piece.labels if label != IGNORE] == [0, 1, 2]


def test_an_unknown_label_is_refused_by_name(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(SourceError, match=r"label 'SYM' is not in the label set \(NOUN, VERB, PUNCT\)"):
        objective(tokenizer).encode([(["bado"], ["SYM"])])
    with pytest.raises(SourceError, match=r"conllu:f:7: label 'SYM' is not in the label set"):
        objective(tokenizer).examples([TaggedRow(("bado",), ("SYM",), 7, "conllu:f", "bado")])


class Oracle(nn.Module):
    """Gives the label that stands in its table for a sub-word, with a logit that tells how sure it is."""

    def __init__(self, table: dict[int, int], labels: int) -> None:
        super().__init__()
        self.table = table
        self.outputs = labels
        self.weight = nn.Parameter(torch.zeros(1))
        self.shapes: list[tuple[int, int]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        self.shapes.append((input_ids.shape[0], input_ids.shape[1]))
        logits = torch.zeros(*input_ids.shape, self.outputs)
        for row, column in input_ids.new_ones(input_ids.shape).nonzero().tolist():
            logits[row, column, self.table.get(int(input_ids[row, column]), 0)] = 1.0
        return SimpleNamespace(logits=logits)


def test_accuracy_and_loss_are_those_counted_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    made = [
        (["a", "b", "."], ["NOUN", "VERB", "PUNCT"]),  # a and . right
        (["b", NO_SUBWORD, "a", "a"], ["NOUN", "NOUN", "NOUN", "VERB"]),  # b right, no sub-word wrong, a once right
    ]
    ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in "ab."}
    oracle = Oracle({ids["a"]: 0, ids["b"]: 0, ids["."]: 2}, len(LABELS))
    tagging = objective(tokenizer)
    found = tagging.evaluate(oracle, tagging.encode(made))  # type: ignore[arg-type]
    assert found.outcomes == ((2, 3), (2, 4))
    assert found.score == found.metrics["accuracy"] == pytest.approx(4 / 7)
    right, wrong = -math.log(math.e / (math.e + 2)), -math.log(1 / (math.e + 2))
    assert found.metrics["loss"] == pytest.approx((4 * right + 2 * wrong) / 6)
    assert found.metrics["words"] == 7.0


def test_a_word_without_a_subword_is_counted_as_wrong(tokenizer: PreTrainedTokenizerBase) -> None:
    tagging = objective(tokenizer)
    (piece,) = tagging.encode([([NO_SUBWORD, "a"], ["NOUN", "NOUN"])])
    assert (piece.words, sum(label != IGNORE for label in piece.labels)) == (2, 1)
    oracle = Oracle({}, len(LABELS))
    assert tagging.evaluate(oracle, [piece]).score == 0.5  # type: ignore[arg-type]


def test_a_batch_in_which_no_word_has_a_subword_has_loss_zero(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    tagging = objective(tokenizer)
    pieces = tagging.encode([([NO_SUBWORD], ["NOUN"])])
    loss = tagging.loss(model, tagging.collate(pieces, torch.Generator()))
    loss.backward()
    assert loss.item() == 0.0
    assert tagging.evaluate(model, pieces).metrics["loss"] == 0.0


def test_scores_do_not_depend_on_the_order_or_the_company_of_sentences(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    tagging = objective(tokenizer)
    pieces = tagging.encode(sentences(60))
    whole = tagging.evaluate(model, pieces)
    shuffled = random.Random(1).sample(pieces, len(pieces))
    assert tagging.evaluate(model, shuffled).outcomes == whole.outcomes
    alone = tagging.evaluate(model, [piece for piece in pieces if piece.sentence == 7])
    assert alone.outcomes == (whole.outcomes[7],)


def test_the_loss_equals_the_models_own(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    tagging = objective(tokenizer)
    batch = tagging.collate(tagging.encode(sentences(6)), torch.Generator())
    torch.testing.assert_close(tagging.loss(model, batch), model(**batch).loss)


def test_padding_changes_no_logit(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    tagging = objective(tokenizer)
    pieces = sorted(tagging.encode(sentences(20)), key=lambda piece: len(piece.input_ids))
    short, long = pieces[0], pieces[-1]
    both = tagging.collate([short, long], torch.Generator())
    alone = tagging.collate([short], torch.Generator())
    length = len(short.input_ids)
    assert both["input_ids"].shape == (2, len(long.input_ids))
    assert both["attention_mask"].sum(1).tolist() == [length, len(long.input_ids)]
    with torch.no_grad():
        padded = model(input_ids=both["input_ids"], attention_mask=both["attention_mask"]).logits[0, :length]
        plain = model(input_ids=alone["input_ids"], attention_mask=alone["attention_mask"]).logits[0]
    torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-6)


def test_scoring_takes_a_bounded_number_of_subwords_at_once(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = [TaggedPiece(i, (1,) * (5 + i % 40), (0,) * (5 + i % 40), 1) for i in range(400)]
    oracle = Oracle({}, len(LABELS))
    found = objective(tokenizer).evaluate(oracle, pieces)  # type: ignore[arg-type]
    assert all(rows * length <= SUBWORDS_AT_ONCE for rows, length in oracle.shapes)
    assert sum(rows for rows, _ in oracle.shapes) == len(pieces) == len(found.outcomes)


def test_no_sentences_give_no_pieces_and_no_score(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    tagging = objective(tokenizer)
    assert tagging.encode([]) == []
    assert tagging.encode([((), ())]) == []
    assert tagging.evaluate(model, []).score == 0.0
