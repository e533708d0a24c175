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
from ltsft.methods import select_magnitude


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
    plain_seconds, limit = plain.result, timings.median("limit")
    report.at_most("select_seconds", timings.median("select"), "s", 1.5, plain=plain_seconds, limit=limit)
    report.at_most("extra_memory", lean.extra_bytes / 1e9, "GB", 0.2, plain=plain.extra_bytes / 1e9)
    report.at_most("wrong_choices", float(_count_wrong(now, start, size.language_support)), "", 0.0)
    report.note("the result itself, 4 bytes an entry", 4 * size.language_support / 1e9, "GB")
    return report


def _weights(size: Size) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    maskable = parameter_roles(build_token_classifier(size)).maskable
    generator = torch.Generator().manual_seed(1)
    start = {name: p.detach() for name, p in maskable.items()}
    now = {name: p + 1e-3 * torch.randn(p.shape, generator=generator) for name, p in start.items()}
    return now, start


def _prepared(size: Size, is_plain: bool) -> Callable[[], object]:
    """Give the selection as work that returns its seconds."""
    now, start = _weights(size)
    select = _plain if is_plain else select_magnitude

    def work() -> float:
        began = time.perf_counter()
        select(now, start, size.language_support)
        return time.perf_counter() - began

    return work


def _plain(now: dict[str, Tensor], start: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """The plain procedure: all moves side by side, their K-th largest, and a mask for each parameter."""
    moves = torch.cat([(now[name] - start[name]).abs().flatten() for name in now])
    mask = torch.zeros(len(moves), dtype=torch.bool)
    mask[torch.topk(moves, k).indices] = True
    parts = mask.split([p.numel() for p in now.values()])
    return {name: part.nonzero().squeeze(1) for name, part in zip(now, parts, strict=True)}


def _count_wrong(now: dict[str, Tensor], start: dict[str, Tensor], k: int) -> int:
    """Count the moves, in order of size, that differ from the plain procedure's: of equal moves it takes any."""
    ours, plain = (
        torch.cat([(now[n].flatten()[chosen[n].long()] - start[n].flatten()[chosen[n].long()]).abs() for n in now])
        for chosen in (select_magnitude(now, start, k), _plain(now, start, k))
    )
    return abs(len(ours) - len(plain)) or int((ours.sort().values != plain.sort().values).sum())


if __name__ == "__main__":
    main("selection", run)
