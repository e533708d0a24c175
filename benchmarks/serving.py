"""Many languages on one resident base: memory, switching, throughput, latency: `python -m benchmarks.serving`.

The engine and its queue are measured without HTTP. The plain procedure is a server that loads a composed model when it
is asked for, and keeps the last two.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel

from benchmarks.bases import BASE_REF, LABELS, MBERT, QUICK, Size, build_sft, build_token_classifier
from benchmarks.figures import Report, main
from benchmarks.timing import peak_memory
from ltsft.composition import composed
from ltsft.heap import return_memory
from ltsft.objectives import padded
from ltsft.release import ComposedBase, ComposedPart, Composition, Release, Slot
from ltsft.serving import (
    Admitted,
    Batcher,
    Encoder,
    Engine,
    Enquiry,
    Limits,
    Output,
    Piece,
    TokenPiece,
    TokenReader,
    Unpacked,
    group_pieces,
    resident_bytes,
)
from ltsft.sft import SFT

LANGUAGES = 40
TARGET_TASKS = ("pos", "ner")
SMALL = Size("the small base (30.2 M parameters)", 50_000, 384, 6, 12, 1536, 2_415_000, 2_415_000)
"""The shape of the base of docs/results.md; density 8 % for both SFTs."""


@dataclass(frozen=True)
class Setup:
    """A server's engine with every release admitted, and what is needed to look at it from outside.

    Attributes:
        size: of the base.
        engine: the engine.
        admitted: every release.
        sfts: what all of them are copies of: a language SFT and a task SFT.
    """

    size: Size
    engine: Engine
    admitted: dict[Slot, Admitted]
    sfts: tuple[SFT, SFT]


def run(*, quick: bool = False) -> Report:
    """Measure memory and switching at both sizes, then throughput and latency at mBERT's."""
    size, texts = (QUICK, 120) if quick else (MBERT, Limits().max_waiting)  # as many as may wait
    report = Report("serving", f"{size.name}, {LANGUAGES} languages x {len(TARGET_TASKS)} target tasks")
    _report_memory(report, size)
    if not quick:
        small = set_up(SMALL)
        report.at_most("switch_seconds_small_base", median(switch_seconds(small)), "s", 0.03)
        del small
        gc.collect()
    setup = set_up(size)
    switches = switch_seconds(setup)
    report.at_most("switch_seconds", median(switches), "s", 0.1)
    report.note("slowest of the switches", max(switches), "s")
    report.at_most("wrong_logits", float(wrong_logits(setup)), "logits", 0.0)
    one = [Slot("l0", TARGET_TASKS[0])] * texts
    spread = zipf(texts)
    rounds = [(work_off(setup, one), work_off(setup, spread)) for _ in range(1 if quick else 3)]
    alone, together = (median(seconds) for seconds in zip(*rounds, strict=True))
    rate = texts / together
    report.at_least("spread_over_one_language", alone / together, "x", 0.8)
    for number, (first, second) in enumerate(rounds, 1):
        report.note(f"the same, round {number}", first / second, "x")
    few = spread[: 24 if quick else 30]
    warm, cold = (load_on_demand(setup, few, from_disk=from_disk) for from_disk in (False, True))
    report.at_least("faster_than_loading_from_disk", rate / cold, "x", 5.0)
    report.at_least("faster_than_loading_from_memory", rate / warm, "x", 5.0)
    report.note("texts a second, spread", rate, "1/s")
    report.note("texts a second, one language", texts / alone, "1/s")
    report.note("texts a second, loading from disk with an LRU of 2", cold, "1/s")
    report.note("texts a second, loading from files in memory with an LRU of 2", warm, "1/s")
    waits, bound = at_load(setup, 0.8 * rate, seconds=2.0 if quick else 30.0)
    report.at_most("p99_seconds_at_80_percent", float(np.quantile(waits, 0.99)), "s", bound)
    report.note("median seconds at 80 % load", float(np.quantile(waits, 0.5)), "s")
    return report


def _report_memory(report: Report, size: Size) -> None:
    """Measure what all releases take over the base, in fresh processes."""
    for values in ("float32", "bfloat16"):
        taken, packed = peak_memory(_memory_work, size, values).result
        report.at_most(f"memory_over_base_{values}", taken, "GB", 1.3)
        report.note(f"of that, packed diffs with {values} values", packed, "GB")


