"""Save an SFT of a large model, and load it with every check."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.bases import build_sft, build_token_classifier, size_of
from benchmarks.figures import Report, main
from benchmarks.timing import interleaved
from ltsft.sft import SFT, TENSOR_FILE, load_sft, save_sft


def run(*, quick: bool = False) -> Report:
    """Time saving and loading, and count bits, beside plain tensors of int64 indices and float32 values."""
    size = size_of(quick)
    sft = build_sft(build_token_classifier(size), "language", "fo", size.language_support, seed=0)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        saved = (folder / f"saved-{number}" for number in range(100))  # a new folder each time: nothing is reused
        save_sft(sft, next(saved))
        _plain_save(sft, folder / "plain")
        timings = interleaved(
            {
                "save": lambda: save_sft(sft, next(saved)),
                "load": lambda: load_sft(folder / "saved-0"),
                "plain save": lambda: _plain_save(sft, folder / "plain"),
                "plain load": lambda: load_file(folder / "plain"),
                "limit": lambda: (folder / "saved-0" / TENSOR_FILE).read_bytes(),
            },
            rounds=5,
        )
        save_sft(sft, folder / "half", values="bfloat16")
        loaded, entries = load_sft(folder / "saved-0"), sft.support_size
        files = {
            "plain": folder / "plain",
            "whole": folder / "saved-0" / TENSOR_FILE,
            "half": folder / "half" / TENSOR_FILE,
        }
        bits = {name: 8 * file.stat().st_size / entries for name, file in files.items()}
        packing = json.loads((folder / "saved-0" / "sft.json").read_text())["packing"]
    report = Report("storage", f"{size.name}, {entries:,} entries")
    report.at_most("save_seconds", timings.median("save"), "s", 1.0, plain=timings.median("plain save"))
    report.at_most(
        "load_seconds",
        timings.median("load"),
        "s",
        0.25,
        plain=timings.median("plain load"),
        limit=timings.median("limit"),
    )
    gap_bits, value_bits = (8 * sum(packing[name]) / entries for name in ("gap_bytes", "value_bytes"))
    report.at_most("bits_an_entry", bits["whole"], "bits", 33.0, plain=bits["plain"], limit=_entropy(sft) + value_bits)
    report.at_most("bits_an_entry_bf16", bits["half"], "bits", 18.0, plain=bits["plain"])
    report.at_most("wrong_entries", _wrong(sft, loaded), "entries", 0.0)
    report.note("bits an index", gap_bits, "bits")
    report.note("entropy of an index at this density", _entropy(sft), "bits")
    report.note("bits a value", value_bits, "bits")
    return report


def _plain_save(sft: SFT, file: Path) -> None:
    """The plain procedure: 64-bit indices and the values, parameter by parameter, nothing checked."""
    indices = {f"{name}.indices": diff.indices.long() for name, diff in sft.diffs.items()}
    values = {f"{name}.values": diff.values.clone() for name, diff in sft.diffs.items()}
    save_file({**indices, **values}, file)


def _entropy(sft: SFT) -> float:
    """Give the bits that an index takes if every weight is in the support with the density's probability."""
    p = torch.tensor(sft.density, dtype=torch.float64)
    return float(-(p * torch.log2(p) + (1 - p) * torch.log2(1 - p)) / p)


def _wrong(one: SFT, other: SFT) -> float:
    wrong = 0
    for name, diff in one.diffs.items():
        same = other.diffs[name]
        wrong += int((diff.indices != same.indices).sum())
        wrong += int((diff.values.view(torch.int32) != same.values.view(torch.int32)).sum())
    return float(wrong)


if __name__ == "__main__":
    main("storage", run)
