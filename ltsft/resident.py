"""One model in memory, in which compositions are switched in place.

`Resident` keeps, for each SFT that is applied, the base values at its support. To switch, it puts those back and adds
the new diffs, block by block, so that every weight is fetched from memory once however many parts touch it; blocks are
shared out over threads. Nothing is undone by subtraction: floats round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ltsft.errors import CompositionError
from ltsft.fitting import Part, check_parts, head_values
from ltsft.sft import SFT, BaseRef, Diff

__all__ = ["RULES", "Part", "Piece", "Resident", "Rule"]

BLOCK = 2**18
"""Weights that are changed at a time on the CPU: a megabyte of float32, which fits a core's cache."""

FEW = 2**16
"""Entries below which threads cost more than they save."""


@dataclass(frozen=True, eq=False)
class Piece:
    """What one part of a composition brings to some weights.

    Attributes:
        places: Where its support lies among them, shape (k,), int64, strictly increasing.
        values: Its diff there, shape (k,), float32.
        weight: The part's weight.
    """

    places: Tensor
    values: Tensor
    weight: float


Rule = Callable[[Tensor, Sequence[Piece]], None]
"""Takes base weights, (n,) float32, and what each part brings; changes the weights in place, at the places alone."""


def sum_diffs(weights: Tensor, pieces: Sequence[Piece]) -> None:
    """Add the weighted diffs to the base weights in place, one part after the other in the order given.

    The rule of the paper (Ansell et al., ACL 2022, section 3.2). Float addition rounds, so the order decides the last
    bit: that is why it is part of the composition.

    Args:
        weights: Base weights, shape (n,), float32.
        pieces: What each part brings, in order.
    """
    for piece in pieces:
        weights.index_add_(0, piece.places, piece.values if piece.weight == 1.0 else piece.values * piece.weight)


RULES: dict[str, Rule] = {"sum": sum_diffs}
"""The composition rules by name. A new rule is one function and one line here."""