def _memory_work(size: Size, values: str) -> Callable[[], tuple[float, float]]:
    model = build_token_classifier(size)
    sfts = _built(model, size, values)

    def work() -> tuple[float, float]:
        with torch.inference_mode():
            model(input_ids=torch.full((4, 48), 7))  # what the libraries take once they run is not counted
        return_memory()
        before = resident_bytes()
        setup = _admit_all(model, size, sfts)
        return_memory()  # as a server does once it has loaded what is released
        for name in TARGET_TASKS:  # what is unpacked while requests are answered counts, too
            for i in range(8):
                slot = Slot(f"l{i}", name)
                setup.engine.run(setup.admitted[slot], _pieces(size, [slot] * 4, seed=i))
        gc.collect()
        packed = {id(p): p.packed_bytes for one in setup.admitted.values() for p, _ in one.parts}
        return (resident_bytes() - before) / 1e9, sum(packed.values()) / 1e9

    return work


def set_up(size: Size) -> Setup:
    """Build a base with random weights and admit every release."""
    model = build_token_classifier(size)
    return _admit_all(model, size, _built(model, size, "float32"))


def _built(model: PreTrainedModel, size: Size, values: str) -> tuple[SFT, SFT]:
    language = build_sft(model, "language", "l0", size.language_support, seed=0)
    target = build_sft(model, "task", TARGET_TASKS[0], size.task_support, seed=9)
    return (language, target) if values == "float32" else (_rounded(language), _rounded(target))


def _rounded(sft: SFT) -> SFT:
    """Give an SFT as it is after it was stored with `values: bfloat16`."""
    diffs = {name: replace(diff, values=diff.values.bfloat16().float()) for name, diff in sft.diffs.items()}
    return replace(sft, diffs=diffs)


def _admit_all(model: PreTrainedModel, size: Size, sfts: tuple[SFT, SFT]) -> Setup:
    """Admit every release; each language's SFT is packed for itself, and so is each target task's."""
    limits = Limits(max_waiting=4096, request_seconds=600.0)
    unpacked = Unpacked(limits.unpacked_megabytes * 1_000_000)
    encoder = Encoder(model, base=BASE_REF, rule="sum", unpacked=unpacked, is_compiled=True)
    base: Any = SimpleNamespace(ref=BASE_REF, tokenizer=None)
    tokenizer: Any = SimpleNamespace(pad_token_id=0, cls_token_id=1, sep_token_id=2)
    reader = TokenReader(tokenizer, _composition(Slot("l0", TARGET_TASKS[0])), limits)
    targets = {name: encoder.pack(sfts[1], 1.0) for name in TARGET_TASKS}
    admitted = {}
    for i in range(LANGUAGES):
        language = encoder.pack(sfts[0], 1.0)
        for name, target in targets.items():
            slot = Slot(f"l{i}", name)
            parts = ((language, 1.0), (target, 1.0))
            admitted[slot] = Admitted(Release(1, _composition(slot)), reader, parts, model, encoder)
    return Setup(size, Engine(base, limits=limits), admitted, sfts)


def switch_seconds(setup: Setup) -> list[float]:
    """Time switches between languages of one target task: unpacking included, and the rows of a batch of 16 texts."""
    found = []
    order = [Slot(f"l{i}", TARGET_TASKS[0]) for i in range(24)]
    encoder: Any = setup.admitted[order[0]].model.base_model
    look_up = encoder.get_input_embeddings()
    for slot in order:
        ids = padded([piece.input_ids for piece in _pieces(setup.size, [slot] * 16, seed=5)], 0)
        begin = time.perf_counter()
        setup.engine.put_in_place(setup.admitted[slot])
        with torch.inference_mode():
            look_up(ids)
        found.append(time.perf_counter() - begin)
    return found[4:]


def wrong_logits(setup: Setup) -> int:
    """Count logits that differ from those of the composition in a model of its own, in the same batches."""
    slot = Slot("l3", TARGET_TASKS[0])
    admitted = setup.admitted[slot]
    pieces = _pieces(setup.size, [slot] * 12, seed=3)
    served = setup.engine.run(admitted, pieces)
    model = build_token_classifier(setup.size)
    wrong = 0
    with composed(model, [(sft, 1.0) for sft in setup.sfts], base=BASE_REF, heads=False), torch.inference_mode():
        for batch in group_pieces(pieces, Limits()):
            rows = admitted.reader.forward(model, [pieces[i] for i in batch])
            wrong += sum(int((served[i][0] != row).sum()) for i, (row,) in zip(batch, rows, strict=True))
    return wrong


