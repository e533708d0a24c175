"""Many languages on one resident base: memory, switching, throughput, latency: `python -m benchmarks.serving`.

The engine and its queue are measured without HTTP. The plain procedure is a server that loads a composed model when it
is asked for, and keeps the last two.
"""

from __future__ import annotations

import copy
import gc
import random
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel

from benchmarks.bases import BASE_REF, LABELS, MBERT, QUICK, Size, build_sft, build_token_classifier
from benchmarks.figures import Report, main
from ltsft.compose import composed
from ltsft.fitting import Part
from ltsft.release import ComposedBase, ComposedPart, Composition, Release, Slot
from ltsft.resident import Resident
from ltsft.serving.answers import Output, Piece
from ltsft.serving.batching import Batcher, Job
from ltsft.serving.engine import Admitted, Engine
from ltsft.serving.limits import Limits
from ltsft.serving.metrics import resident_bytes
from ltsft.serving.packed import pack_sft
from ltsft.serving.word_reader import TokenPiece, TokenReader
from ltsft.sft import SFT

LANGUAGES = 40
TARGET_TASKS = ("pos", "ner")
SMALL = Size("the small base (30.2 M parameters)", 50_000, 384, 6, 12, 1536, 2_415_000, 2_415_000)
"""The shape of the base of docs/results.md; density 8 % for both SFTs."""


@dataclass(frozen=True)
class Setup:
    """A server's engine with every release admitted, and what is needed to look at it from outside."""

    engine: Engine
    admitted: dict[Slot, Admitted]
    gigabytes: float
    packed_gigabytes: float


def run(*, quick: bool = False) -> Report:
    """Measure memory and switching at both sizes, then throughput and latency at mBERT's."""
    size, texts = (QUICK, 120) if quick else (MBERT, 384)
    report = Report("serving", f"{size.name}, {LANGUAGES} languages x {len(TARGET_TASKS)} target tasks")
    if not quick:
        small = set_up(SMALL)
        report.at_most("switch_seconds_small_base", median(switch_seconds(small)), "s", 0.03)
        report.note("small base: memory over the base", small.gigabytes, "GB")
        del small
        gc.collect()
    setup = set_up(size)
    report.at_most("memory_over_base", setup.gigabytes, "GB", 1.3)
    report.note("of that, packed diffs", setup.packed_gigabytes, "GB")
    switches = switch_seconds(setup)
    report.at_most("switch_seconds", median(switches), "s", 0.1)
    report.note("slowest of the switches", max(switches), "s")
    report.at_most("wrong_logits", float(wrong_logits(setup)), "logits", 0.0)
    one = [Slot("l0", TARGET_TASKS[0])] * texts
    spread = zipf(texts)
    alone, together = work_off(setup, one), work_off(setup, spread)
    rate = texts / together
    report.at_least("spread_over_one_language", alone / together, "x", 0.8)
    plain = load_on_demand(setup, size, spread[: 24 if quick else 30])
    report.at_least("faster_than_loading_on_demand", rate / plain, "x", 5.0)
    report.note("texts a second, spread", rate, "1/s")
    report.note("texts a second, loading on demand with an LRU of 2", plain, "1/s")
    waits, bound = at_load(setup, 0.8 * rate, seconds=5.0 if quick else 30.0)
    report.at_most("p99_seconds_at_80_percent", float(np.quantile(waits, 0.99)), "s", bound)
    report.note("median seconds at 80 % load", float(np.quantile(waits, 0.5)), "s")
    return report


def set_up(size: Size) -> Setup:
    """Build a base with random weights and admit every release; the diffs of all languages are copies of one."""
    model = build_token_classifier(size)
    limits = Limits(max_waiting=4096, request_seconds=600.0)
    resident = Resident(model, base=BASE_REF, heads=False)
    base: Any = SimpleNamespace(ref=BASE_REF, tokenizer=None)
    tokenizer: Any = SimpleNamespace(pad_token_id=0, cls_token_id=1, sep_token_id=2)
    reader = TokenReader(tokenizer, _composition(Slot("l0", TARGET_TASKS[0])), limits)
    language = pack_sft(build_sft(model, "language", "l0", size.language_support, seed=0))
    target = pack_sft(build_sft(model, "task", TARGET_TASKS[0], size.task_support, seed=9))
    gc.collect()
    before = resident_bytes()
    languages = [_copied(language, f"l{i}") for i in range(LANGUAGES)]
    targets = {name: _copied(target, name) for name in TARGET_TASKS}
    admitted = {}
    for i, own in enumerate(languages):
        for name, shared in targets.items():
            parts: tuple[Part, ...] = ((own, 1.0), (shared, 1.0))
            slot = Slot(f"l{i}", name)
            admitted[slot] = Admitted(Release(1, _composition(slot)), reader, parts, model, resident)
    engine = Engine(base, limits=limits)
    for name in TARGET_TASKS:  # what is unpacked while requests are answered counts, too
        for i in range(4):
            engine.run(admitted[Slot(f"l{i}", name)], _pieces(2, seed=0))
    gc.collect()
    packed = sum(sft.diffs.packed_bytes for sft in (*languages, *targets.values()))  # type: ignore[attr-defined]
    return Setup(engine, admitted, (resident_bytes() - before) / 1e9, packed / 1e9)


def _copied(sft: SFT, subject: str) -> SFT:
    """Copy a packed SFT, bytes and all, as packing another one like it would take minutes for forty."""
    diffs = copy.copy(sft.diffs)
    for name, value in vars(sft.diffs).items():
        if isinstance(value, tuple) and value and isinstance(value[0], bytes):
            setattr(diffs, name, tuple(bytes(bytearray(chunk)) for chunk in value))
    return replace(sft, subject=subject, diffs=diffs)