class Resident:
    """A model made from a base, in which compositions are switched in place.

    A switch touches the supports of the parts that come and go, and where those lie in parameters that other parts
    share, the others' too. Its result has the bits of the same composition made anew. Not for several threads at once:
    who serves requests holds a lock around `switch` and the forward pass.

    Args:
        model: A model made from the base; its encoder is `model.base_model`. Any float dtype, any device. What its
            weights are now is what "base" means here.
        base: Which base the model was made from.
        rule: Name of the composition rule, one of `RULES`.
        heads: Whether the parts' heads are applied.

    Raises:
        CompositionError: The rule is unknown.

    Example:
        >>> resident = Resident(model, base=base.ref)  # doctest: +SKIP
        >>> resident.switch([(faroese, 1.0), (pos, 1.0)])  # doctest: +SKIP
        >>> resident.switch([(welsh, 1.0), (pos, 1.0)])  # doctest: +SKIP
        >>> resident.switch([])  # the base again, bit for bit  # doctest: +SKIP
    """

    def __init__(self, model: PreTrainedModel, *, base: BaseRef, rule: str = "sum", heads: bool = True) -> None:
        if rule not in RULES:
            raise CompositionError(f"composition rule {rule!r} is unknown; allowed are {', '.join(sorted(RULES))}")
        self.model = model
        self._base = base
        self._rule = RULES[rule]
        self._heads = heads
        self._encoder = dict(model.base_model.named_parameters(remove_duplicate=False))
        self._parts: tuple[Part, ...] = ()
        self._saved: dict[SFT, _Saved] = {}
        self._saved_head: list[tuple[nn.Parameter, Tensor]] = []
        self._sound: WeakKeyDictionary[SFT, dict[str, float]] = WeakKeyDictionary()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the model is composed of now, in order."""
        return self._parts

    def switch(self, parts: Sequence[Part]) -> PreTrainedModel:
        """Make the model base + these SFTs, whatever it was before.

        New values are computed in float32, part after part in the order listed, and rounded once to the model's
        dtype. The head of a part replaces the model's; a language SFT whose head (that of masked language modelling)
        the model does not have brings its diffs alone. The tensors of an SFT are looked at when it first comes, and
        must not be changed after that.

        Args:
            parts: SFTs with their weights, in order; none at all gives the base, bit for bit.

        Returns:
            The model.

        Raises:
            CompositionError: A part does not fit, or a new value would not be finite: the model is then as it was
                before. Also if the model was converted to another dtype since the last switch.
        """
        self._refuse_converted()
        wanted = tuple(parts)
        touched = check_parts(wanted, self._encoder, base=self._base, sound=self._sound)
        head = head_values([sft for sft, _ in wanted], self.model, touched) if self._heads else []
        if wanted == self._parts:
            return self.model
        for sft, _ in wanted:
            if sft not in self._sound:
                self._sound[sft] = {name: _largest(diff.values) for name, diff in sft.diffs.items()}
        before = self._parts
        try:
            self._change(wanted)
            self._refuse_infinite(wanted)
        except BaseException:
            self._change(())
            self._change(before)
            raise
        self._replace_head(head)
        return self.model

    def _change(self, wanted: tuple[Part, ...]) -> None:
        gone, self._parts = self._parts, ()  # what follows can be cut off anywhere, and _change(()) mends it
        kept = {sft for sft, _ in wanted}
        for sft in kept - self._saved.keys():
            self._saved[sft] = _Saved(sft, self._encoder)
        targets = []
        for name in sorted({name for sft in self._saved for name, diff in sft.diffs.items() if diff.support_size}):
            before = [(sft, weight) for sft, weight in gone if _reaches(sft, name)]
            after = [(sft, weight) for sft, weight in wanted if _reaches(sft, name)]
            if before != after or not wanted:
                targets.append(_Target(self._encoder[name], name, after, self._saved, self._rule))
        entries = sum(target.entries for target in targets)
        _run(
            [block for target in targets for block in target.blocks()],
            threads=torch.get_num_threads() if entries > FEW else 1,
        )
        for target in targets:
            target.finish()
        self._saved = {sft: saved for sft, saved in self._saved.items() if sft in kept}
        self._parts = wanted

    def _refuse_converted(self) -> None:
        held = [(self._encoder[name], value) for saved in self._saved.values() for name, value in saved.values.items()]
        converted = [(p, value) for p, value in held + self._saved_head if p.dtype != value.dtype]
        if converted:
            self._change(())
            self._replace_head([])
            parameter, value = converted[0]
            raise CompositionError(
                f"the model was converted inside a composition ({len(converted)} parameters, such as one from "
                f"{value.dtype} to {parameter.dtype}), so the base cannot be restored bit for bit; convert the model "
                "before composing"
            )

    def _replace_head(self, head: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        with torch.no_grad():
            for parameter, value in self._saved_head:
                parameter.copy_(value)
            self._saved_head = [(parameter, parameter.detach().clone()) for parameter, _ in head]
            for parameter, value in head:
                parameter.copy_(value)

    def _refuse_infinite(self, wanted: tuple[Part, ...]) -> None:
        for name in sorted({name for sft, _ in wanted for name, diff in sft.diffs.items() if diff.support_size}):
            bringing = [(sft, weight) for sft, weight in wanted if _reaches(sft, name)]
            dtype = self._encoder[name].dtype
            bound = max(self._saved[sft].largest(name) for sft, _ in bringing)
            bound += sum(abs(weight) * self._sound[sft][name] for sft, weight in bringing)
            if bound < torch.finfo(dtype).max:  # false also where it is NaN
                continue
            flat = self._encoder[name].detach().reshape(-1)
            for sft, _ in bringing:
                places = sft.diffs[name].indices.long().to(flat.device)
                wrong = torch.nonzero(~torch.isfinite(flat[places]))
                if wrong.numel():
                    at = int(places[int(wrong[0])])
                    titles = ", ".join(sft.title for sft, _ in bringing)
                    raise CompositionError(f"{titles}: {name}: the new value at index {at} is not finite in {dtype}")


class _Saved:
    """The base values at the support of an SFT: one buffer for each dtype, and where in it each parameter's lie."""

    def __init__(self, sft: SFT, encoder: Mapping[str, nn.Parameter]) -> None:
        self.values: dict[str, Tensor] = {}
        self._largest: dict[str, float] = {}
        groups: dict[tuple[torch.dtype, torch.device], list[str]] = {}
        for name in sorted(sft.diffs):
            groups.setdefault((encoder[name].dtype, encoder[name].device), []).append(name)
        for (dtype, device), names in groups.items():
            counts = [sft.diffs[name].support_size for name in names]
            self.values.update(zip(names, _buffer(sum(counts), dtype, device).split(counts), strict=True))
        self.is_filled: set[tuple[str, int]] = set()

    def largest(self, name: str) -> float:
        """Give the largest absolute value; NaN where one is NaN."""
        if name not in self._largest:
            self._largest[name] = _largest(self.values[name])
        return self._largest[name]


