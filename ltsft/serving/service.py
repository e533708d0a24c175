"""The service: what is released, kept up to date, and a queue in front of the engine. HTTP is in `app.py`."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ltsft.errors import LtsftError, ReleaseError
from ltsft.heap import return_memory
from ltsft.release import Release, ReleaseSource, Slot, UnreadableRelease
from ltsft.serving.answers import Input, Output, Piece, RefusedInputError
from ltsft.serving.batching import Batcher, Enquiry, TooLateError
from ltsft.serving.bundle import Bundle
from ltsft.serving.engine import Admitted, Engine
from ltsft.serving.limits import Limits
from ltsft.serving.metrics import Metrics
from ltsft.serving.results import Result

__all__ = ["Answer", "Service", "UnknownReleaseError"]

_LOG = logging.getLogger(__name__)
_STUCK_SECONDS = 120.0


class UnknownReleaseError(LtsftError):
    """Nothing is released for a (language, target task)."""


class _ReplacedError(LtsftError):
    """While a request waited, a release of another kind came under its name: the request is to be made ready anew."""


@dataclass(frozen=True)
class Answer:
    """The answer to one text, and the release that gave it."""

    result: Result
    release: Release


class Service:
    """All released compositions, ready to answer.

    Args:
        engine: what answers.
        source: where releases come from.
        bundle: kept up to date with what is live, and what the service starts from when the source is away.
        limits: of the server.
        metrics: told what happens.
    """

    def __init__(
        self, engine: Engine, source: ReleaseSource, *, limits: Limits, metrics: Metrics, bundle: Bundle | None = None
    ) -> None:
        self.limits = limits
        self.metrics = metrics
        self._engine = engine
        self._source = source
        self._bundle = bundle
        self._live: Mapping[Slot, Admitted] = {}
        self._refused: Mapping[Slot, tuple[int, str]] = {}
        self._is_loaded = False
        self._is_draining = False
        self._wake = threading.Event()
        self._is_closed = False
        self._batcher = Batcher(self._run, limits, on_batch=metrics.batch)
        self._watcher = threading.Thread(target=self._watch, name="ltsft-serve-releases", daemon=True)

    @property
    def live(self) -> Mapping[Slot, Admitted]:
        """What answers now."""
        return self._live

    @property
    def refused(self) -> Mapping[Slot, tuple[int, str]]:
        """Versions that are released but could not be loaded, and why; the version before answers in their place."""
        return self._refused

    @property
    def base_id(self) -> str:
        """Name of the base."""
        return self._engine.base.ref.id

    @property
    def waiting(self) -> int:
        """Pieces of text in the queue."""
        return self._batcher.waiting

    def start(self) -> None:
        """Load what is released and begin to answer.

        Where nothing of it can be loaded, as after the runs of its SFTs were deleted, what the bundle has answers.

        Raises:
            LtsftError: neither the source nor a bundle says what is released.
        """
        self._batcher.start()
        has_bundle = self._bundle is not None and self._bundle.exists
        try:
            self.refresh()
        except LtsftError as error:
            if self._bundle is None or not has_bundle:
                raise
            _LOG.error("the registry is away (%s); starting from the bundle in %s", error, self._bundle.folder)
            self._take(self._bundle.live(), self._bundle)
        if self._bundle is not None and has_bundle and self._has_nothing_left:
            _LOG.error("nothing that is released can be loaded; starting from the bundle in %s", self._bundle.folder)
            self._take(self._bundle.live(), self._bundle)
        self._is_loaded = True
        self._watcher.start()

    def drain(self) -> None:
        """Say that no new requests should come; those that do are still answered."""
        self._is_draining = True

    def close(self) -> None:
        """Answer what is waiting, then stop."""
        self._is_draining = self._is_closed = True
        self._wake.set()
        self._batcher.close(self.limits.stop_seconds)

    def is_alive(self) -> bool:
        """Whether the model's thread works."""
        return self._batcher.is_alive(_STUCK_SECONDS)

    def is_ready(self) -> bool:
        """Whether requests should come; not where there are releases, and none of them could be loaded."""
        return self._is_loaded and not self._is_draining and not self._has_nothing_left and self.is_alive()

    @property
    def _has_nothing_left(self) -> bool:
        return bool(self._refused) and not self._live

    def refresh(self) -> None:
        """Look what is released, admit what is new, and let it answer from now on.

        A version that cannot be loaded is refused, and the one before stays.

        Raises:
            LtsftError: the source cannot say what is released.
        """
        live = self._source.live()
        if self._take(live, self._source) and self._bundle is not None and not self._refused:
            try:
                self._bundle.write((admitted.release for admitted in self._live.values()), self._source)
            except (LtsftError, OSError) as error:
                _LOG.warning("the bundle in %s could not be written: %s", self._bundle.folder, error)

    def known_reader(self, slot: Slot) -> Admitted:
        """Give what answers for a (language, target task).

        Raises:
            UnknownReleaseError: nothing is released for it; the message names what is.
        """
        found = self._live.get(slot)
        if found is None:
            raise UnknownReleaseError(_unknown(slot, self._live))
        return found

    async def answer(self, asked: Sequence[tuple[Slot, Input]]) -> list[Answer]:
        """Answer texts, each for its own (language, target task).

        Texts of one (language, target task) are answered by one release.

        Raises:
            UnknownReleaseError: nothing is released for one of them.
            OtherFormError: a text is of another form than its target task takes.
            RefusedInputError: a text has no words or is too long.
            FullError: the queue is full.
            TooLateError: the time is over.
        """
        deadline = time.monotonic() + self.limits.request_seconds
        answers: dict[int, Answer] = {}
        remaining = list(range(len(asked)))
        while remaining:
            remaining = await self._answer_into(answers, asked, remaining, deadline)
        return [answers[n] for n in range(len(asked))]

    async def _answer_into(
        self, answers: dict[int, Answer], asked: Sequence[tuple[Slot, Input]], numbers: Sequence[int], deadline: float
    ) -> list[int]:
        """Answer some of the texts; give the numbers of those whose release was replaced by one of another kind."""
        live = {slot: self.known_reader(slot) for slot in dict.fromkeys(asked[n][0] for n in numbers)}
        prepared = await asyncio.to_thread(
            lambda: {n: live[asked[n][0]].reader.prepare(asked[n][1]) for n in numbers},
        )
        pieces = sum(len(text.pieces) for text in prepared.values())
        if pieces > self.limits.max_pieces:
            raise RefusedInputError(
                f"the texts are {pieces} times what the model takes at once, at most {self.limits.max_pieces} times is "
                "allowed in one request; send fewer"
            )
        mine = {slot: [n for n in numbers if asked[n][0] == slot] for slot in live}
        jobs = {
            slot: Enquiry(
                _Line(slot, _kind_of(live[slot])), [piece for n in own for piece in prepared[n].pieces], deadline
            )
            for slot, own in mine.items()
        }
        self._batcher.submit(list(jobs.values()))
        again: list[int] = []
        for slot, job in jobs.items():
            try:
                answered = await asyncio.wait_for(asyncio.wrap_future(job.future), deadline - time.monotonic())
            except TimeoutError as error:
                raise TooLateError(self.limits.request_seconds) from error
            except _ReplacedError:
                again += mine[slot]
                continue
            admitted: Admitted = answered.release
            outputs = iter(answered.outputs)
            for n in mine[slot]:
                result = admitted.reader.read(prepared[n], [next(outputs) for _ in prepared[n].pieces])
                answers[n] = Answer(result, admitted.release)
        return again

    def _run(self, line: _Line, pieces: Sequence[Piece]) -> tuple[list[Output], Admitted]:
        admitted = self.known_reader(line.slot)
        if _kind_of(admitted) != line.kind:
            raise _ReplacedError(f"{line.slot} was replaced by a release of another kind")
        return self._engine.run(admitted, pieces), admitted

    def _watch(self) -> None:
        while not self._wake.wait(self.limits.refresh_seconds):
            try:
                self.refresh()
            except LtsftError as error:
                self.metrics.refresh_failed()
                _LOG.warning("what is released could not be looked up, and stays as it was: %s", error)
            except Exception:  # the watcher must not end: what is live would never change again
                self.metrics.refresh_failed()
                _LOG.exception("looking up what is released failed, and it stays as it was")

    def _take(self, wanted: Mapping[Slot, Release | UnreadableRelease], source: ReleaseSource) -> bool:
        """Replace what answers by what is wanted; say whether anything changed."""
        live, refused = {}, {}
        for slot, release in wanted.items():
            now = self._live.get(slot)
            if now is not None and isinstance(release, Release) and _is_same(now.release, release):
                live[slot] = now
                continue
            try:
                if isinstance(release, UnreadableRelease):
                    raise ReleaseError(release.reason)
                live[slot] = self._engine.admit(release, source)
                _LOG.info("%s: version %d answers from now on", slot, release.version)
            except LtsftError as error:
                refused[slot] = release.version, str(error)
                if now is not None:
                    live[slot] = now
                if self._refused.get(slot) != refused[slot]:
                    stays = f"version {now.release.version} stays" if now else "nothing answers for it"
                    _LOG.error("%s: version %d is refused, %s: %s", slot, release.version, stays, error)
        changed = live.keys() != self._live.keys() or any(live[s] is not self._live.get(s) for s in live)
        self._live, self._refused = live, refused
        if changed:
            return_memory()  # what reading and packing took
        self.metrics.releases({slot: admitted.release.version for slot, admitted in live.items()}, refused=len(refused))
        return changed


class _Line(NamedTuple):
    """Where texts wait: for a (language, target task), made ready for one kind of model."""

    slot: Slot
    kind: Hashable


def _kind_of(admitted: Admitted) -> Hashable:
    """Give what texts are made ready for: releases that agree in it may take each other's pieces."""
    composition = admitted.composition
    return composition.objective, composition.takes_pairs, composition.max_length


def _is_same(a: Release, b: Release) -> bool:
    return a.version == b.version and a.composition.key == b.composition.key


def _unknown(slot: Slot, live: Mapping[Slot, Admitted]) -> str:
    targets = sorted({known.target_task for known in live})
    if slot.target_task not in targets:
        return f"no such target task; there are {', '.join(targets) or 'none yet'}"
    languages = sorted(known.language for known in live if known.target_task == slot.target_task)
    return f"no release of {slot.target_task} for this language; there are {', '.join(languages)}"
