"""What a training is made of: a `Training`, and how one comes from texts, from labelled sources and from SFTs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ltsft.base import Base
from ltsft.config import LT_SFT, LabelledData, Recipe, Source, TargetTask
from ltsft.data import RowError, read_word_list
from ltsft.objectives import OBJECTIVES, MaskedLM, Objective, TargetObjective, pack_text, read_labelled, split_held_out
from ltsft.sft import SFT, Kind, load_sft
from ltsft.training.augmentation import Augmenter
from ltsft.training.consistent import Consistent
from ltsft.training.several import FromLanguage, Mixture, SeveralSources, sampling_shares

__all__ = [
    "Training",
    "TrainingData",
    "labelled_rows",
    "language_training",
    "objective_of",
    "split_examples",
    "task_training",
]

_LOG = logging.getLogger(__name__)
HELD_OUT_EVERY = 10
"""Without dev data, every tenth sentence of the training data chooses the best checkpoint."""


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, and what chooses the best checkpoint.

    Attributes:
        examples: of the objective, to train on.
        held_out: of the objective; the weights that score best on them are kept.
    """

    examples: Sequence[Any]
    held_out: Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that settles which SFT is learnt on a base; `train_sft` learns it.

    Attributes:
        objective: what is learnt.
        kind: "language" or "task".
        subject: the language or the target task.
        recipe: density, phases, batches.
        data: what is trained on and what is held out. Several are trained on one after the other, each in a round of
            its own, like the iterations of a recipe: each adds its share of K. The held-out score of each is then
            measured after its round and at the end, in `details["forgetting"]`.
        seed: of the head, the order of examples, masking and dropout.
        method: how it is learnt, one of `ltsft.methods.registry`.
        applied: SFTs that are part of the starting point (the source language's, for a task SFT); diffs are counted
            from base + these.
        apart_from: SFTs whose supports are not selected from, where the recipe says `disjoint`.
        source_languages: recorded in the SFT.
        details: recorded in the SFT: data fingerprints, parents.
    """

    objective: Objective
    kind: Kind
    subject: str
    recipe: Recipe
    data: TrainingData | Sequence[TrainingData]
    seed: int = 0
    method: str = LT_SFT
    applied: Sequence[SFT] = ()
    apart_from: Sequence[SFT] = ()
    source_languages: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What is learnt, for messages."""
        return f"{self.kind} SFT {self.subject}"

    @property
    def rounds(self) -> list[TrainingData]:
        """What each round of full and sparse phase is trained on."""
        return [self.data] * self.recipe.iterations if isinstance(self.data, TrainingData) else list(self.data)


def language_training(
    base: Base,
    texts: Iterable[str],
    *,
    language: str,
    recipe: Recipe,
    folder: Path,
    method: str = LT_SFT,
    seed: int = 0,
    details: Mapping[str, Any] | None = None,
) -> Training:
    """Prepare the training of a language SFT.

    Args:
        base: the base.
        texts: lines of raw text of the language; an empty one ends a document.
        language: its code.
        recipe: density, phases, batches.
        folder: for the packed text; what is there already is used again. It may be that of the training.
        method: how it is learnt.
        seed: of masking, the order of examples and dropout.
        details: recorded in the SFT.

    Returns:
        What `train_sft` learns.

    Raises:
        TrainingError: there is not enough text for two sequences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    length = recipe.max_length
    packed = pack_text(texts, base.tokenizer, max_length=length, file=folder / f"{length}.tokens")
    return Training(
        objective=MaskedLM(base.tokenizer, mask_probability=recipe.mask_probability),
        kind="language",
        subject=language,
        recipe=recipe,
        data=TrainingData(*split_held_out(packed, recipe.held_out)),
        seed=seed,
        method=method,
        details=details or {},
    )


def task_training(
    base: Base,
    target: TargetTask,
    *,
    language: str,
    recipe: Recipe,
    sources: Mapping[str, Path],
    method: str = LT_SFT,
    seed: int = 0,
    details: Mapping[str, Any] | None = None,
) -> Training:
    """Prepare the training of a task SFT from the labelled data of a target task.

    Args:
        base: the base.
        target: what is learnt.
        language: what it is learnt from: a source language, or several by their name together.
        recipe: density, phases, batches.
        sources: folder of the SFT of each of these languages; none where the method has no language SFTs.
        method: how it is learnt.
        seed: of the head, the order of examples and dropout.
        details: recorded in the SFT.

    Returns:
        What `train_sft` learns.

    Raises:
        SourceError: a source cannot be read, or a label is not in the label set.
        SFTFileError: an SFT is damaged.
    """
    objective = objective_of(target, base, recipe.max_length)
    data = {code: split_examples(objective, target, labelled) for code, labelled in target.labelled(language).items()}
    sfts = {code: load_sft(folder) for code, folder in sources.items()}
    learnt = _with_consistency(objective, recipe, base)
    is_single = len(data) == 1
    return Training(
        objective=learnt if is_single else SeveralSources(learnt, {code: sfts.get(code) for code in data}, base),
        kind="task",
        subject=target.name,
        recipe=recipe,
        data=next(iter(data.values())) if is_single else _mixed(data, target),
        seed=seed,
        method=method,
        applied=list(sfts.values()) if is_single else (),
        apart_from=list(sfts.values()),
        source_languages=tuple(data),
        details=details or {},
    )


def _mixed(data: Mapping[str, TrainingData], target: TargetTask) -> TrainingData | list[TrainingData]:
    """Put the examples of several languages together, or in a row."""
    held_out = [[FromLanguage(i, example) for example in own.held_out] for i, own in enumerate(data.values())]
    if target.order == "sequential":
        return [
            TrainingData([FromLanguage(i, example) for example in own.examples], held_out[i])
            for i, own in enumerate(data.values())
        ]
    examples = {code: own.examples for code, own in data.items()}
    sizes = {code: len(own) for code, own in examples.items()}
    shares = sampling_shares(sizes, temperature=target.sampling.temperature, weights=target.sampling.weights)
    return TrainingData(Mixture(examples, shares), list(chain(*held_out)))


def _with_consistency(objective: TargetObjective, recipe: Recipe, base: Base) -> Objective:
    if recipe.consistency is None:
        return objective
    word_lists = [read_word_list(source) for source in recipe.consistency.sources]
    augmenter = Augmenter(base.tokenizer, recipe.consistency.augmentations, word_lists)
    return Consistent(objective, recipe.consistency, augmenter, max_length=recipe.max_length)


def split_examples(objective: TargetObjective, target: TargetTask, data: LabelledData) -> TrainingData:
    """Give what is trained on and what is held out: the dev data, or else every tenth training sentence."""
    examples = objective.examples(labelled_rows(target, data.train))
    if data.dev:
        return TrainingData(examples, objective.examples(labelled_rows(target, data.dev)))
    held_out = [e for e in examples if e.sentence % HELD_OUT_EVERY == 0]
    return TrainingData([e for e in examples if e.sentence % HELD_OUT_EVERY], held_out)


def objective_of(target: TargetTask, base: Base, max_length: int) -> TargetObjective:
    """Give the objective of a target task on a base."""
    objective = OBJECTIVES[target.objective]
    return objective(base.tokenizer, labels=objective.label_set(target), max_length=max_length)


def labelled_rows(target: TargetTask, sources: tuple[Source, ...]) -> list[Any]:
    """Read the rows of a target task; what the gate let through though it cannot be read is left out, and told."""
    left_out: list[RowError] = []
    rows = list(read_labelled(target, sources, on_error=left_out.append))
    if left_out:
        _LOG.warning("%s: %d malformed rows are left out, such as %s", target.name, len(left_out), left_out[0])
    return rows
