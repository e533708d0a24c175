"""Masked language modelling: logits where they are needed, text packed without loss, masks from the seed alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltsft.base import load_base
from ltsft.config.source import Source
from ltsft.data.sources import read_text
from ltsft.errors import TrainingError
from ltsft.objectives.masked_lm import LINES_AT_ONCE, MaskedLM, Rows, masked_logits, pack_text, split_held_out

BuildModel = Callable[..., PreTrainedModel]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return load_base(str(tiny_base)).tokenizer


@pytest.fixture(scope="module")
def packed(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    lines = [f"bado kelu {word} mika" for word in ["tuna", "saki", "vefo", "runa"]] * 40
    return pack_text(lines, tokenizer, max_length=16, file=tmp_path_factory.mktemp("packed") / "16.tokens")


def sequences(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Sub-words and labels for the models in memory; a third of the positions are to be predicted."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 37, (batch, length), generator=generator)
    where = torch.rand(batch, length, generator=generator) < 0.3
    return ids, torch.where(where, ids.roll(1, 0), -100)


def as_batch(ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
    masked = (labels.flatten() != -100).nonzero().squeeze(1)
    return {"input_ids": ids, "masked": masked, "labels": labels.flatten()[masked]}


def test_logits_at_masked_positions_equal_the_whole_models(family: str, tiny_model: BuildModel) -> None:
    model = tiny_model(family, head="masked_lm").eval()
    ids, labels = sequences(4, 12)
    where = labels != -100
    with torch.no_grad():
        logits = masked_logits(model, ids, where.flatten().nonzero().squeeze(1))
        whole = model(input_ids=ids).logits
    assert logits.shape == (int(where.sum()), 37)
    torch.testing.assert_close(logits, whole[where], rtol=1e-5, atol=1e-6)


def test_the_loss_and_its_gradients_equal_the_models_own(
    family: str, tiny_model: BuildModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids, labels = sequences(4, 12)
    ours, theirs = tiny_model(family, head="masked_lm").eval(), tiny_model(family, head="masked_lm").eval()
    loss = MaskedLM(tokenizer).loss(ours, as_batch(ids, labels))
    expected = theirs(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_the_encoder_gives_whole_states_again_after_a_loss(tiny_model: BuildModel) -> None:
    model = tiny_model("bert", head="masked_lm").eval()
    ids, _ = sequences(2, 8)
    masked_logits(model, ids, torch.tensor([0, 15]))
    assert model(input_ids=ids).logits.shape == (2, 8, 37)
    with pytest.raises((IndexError, RuntimeError)):
        masked_logits(model, ids, torch.tensor([16]))
    assert model(input_ids=ids).logits.shape == (2, 8, 37)


def test_a_batch_without_a_masked_position_has_loss_zero_and_no_nan(
    tiny_model: BuildModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model("bert", head="masked_lm")
    ids, _ = sequences(2, 8)
    loss = MaskedLM(tokenizer).loss(model, as_batch(ids, torch.full((2, 8), -100)))
    loss.backward()
    assert loss.item() == 0.0
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_the_mask_depends_on_the_generator_alone(tokenizer: PreTrainedTokenizerBase, packed: np.ndarray) -> None:
    objective = MaskedLM(tokenizer)

    def masked(seed: int) -> dict[str, Tensor]:
        return objective.collate([packed[i] for i in range(8)], torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    first, other = masked(5), masked(6)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = masked(5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["masked"], other["masked"])
    assert set(first) == {"input_ids", "masked", "labels"}


def test_special_tokens_are_never_predicted_and_most_predicted_ones_are_masked(
    tokenizer: PreTrainedTokenizerBase, packed: np.ndarray
) -> None:
    rows = [packed[i % len(packed)] for i in range(400)]
    batch = MaskedLM(tokenizer, mask_probability=0.3).collate(rows, torch.Generator().manual_seed(1))
    ids = torch.as_tensor(np.stack(rows)).long()
    where = torch.zeros(ids.numel(), dtype=torch.bool)
    where[batch["masked"]] = True
    where = where.view_as(ids)
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert not bool((where & special).any())
    assert torch.equal(batch["labels"], ids[where])
    assert torch.equal(batch["input_ids"][~where], ids[~where])
    assert float(where.sum() / (~special).sum()) == pytest.approx(0.3, abs=0.03)
    share = (batch["input_ids"][where] == tokenizer.mask_token_id).float().mean()
    assert float(share) == pytest.approx(0.8, abs=0.05)


def test_scoring_the_same_model_twice_gives_the_same_figures(
    tokenizer: PreTrainedTokenizerBase, packed: np.ndarray, tiny_base: Path
) -> None:
    model = load_base(str(tiny_base)).masked_lm().eval()
    objective = MaskedLM(tokenizer)
    torch.manual_seed(1)
    first = objective.evaluate(model, packed)
    torch.manual_seed(2)
    assert objective.evaluate(model, packed) == first
    assert first.score == -first.metrics["loss"]
    assert first.metrics["loss"] == pytest.approx(np.log(len(tokenizer)), rel=0.1)


def ids_of(lines: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What packing should hold, line by line: the sub-words and a separator."""
    ids = []
    for line in lines:
        ids += [*tokenizer(line, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    return ids


def test_packing_loses_no_subword_but_the_tail(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    lines = [f"bado kelu {'mika ' * (i % 7)}tuna" for i in range(2 * LINES_AT_ONCE + 77)]
    packed = pack_text(lines, tokenizer, max_length=12, file=tmp_path / "12.tokens")
    expected = ids_of(lines, tokenizer)
    assert packed.dtype == np.int32
    assert packed.shape == (len(expected) // 10, 12)
    assert packed[:, 1:-1].reshape(-1).tolist() == expected[: len(packed) * 10]
    assert set(packed[:, 0]) == {tokenizer.cls_token_id}
    assert set(packed[:, -1]) == {tokenizer.sep_token_id}


def test_documents_share_sequences_and_none_loses_a_subword(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    documents = [[f"bado kelu {'mika ' * (i % 5)}tuna"] * (1 + i * 7 % 4) for i in range(300)]
    lines = [line for document in documents for line in [*document, ""]]
    packed = pack_text(lines, tokenizer, max_length=24, file=tmp_path / "24.tokens")
    start, end, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    assert set(packed[:, 0]) == {start}
    found: list[int] = []
    for row in packed.tolist():
        body = [i for i in row if i != pad]
        assert row == body + [pad] * (24 - len(body))
        assert 24 - len(body) < 3
        places = [*[i for i, subword in enumerate(body) if subword == start], len(body)]
        pieces = [body[begin + 1 : stop] for begin, stop in pairwise(places)]
        assert all(piece[-1] == end for piece in pieces)
        is_cut = len(body) == 24  # its last piece was closed here by a sep of its own, and its document goes on
        found += [subword for piece in pieces for subword in piece][: -1 if is_cut else None]
    expected = [i for document in documents for i in ids_of(document, tokenizer)]
    assert found == expected[: len(found)]
    assert len(expected) - len(found) < 24
    assert float((packed == pad).mean()) < 0.05


def test_a_source_is_a_document_and_so_is_what_stands_between_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\none\ntwo\n \n\nthree\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("four\n\n", encoding="utf-8")
    sources = [Source(scheme="text", location=str(tmp_path / name)) for name in ("a.txt", "b.txt")]
    assert list(read_text(sources, documents=True)) == ["one", "two", "", "three", "", "four", ""]
    assert list(read_text(sources)) == ["one", "two", "three", "four"]


def pack_several(batch: int) -> list[np.ndarray]:
    """Sequences of 16 that hold three documents, and some padding; cls is 2, padding 0."""
    rng = np.random.default_rng(3)
    rows = []
    for i in range(batch):
        row = rng.integers(5, 37, 16, dtype=np.int32)
        row[[0, 5 + i, 9 + i]] = 2
        row[14 + i % 3 :] = 0
        rows.append(row)
    return rows


def masked_by(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, together: bool) -> MaskedLM:
    objective = MaskedLM(tokenizer, mask_probability=0.4)
    objective.fit(model)
    assert objective._first_position == (2 if model.config.model_type == "xlm-roberta" else 0)
    if not together:
        objective._first_position = None
    return objective


@pytest.mark.parametrize("together", [True, False], ids=["one sequence", "own rows"])
def test_packed_documents_have_the_loss_and_gradients_of_documents_alone(
    together: bool, family: str, tiny_model: BuildModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ours = tiny_model(family, head="masked_lm").eval()
    ours.resize_token_embeddings(len(tokenizer))
    theirs = copy.deepcopy(ours)
    rows = pack_several(3)
    objective = masked_by(tokenizer, ours, together=together)
    batch = objective.collate(rows, torch.Generator().manual_seed(7))
    assert ("documents" in batch) == together
    objective._first_position = 0
    whole = objective.collate(rows, torch.Generator().manual_seed(7))
    labels = torch.full((3 * 16,), -100)
    labels[whole["masked"]] = whole["labels"]
    total = torch.zeros(())
    for ids, wanted, row in zip(whole["input_ids"], labels.view(3, 16), rows, strict=True):
        starts = [*np.flatnonzero(row == tokenizer.cls_token_id).tolist(), int((row != 0).sum())]
        for begin, end in pairwise(starts):
            logits = theirs(input_ids=ids[None, begin:end]).logits[0]
            total = total + functional.cross_entropy(logits, wanted[begin:end], ignore_index=-100, reduction="sum")
    expected = total / len(whole["labels"])
    loss = objective.loss(ours, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_packing_reads_the_text_in_blocks_and_maps_the_result(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    read, most_waiting = 0, 0
    file = tmp_path / "16.tokens"

    def lines() -> Iterator[str]:
        nonlocal read, most_waiting
        for i in range(12 * LINES_AT_ONCE):
            read += 1
            partial = file.with_name("16.tokens.partial")
            written = partial.stat().st_size // (16 * 4) if partial.is_file() else 0
            most_waiting = max(most_waiting, i - written)  # a line is about one sequence
            yield "bado kelu mika tuna saki vefo"

    packed = pack_text(lines(), tokenizer, max_length=16, file=file)
    assert isinstance(packed, np.memmap)
    assert read == 12 * LINES_AT_ONCE
    assert most_waiting < 4 * LINES_AT_ONCE


def test_text_that_is_packed_already_is_not_read_again(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = tmp_path / "8.tokens"
    first = pack_text(["bado kelu mika tuna saki"] * 9, tokenizer, max_length=8, file=file)

    def never() -> Iterator[str]:
        pytest.fail("the text was read again")
        yield ""

    again = pack_text(never(), tokenizer, max_length=8, file=file)
    assert np.array_equal(first, again)
    assert again.dtype == first.dtype


def test_a_packing_that_was_cut_short_is_not_taken_for_whole(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file = tmp_path / "8.tokens"

    def broken() -> Iterator[str]:
        yield from ["bado kelu mika tuna saki"] * (LINES_AT_ONCE + 5)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        pack_text(broken(), tokenizer, max_length=8, file=file)
    assert not file.exists()


def test_too_little_text_says_what_is_needed(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    file = tmp_path / "64.tokens"
    with pytest.raises(TrainingError, match="the text gives 0 sequences of 64 sub-words and at least 2 are needed"):
        pack_text(["bado kelu"], tokenizer, max_length=64, file=file)
    with pytest.raises(TrainingError, match="the text gives 0 sequences"):
        pack_text([], tokenizer, max_length=64, file=file)
    assert not file.exists()


@pytest.mark.parametrize(
    ("total", "asked", "kept"), [(2, 64, 1), (19, 64, 1), (200, 64, 20), (2000, 64, 64), (50, 1, 1)]
)
def test_held_out_sequences_are_spread_and_never_trained_on(total: int, asked: int, kept: int) -> None:
    array = np.arange(total * 3).reshape(total, 3)
    train, held_out = split_held_out(array, asked)
    assert (len(train), len(held_out)) == (total - kept, kept)
    seen = [int(rows[i][0]) // 3 for rows in (train, held_out) for i in range(len(rows))]
    assert sorted(seen) == list(range(total))
    places = [int(held_out[i][0]) // 3 for i in range(kept)]
    if kept > 1:
        gaps = np.diff(places)
        assert gaps.max() - gaps.min() <= 1


def test_rows_are_read_when_they_are_asked_for() -> None:
    array = np.arange(6).reshape(3, 2)
    rows = Rows(array, np.array([2, 0]))
    array[2] = 9
    assert rows[0].tolist() == [9, 9]
    assert len(rows) == 2
