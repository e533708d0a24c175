"""Choose the K weights that moved furthest."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.bases import Size, build_token_classifier, size_of
from benchmarks.figures import Report, main
from benchmarks.timing import interleaved, peak_memory
from ltsft.base import parameter_roles
from ltsft.mask import select_magnitude


def run(*, quick: bool = False) -> Report:
    """Time the selection and its memory beside torch.topk over all moves and one pass over both weight sets."""
    size = size_of(quick)
    now, start = _weights(size)
    timings = interleaved(
        {
            "select": lambda: select_magnitude(now, start, size.language_support),
            "limit": lambda: [float(now[name].sum() + start[name].sum()) for name in now],
        },
        rounds=5,
    )
    lean, plain = peak_memory(_prepared, size, False), peak_memory(_prepared, size, True)
    report = Report("selection", f"{size.name}, K {size.language_support:,}")
    plain_seconds, limit = plain.result[0], timings.median("limit")
    report.at_most("select_seconds", timings.median("select"), "s", 1.5, plain=plain_seconds, limit=limit)
    report.at_most("extra_memory", lean.extra_bytes / 1e9, "GB", 0.2, plain=plain.extra_bytes / 1e9)
    report.at_most("wrong_choices", float(lean.result[1] != plain.result[1]), "", 0.0)
    report.note("the result itself, 4 bytes an entry", 4 * size.language_support / 1e9, "GB")
    return report


def _weights(size: Size) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    maskable = parameter_roles(build_token_classifier(size)).maskable
    generator = torch.Generator().manual_seed(1)
    start = {name: p.detach() for name, p in maskable.items()}
    now = {name: p + 1e-3 * torch.randn(p.shape, generator=generator) for name, p in start.items()}
    return now, start


def _prepared(size: Size, is_plain: bool) -> Callable[[], object]:
    """Give the selection as work that returns its seconds and a fingerprint of what was chosen."""
    now, start = _weights(size)
    select = _plain if is_plain else select_magnitude

    def work() -> tuple[float, list[int]]:
        began = time.perf_counter()
        chosen = select(now, start, size.language_support)
        seconds = time.perf_counter() - began
        return seconds, [int(indices.long().sum()) for indices in chosen.values()]

    return work


def _plain(now: dict[str, Tensor], start: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """The plain procedure: all moves side by side, their K-th largest, and a mask for each parameter."""
    moves = torch.cat([(now[name] - start[name]).abs().flatten() for name in now])
    mask = torch.zeros(len(moves), dtype=torch.bool)
    mask[torch.topk(moves, k).indices] = True
    parts = mask.split([p.numel() for p in now.values()])
    return {name: part.nonzero().squeeze(1) for name, part in zip(now, parts, strict=True)}


if __name__ == "__main__":
    main("selection", run)