def switch_seconds(setup: Setup) -> list[float]:
    """Time switches between languages of one target task, unpacking included."""
    found = []
    order = [Slot(f"l{i}", TARGET_TASKS[0]) for i in range(24)]
    setup.engine.put_in_place(setup.admitted[order[-1]])
    for slot in order:
        begin = time.perf_counter()
        setup.engine.put_in_place(setup.admitted[slot])
        found.append(time.perf_counter() - begin)
    return found[4:]


def wrong_logits(setup: Setup) -> int:
    """Count logits that differ from the offline composition's in the same batch shape."""
    wrong = 0
    admitted = setup.admitted[Slot("l3", TARGET_TASKS[0])]
    pieces = sorted(_pieces(8, seed=3), key=lambda piece: len(piece.input_ids))
    served = torch.stack([row for (row,) in setup.engine.run(admitted, pieces)])
    model = admitted.model
    admitted.resident.switch([])
    with composed(model, admitted.parts, base=BASE_REF, heads=False), torch.inference_mode():
        offline = torch.stack([row for (row,) in admitted.reader.forward(model, pieces)])
    wrong += int((served != offline).sum())
    return wrong


def zipf(count: int) -> list[Slot]:
    """Draw languages by Zipf's law, s = 1, in random order."""
    rng = random.Random(0)
    weights = [1 / rank for rank in range(1, LANGUAGES + 1)]
    return [Slot(f"l{i}", TARGET_TASKS[0]) for i in rng.choices(range(LANGUAGES), weights, k=count)]


def work_off(setup: Setup, slots: Sequence[Slot]) -> float:
    """Put one text for each slot in the queue at once and give the seconds until all are answered."""
    with _queue(setup) as batcher:
        pieces = _pieces(len(slots), seed=1)
        begin = time.perf_counter()
        jobs = [Job(slot, [piece], time.monotonic() + 600) for slot, piece in zip(slots, pieces, strict=True)]
        batcher.submit(jobs)
        for job in jobs:
            job.future.result(600)
        return time.perf_counter() - begin


def at_load(setup: Setup, rate: float, *, seconds: float) -> tuple[list[float], float]:
    """Let texts arrive at random at a rate; give the seconds that each took, and the bound of the queue in seconds."""
    rng = random.Random(1)
    count = max(20, int(rate * seconds))
    slots, pieces = zipf(count), _pieces(count, seed=2)
    jobs: list[Job] = []
    ended: dict[int, float] = {}
    with _queue(setup) as batcher:
        for slot, piece in zip(slots, pieces, strict=True):
            time.sleep(rng.expovariate(rate))
            job = Job(slot, [piece], time.monotonic() + 600)
            job.future.add_done_callback(_noting(ended, id(job)))
            jobs.append(job)
            batcher.submit([job])
        for job in jobs:
            job.future.result(600)
        time.sleep(0.1)
    return [ended[id(job)] - job.arrived for job in jobs], Limits().max_waiting / rate


def load_on_demand(setup: Setup, size: Size, slots: Sequence[Slot]) -> float:
    """Answer texts one after the other with models that are loaded when they are asked for; give texts a second.

    Texts of one language that follow each other go in one batch. One exported folder stands for all of them: it takes
    as long to load.
    """
    kept: OrderedDict[Slot, PreTrainedModel] = OrderedDict()
    reader = next(iter(setup.admitted.values())).reader
    pieces = _pieces(len(slots), seed=1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        build_token_classifier(size).save_pretrained(folder)
        begin = time.perf_counter()
        at = 0
        while at < len(slots):
            slot, end = slots[at], at
            while end < len(slots) and slots[end] == slot:
                end += 1
            if slot not in kept:
                kept[slot] = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
            kept.move_to_end(slot)
            while len(kept) > 2:
                kept.popitem(last=False)
            reader.forward(kept[slot], pieces[at:end])
            at = end
        return len(slots) / (time.perf_counter() - begin)


def _noting(ended: dict[int, float], key: int) -> Callable[[Any], None]:
    return lambda _: ended.__setitem__(key, time.monotonic())


@contextmanager
def _queue(setup: Setup) -> Iterator[Batcher]:
    def answer(slot: Slot, pieces: Sequence[Piece]) -> tuple[list[Output], Any]:
        return setup.engine.run(setup.admitted[slot], pieces), slot

    batcher = Batcher(answer, Limits(max_waiting=100_000, request_seconds=600.0))
    batcher.start()
    try:
        yield batcher
    finally:
        batcher.close(60)


def _pieces(count: int, *, seed: int) -> list[TokenPiece]:
    """Texts of 12 to 48 sub-words."""
    rng = random.Random(seed)
    lengths = [rng.randint(12, 48) for _ in range(count)]
    return [TokenPiece(tuple(rng.randrange(3, 3_900) for _ in range(length)), (1,)) for length in lengths]


def _composition(slot: Slot) -> Composition:
    digest = "0" * 64
    base = ComposedBase(id="random", location="random", fingerprint=digest, tokenizer_fingerprint=digest)
    part = ComposedPart(kind="task", subject=slot.target_task, key=digest, sha256=digest, run_id="r")
    return Composition(
        language=slot.language,
        target_task=slot.target_task,
        objective="pos",
        labels=LABELS,
        max_length=128,
        base=base,
        parts=(part,),
    )


if __name__ == "__main__":
    main("serving", run)
