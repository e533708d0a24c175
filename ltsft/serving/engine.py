"""The engine: one resident base, and every released composition over it, whatever its head.

A release is *admitted* before it can answer: its SFTs are fetched, checked against the hashes that went through the
gates, against the base and against the model, and kept packed. That happens in any thread and touches no model. The
thread of the queue alone switches and runs: it puts a composition in place, exactly, and answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from transformers import PreTrainedModel

from ltsft.base import Base
from ltsft.composition import RULES, largest_weight, weight_problem
from ltsft.errors import CompositionError, ReleaseError
from ltsft.methods import as_diffs
from ltsft.release import ComposedPart, Composition, Release, ReleaseSource, check_part
from ltsft.serving.answers import Output, Piece, Reader
from ltsft.serving.encoder import Encoder, PackedPart, PackedSFT
from ltsft.serving.heads import with_head
from ltsft.serving.limits import Limits
from ltsft.serving.packed import Unpacked
from ltsft.serving.readers.registry import reader_of
from ltsft.sft import SFT, load_sft

__all__ = ["Admitted", "Engine", "group_pieces"]

_LARGEST = 1e6
"""Largest sum of diffs that is served; weights of encoders are below 100."""

_PASS_SUBWORDS = 24
"""What a forward pass costs besides its sub-words, in sub-words; measured at mBERT's size on two cores."""


@dataclass(frozen=True, eq=False)
class Admitted:
    """A release that can answer.

    Attributes:
        release: what it is.
        reader: turns requests into pieces and logits into answers.
        parts: its SFTs, packed, with their weights; one that several releases have is there once.
        model: the model with the head of its task SFT, over the shared encoder.
        encoder: that encoder.
    """

    release: Release
    reader: Reader
    parts: tuple[PackedPart, ...]
    model: PreTrainedModel
    encoder: Encoder

    @property
    def composition(self) -> Composition:
        """The recipe."""
        return self.release.composition


class Engine:
    """Many compositions over one base.

    Args:
        base: the base; compositions of another one are refused.
        limits: of the server: how texts are cut and batched.
        on_switch: told the seconds of each switch.
        is_compiled: whether switches are compiled, see `ltsft.composition.resident.Resident`: for a server, not for one
            answer.
    """

    def __init__(
        self,
        base: Base,
        *,
        limits: Limits,
        on_switch: Callable[[float], None] | None = None,
        is_compiled: bool = False,
    ) -> None:
        self._base = base
        self._limits = limits
        self._on_switch = on_switch
        self._is_compiled = is_compiled
        self._encoders: dict[str, Encoder] = {}
        self._models: WeakValueDictionary[tuple[str, str, str], PreTrainedModel] = WeakValueDictionary()
        self._packed: WeakValueDictionary[str, PackedSFT] = WeakValueDictionary()
        self._unpacked = Unpacked(limits.unpacked_megabytes * 1_000_000)
        self._admitting = threading.Lock()

    @property
    def base(self) -> Base:
        """The base."""
        return self._base

    def admit(self, release: Release, source: ReleaseSource) -> Admitted:
        """Fetch and check everything that a release needs, without touching a model that answers.

        Raises:
            ReleaseError: it belongs to another base, or an SFT is not the one that was released.
            SFTFileError: an SFT is damaged.
            CompositionError: the SFTs do not fit the model or each other.
            ServiceError: the source is away.
        """
        composition = release.composition
        with self._admitting:
            self._check(composition)
            reader = reader_of(composition, self._base.tokenizer, self._limits)
            encoder = self._encoder(composition.rule)
            parts = tuple((self._fetched(part, source, encoder), part.weight) for part in composition.parts)
            _refuse_huge(composition, parts)
            model = self._model(composition, parts, reader, encoder)
            return Admitted(release, reader, parts, model, encoder)

    def run(self, admitted: Admitted, pieces: Sequence[Piece]) -> list[Output]:
        """Switch to a composition if another one is in place, and give the output of each piece.

        Pieces of like length go through the model together. One thread at a time may call this.
        """
        self.put_in_place(admitted)  # not in inference mode: its buffers are written by other threads
        found: dict[int, Output] = {}
        with torch.inference_mode():
            for batch in group_pieces(pieces, self._limits):
                found |= zip(batch, admitted.reader.forward(admitted.model, [pieces[i] for i in batch]), strict=True)
        return [found[i] for i in range(len(pieces))]

    def put_in_place(self, admitted: Admitted) -> None:
        """Switch to a composition, unless it is in place. One thread at a time may call this."""
        if admitted.encoder.parts == admitted.parts:
            return
        begin = time.perf_counter()
        admitted.encoder.switch(admitted.parts)
        if self._on_switch is not None:
            self._on_switch(time.perf_counter() - begin)

    def _check(self, composition: Composition) -> None:
        mine, theirs = self._base.ref, composition.base
        for what, a, b in (
            ("base", mine.fingerprint, theirs.fingerprint),
            ("tokenizer", mine.tokenizer_fingerprint, theirs.tokenizer_fingerprint),
        ):
            if a != b:
                raise ReleaseError(
                    f"{composition.slot}: the composition belongs to the {what} with fingerprint {b} ({theirs.id}), "
                    f"but this server holds {a} ({mine.id}); start a server with that base"
                )
        if composition.rule not in RULES:
            raise ReleaseError(
                f"{composition.slot}: composition rule {composition.rule!r} is unknown; allowed are "
                f"{', '.join(sorted(RULES))}"
            )

    def _encoder(self, rule: str) -> Encoder:
        """Give the encoder that all releases of a rule share; it is that of a token classifier, which has no pooler."""
        if rule not in self._encoders:
            model = self._base.token_classifier(("A", "B"), seed=0)
            model.eval()
            self._encoders[rule] = Encoder(
                model, base=self._base.ref, rule=rule, unpacked=self._unpacked, is_compiled=self._is_compiled
            )
        return self._encoders[rule]

    def _model(
        self, composition: Composition, parts: Sequence[PackedPart], reader: Reader, encoder: Encoder
    ) -> PreTrainedModel:
        """Give the model with a release's head; releases of one task SFT share it."""
        sft = _task_sft(composition, parts)
        place = composition.objective, composition.rule, next(p.sha256 for p in composition.parts if p.kind == "task")
        model = self._models.get(place)
        if model is None:
            model = self._models[place] = with_head(encoder.model, sft, reader)
        return model

    def _fetched(self, part: ComposedPart, source: ReleaseSource, encoder: Encoder) -> PackedSFT:
        """Give an SFT, checked against the release, the base and the model; fetched once for all releases."""
        if problem := weight_problem(part.weight, encoder.names):
            raise CompositionError(f"{part.subject}: {problem}")
        packed = self._packed.get(part.sha256)
        if packed is None:
            folder = source.fetch(part)
            check_part(part, folder)
            sft = as_diffs(load_sft(folder))
            if sft.adapter:
                raise ReleaseError(
                    f"{sft.title} is an adapter of {sft.method}, which cannot be served; release lt_sft or lora"
                )
            packed = self._packed[part.sha256] = encoder.pack(sft, part.weight)
        return packed


