"""Composition: a base with a weighted sum of diffs, in memory for as long as a `with` block lasts, or as a folder.

Everything is checked before the first weight of the model changes. On leaving, the touched weights are put back from
saved copies, bit for bit: subtracting what was added would not do, for floats round. Who goes from one composition to
the next in one model (the matrix, a server) uses `Resident` of `ltsft.composition.resident`, which touches only what
differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ltsft.atomic import flush_folder, fresh_folder
from ltsft.composition.fitting import Part, named
from ltsft.composition.resident import Resident
from ltsft.composition.rules import RULES, Contribution, Rule
from ltsft.composition.weights import Weight, shown_weight
from ltsft.errors import CompositionError
from ltsft.methods import as_diffs
from ltsft.sft import SFT, BaseRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["COMPOSITION_FILE", "RULES", "Contribution", "Part", "Resident", "Rule", "composed", "export_composition"]

COMPOSITION_FILE = "composition.json"
"""In an exported folder: what it was composed of."""


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

    How is said at `Resident.switch`. On leaving, also through an exception, the touched weights are what they were, bit
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
            label set, or does not fit the model's parameters. The model is as it was. Also on leaving, if the model
            was converted to another dtype inside the block.

    Example:
        >>> with composed(model, [(language_sft, 1.0), (task_sft, 1.0)], base=base.ref):
        ...     score(model)
    """
    resident = Resident(model, base=base, rule=rule, heads=heads)
    try:
        yield resident.switch(parts)
    finally:
        resident.switch([])


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
        >>> parts = [(language_sft, 1.0), (task_sft, 1.0)]
        >>> export_composition(model, tokenizer, parts, "released/pos-fo", base=base.ref)
        PosixPath('released/pos-fo')
    """
    _refuse_stacked(parts)
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
        content = {"base": base.identity, "rule": rule, "parts": [_told(sft, weight) for sft, weight in parts]}
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


def _refuse_stacked(parts: Sequence[Part]) -> None:
    """Refuse SFTs whose modules no ordinary model has."""
    stacked = [sft for sft, _ in parts if as_diffs(sft).adapter]
    if stacked:
        raise CompositionError(
            f"{stacked[0].title} is an adapter of {stacked[0].method}, modules that no ordinary model has, so it "
            "cannot be exported; export a method whose SFTs are diffs or can be added to the weights (lt_sft, lora)"
        )


def _told(sft: SFT, weight: Weight) -> dict[str, Any]:
    """Say what a part of an export is."""
    return {
        "kind": sft.kind,
        "subject": sft.subject,
        "weight": dict(weight) if isinstance(weight, Mapping) else float(weight),
        "density": sft.density,
    }


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
            "`ltsft.load_parser`. The folder holds weights and settings alone, no code."
        )
    added = [f"| {sft.kind} | `{sft.subject}` | {shown_weight(weight)} | {sft.density:.4g} |" for sft, weight in parts]
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(base.id)}",
            'tags: ["sparse-fine-tuning", "lt-sft"]',
            "---",
            "",
            f"# {named(base)} with {' + '.join(f'{sft.kind} SFT {sft.subject}' for sft, _ in parts) or 'no SFT'}",
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
