"""The queue: pieces of many requests become batches, each of one composition, in an order that saves switches.

One thread owns the models, so a request never meets one that is half switched. Requests wait in a line for each
(language, target task), those that were made ready for another kind of model in a line of their own. A line is served
whole, as far as one batch holds it; the next line is the one whose first request has waited longest, but the
composition that is in place goes on while nobody has waited longer than the server's patience. What is live is looked
up when a batch is made, so that a rollback reaches waiting requests too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ltsft.errors import LtsftError
from ltsft.serving.answers import Output, Piece
from ltsft.serving.limits import Limits

__all__ = ["Answered", "BatchRunner", "Batcher", "Enquiry", "FullError", "TooLateError"]

_LOG = logging.getLogger(__name__)


class FullError(Exception):
    """The queue is full; `retry_after_seconds` says when it is worth trying again."""

    def __init__(self, waiting: int, retry_after_seconds: int) -> None:
        super().__init__(f"{waiting} pieces of text are waiting; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class TooLateError(Exception):
    """A request was not answered in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"there was no answer within {seconds:g} s; send fewer texts at once, or try again later")


@dataclass(frozen=True)
class Answered:
    """What came back for the pieces of a job: outputs by piece, and from which release."""

    outputs: list[Output]
    release: Any


@dataclass(eq=False)
class Enquiry:
    """The pieces of the texts that one request asks of one (language, target task): answered by one release.

    Attributes:
        line: where it waits: what has the same line may be answered in one batch.
        pieces: what goes through the model.
        deadline: by the monotonic clock; later it is not worth answering.
        future: its answer.
        arrived: by the monotonic clock.
    """

    line: Hashable
    pieces: Sequence[Piece]
    deadline: float
    future: Future[Answered] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


BatchRunner = Callable[[Any, Sequence[Piece]], tuple[list[Output], Any]]
"""Runs pieces of a line through the composition that is live for it; gives their outputs and which release it was."""


class Batcher:
    """A bounded queue in front of one thread.

    Args:
        run: what answers a batch; called in the thread of the queue alone.
        limits: bounds of the queue and of a batch.
        on_batch: told the size of each batch and its seconds.
    """

    def __init__(
        self, run: BatchRunner, limits: Limits, *, on_batch: Callable[[int, float], None] | None = None
    ) -> None:
        self._run = run
        self._limits = limits
        self._on_batch = on_batch
        self._lines: dict[Hashable, deque[Enquiry]] = {}
        self._waiting = 0
        self._current: Hashable | None = None
        self._seconds_per_piece = 0.05
        self._changed = threading.Condition()
        self._is_closing = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="ltsft-serve-model", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_seconds: float) -> None:
        """Answer what is waiting, then stop; what is not answered in time is dropped."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_seconds)

    @property
    def waiting(self) -> int:
        """Number of pieces in the queue."""
        return self._waiting

    def is_alive(self, stuck_seconds: float) -> bool:
        """Say whether the thread runs and its present batch has not taken longer than this."""
        busy = self._busy_since
        return self._thread.is_alive() and (busy is None or time.monotonic() - busy < stuck_seconds)

    def submit(self, jobs: Sequence[Enquiry]) -> None:
        """Put the texts of a request in line, all or none.

        Raises:
            FullError: they do not fit.
        """
        pieces = sum(len(job.pieces) for job in jobs)
        with self._changed:
            if self._waiting and self._waiting + pieces > self._limits.max_waiting:
                raise FullError(self._waiting, max(1, round(self._waiting * self._seconds_per_piece)))
            for job in jobs:
                self._lines.setdefault(job.line, deque()).append(job)
            self._waiting += pieces
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                jobs = self._take()
            if jobs:
                self._answer(jobs)

    def _take(self) -> list[Enquiry]:
        """Take the jobs of the next batch, all of one line; those that are too late are told so."""
        name = self._next_line(time.monotonic())
        line = self._lines[name]
        jobs: list[Enquiry] = []
        longest, pieces = 0, 0
        while line:
            job = line[0]
            longest = max(longest, *(len(piece.input_ids) for piece in job.pieces))
            is_full = pieces + len(job.pieces) > self._limits.batch_texts
            if jobs and (is_full or (pieces + len(job.pieces)) * longest > self._limits.batch_subwords):
                break
            line.popleft()
            self._waiting -= len(job.pieces)
            if not job.future.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            if job.deadline < time.monotonic():
                job.future.set_exception(TooLateError(self._limits.request_seconds))
            else:
                jobs.append(job)
                pieces += len(job.pieces)
        if not line:
            del self._lines[name]
        return jobs

    def _next_line(self, now: float) -> Hashable:
        oldest = min(self._lines, key=lambda name: self._lines[name][0].arrived)
        current, is_patient = self._current, now - self._lines[oldest][0].arrived < self._limits.patience_seconds
        return current if current is not None and current in self._lines and is_patient else oldest

    def _answer(self, jobs: list[Enquiry]) -> None:
        line = jobs[0].line
        pieces = [piece for job in jobs for piece in job.pieces]
        begin = self._busy_since = time.monotonic()
        try:
            outputs, release = self._run(line, pieces)
        except LtsftError as error:  # foreseen, such as a release that was withdrawn
            for job in jobs:
                job.future.set_exception(error)
            return
        except Exception as error:  # the thread goes on: each of the requests is told
            _LOG.exception("a batch of %s failed", line)
            for job in jobs:
                job.future.set_exception(error)
            return
        finally:
            self._busy_since = None
        self._current = line
        seconds = time.monotonic() - begin
        self._seconds_per_piece += 0.1 * (seconds / len(pieces) - self._seconds_per_piece)
        if self._on_batch is not None:
            self._on_batch(len(pieces), seconds)
        at = 0
        for job in jobs:
            job.future.set_result(Answered(outputs[at : at + len(job.pieces)], release))
            at += len(job.pieces)
