"""Composition: a base with a weighted sum of diffs, in memory for as long as a `with` block lasts, or as a folder.

Everything is checked, and every new weight computed, before the first weight of the model changes. On leaving, the
touched weights are put back from saved copies, bit for bit: subtracting what was added would not do, for floats round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ltsft.errors import CompositionError
from ltsft.files import flush_folder, fresh_folder
from ltsft.sft import SFT, BaseRef

__all__ = ["COMPOSITION_FILE", "RULES", "Part", "Piece", "Rule", "composed", "export_composition"]

COMPOSITION_FILE = "composition.json"
"""In an exported folder: what it was composed of."""

Part = tuple[SFT, float]
"""An SFT and the weight that its diffs are multiplied by."""


@dataclass(frozen=True, eq=False)
class Piece:
    """What one part of a composition brings to one parameter.

    Attributes:
        places: Where in the touched weights its support lies, shape (k,), int64, strictly increasing.
        values: Its diff there, shape (k,), float32.
        weight: The part's weight.
    """

    places: Tensor
    values: Tensor
    weight: float


Rule = Callable[[Tensor, Sequence[Piece]], Tensor]
"""Takes the base values of a parameter's touched weights, (n,) float32, and what each part brings; gives new ones."""


def sum_diffs(start: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Add the weighted diffs to the base values, one part after the other in the order given.

    The rule of the paper (Ansell et al., ACL 2022, section 3.2). Float addition rounds, so the order decides the last
    bit: that is why it is part of the composition.

    Args:
        start: Base values of the touched weights, shape (n,), float32.
        pieces: What each part brings, in order.

    Returns:
        New values, shape (n,), float32, on the device of `start`.
    """
    result = start.clone()
    for piece in pieces:
        result.index_add_(0, piece.places, piece.values * piece.weight)
    return result


RULES: dict[str, Rule] = {"sum": sum_diffs}
"""The composition rules by name. A new rule is one function and one line here."""


@contextmanager
def composed(
    model: PreTrainedModel,
    parts: Sequence[Part],
    *,
    base: BaseRef,
    rule: str = "sum",
    heads: bool = True,
) -> Iterator[PreTrainedModel]:
    """Make the model base + SFTs for as long as the block lasts.

    New values are computed in float32, part after part in the order listed, and rounded once to the model's dtype. The
    head of a part replaces the model's. A language SFT whose head (that of masked language modelling) the model does
    not have brings its diffs alone. On leaving, also through an exception, the touched weights are what they were, bit
    for bit; blocks may be nested. Other weights that change inside the block are not put back.

    Args:
        model: A model made from the base; its encoder is `model.base_model`. Any float dtype, any device.
        parts: SFTs with their weights, in order. None at all leaves the model as it is.
        base: Which base the model was made from.
        rule: Name of the composition rule, one of `RULES`.
        heads: Whether the parts' heads are applied.

    Yields:
        The model.

    Raises:
        CompositionError: The rule is unknown, a weight is not finite, or a part belongs to another base, tokenizer or
            label set, or does not fit the model's parameters. The model has not been touched. Also on leaving, if the
            model was converted to another dtype inside the block.

    Example:
        >>> with composed(model, [(language_sft, 1.0), (task_sft, 1.0)], base=base.ref):  # doctest: +SKIP
        ...     score(model)
    """
    changes = _planned(model, list(parts), base=base, rule=rule, heads=heads)
    with torch.no_grad():
        saved = [change.current() for change in changes]
    try:
        with torch.no_grad():
            for change in changes:
                change.write(change.new)
        yield model
    finally:
        _restore(changes, saved)


def export_composition(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parts: Sequence[Part],
    folder: str | Path,
    *,
    base: BaseRef,
    rule: str = "sum",
) -> Path:
    """Write a composition as an ordinary Hugging Face folder, which the Auto classes load without this package.

    The folder appears by one rename, whole; one that holds an earlier export is replaced.

    Args:
        model: A model made from the base, with the heads that the parts bring; it is the base again afterwards.
        tokenizer: The base's tokenizer.
        parts: SFTs with their weights, in order.
        folder: The folder to write: new, empty, or an earlier export.
        base: Which base the model was made from.
        rule: Name of the composition rule, one of `RULES`.

    Returns:
        The folder.

    Raises:
        CompositionError: The parts do not fit (see `composed`), or the folder holds something that is not an export.

    Example:
        >>> parts = [(language_sft, 1.0), (task_sft, 1.0)]  # doctest: +SKIP
        >>> export_composition(model, tokenizer, parts, "released/pos-fo", base=base.ref)  # doctest: +SKIP
    """
    folder = Path(folder)
    is_used = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if is_used and not (folder / COMPOSITION_FILE).is_file():
        raise CompositionError(
            f"{folder} exists and is not an exported composition; export to a new or an empty folder"
        )
    with fresh_folder(folder) as fresh:
        with composed(model, parts, base=base, rule=rule):
            model.save_pretrained(fresh, state_dict=_stored_weights(model))
        tokenizer.save_pretrained(fresh)
        content = {
            "base": asdict(base),
            "rule": rule,
            "parts": [
                {"kind": sft.kind, "subject": sft.subject, "weight": float(weight), "density": sft.density}
                for sft, weight in parts
            ],
        }
        own_head = getattr(model.config, "ltsft_head", None)
        (fresh / "README.md").write_text(_export_card(parts, base, rule, own_head), encoding="utf-8")
        (fresh / COMPOSITION_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        flush_folder(fresh)
        if is_used:
            with fresh_folder(folder) as aside:
                folder.replace(aside / "earlier")
                fresh.replace(folder)
        else:
            fresh.replace(folder)
        flush_folder(folder.parent)
    return folder


def _stored_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights to save; where the config ties none, those that share memory are written under each name.

    Otherwise `save_pretrained` keeps one name of them, and loading, which then ties nothing, makes up the other.
    """
    weights: dict[str, Tensor] = model.state_dict()
    if getattr(model.config, "tie_word_embeddings", True):
        return weights
    seen: set[int] = set()
    for name, value in weights.items():
        weights[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return weights


def _export_card(parts: Sequence[Part], base: BaseRef, rule: str, own_head: str | None) -> str:
    loading = "load it with the Auto classes of transformers."
    if own_head:
        loading = (
            f"its head is not one of transformers' ({own_head}): load it with\n"
            "`ltsft.objectives.biaffine.load_parser`. The folder holds weights and settings alone, no code."
        )
    added = [f"| {sft.kind} | `{sft.subject}` | {weight:g} | {sft.density:.4g} |" for sft, weight in parts]
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(base.id)}",
            'tags: ["sparse-fine-tuning", "lt-sft"]',
            "---",
            "",
            f"# {_named(base)} with {' + '.join(f'{sft.kind} SFT {sft.subject}' for sft, _ in parts) or 'no SFT'}",
            "",
            "A composition of sparse fine-tunings (Lottery-Ticket SFT, Ansell et al., ACL 2022) with their base, by",
            f"the rule `{rule}`. Size and architecture are the base's; {loading}",
            "",
            "| SFT | subject | weight | density |",
            "|---|---|---|---|",
            *added,
            "",
        ]
    )