class _Target:
    """One parameter and what is to become of it."""

    def __init__(
        self, parameter: nn.Parameter, name: str, wanted: list[Part], saved: Mapping[SFT, _Saved], rule: Rule
    ) -> None:
        self._name = name
        self._wanted = wanted
        self._saved = {sft: held for sft, held in saved.items() if _reaches(sft, name)}
        self._rule = rule
        self._whole = parameter.detach()
        self._flat = self._whole.reshape(-1)  # a copy where the parameter is not contiguous
        self.entries = sum(sft.diffs[name].support_size for sft in self._saved)

    def blocks(self) -> Iterator[Callable[[], None]]:
        """Give the work, cut into blocks of weights that do not meet."""
        size = self._flat.numel()
        step = BLOCK if self._flat.device.type == "cpu" else size
        edges = [*range(0, size, step), size]
        cuts = {sft: _cuts(sft.diffs[self._name], edges) for sft in self._saved}
        for number, (low, high) in enumerate(pairwise(edges)):
            spans = {sft: (at[number], at[number + 1]) for sft, at in cuts.items()}
            yield lambda spans=spans, low=low, high=high: self._change(spans, low, high)  # type: ignore[misc]

    def finish(self) -> None:
        """Write back what had to be changed in a copy."""
        if not self._whole.is_contiguous():
            self._whole.copy_(self._flat.view(self._whole.shape))

    def _change(self, spans: Mapping[SFT, tuple[int, int]], low: int, high: int) -> None:
        flat, name = self._flat, self._name
        places, kept = {}, {}
        for sft, (start, stop) in spans.items():
            places[sft] = sft.diffs[name].indices[start:stop].to(flat.device, torch.int64)
            kept[sft] = self._saved[sft].values[name][start:stop]
            if (name, low) in self._saved[sft].is_filled:
                flat.index_copy_(0, places[sft], kept[sft].to(flat))
        # All of these weights are the base's now.
        wanted = {sft for sft, _ in self._wanted}
        for sft in wanted:
            if (name, low) not in self._saved[sft].is_filled:
                torch.index_select(flat, 0, places[sft], out=kept[sft])
                self._saved[sft].is_filled.add((name, low))
        if not wanted:
            return
        values = {
            sft: sft.diffs[name].values[start:stop].to(flat.device)
            for sft, (start, stop) in spans.items()
            if sft in wanted
        }
        if flat.dtype == torch.float32:
            self._rule(flat, [Piece(places[sft], values[sft], float(weight)) for sft, weight in self._wanted])
            return
        weights = flat[low:high].float()
        self._rule(weights, [Piece(places[sft] - low, values[sft], float(weight)) for sft, weight in self._wanted])
        for sft in wanted:
            flat.index_copy_(0, places[sft], weights[places[sft] - low].to(flat.dtype))


def _reaches(sft: SFT, name: str) -> bool:
    return name in sft.diffs and sft.diffs[name].support_size > 0


def _cuts(diff: Diff, edges: list[int]) -> list[int]:
    """Give where in the support each edge falls."""
    if len(edges) == 2:
        return [0, diff.support_size]
    inner = torch.tensor(edges[1:-1], dtype=torch.int32)
    cuts: list[int] = torch.searchsorted(diff.indices.cpu(), inner).tolist()
    return [0, *cuts, diff.support_size]


def _largest(values: Tensor) -> float:
    if not values.numel():
        return 0.0
    low, high = torch.aminmax(values)
    return math.nan if math.isnan(low) else max(-float(low), float(high))


def _buffer(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Give room for values; on the CPU by numpy, which asks for huge pages and so saves most of the page faults."""
    if device.type != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(max(count, 1) * dtype.itemsize, dtype=np.uint8)).view(dtype)[:count]


def _run(blocks: Sequence[Callable[[], None]], *, threads: int) -> None:
    """Do all blocks; the first error is raised after every block has ended."""
    if threads < 2 or len(blocks) < 2:
        for block in blocks:
            block()
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda block: block(), blocks):
            pass
