"""A small language and a small tagging task, learnt in a second: for tests of training and their child process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ltsft.config.consistency import Consistency
from ltsft.config.recipe import PhaseSettings, Recipe
from ltsft.objectives.masked_lm import MaskedLM, pack_text, split_held_out
from ltsft.objectives.token_classification import TokenClassification
from ltsft.training.augmentation import Augmenter
from ltsft.training.consistent import Consistent
from ltsft.training.prepare import TrainingData

LABELS = ("NOUN", "VERB", "PUNCT")
LENGTH = 16


def make_recipe(*, rate: float = 1e-3, sparse_rate: float | None = None, steps: int = 6, **more: Any) -> Recipe:
    """Two phases of a few steps; a fifth of the weights unless told otherwise."""
    full = PhaseSettings(min_steps=steps, max_steps=steps, learning_rate=rate, l1=more.pop("l1", 0.0))
    sparse = full.model_copy(update={"learning_rate": rate if sparse_rate is None else sparse_rate})
    values = {"density": 0.2, "batch_size": 8, "max_length": LENGTH, "evaluations": 2, **more}
    return Recipe(full=full, sparse=sparse, **values)


def make_sentences(count: int, *, seed: int = 0, words: int | None = None) -> list[tuple[list[str], list[str]]]:
    """Sentences whose labels can be told by the last letter."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        stems = ["".join(rng.choices("bdklmnrst", k=1)) + rng.choice("ei") for _ in range(words or rng.randint(2, 5))]
        labels = [rng.choice(LABELS[:2]) for _ in stems]
        spelled = [stem + ("o" if label == "NOUN" else "a") for stem, label in zip(stems, labels, strict=True)]
        made.append(([*spelled, "."], [*labels, "PUNCT"]))
    return made


def masked_lm(tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[MaskedLM, TrainingData]:
    """The objective of a language SFT, and text for it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [" ".join(words) for words, _ in make_sentences(300, seed=1)]
    packed = pack_text(lines, tokenizer, max_length=LENGTH, file=folder / "text.tokens")
    return MaskedLM(tokenizer), TrainingData(*split_held_out(np.asarray(packed), 8))


def tagging(
    tokenizer: PreTrainedTokenizerBase, *, words: int | None = None
) -> tuple[TokenClassification, TrainingData]:
    """The objective of a task SFT, and labelled sentences for it."""
    objective = TokenClassification(tokenizer, labels=LABELS, max_length=LENGTH)
    examples = objective.encode(make_sentences(64, seed=2, words=words))
    return objective, TrainingData(examples, objective.encode(make_sentences(16, seed=3)))


WORDS = {word: (f"{word[:2]}v",) for (sentence, _) in make_sentences(16, seed=2) for word in sentence if word != "."}
ALL = {"subword_sampling": {}, "noise": {}, "code_switch": {"words": "tsv:/none.tsv"}}


def consistent_tagging(
    tokenizer: PreTrainedTokenizerBase, *, augmentations: Any = None, **weights: float
) -> tuple[Consistent, TrainingData]:
    """The same small tagging task with consistency; all augmentations unless told otherwise."""
    objective, data = tagging(tokenizer)
    settings = Consistency.model_validate({**weights, "augmentations": augmentations or ALL})
    augmenter = Augmenter(tokenizer, settings.augmentations, [WORDS])
    return Consistent(objective, settings, augmenter, max_length=LENGTH), data
