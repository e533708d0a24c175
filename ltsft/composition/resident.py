"""One model in memory, in which compositions are switched in place.

`Resident` keeps, for each SFT that is applied, the values that it found at its support. To switch, it puts those back
and adds the new diffs, block by block, so that every weight is fetched from memory once however many parts touch it;
blocks are shared out over threads. Nothing is undone by subtraction: floats round. A sum lies on the weights like a
pile, and what lies beneath all that goes and comes (the task SFT, when the language changes) is not touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from ltsft.base import encoder_parameters
from ltsft.composition.fitting import Part, check_parts, check_stacked, head_values, refuse_tied_output
from ltsft.composition.rules import IN_SUCCESSION, RULES, Contribution, Rule
from ltsft.composition.weights import weight_at
from ltsft.errors import CompositionError
from ltsft.methods import Bottlenecks, as_diffs, bottlenecks_of, stack_of
from ltsft.sft import SFT, BaseRef, Diff

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Part", "Resident"]

BLOCK = 2**20
"""Weights that are changed at a time on the CPU: four megabytes of float32, which stay in the cache meanwhile."""

FEW = 2**16
"""Entries below which threads cost more than they save."""


class Resident:
    """A model made from a base, in which compositions are switched in place.

    A switch touches the supports of the parts that come and go, and in parameters that those reach also the supports of
    the parts listed before them (of all others if the rule is not the sum, or weights are not float32). Its result has
    the bits of the same composition made anew. Not for several threads at once: who serves requests holds a lock around
    `switch` and the forward pass.

    Args:
        model: A model made from the base; its encoder is `model.base_model`. Any float dtype, any device. What its
            weights are now is what "base" means here.
        base: Which base the model was made from.
        rule: Name of the composition rule, one of `RULES`.
        heads: Whether the parts' heads are applied.
        is_compiled: Whether the loops of a sum in float32 on the CPU are compiled: that takes a second once in a
            process, and halves the time of a switch. For who switches hundreds of times, as a server does.

    Raises:
        CompositionError: The rule is unknown.

    Example:
        >>> resident = Resident(model, base=base.ref)
        >>> tagger = resident.switch([(faroese, 1.0), (pos, 1.0)])
        >>> tagger = resident.switch([(welsh, 1.0), (pos, 1.0)])
        >>> tagger = resident.switch([])  # the base again, bit for bit
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        base: BaseRef,
        rule: str = "sum",
        heads: bool = True,
        is_compiled: bool = False,
    ) -> None:
        if rule not in RULES:
            raise CompositionError(f"composition rule {rule!r} is unknown; allowed are {', '.join(sorted(RULES))}")
        self.model = model
        self._base = base
        self._rule = RULES[rule]
        self._rule_name = rule
        self._heads = heads
        self._loops = _compiled_loops() if is_compiled else None
        self._encoder = encoder_parameters(model)
        self._parts: tuple[Part, ...] = ()
        self._held: dict[SFT, dict[str, _Held]] = {}
        self._piles: dict[str, list[_Pile]] = {}
        self._saved_head: list[tuple[nn.Parameter, Tensor]] = []
        self._sound: WeakKeyDictionary[SFT, dict[str, float]] = WeakKeyDictionary()
        self._worked_out: WeakKeyDictionary[SFT, SFT] = WeakKeyDictionary()
        self._modules: WeakKeyDictionary[SFT, Bottlenecks] = WeakKeyDictionary()
        self._below: tuple[Bottlenecks, ...] | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the model is composed of now, in order."""
        return self._parts

    def switch(self, parts: Sequence[Part]) -> PreTrainedModel:
        """Make the model base + these SFTs, whatever it was before.

        New values are computed in float32 by the rule (a sum begins with the part listed last) and rounded once to the
        model's dtype. The head of a part replaces the model's; a language SFT whose head (that of masked language
        modelling) the model does not have brings its diffs alone. An adapter of LoRA comes as the diffs that it amounts
        to, one of MAD-X as modules that hooks put in beside the weights. The tensors of an SFT are looked at when it
        first comes, and must not be changed after that.

        Args:
            parts: SFTs with their weights, in order; none at all gives the base, bit for bit.

        Returns:
            The model.

        Raises:
            CompositionError: A part does not fit, or a new value would not be finite: the model is then as it was
                before. Also if the model was converted to another dtype since the last switch.
        """
        self._refuse_converted()
        wanted = tuple(
            (self._as_diffs(sft), dict(weight) if isinstance(weight, Mapping) else weight) for sft, weight in parts
        )
        touched = check_parts(wanted, self._encoder, base=self._base, sound=self._sound)
        refuse_tied_output(self.model, touched)
        head = head_values([sft for sft, _ in wanted], self.model, touched) if self._heads else []
        if wanted == self._parts:
            return self.model
        stacked = [(sft, weight) for sft, weight in wanted if sft.adapter]
        check_stacked(stacked, rule=self._rule_name)
        modules = [self._modules_of(sft) for sft, _ in stacked]
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
        self._stack(modules)
        return self.model

    def _as_diffs(self, sft: SFT) -> SFT:
        """Give an SFT with diffs in place of an adapter; worked out when it first comes."""
        if not sft.adapter:
            return sft
        if sft not in self._worked_out:
            self._worked_out[sft] = as_diffs(sft)
        return self._worked_out[sft]

    def _modules_of(self, sft: SFT) -> Bottlenecks:
        """Give the modules of an adapter that stays one; made when it first comes."""
        if sft not in self._modules:
            self._modules[sft] = bottlenecks_of(sft, self.model)
        return self._modules[sft]

    def _stack(self, modules: Sequence[Bottlenecks]) -> None:
        """Put modules over those that stood in the model before this resident put any."""
        if not modules and self._below is None:
            return
        stack = stack_of(self.model)
        below = stack.composed if self._below is None else self._below
        stack.compose([*below, *modules])
        self._below = below if modules else None

    def _change(self, wanted: tuple[Part, ...]) -> None:
        self._parts = ()  # what follows can be cut off anywhere, and _change(()) mends it
        coming = {sft for sft, _ in wanted}
        for sft in coming - self._held.keys():
            self._held[sft] = _room(sft, self._encoder)
        targets = []
        for name in sorted({*self._piles, *(name for sft in coming for name in self._held[sft])}):
            after = [
                (self._held[sft][name], weight_at(weight, name)) for sft, weight in wanted if name in self._held[sft]
            ]
            target = _Target(self._encoder[name], self._piles.setdefault(name, []), after, self._rule, self._loops)
            if target.entries:
                targets.append(target)
        is_worth_threads = sum(target.entries for target in targets) > FEW
        _run(
            [block for target in targets for block in target.blocks()],
            threads=torch.get_num_threads() if is_worth_threads else 1,
        )
        for target in targets:
            target.finish()
        self._piles = {name: piles for name, piles in self._piles.items() if any(piles)}
        self._held = {sft: held for sft, held in self._held.items() if sft in coming}
        self._parts = wanted

    def _refuse_converted(self) -> None:
        saved = [(self._encoder[name], one.saved) for held in self._held.values() for name, one in held.items()]
        converted = [(p, value) for p, value in saved + self._saved_head if p.dtype != value.dtype]
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
        for name in sorted({name for held in self._held.values() for name in held}):
            bringing = [(sft, weight) for sft, weight in wanted if name in self._held[sft]]
            dtype = self._encoder[name].dtype
            bound = max(self._held[sft][name].largest() for sft, _ in bringing)
            bound += sum(abs(weight_at(weight, name)) * self._sound[sft][name] for sft, weight in bringing)
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


class _Held:
    """One SFT at one parameter: its diff, and the values that it found at its support."""

    def __init__(self, diff: Diff, saved: Tensor) -> None:
        self.indices = diff.indices.contiguous().numpy()
        self.values = diff.values.contiguous()
        self.saved = saved
        self._cuts: list[int] = []
        self._largest: list[float] = []

    def cut(self, edges: list[int]) -> None:
        """Cut the support into blocks; the edges are those of the parameter, always the same."""
        if not self._cuts:
            self._cuts = [0, *np.searchsorted(self.indices, edges[1:-1]).tolist(), len(self.indices)]
            self._largest = [0.0] * (len(edges) - 1)

    def span(self, number: int) -> slice:
        """Give the part of the support that lies in a block."""
        return slice(self._cuts[number], self._cuts[number + 1])

    def found(self, number: int, largest: float) -> None:
        """Keep the largest absolute value that was found in a block; NaN where one is NaN."""
        self._largest[number] = largest

    def largest(self) -> float:
        """Give the largest absolute value that was found; NaN where one is NaN."""
        return math.nan if any(map(math.isnan, self._largest)) else max(self._largest)


_Pile = list[tuple[_Held, float]]
"""What lies on the weights of a block, with weights, the lowest first: all saved what was there when they came."""


def _room(sft: SFT, encoder: Mapping[str, nn.Parameter]) -> dict[str, _Held]:
    """Make room for what an SFT finds at its support: one buffer for all parameters of a dtype and device."""
    groups: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, diff in sorted(sft.diffs.items()):
        if diff.support_size:
            groups.setdefault((encoder[name].dtype, encoder[name].device), []).append(name)
    held = {}
    for (dtype, device), names in groups.items():
        counts = [sft.diffs[name].support_size for name in names]
        buffers = _buffer(sum(counts), dtype, device).split(counts)
        held.update({name: _Held(sft.diffs[name], buffer) for name, buffer in zip(names, buffers, strict=True)})
    return held


class _Target:
    """One parameter and what is to become of it.

    Args:
        parameter: the parameter.
        piles: what lies on each of its blocks, kept up to date; empty before the first change.
        wanted: what it is to be composed of, in the order listed, with weights.
        rule: of the composition.
        loops: compiled ones, to be used where they fit.
    """

    def __init__(
        self, parameter: nn.Parameter, piles: list[_Pile], wanted: _Pile, rule: Rule, loops: ModuleType | None
    ) -> None:
        self._whole = parameter.detach()
        self._flat = self._whole.reshape(-1)  # a copy where the parameter is not contiguous
        size = self._flat.numel()
        self._edges = [*range(0, size, BLOCK if self._flat.device.type == "cpu" else size), size]
        if not piles:
            piles.extend([] for _ in self._edges[1:])
        self._kept = piles
        self._piles = piles if self._whole.is_contiguous() else [list(pile) for pile in piles]
        self._rule = rule
        is_plain = self._flat.dtype == torch.float32 and self._whole.is_contiguous()
        self._is_pile = rule in IN_SUCCESSION and is_plain and not _is_repeated(wanted)
        self._wanted = wanted[::-1] if self._is_pile else wanted
        self._loops = loops if rule in IN_SUCCESSION and is_plain and self._flat.device.type == "cpu" else None
        for one, _ in wanted:
            one.cut(self._edges)
        self._stays = min(map(self._agreeing, piles), default=0)
        gone = {id(one): one for pile in piles for one, _ in pile[self._stays :]}
        self.entries = sum(len(one.indices) for one in gone.values())
        self.entries += sum(len(one.indices) for one, _ in self._wanted[self._stays :])

    def _agreeing(self, pile: _Pile) -> int:
        """Count what may stay of a pile: from the lowest on for as long as it is what is wanted."""
        if pile == self._wanted:
            return len(pile)
        if not self._is_pile or _is_repeated(pile):
            return 0
        same = [lies == wanted for lies, wanted in zip(pile, self._wanted, strict=False)]
        return [*same, False].index(False)

    def blocks(self) -> Iterator[tuple[_Target, int]]:
        """Give the work, cut into blocks of weights that do not meet."""
        return ((self, number) for number in range(len(self._edges) - 1))

    def finish(self) -> None:
        """Write back what had to be changed in a copy; it can be cut off, since all of those saved the base values."""
        if self._piles is not self._kept:
            for kept, new in zip(self._kept, self._piles, strict=True):
                kept.extend(new)
            self._whole.copy_(self._flat.view(self._whole.shape))
            self._kept[:] = self._piles

    def change(self, number: int) -> None:
        """Take from one block what goes, the highest first, and put on it what comes."""
        pile = self._piles[number]
        while len(pile) > self._stays:
            self._put_back(pile[-1][0], number)
            pile.pop()
        if self._is_pile:
            for one, weight in self._wanted[self._stays :]:
                self._save(one, number)
                pile.append((one, weight))
                self._add(one, weight, number)
        elif len(pile) < len(self._wanted):
            self._compose_all(number)

    def _put_back(self, one: _Held, number: int) -> None:
        """Write what a part found in a block."""
        span = one.span(number)
        if self._loops is not None:
            self._loops.put(self._flat.numpy(), one.indices[span], one.saved[span].numpy())
        else:
            _put(self._flat, self._places(one, number), one.saved[span].to(self._flat))

    def _save(self, one: _Held, number: int) -> None:
        """Keep what a part finds in a block."""
        saved = one.saved[one.span(number)]
        if self._loops is not None:
            largest = float(self._loops.take(self._flat.numpy(), one.indices[one.span(number)], saved.numpy()))
        else:
            torch.index_select(self._flat, 0, self._places(one, number), out=saved)
            largest = _largest(saved)
        one.found(number, largest)

    def _add(self, one: _Held, weight: float, number: int) -> None:
        """Add what a part brings to a block."""
        span = one.span(number)
        if self._loops is not None:
            self._loops.add(self._flat.numpy(), one.indices[span], one.values[span].numpy(), np.float32(weight))
        else:
            self._rule(self._flat, [self._piece(one, weight, number)])

    def _compose_all(self, number: int) -> None:
        """Compose a block on which nothing lies, by a rule that looks at all parts at once or in another dtype."""
        flat = self._flat
        low, high = self._edges[number : number + 2]
        for one, _ in self._wanted:  # all weights of the block are the base's until the last has saved them
            self._save(one, number)
        self._piles[number].extend(self._wanted)
        pieces = [self._piece(one, weight, number) for one, weight in self._wanted]
        if flat.dtype == torch.float32:
            self._rule(flat, pieces)
            return
        weights = flat[low:high].float()
        self._rule(weights, [replace(piece, places=piece.places - low) for piece in pieces])
        for piece in pieces:
            _put(flat, piece.places, weights[piece.places - low].to(flat.dtype))

    def _piece(self, one: _Held, weight: float, number: int) -> Contribution:
        return Contribution(
            self._places(one, number), one.values[one.span(number)].to(self._flat.device), float(weight)
        )

    def _places(self, one: _Held, number: int) -> Tensor:
        return torch.from_numpy(one.indices[one.span(number)].astype(np.int64)).to(self._flat.device)


def _is_repeated(pile: _Pile) -> bool:
    """Say whether an SFT is there twice: it has one room for what it finds, and so has to come when all are gone."""
    return len({id(one) for one, _ in pile}) < len(pile)


def _put(flat: Tensor, places: Tensor, values: Tensor) -> None:
    """Write values at some places and nowhere else: other threads write to other places of `flat` meanwhile.

    `scatter_` is the faster one, but for 16-bit floats it goes through a copy of the whole tensor.
    """
    if flat.dtype == torch.float32:
        flat.scatter_(0, places, values)
    else:
        flat.index_copy_(0, places, values)


def _compiled_loops() -> ModuleType:
    from ltsft.composition import kernels  # compiled as it is imported

    return kernels


def _largest(values: Tensor) -> float:
    if not values.numel():
        return 0.0
    flat = values.float().cpu().numpy()  # by numpy: torch would use threads for what is over in no time
    low, high = float(flat.min()), float(flat.max())
    return math.nan if math.isnan(low) else max(-low, high)


def _buffer(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Give room for values; on the CPU by numpy, which asks for huge pages and so saves most of the page faults."""
    if device.type != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(max(count, 1) * dtype.itemsize, dtype=np.uint8)).view(dtype)[:count]


def _run(blocks: list[tuple[_Target, int]], *, threads: int) -> None:
    """Do all blocks; an error is raised after every thread has ended."""
    remaining = iter(blocks)  # shared: each block is taken by one thread
    if threads < 2 or len(blocks) < 2:
        _run_each(remaining)
        return
    with ThreadPoolExecutor(threads) as pool:
        for ended in [pool.submit(_run_each, remaining) for _ in range(threads)]:
            ended.result()


def _run_each(blocks: Iterator[tuple[_Target, int]]) -> None:
    for target, number in blocks:
        target.change(number)
