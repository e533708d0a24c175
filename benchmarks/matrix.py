"""Score the cells of one target task in several languages."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification, PreTrainedModel

from benchmarks.bases import BASE_REF, LABELS, Size, build_sft, build_token_classifier, size_of
from benchmarks.figures import Report, main
from benchmarks.timing import interleaved
from ltsft.composition import Resident
from ltsft.objectives import TaggedPiece, TokenClassification
from ltsft.sft import SFT, load_sft, save_sft

CELLS = 2
"""Languages of the 20 that are scored: cells do not depend on each other, and all take many minutes on two cores."""


def run(*, quick: bool = False) -> Report:
    """Time scoring with one resident base beside a fresh model and padding for each cell, and beside real tokens."""
    size, sentences = size_of(quick), 40 if quick else 500
    model = build_token_classifier(size)
    objective = TokenClassification(SimpleNamespace(pad_token_id=0), labels=LABELS, max_length=128)  # type: ignore[arg-type]
    sets = [_sentences(size, sentences, seed=number) for number in range(CELLS)]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model.save_pretrained(folder / "model")
        task = build_sft(model, "task", "pos", size.task_support, seed=9)
        _keep(task, folder / "task")
        for number in range(CELLS):
            _keep(build_sft(model, "language", f"l{number}", size.language_support, seed=number), folder / f"l{number}")

        def lean() -> list[float]:
            resident, task = Resident(model, base=BASE_REF), load_sft(folder / "task" / "sft")
            scores = []
            for number, pieces in enumerate(sets):
                language = load_sft(folder / f"l{number}" / "sft")
                scores.append(objective.evaluate(resident.switch([(language, 1.0), (task, 1.0)]), pieces).score)
            resident.switch([])
            return scores

        timings = interleaved(
            {
                "lean": lean,
                "plain": lambda: [_plain_cell(folder, f"l{n}", pieces) for n, pieces in enumerate(sets)],
                "limit": lambda: [_real_tokens(model, pieces) for pieces in sets],
            },
            rounds=2 if quick else 1,
            warmup=1 if quick else 0,
        )
        plain = [_plain_cell(folder, f"l{n}", pieces) for n, pieces in enumerate(sets)] if quick else None
        difference = max(abs(a - b) for a, b in zip(lean(), plain, strict=True)) if plain else None
    report = Report("matrix", f"{size.name}, {CELLS} of 20 languages, {sentences} sentences each")
    report.at_least("faster_than_fresh_models", timings.ratio("plain", "lean"), "x", 3.0)
    report.at_most("times_the_real_tokens", timings.ratio("lean", "limit"), "x", 1.25)
    report.note("a cell", timings.median("lean") / CELLS, "s")
    report.note("a cell, plain", timings.median("plain") / CELLS, "s")
    report.note("a cell, limit", timings.median("limit") / CELLS, "s")
    if difference is not None:
        report.note("largest difference of a score from the plain procedure's", difference, "")
    return report


def _sentences(size: Size, count: int, *, seed: int) -> list[TaggedPiece]:
    """Give sentences whose lengths are spread as those of treebanks: 28 sub-words on average, a few of 128."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (24 * torch.exp(0.55 * torch.randn(count, generator=generator))).long().clamp(4, 128).tolist()
    pieces = []
    for number, length in enumerate(lengths):
        ids = torch.randint(5, size.vocabulary, (length,), generator=generator).tolist()
        labels = torch.randint(0, len(LABELS), (length,), generator=generator).tolist()
        pieces.append(TaggedPiece(number, tuple(ids), (-100, *labels[1:-1], -100), length - 2))
    return pieces


def _keep(sft: SFT, folder: Path) -> None:
    save_sft(sft, folder / "sft")
    tensors: dict[str, Any] = {}
    for name, diff in sft.diffs.items():
        tensors |= {f"{name}.indices": diff.indices.long(), f"{name}.values": diff.values}
    save_file(tensors, folder / "plain")


@torch.no_grad()
def _plain_cell(folder: Path, language: str, pieces: list[TaggedPiece]) -> float:
    """The plain procedure: a fresh model, dense diffs added, sentences as they come, padded to the longest of all."""
    model = AutoModelForTokenClassification.from_pretrained(folder / "model", dtype=torch.float32).eval()
    for part in (language, "task"):
        tensors = load_file(folder / part / "plain")
        for name in {key.rpartition(".")[0] for key in tensors}:
            dense = torch.zeros(model.base_model.get_parameter(name).numel())
            dense[tensors[f"{name}.indices"]] = tensors[f"{name}.values"]
            model.base_model.get_parameter(name).data += dense.view_as(model.base_model.get_parameter(name))
    longest = max(len(piece.input_ids) for piece in pieces)
    right = words = 0
    for low in range(0, len(pieces), 32):
        batch = pieces[low : low + 32]
        ids, labels = torch.zeros(len(batch), longest, dtype=torch.long), torch.full((len(batch), longest), -100)
        for row, piece in enumerate(batch):
            ids[row, : len(piece.input_ids)] = torch.tensor(piece.input_ids)
            labels[row, : len(piece.labels)] = torch.tensor(piece.labels)
        mask = torch.arange(longest) < torch.tensor([[len(piece.input_ids)] for piece in batch])
        predicted = model(input_ids=ids, attention_mask=mask.long()).logits.argmax(-1)
        right += int(((predicted == labels) & (labels != -100)).sum())
        words += sum(piece.words for piece in batch)
    return right / words


@torch.no_grad()
def _real_tokens(model: PreTrainedModel, pieces: list[TaggedPiece]) -> None:
    """The limit: as many tokens in full batches of sentences that are all of the mean length."""
    tokens = sum(len(piece.input_ids) for piece in pieces)
    length = tokens // len(pieces)
    rows = 4096 // length
    for low in range(0, len(pieces), rows):
        count = min(rows, len(pieces) - low)
        model(input_ids=torch.ones(count, length, dtype=torch.long), attention_mask=torch.ones(count, length))


if __name__ == "__main__":
    main("matrix", run)