@dataclass(frozen=True, eq=False)
class _Change:
    """New values for some weights of one parameter; `places` None stands for all of them."""

    name: str
    parameter: nn.Parameter
    places: Tensor | None
    new: Tensor

    def current(self) -> Tensor:
        whole = self.parameter.detach()
        return whole.clone() if self.places is None else whole.reshape(-1)[self.places]

    def write(self, values: Tensor) -> None:
        whole = self.parameter.detach()
        if self.places is None:
            whole.copy_(values)
        elif whole.is_contiguous():
            whole.view(-1)[self.places.to(whole.device)] = values.to(whole)
        else:
            flat = whole.reshape(-1)
            flat[self.places.to(whole.device)] = values.to(whole)
            whole.copy_(flat.reshape(whole.shape))


def _restore(changes: list[_Change], saved: list[Tensor]) -> None:
    converted = []
    with torch.no_grad():
        for change, values in zip(changes, saved, strict=True):
            change.write(values)
            if change.parameter.dtype != values.dtype:
                converted.append(f"{change.name} from {values.dtype} to {change.parameter.dtype}")
    if converted:
        raise CompositionError(
            f"{converted[0]} ({len(converted)} parameters) was converted inside a composition, so the base cannot be "
            "restored bit for bit; convert the model before composing"
        )


