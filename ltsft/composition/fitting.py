"""Whether SFTs fit a model: everything that is looked at before the first weight changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ltsft.composition.weights import Weight, weight_problem
from ltsft.errors import CompositionError
from ltsft.sft import SFT, BaseRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Part", "check_parts", "check_stacked", "head_values", "named", "refuse_tied_output"]

Part = tuple[SFT, Weight]
"""An SFT and the weight, or the weights by part of the network, that its diffs are multiplied by."""


def check_parts(
    parts: Iterable[Part], encoder: Mapping[str, nn.Parameter], *, base: BaseRef, sound: Iterable[SFT] = ()
) -> dict[int, str]:
    """Refuse parts that do not fit a model's encoder.

    Args:
        parts: SFTs with their weights.
        encoder: The encoder's parameters by name, tied ones under each name.
        base: Which base the model was made from.
        sound: SFTs whose tensors have been looked at already and are not again.

    Returns:
        The names of the parameters that the diffs change, by the parameter's id.

    Raises:
        CompositionError: A weight is not finite, its name pattern matches nothing, or an SFT belongs to another base or
            tokenizer, does not fit the parameters or is not sound.
    """
    touched: dict[int, str] = {}
    for sft, weight in parts:
        problem = weight_problem(weight, encoder)
        if problem:
            raise CompositionError(f"{sft.title}: {problem}")
        _check_base(sft, base)
        _check_diffs(sft, encoder, looks_inside=sft not in sound)
        for name, diff in sorted(sft.diffs.items()):
            other = touched.setdefault(id(encoder[name]), name) if diff.support_size else name
            if other != name:
                raise CompositionError(
                    f"diffs of {other} and {name}: the model has tied them to one parameter; untie them"
                )
    return touched


def check_stacked(parts: Sequence[Part], *, rule: str) -> None:
    """Refuse what cannot be done with adapters that stay modules: they are stacked, and do not add up.

    Raises:
        CompositionError: a weight is not 1, the rule is not the sum, there are two of a kind, or a task's comes first.
    """
    for sft, weight in parts:
        if weight != 1.0:
            raise CompositionError(
                f"{sft.title}: weight {weight}: an adapter of {sft.method} is there or not, so its weight must be 1; "
                "lt_sft and lora have diffs, which can be weighted"
            )
    if parts and rule != "sum":
        raise CompositionError(
            f"composition rule {rule!r} puts diffs together, and {parts[0][0].title} is an adapter of "
            f"{parts[0][0].method}; use the rule 'sum', or a method with diffs (lt_sft, lora)"
        )
    kinds = [sft.kind for sft, _ in parts]
    if kinds not in ([], ["language"], ["task"], ["language", "task"]):
        titles = ", ".join(sft.title for sft, _ in parts)
        raise CompositionError(
            f"adapters of {parts[0][0].method} are stacked: at most one of a language, and over it at most one of a "
            f"target task; got {titles}"
        )


def refuse_tied_output(model: PreTrainedModel, touched: Mapping[int, str]) -> None:
    """Refuse diffs of word embeddings that are the output layer, too: language SFTs are learnt with the two untied.

    Raises:
        CompositionError: naming the parameter.
    """
    output = model.get_output_embeddings()
    weight = getattr(output, "weight", None)
    if id(weight) in touched:
        raise CompositionError(
            f"diff of {touched[id(weight)]}: {type(model).__name__} has tied its output layer to it, and SFTs are "
            "learnt with the two apart; load the model with Base.masked_lm(), or untie it (a copy of the weight in "
            "get_output_embeddings(), config.tie_word_embeddings = False)"
        )


def head_values(
    sfts: Sequence[SFT], model: PreTrainedModel, touched: Mapping[int, str]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Give the parameters that the SFTs' heads replace, with their new values in the model's dtype and device.

    Args:
        sfts: The SFTs; one whose head the model does not have brings none, unless it is a task SFT.
        model: The model.
        touched: Names by id of the parameters that diffs change.

    Raises:
        CompositionError: A head does not fit the model, or two bring the same parameter.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    owners: dict[int, SFT] = {}
    values = []
    for sft in sfts:
        if not sft.head or not _has_head(model, sft):
            continue
        _check_labels(sft, model)
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
            values.append((parameter, new))
    return values


def named(base: BaseRef) -> str:
    """Name a base for people."""
    return f"{base.id}@{base.revision}" if base.revision else base.id


def _check_base(sft: SFT, base: BaseRef) -> None:
    if sft.base.fingerprint != base.fingerprint:
        raise CompositionError(
            f"{sft.title} belongs to another base: {named(sft.base)} with fingerprint {sft.base.fingerprint}, "
            f"but the model is {named(base)} with fingerprint {base.fingerprint}; load the SFT's base, or train the "
            "SFT on this one"
        )
    if sft.base.tokenizer_fingerprint != base.tokenizer_fingerprint:
        raise CompositionError(
            f"{sft.title} was learnt with another tokenizer: fingerprint {sft.base.tokenizer_fingerprint} "
            f"({named(sft.base)}), but that of {named(base)} is {base.tokenizer_fingerprint}; load the SFT's base "
            "with its tokenizer"
        )
    now = dict(base.golden)
    other = [(text, ids, now[text]) for text, ids in sft.base.golden if now.get(text, ids) != ids]
    if other:
        text, then, ids = other[0]
        raise CompositionError(
            f"{sft.title} was learnt with other sub-words: from the same files, this version of the tokenizer's "
            f"library makes other ids of {len(other)} of {len(sft.base.golden)} texts, such as {list(ids)} for "
            f"{text!r}, where there were {list(then)}; use the versions of transformers and tokenizers that the SFT "
            "names, or train it again"
        )


def _check_diffs(sft: SFT, encoder: Mapping[str, nn.Parameter], *, looks_inside: bool) -> None:
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
        problem = diff.problem() if looks_inside else None
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