def _refuse_huge(composition: Composition, parts: Iterable[PackedPart]) -> None:
    """Refuse diffs that could make a weight infinite: that must not come out while a request waits."""
    bound = sum(packed.largest * largest_weight(weight) for packed, weight in parts)
    if not bound < _LARGEST:
        raise CompositionError(
            f"{composition.slot}: its diffs add up to {bound:.3g}, at most {_LARGEST:g} is served; train it again"
        )


def _task_sft(composition: Composition, parts: Iterable[PackedPart]) -> SFT:
    found = [packed.sft for packed, _ in parts if packed.sft.kind == "task"]
    if len(found) != 1:
        raise ReleaseError(f"{composition.slot}: a composition has one task SFT, this one has {len(found)}")
    if found[0].labels != composition.labels:
        raise ReleaseError(
            f"{composition.slot}: the labels of the composition ({', '.join(composition.labels)}) are not those of "
            f"{found[0].title} ({', '.join(found[0].labels)}); promote it again"
        )
    return found[0]


def group_pieces(pieces: Sequence[Piece], limits: Limits) -> list[list[int]]:
    """Group pieces of like length, each group within the bounds of a forward pass, so that the passes cost least.

    Of all ways to cut the pieces, sorted by length, the one with the fewest sub-words, padding included, is taken; a
    pass costs as much as `_PASS_SUBWORDS` besides.
    """
    order = sorted(range(len(pieces)), key=lambda i: (len(pieces[i].input_ids), i))
    lengths = [len(pieces[i].input_ids) for i in order]
    cheapest, begins = [0], [0]  # of the first n pieces: what they cost at least, and where the last group begins
    for end, length in enumerate(lengths, 1):
        first = max(0, end - min(limits.batch_texts, max(1, limits.batch_subwords // length)))
        cost, begin = min((cheapest[at] + _PASS_SUBWORDS + (end - at) * length, at) for at in range(first, end))
        cheapest.append(cost)
        begins.append(begin)
    end, groups = len(order), []
    while end:
        groups.append(order[begins[end] : end])
        end = begins[end]
    return groups[::-1]
