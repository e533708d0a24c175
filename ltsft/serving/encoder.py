"""One resident encoder that all releases of a composition rule share, and SFTs as they are put in place there.

The word embedding is composed as its rows are looked up (`ltsft.serving.rows`); everything else is switched in place
(`ltsft.composition.resident`). Both are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ltsft.base import encoder_parameters
from ltsft.composition import RULES, Part, Resident, Weight, check_parts, weight_at
from ltsft.serving.packed import PackedDiffs, Unpacked
from ltsft.serving.rows import ComposedRows, RowDiffs, word_embedding
from ltsft.sft import SFT, BaseRef

__all__ = ["Encoder", "PackedPart", "PackedSFT"]


@dataclass(frozen=True, eq=False)
class PackedSFT:
    """An SFT as a server keeps it.

    Attributes:
        sft: with its diffs packed, that of the word embedding left out if `rows` has it.
        diffs: those of `sft`.
        rows: the diff of the word embedding; None where the encoder's is not composed by rows.
    """

    sft: SFT
    diffs: PackedDiffs
    rows: RowDiffs | None

    @property
    def largest(self) -> float:
        """Largest absolute value of the diffs."""
        return max(self.diffs.largest, self.rows.largest if self.rows else 0.0)

    @property
    def packed_bytes(self) -> int:
        """What is always in memory."""
        return self.diffs.packed_bytes + (self.rows.packed_bytes if self.rows else 0)

    @property
    def unpacked_bytes(self) -> int:
        """What is unpacked while it is in place."""
        return self.diffs.unpacked_bytes + (self.rows.unpacked_bytes if self.rows else 0)

    def unpack(self) -> None:
        """Unpack what a switch needs; rows are unpacked when they are looked up."""
        self.diffs.unpack()

    def drop(self) -> None:
        """Forget what was unpacked."""
        self.diffs.drop()
        if self.rows:
            self.rows.drop()


PackedPart = tuple[PackedSFT, Weight]
"""An SFT with its weight."""


class Encoder:
    """A resident encoder in which compositions are switched. Not for several threads at once.

    Args:
        model: made from the base; its encoder is what is shared.
        base: which base that is.
        rule: name of the composition rule.
        unpacked: remembers what is unpacked; one for all encoders of a server.
        is_compiled: whether switches are compiled, see `Resident`.
    """

    def __init__(
        self, model: PreTrainedModel, *, base: BaseRef, rule: str, unpacked: Unpacked, is_compiled: bool = False
    ) -> None:
        self.model = model
        self._base = base
        self._unpacked = unpacked
        self._resident = Resident(model, base=base, rule=rule, heads=False, is_compiled=is_compiled)
        self._name: str | None = None
        self._rows: ComposedRows | None = None
        if found := word_embedding(model):
            self._name, embedding = found
            self._rows = ComposedRows(embedding, RULES[rule])
        self._parts: tuple[PackedPart, ...] = ()

    @property
    def parts(self) -> tuple[PackedPart, ...]:
        """What is in place now, in order."""
        return self._parts

    @property
    def names(self) -> list[str]:
        """Names of the encoder's parameters."""
        return list(encoder_parameters(self.model))

    def pack(self, sft: SFT, weight: Weight) -> PackedSFT:
        """Check an SFT against the encoder and pack it; the encoder is only read.

        Raises:
            CompositionError: it does not fit.
        """
        check_parts([(sft, weight)], encoder_parameters(self.model), base=self._base)
        by_row = sft.diffs.get(self._name) if self._name else None
        diffs = PackedDiffs({name: diff for name, diff in sft.diffs.items() if name != self._name})
        packed = replace(sft, diffs=diffs, head={n: v.clone() for n, v in sft.head.items()}, details={})
        return PackedSFT(packed, diffs, None if by_row is None else RowDiffs(by_row))

    def switch(self, parts: Sequence[PackedPart]) -> None:
        """Put a composition in place, whatever was there.

        Raises:
            CompositionError: it does not fit; what was in place stays.
        """
        wanted = tuple(parts)
        own: list[Part] = [(packed.sft, weight) for packed, weight in wanted]
        self._unpacked.use(packed for packed, _ in (*self._parts, *wanted))
        self._resident.switch(own)
        if self._rows is not None and self._name is not None:
            self._rows.compose(
                [(packed.rows, weight_at(weight, self._name)) for packed, weight in wanted if packed.rows is not None]
            )
        self._parts = wanted
        self._unpacked.use(packed for packed, _ in wanted)