def zipf(count: int) -> list[Slot]:
    """Draw languages by Zipf's law, s = 1, in random order."""
    rng = random.Random(0)
    weights = [1 / rank for rank in range(1, LANGUAGES + 1)]
    return [Slot(f"l{i}", TARGET_TASKS[0]) for i in rng.choices(range(LANGUAGES), weights, k=count)]


def work_off(setup: Setup, slots: Sequence[Slot]) -> float:
    """Put one text for each slot in the queue at once and give the seconds until all are answered."""
    with _queue(setup) as batcher:
        pieces = _pieces(setup.size, slots, seed=1)
        begin = time.perf_counter()
        jobs = [Enquiry(slot, [piece], time.monotonic() + 600) for slot, piece in zip(slots, pieces, strict=True)]
        batcher.submit(jobs)
        for job in jobs:
            job.future.result(600)
        return time.perf_counter() - begin


def at_load(setup: Setup, rate: float, *, seconds: float) -> tuple[list[float], float]:
    """Let texts arrive at random at a rate; give the seconds that each took, and the bound of the queue in seconds."""
    rng = random.Random(1)
    count = max(20, int(rate * seconds))
    slots = zipf(count)
    pieces = _pieces(setup.size, slots, seed=2)
    jobs: list[Enquiry] = []
    ended: dict[int, float] = {}
    with _queue(setup) as batcher:
        for slot, piece in zip(slots, pieces, strict=True):
            time.sleep(rng.expovariate(rate))
            job = Enquiry(slot, [piece], time.monotonic() + 600)
            job.future.add_done_callback(_noting(ended, id(job)))
            jobs.append(job)
            batcher.submit([job])
        for job in jobs:
            job.future.result(600)
        time.sleep(0.1)
    return [ended[id(job)] - job.arrived for job in jobs], Limits().max_waiting / rate


def load_on_demand(setup: Setup, slots: Sequence[Slot], *, from_disk: bool) -> float:
    """Answer texts one after the other with models that are loaded when they are asked for; give texts a second.

    Texts of one language that follow each other go in one batch. A few exported folders take turns to stand for all of
    them: they take as long to load. From disk means that the system has dropped the file since it was read last, as it
    has to where the models of 40 languages (28 GB at mBERT's size) do not fit in memory; else all of it was read just
    before. Neither counts in the time.
    """
    kept: OrderedDict[Slot, PreTrainedModel] = OrderedDict()
    reader = next(iter(setup.admitted.values())).reader
    pieces = _pieces(setup.size, slots, seed=1)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        folders = _exported(Path(scratch), setup.size)
        begin = time.perf_counter()
        at = 0
        while at < len(slots):
            slot, end = slots[at], at
            while end < len(slots) and slots[end] == slot:
                end += 1
            if slot not in kept:
                folder = next(folders)
                paused = time.perf_counter()
                (_drop_from_memory if from_disk else _read_into_memory)(folder)
                begin += time.perf_counter() - paused
                kept[slot] = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
            kept.move_to_end(slot)
            while len(kept) > 2:
                kept.popitem(last=False)
            reader.forward(kept[slot], pieces[at:end])
            at = end
        return len(slots) / (time.perf_counter() - begin)


def _exported(scratch: Path, size: Size) -> Iterator[Path]:
    """Write a model into more folders than are kept, and give them in turn."""
    first = scratch / "0"
    build_token_classifier(size).save_pretrained(first)
    folders = [first, *(shutil.copytree(first, scratch / str(number)) for number in range(1, 4))]
    os.sync()
    return cycle(folders)


def _read_into_memory(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            while stream.read(2**24):
                pass


def _drop_from_memory(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


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


def _pieces(size: Size, slots: Sequence[Slot], *, seed: int) -> list[TokenPiece]:
    """Make texts of 12 to 48 sub-words; a language has 8,000 of them, all over the vocabulary, used by Zipf's law."""
    rng = random.Random(seed)
    vocabularies: dict[str, list[int]] = {}
    own = min(8_000, size.vocabulary // 4)
    weights = [1 / rank for rank in range(1, own + 1)]
    pieces = []
    for slot in slots:
        words = vocabularies.get(slot.language)
        if words is None:
            words = vocabularies[slot.language] = random.Random(slot.language).sample(range(3, size.vocabulary), own)
        pieces.append(TokenPiece(tuple(rng.choices(words, weights, k=rng.randint(12, 48))), (1,)))
    return pieces


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
