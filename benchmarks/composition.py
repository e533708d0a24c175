"""Compose a language and a task SFT onto a resident base, and switch the language."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedModel

from benchmarks.bases import BASE_REF, build_sft, build_token_classifier, size_of
from benchmarks.figures import Report, main
from benchmarks.timing import interleaved
from ltsft.composition import Part, Resident, weight_at
from ltsft.sft import SFT


def run(*, quick: bool = False) -> Report:
    """Time composing and switching beside loading a model, adding dense diffs, and bare random access."""
    size = size_of(quick)
    model = build_token_classifier(size)
    languages = [build_sft(model, "language", f"l{i}", size.language_support, seed=i) for i in range(2)]
    task = build_sft(model, "task", "pos", size.task_support, seed=9)
    first, second = ([(language, 1.0), (task, 1.0)] for language in languages)
    before = _weights(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        timings = interleaved(
            {
                "load": lambda: _load(folder),
                # A new one each time: it has looked at no SFT yet and holds nothing.
                "compose": lambda: Resident(model, base=BASE_REF).switch(first),
                "plain": lambda: _add_dense(model, first),
                "limit": lambda: _touch(model, [languages[0], task]),
            },
            rounds=3 if quick else 5,
            reset=lambda: _put_back(model, before),
        )
        from_disk = interleaved(
            {"load": lambda: _load(folder), "compose": lambda: Resident(model, base=BASE_REF).switch(first)},
            rounds=3,
            reset=lambda: _start_anew(model, before, folder),
        )
    resident = Resident(model, base=BASE_REF)
    resident.switch(first)

    def switch() -> None:
        resident.switch(second if resident.parts == tuple(first) else first)

    switches = interleaved({"switch": switch}, rounds=8)
    limits = interleaved({"limit": lambda: _touch(model, languages)}, rounds=4)
    _put_back(model, before)
    report = Report("composition", f"{size.name}, language K {size.language_support:,}, task K {size.task_support:,}")
    plain, limit = timings.median("plain"), timings.median("limit")
    report.at_most("compose_seconds", timings.median("compose"), "s", 0.15, plain=plain, limit=limit)
    report.at_most("switch_seconds", switches.median("switch"), "s", 0.10, limit=limits.median("limit"))
    report.at_least("faster_than_loading_from_disk", from_disk.ratio("load", "compose"), "x", 10.0)
    report.at_least("faster_than_loading_from_memory", timings.ratio("load", "compose"), "x", 10.0)
    report.at_most("wrong_weights", _wrong_weights(model, before, first, second), "weights", 0.0)
    report.note("load a full model whose file is in memory", timings.median("load"), "s")
    report.note("load a full model from disk", from_disk.median("load"), "s")
    return report


def _load(folder: str) -> PreTrainedModel:
    """Load a full model into memory; transformers maps the file, which reads nothing until a weight is used."""
    model: PreTrainedModel = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32)
    for p in model.parameters():
        p.data = p.data.clone()
    return model


def _start_anew(model: PreTrainedModel, weights: dict[str, Tensor], folder: str) -> None:
    """Put the weights back, and let the file cache drop the model, as it does what was not used for a while."""
    _put_back(model, weights)
    for file in Path(folder).iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _add_dense(model: PreTrainedModel, parts: Sequence[Part]) -> None:
    """The plain procedure: whole tensors are added to whole tensors. It cannot be undone exactly."""
    for sft, weight in parts:
        for name, diff in sft.diffs.items():
            model.base_model.get_parameter(name).data += weight_at(weight, name) * diff.dense()


def _touch(model: PreTrainedModel, sfts: Sequence[SFT]) -> None:
    """The limit: read and write each weight of the supports once, with nothing saved or checked."""
    for sft in sfts:
        for name, diff in sft.diffs.items():
            model.base_model.get_parameter(name).data.view(-1).index_add_(0, diff.indices, diff.values)


def _wrong_weights(
    model: PreTrainedModel, before: dict[str, Tensor], first: Sequence[Part], second: Sequence[Part]
) -> float:
    """Count the weights whose bits differ: after switching from those composed anew, after leaving from the base."""
    fresh = Resident(model, base=BASE_REF)
    expected = _weights(fresh.switch(second))
    fresh.switch([])
    wrong = _differing(model, before)
    resident = Resident(model, base=BASE_REF)
    resident.switch(first)
    wrong += _differing(resident.switch(second), expected)
    return wrong + _differing(resident.switch([]), before)


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _put_back(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        p.data.copy_(weights[name])


def _differing(model: PreTrainedModel, weights: dict[str, Tensor]) -> float:
    return float(
        sum(int((p.data.view(torch.int32) != weights[n].view(torch.int32)).sum()) for n, p in model.named_parameters())
    )


if __name__ == "__main__":
    main("composition", run)