def _planned(model: PreTrainedModel, parts: list[Part], *, base: BaseRef, rule: str, heads: bool) -> list[_Change]:
    """Check everything and compute all new values; touches nothing."""
    if rule not in RULES:
        raise CompositionError(f"composition rule {rule!r} is unknown; allowed are {', '.join(sorted(RULES))}")
    encoder = dict(model.base_model.named_parameters(remove_duplicate=False))
    for sft, weight in parts:
        _check_weight(sft, weight)
        _check_base(sft, base)
        _check_diffs(sft, encoder)
    with_head = [sft for sft, _ in parts if heads and sft.head and _has_head(model, sft)]
    for sft in with_head:
        _check_labels(sft, model)
    with torch.no_grad():
        changes = _diff_changes(parts, encoder, RULES[rule])
        return changes + _head_changes(with_head, model, {id(change.parameter): change.name for change in changes})


def _check_weight(sft: SFT, weight: float) -> None:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise CompositionError(f"{sft.title}: weight must be a finite number, got {weight!r}")


def _check_base(sft: SFT, base: BaseRef) -> None:
    if sft.base.fingerprint != base.fingerprint:
        raise CompositionError(
            f"{sft.title} belongs to another base: {_named(sft.base)} with fingerprint {sft.base.fingerprint}, "
            f"but the model is {_named(base)} with fingerprint {base.fingerprint}; load the SFT's base, or train the "
            "SFT on this one"
        )
    if sft.base.tokenizer_fingerprint != base.tokenizer_fingerprint:
        raise CompositionError(
            f"{sft.title} was learnt with another tokenizer: fingerprint {sft.base.tokenizer_fingerprint} "
            f"({_named(sft.base)}), but that of {_named(base)} is {base.tokenizer_fingerprint}; load the SFT's base "
            "with its tokenizer"
        )


def _named(base: BaseRef) -> str:
    return f"{base.id}@{base.revision}" if base.revision else base.id


def _check_diffs(sft: SFT, encoder: dict[str, nn.Parameter]) -> None:
    for name, diff in sft.diffs.items():
        if name not in encoder:
            raise CompositionError(
                f"{sft.title}: diff of {name}: the model's encoder has no such parameter (it has {len(encoder)}, such "
                f"as {next(iter(encoder), 'none')}); is this a model of the SFT's base?"
            )
        parameter = encoder[name]
        if tuple(diff.shape) != tuple(parameter.shape):
            raise CompositionError(
                f"{sft.title}: diff of {name}: shape {list(diff.shape)}, but the model's is {list(parameter.shape)}"
            )
        if not parameter.is_floating_point() or parameter.is_meta:
            raise CompositionError(
                f"{sft.title}: diff of {name}: the model's parameter is {parameter.dtype} on {parameter.device}; load "
                "the model with float weights"
            )
        problem = diff.problem()
        if problem:
            raise CompositionError(f"{sft.title}: diff of {name}: {problem}")


