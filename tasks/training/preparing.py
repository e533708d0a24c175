"""What a training needs: the data read and cut into examples, the objective, and all else that `train_sft` is told.

No Prefect and no MLflow: the processes of a training by several (tasks/training/together.py) prepare what they need
themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from ltsft.base import Base
from ltsft.config import LabelledData, Recipe, Source, TargetTask
from ltsft.data import RowError, read_text, read_word_list
from ltsft.objectives import OBJECTIVES, MaskedLM, Objective, TargetObjective, pack_text, read_labelled, split_held_out
from ltsft.project import Language, Project
from ltsft.sft import load_sft
from ltsft.training import Augmenter, Consistent, FromLanguage, Mixture, SeveralSources, TrainingData, sampling_shares
from tasks.workspace import Workspace

_LOG = logging.getLogger(__name__)
HELD_OUT_EVERY = 10
"""Without dev data, every tenth sentence of the training data chooses the best checkpoint."""


def language_training(project: Project, base: Base, language: Language, folder: Path) -> dict[str, Any]:
    """Give what `train_sft` needs to know of a language SFT; the packed text goes to the folder."""
    recipe = project.recipes["language"]
    packed = pack_text(
        read_text(language.text, documents=True),
        base.tokenizer,
        max_length=recipe.max_length,
        file=folder / f"{recipe.max_length}.tokens",
    )
    return {
        "objective": MaskedLM(base.tokenizer, mask_probability=recipe.mask_probability),
        "kind": "language",
        "subject": language.code,
        "method": project.method,
        "recipe": recipe,
        "data": TrainingData(*split_held_out(packed, recipe.held_out)),
    }


def task_training(
    project: Project, base: Base, target: TargetTask, language: str, sources: Mapping[str, Path]
) -> dict[str, Any]:
    """Give what `train_sft` needs to know of a task SFT.

    Args:
        project: the project.
        base: its base.
        target: what is learnt.
        language: what the product is learnt from: a language, or several by their name together.
        sources: folder of the SFT of each of these languages; none where the method has no language SFTs.
    """
    recipe = project.recipes[target.name]
    objective = objective_of(target, base, recipe.max_length)
    split = {code: split_examples(objective, target, labelled) for code, labelled in target.labelled(language).items()}
    learnt = _with_consistency(objective, recipe, base)
    sfts = {code: load_sft(folder) for code, folder in sources.items()}
    common = {
        "kind": "task",
        "subject": target.name,
        "method": project.method,
        "recipe": recipe,
        "apart_from": list(sfts.values()),
        "source_languages": tuple(split),
    }
    if len(split) == 1:
        (data,), applied = split.values(), list(sfts.values())
        return {**common, "objective": learnt, "data": data, "applied": applied}
    several = SeveralSources(learnt, {code: sfts.get(code) for code in split}, base)
    examples = {code: found.examples for code, found in split.items()}
    held_out = [[FromLanguage(i, example) for example in found.held_out] for i, found in enumerate(split.values())]
    if target.order == "sequential":
        rounds = [
            TrainingData([FromLanguage(i, example) for example in found], held_out[i])
            for i, found in enumerate(examples.values())
        ]
        return {**common, "objective": several, "data": rounds}
    sizes = {code: len(found) for code, found in examples.items()}
    shares = sampling_shares(sizes, temperature=target.sampling.temperature, weights=target.sampling.weights)
    return {
        **common,
        "objective": several,
        "data": TrainingData(Mixture(examples, shares), list(chain(*held_out))),
    }


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


def target_objective(workspace: Workspace, target: TargetTask) -> TargetObjective:
    """Give the objective of a target task."""
    return objective_of(target, workspace.base, workspace.project.recipes[target.name].max_length)


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
