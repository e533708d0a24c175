"""The queue: one composition a batch, bounds, deadlines, and one thread that outlives every error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from ltsft.release.release import Slot
from ltsft.serving.answers import Piece
from ltsft.serving.batching import Batcher, Enquiry, FullError, TooLateError
from ltsft.serving.limits import Limits
from ltsft.serving.readers.words import TokenPiece

A, B, C = (Slot(code, "pos") for code in ("aa", "bb", "cc"))


class Runner:
    """Stands for the engine: notes what it is asked, and waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[tuple[Slot, int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.begun = threading.Event()

    def __call__(self, slot: Slot, pieces: Sequence[Piece]) -> tuple[list[torch.Tensor], Any]:
        self.begun.set()
        self.gate.wait(10)
        self.batches.append((slot, len(pieces)))
        self.threads.add(threading.get_ident())
        if slot == C:
            raise RuntimeError("broken")
        return [torch.tensor([len(piece.input_ids)]) for piece in pieces], slot


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def make(runner: Runner) -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def build(**limits: object) -> Batcher:
        batcher = Batcher(runner, Limits.model_validate(limits))
        batcher.start()
        made.append(batcher)
        return batcher

    yield build
    runner.gate.set()
    for batcher in made:
        batcher.close(5)
        assert not batcher.is_alive(1.0)


def job(slot: Slot, *lengths: int, seconds: float = 30.0) -> Enquiry:
    pieces = [TokenPiece(tuple(range(length)), (1,)) for length in lengths or (3,)]
    return Enquiry(slot, pieces, time.monotonic() + seconds)


def held(batcher: Batcher, runner: Runner) -> Future[Any]:
    """Keep the thread busy with a first job, so that what follows waits."""
    first = job(A)
    batcher.submit([first])
    assert runner.begun.wait(10)
    return first.future


def test_waiting_requests_of_one_composition_go_together_and_get_their_own_logits(
    make: Callable[..., Batcher], runner: Runner
) -> None:
    batcher = make()
    held(batcher, runner)
    jobs = [job(A, 2), job(B, 3), job(A, 4, 5), job(B, 6), job(A, 7)]
    for one in jobs:
        batcher.submit([one])
    runner.gate.set()

    answers = [one.future.result(10) for one in jobs]

    assert [[int(x) for x in a.outputs] for a in answers] == [[2], [3], [4, 5], [6], [7]]
    assert [a.release for a in answers] == [A, B, A, B, A]
    assert runner.batches == [(A, 1), (A, 4), (B, 2)]
    assert len(runner.threads) == 1


def test_a_composition_in_place_goes_on_until_others_have_waited_long_enough(
    make: Callable[..., Batcher], runner: Runner
) -> None:
    patient, impatient = (make(batch_texts=1, patience_seconds=p) for p in (60.0, 0.0))
    for batcher, expected in ((patient, [A, A, A, B]), (impatient, [A, B, A, A])):
        runner.batches.clear()
        runner.gate.clear()
        runner.begun.clear()
        held(batcher, runner)
        jobs = [job(B), job(A), job(A)]
        for one in jobs:
            batcher.submit([one])
        runner.gate.set()
        for one in jobs:
            one.future.result(10)
        assert [slot for slot, _ in runner.batches] == expected


def test_a_batch_keeps_its_bounds_in_pieces_and_in_subwords(make: Callable[..., Batcher], runner: Runner) -> None:
    batcher = make(batch_texts=4, batch_subwords=40)
    held(batcher, runner)
    jobs = [job(A, 2) for _ in range(6)] + [job(A, 20) for _ in range(3)] + [job(A, *[2] * 9)]
    for one in jobs:
        batcher.submit([one])
    runner.gate.set()
    for one in jobs:
        one.future.result(10)
    assert [pieces for _, pieces in runner.batches] == [1, 4, 2, 2, 1, 9]  # one request is never split


def test_a_full_queue_refuses_all_of_a_request_and_says_when_to_come_back(
    make: Callable[..., Batcher], runner: Runner
) -> None:
    batcher = make(max_waiting=4)
    held(batcher, runner)
    kept = [job(A), job(B), job(B)]
    batcher.submit(kept)

    with pytest.raises(FullError) as refused:
        batcher.submit([job(A), job(B)])

    assert refused.value.retry_after_seconds >= 1
    assert batcher.waiting == 3
    runner.gate.set()
    for one in kept:
        one.future.result(10)
    assert batcher.waiting == 0


def test_what_waited_too_long_or_was_given_up_is_not_computed(make: Callable[..., Batcher], runner: Runner) -> None:
    batcher = make()
    held(batcher, runner)
    late, given_up, both, good = job(A, seconds=-1.0), job(A), job(A, seconds=-1.0), job(A)
    batcher.submit([late, given_up, both, good])
    assert given_up.future.cancel()
    assert both.future.cancel()
    runner.gate.set()

    good.future.result(10)

    with pytest.raises(TooLateError):
        late.future.result(10)
    assert runner.batches == [(A, 1), (A, 1)]


def test_an_error_is_told_to_its_own_requests_and_the_thread_goes_on(
    make: Callable[..., Batcher], runner: Runner
) -> None:
    batcher = make()
    runner.gate.set()
    broken, good = job(C), job(A)
    batcher.submit([broken, good])
    with pytest.raises(RuntimeError, match="broken"):
        broken.future.result(10)
    assert good.future.result(10).release == A
    assert batcher.is_alive(60)


def test_closing_answers_what_waits(make: Callable[..., Batcher], runner: Runner) -> None:
    batcher = make()
    held(batcher, runner)
    waiting = job(B)
    batcher.submit([waiting])
    closing = threading.Thread(target=batcher.close, args=(10,))
    closing.start()
    runner.gate.set()
    closing.join(10)
    assert waiting.future.result(0).release == B