def _has_head(model: PreTrainedModel, sft: SFT) -> bool:
    """Say whether the model has all of the SFT's head; it must have a task SFT's.

    Having some of it is not enough: ModernBERT's masked LM and its token classifier share the name of one layer.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    missing = sorted(sft.head.keys() - parameters)
    if missing and sft.kind == "task":
        raise CompositionError(
            f"{sft.title}: head {missing[0]}: {type(model).__name__} has no such parameter; load the model with the "
            "head of the target task, or compose with heads=False"
        )
    return not missing


def _check_labels(sft: SFT, model: PreTrainedModel) -> None:
    if not sft.labels:
        return
    labels = tuple(str(name) for _, name in sorted((model.config.id2label or {}).items()))
    if labels != tuple(sft.labels):
        raise CompositionError(
            f"{sft.title} has another label set: {', '.join(sft.labels)}; the model's is {', '.join(labels)}; make the "
            "model's token classifier with the SFT's labels, in their order"
        )


def _diff_changes(parts: list[Part], encoder: dict[str, nn.Parameter], rule: Rule) -> list[_Change]:
    names = sorted({name for sft, _ in parts for name, diff in sft.diffs.items() if diff.support_size})
    owners: dict[int, str] = {}
    changes = []
    for name in names:
        parameter = encoder[name]
        other = owners.setdefault(id(parameter), name)
        if other != name:
            raise CompositionError(f"diffs of {other} and {name}: the model has tied them to one parameter; untie them")
        bringing = [(sft.diffs[name], weight) for sft, weight in parts if name in sft.diffs]
        places, pieces = _aligned([(diff.indices, diff.values, float(weight)) for diff, weight in bringing])
        start = parameter.detach().reshape(-1)[places.to(parameter.device)].float().cpu()
        new = rule(start, pieces).to(parameter.dtype)
        wrong = torch.nonzero(~torch.isfinite(new))
        if wrong.numel():
            at = int(places[int(wrong[0])])
            titles = ", ".join(sft.title for sft, _ in parts if name in sft.diffs)
            raise CompositionError(f"{titles}: {name}: the new value at index {at} is not finite in {parameter.dtype}")
        changes.append(_Change(name, parameter, places.to(parameter.device), new.to(parameter.device)))
    return changes


def _aligned(diffs: list[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, list[Piece]]:
    """Return the union of the supports, and each part's diff by its places in that union."""
    supports = [indices.cpu().long() for indices, _, _ in diffs]
    union = supports[0] if len(supports) == 1 else torch.unique(torch.cat(supports), sorted=True)
    pieces = [
        Piece(places=torch.searchsorted(union, support), values=values.cpu(), weight=weight)
        for support, (_, values, weight) in zip(supports, diffs, strict=True)
    ]
    return union, pieces


def _head_changes(sfts: list[SFT], model: PreTrainedModel, touched: dict[int, str]) -> list[_Change]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    owners: dict[int, SFT] = {}
    changes = []
    for sft in sfts:
        for name, value in sorted(sft.head.items()):
            parameter, place = parameters[name], f"{sft.title}: head {name}"
            if tuple(value.shape) != tuple(parameter.shape):
                raise CompositionError(
                    f"{place}: shape {list(value.shape)}, but the model's is {list(parameter.shape)}"
                )
            new = value.detach().to(device=parameter.device, dtype=parameter.dtype)
            if not bool(torch.isfinite(new).all()):
                raise CompositionError(f"{place}: holds values that are not finite in {parameter.dtype}")
            if id(parameter) in touched:
                raise CompositionError(
                    f"{place}: is tied to {touched[id(parameter)]}, which a diff changes; untie them"
                )
            owner = owners.setdefault(id(parameter), sft)
            if owner is not sft:
                raise CompositionError(
                    f"{place}: {owner.title} brings it too, and heads do not add up; take the head out of one of them "
                    "(dataclasses.replace(sft, head={}, labels=())), or compose with heads=False"
                )
            changes.append(_Change(name, parameter, None, new))
    return changes
