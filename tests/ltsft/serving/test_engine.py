"""Served compositions beside the offline ones: the same bits, whatever was in place before."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ltsft.base import Base
from ltsft.composition.compose import composed
from ltsft.errors import CompositionError, LtsftError, ReleaseError, SFTFileError
from ltsft.release.release import Composition, Release, parse_composition
from ltsft.serving import encoder
from ltsft.serving.answers import Input
from ltsft.serving.engine import Admitted, Engine, group_pieces
from ltsft.serving.limits import Limits
from ltsft.serving.packed import PackedColumn, PackedDiffs, Unpacked, unpack_columns
from ltsft.serving.readers.words import TokenPiece
from ltsft.serving.rows import RowDiffs, word_embedding
from ltsft.sft.files import load_sft, save_sft
from ltsft.sft.sft import Diff

SENTENCES = ["bako dedas .", "gilik .", "dedas bako gilik bako dedas .", "bako"]


def admitted_all(engine: Engine, shelf: Any) -> list[Admitted]:
    return [engine.admit(release, shelf) for release in shelf.released.values()]


def offline(base: Base, admitted: Admitted, shelf: Any, pieces: list[Any]) -> list[torch.Tensor]:
    """Logits of the composition in a model of its own, composed the plain way, in the same batches."""
    composition = admitted.composition
    model = base.token_classifier(composition.labels, seed=3).eval()
    parts = [(load_sft(shelf.fetch(part)), part.weight) for part in composition.parts]
    with composed(model, parts, base=base.ref, rule=composition.rule), torch.inference_mode():
        found = {}
        for batch in group_pieces(pieces, Limits()):
            found |= zip(batch, admitted.reader.forward(model, [pieces[i] for i in batch]), strict=True)
    return [found[i][0] for i in range(len(pieces))]


def are_equal(given: list[Any], wanted: list[torch.Tensor]) -> bool:
    return len(given) == len(wanted) and all(torch.equal(a, b) for (a,), b in zip(given, wanted, strict=True))


def test_answers_have_the_bits_of_the_offline_composition_after_any_order_of_switches(
    base: Base, engine: Engine, shelf: Any
) -> None:
    ready = admitted_all(engine, shelf)
    expected = {}
    for admitted in ready:
        pieces = [p for text in SENTENCES for p in admitted.reader.prepare(Input(text=text)).pieces]
        expected[admitted] = (pieces, offline(base, admitted, shelf, pieces))
    order = random.Random(0).choices(ready, k=60)

    for admitted in order:
        pieces, wanted = expected[admitted]
        assert are_equal(engine.run(admitted, pieces), wanted), admitted.release.slot
    assert len({wanted[0].numpy().tobytes() for _, wanted in expected.values()}) == len(ready)


def test_where_the_word_embedding_cannot_be_composed_by_rows_it_is_switched_like_the_rest(
    base: Base, shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = base.token_classifier(("A", "B"), seed=0)
    assert (word_embedding(plain) or ("",))[0] == "embeddings.word_embeddings.weight"
    assert word_embedding(plain.to(torch.bfloat16)) is None
    monkeypatch.setattr(encoder, "word_embedding", lambda _: None)
    engine = Engine(base, limits=Limits())
    for admitted in admitted_all(engine, shelf)[:3]:
        assert all(packed.rows is None for packed, _ in admitted.parts)
        pieces = [p for text in SENTENCES for p in admitted.reader.prepare(Input(text=text)).pieces]
        assert are_equal(engine.run(admitted, pieces), offline(base, admitted, shelf, pieces))


def test_a_composition_by_another_rule_and_weights_is_served_exactly_beside_the_plain_ones(
    base: Base, engine: Engine, shelf: Any
) -> None:
    plain = admitted_all(engine, shelf)[0]
    weights: list[Any] = [{"embeddings": 0.5, "layer.0": -1.0}, 0.75]
    parts = tuple(
        part.model_copy(update={"weight": weight})
        for part, weight in zip(plain.composition.parts, weights, strict=True)
    )
    changed = plain.composition.model_copy(update={"parts": parts, "rule": "ties"})
    again = parse_composition(changed.to_json(), place="a registry", key=changed.key)
    assert again.key != plain.composition.key
    admitted = engine.admit(Release(9, again), shelf)
    pieces = [p for text in SENTENCES for p in admitted.reader.prepare(Input(text=text)).pieces]
    for one in (admitted, plain, admitted):
        assert are_equal(engine.run(one, pieces), offline(base, one, shelf, pieces))
    unknown = tuple(part.model_copy(update={"weight": {"layr.0": 0.5}}) for part in parts)
    with pytest.raises(CompositionError, match="matches no parameter"):
        engine.admit(_with(changed, parts=unknown), shelf)


def test_alone_or_in_a_batch_a_text_gets_the_same_answer_within_rounding(engine: Engine, shelf: Any) -> None:
    admitted = admitted_all(engine, shelf)[0]
    pieces = [p for text in SENTENCES for p in admitted.reader.prepare(Input(text=text)).pieces]
    together = engine.run(admitted, pieces)
    for piece, (logits,) in zip(pieces, together, strict=True):
        [(alone,)] = engine.run(admitted, [piece])
        torch.testing.assert_close(logits[: len(piece.input_ids)], alone, rtol=1e-4, atol=1e-5)


def test_one_encoder_is_shared_by_all_heads_and_an_sft_is_kept_once(engine: Engine, shelf: Any) -> None:
    ready = admitted_all(engine, shelf)
    assert len({id(admitted.model.base_model) for admitted in ready}) == 1
    kept = {id(sft) for admitted in ready for sft, _ in admitted.parts}
    assert len(kept) == len({part.sha256 for a in ready for part in a.composition.parts}) == 5


def test_packing_loses_nothing_and_unpacks_again_after_a_drop(shelf: Any) -> None:
    sft = load_sft(next(iter(shelf.folders.values())))
    diffs = PackedDiffs(sft.diffs)
    assert diffs.packed_bytes < 0.75 * diffs.unpacked_bytes
    for _ in range(2):
        assert dict(diffs).keys() == sft.diffs.keys()
        for name, diff in sft.diffs.items():
            assert torch.equal(diffs[name].indices, diff.indices)
            assert torch.equal(diffs[name].values, diff.values)
            assert diffs[name].indices.dtype == torch.int32
        diffs.drop()
    with pytest.raises(KeyError):
        diffs["nowhere"]


@pytest.mark.parametrize("density", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("is_short", [False, True])
def test_rows_of_a_packed_diff_are_those_of_the_whole_matrix_and_only_their_blocks_are_unpacked(
    density: float, is_short: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (101, 13)
    support = torch.nonzero(torch.rand(shape[0] * shape[1], generator=generator) < density).flatten().int()
    values = torch.randn(len(support), generator=generator)
    diff = Diff(indices=support, values=values.bfloat16().float() if is_short else values, shape=shape)
    packed = RowDiffs(diff, block_rows=8)
    for rows in ([0], [100], [7, 8, 9], list(range(101)), [3, 50, 51, 99]):
        packed.drop()
        places, found = packed.entries(np.array(rows))
        table = torch.zeros(len(rows) * shape[1])
        table[places] = found
        assert torch.equal(table.view(-1, shape[1]), diff.dense()[rows])
        assert bool((places[1:] > places[:-1]).all())
        blocks = {row // 8 for row in rows}
        inside = sum(int(at) // shape[1] // 8 in blocks for at in support)
        assert packed.unpacked_bytes == 8 * inside


def test_values_that_were_stored_as_bfloat16_are_kept_as_such() -> None:
    values = torch.randn(5_000).bfloat16().float().numpy()
    packed, whole = PackedColumn.of(values), PackedColumn.of(np.nextafter(values, np.float32(9)))
    assert packed.size_bytes < 0.5 * whole.size_bytes
    out = np.empty_like(values)
    unpack_columns([(packed, out)])
    assert out.tobytes() == values.tobytes()


def test_no_more_is_unpacked_than_the_budget_allows_and_what_is_in_place_stays(shelf: Any) -> None:
    packed = [PackedDiffs(load_sft(folder).diffs) for folder in shelf.folders.values()]
    size = max(diffs.unpacked_bytes for diffs in packed)
    unpacked = Unpacked(budget_bytes=2 * size)
    for diffs in packed:
        unpacked.use([diffs])
        assert unpacked.unpacked_bytes <= 2 * size
    unpacked.use(packed[:4])
    assert unpacked.unpacked_bytes > 2 * size


def test_pieces_are_grouped_so_that_padding_costs_least_within_the_bounds_of_a_pass(engine: Engine) -> None:
    seen: list[list[int]] = []

    class Reader:
        def forward(self, model: Any, pieces: Any) -> list[Any]:
            seen.append([len(piece.input_ids) for piece in pieces])
            return [(torch.tensor(len(piece.input_ids)),) for piece in pieces]

    def grouped(*lengths: int, **limits: int) -> list[list[int]]:
        seen.clear()
        bounded = Engine(engine.base, limits=Limits.model_validate(limits))
        bounded.put_in_place = lambda _: None  # type: ignore[method-assign]
        admitted: Any = SimpleNamespace(reader=Reader(), model=None)
        found = bounded.run(admitted, [TokenPiece((1,) * length, ()) for length in lengths])
        assert [int(n) for (n,) in found] == list(lengths)
        return list(seen)

    assert grouped(50, 9, 51, 10, 52, 11, 53, 12) == [[9, 10, 11, 12], [50, 51, 52, 53]]
    assert grouped(10, 11, 12) == [[10, 11, 12]]
    assert grouped(*[10] * 5, batch_texts=2) in ([[10], [10, 10], [10, 10]], [[10, 10], [10, 10], [10]])
    assert grouped(40, 40, 100, batch_subwords=80) == [[40, 40], [100]]


def damaged(folder: Path, target: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(folder, target)
    change(target)
    return target


def _flip(folder: Path) -> None:
    content = bytearray((folder / "sft.safetensors").read_bytes())
    content[-9] ^= 1
    (folder / "sft.safetensors").write_bytes(content)


def _another(folder: Path) -> None:
    sft = load_sft(folder)
    save_sft(replace(sft, details={"seed": 1}, diffs=dict(list(sft.diffs.items())[1:])), folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_flip, SFTFileError, "is corrupt"),
        (_another, ReleaseError, "is not the language aa that was released"),
        (lambda folder: (folder / "sft.json").unlink(), SFTFileError, "is not an SFT"),
    ],
)
def test_an_artifact_that_is_not_what_was_released_is_refused_and_the_others_answer_on(
    engine: Engine, shelf: Any, tmp_path: Path, change: Any, error: type[LtsftError], message: str
) -> None:
    ready = admitted_all(engine, shelf)
    other = next(a for a in ready if a.composition.language == "bb")
    pieces = list(other.reader.prepare(Input(text=SENTENCES[0])).pieces)
    before = engine.run(other, pieces)
    part = next(a for a in ready if a.composition.language == "aa").composition.parts[0]
    shelf.folders[part.sha256] = damaged(shelf.folders[part.sha256], tmp_path / "bad", change)
    release = next(r for r in shelf.released.values() if r.composition.language == "aa")

    fresh = Engine(engine.base, limits=Limits())
    with pytest.raises(error, match=message):
        fresh.admit(release, shelf)
    assert torch.equal(engine.run(other, pieces)[0][0], before[0][0])


def _with(composition: Composition, **change: Any) -> Release:
    return Release(9, composition.model_copy(update=change))


def test_a_composition_of_another_base_rule_or_label_set_is_refused(engine: Engine, shelf: Any) -> None:
    composition = next(iter(shelf.released.values())).composition
    other = composition.base.model_copy(update={"fingerprint": "0" * 64})
    for release, message in (
        (_with(composition, base=other), "start a server with that base"),
        (_with(composition, rule="other"), "composition rule 'other' is unknown"),
        (_with(composition, objective="other"), "objective 'other' cannot be served"),
        (_with(composition, labels=("X", *composition.labels[1:])), "are not those of task SFT"),
        (_with(composition, parts=composition.parts[:1]), "has one task SFT, this one has 0"),
    ):
        with pytest.raises((ReleaseError, CompositionError), match=message):
            engine.admit(release, shelf)


def test_diffs_that_could_make_a_weight_infinite_are_refused(engine: Engine, shelf: Any) -> None:
    composition = next(iter(shelf.released.values())).composition
    parts = tuple(part.model_copy(update={"weight": 1e30}) for part in composition.parts)
    with pytest.raises(CompositionError, match="its diffs add up to"):
        engine.admit(_with(composition, parts=parts), shelf)
