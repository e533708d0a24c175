"""The score of a cell: base + language SFT + task SFT on test data of the language, beside what it is compared with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from ltsft.base import Base
from ltsft.composition import Part, Resident
from ltsft.config import PartWeights, Precision
from ltsft.evaluation.changes import CONFIDENCE
from ltsft.evaluation.paired import Outcomes, deviation, difference_of_means
from ltsft.evaluation.weight_interference import interference
from ltsft.methods import method_named
from ltsft.objectives import Evaluation, MaskedLM, TargetObjective
from ltsft.precision import WORDS, autocast, describe_device, usable_precision
from ltsft.sft import SFT

_LOG = logging.getLogger(__name__)
WHOLE = PartWeights()


@dataclass(frozen=True)
class CellData:
    """What a cell is scored on.

    Attributes:
        test: examples of the language's test sentences.
        source_dev: examples of dev sentences of the source language.
        text: held-out sequences of the language's raw text.
        majority: the most frequent answer of the source languages' training data; None if it has no meaning.
    """

    test: Sequence[Any]
    source_dev: Sequence[Any]
    text: Sequence[Any]
    majority: str | None


@dataclass(frozen=True)
class CellScore:
    """What a cell scores.

    Attributes:
        metrics: names as in MLflow, scores in [0, 1], losses in nats.
        outcomes: by seed of the task SFT, (numerator, denominator) of each test sentence, (sentences, 2), float64:
            what a paired comparison of two compositions needs.
        alone: the same of the task SFT without a language SFT.
    """

    metrics: Mapping[str, float]
    outcomes: Mapping[int, Outcomes]
    alone: Mapping[int, Outcomes] = field(default_factory=dict)


class Scorer:
    """Scores cells of one target task, with one resident base in which compositions are swapped in place.

    Args:
        base: the base.
        objective: the target task's objective.
        masked_lm: the language SFTs' objective.
        precision: of the forward passes; float32 in its place where the device would emulate it.
        device: "cpu" or "cuda".
        rule: by which SFTs are composed.

    Attributes:
        precision: what the forward passes really have.
    """

    def __init__(
        self,
        base: Base,
        objective: TargetObjective,
        masked_lm: MaskedLM,
        *,
        precision: Precision,
        device: str,
        rule: str = "sum",
    ) -> None:
        self._base = base
        self._objective = objective
        self._masked_lm = masked_lm
        self.precision = usable_precision(precision, device)
        if self.precision != precision:
            _LOG.warning("scored in float32: %s has no %s", describe_device(device), WORDS[precision])
        self._device = device
        self._tagger = Resident(_ready(objective.build_model(base, seed=0), device), base=base.ref, rule=rule)
        self._language_model = Resident(_ready(base.masked_lm(), device), base=base.ref, rule=rule)

    def score(
        self,
        data: CellData,
        *,
        language: SFT | None,
        tasks: Sequence[SFT],
        source: SFT | None,
        supervised: SFT | None = None,
        weights: PartWeights = WHOLE,
    ) -> CellScore:
        """Score one cell.

        Functional interference is what applying one SFT does to the score of the other:
        ``functional.language_loss_change`` is the change of the language's masked-LM loss when the first task SFT is
        added, ``functional.source_score_change`` the change of the first task SFT's score on the source language when
        the target language's SFT is added to the source language's.

        Args:
            data: what it is scored on.
            language: the language SFT; None where the method has none: the task SFT alone is then what is scored.
            tasks: the task SFT of each seed.
            source: the SFT of the source language; None where the method has none.
            supervised: a task SFT learnt from labelled data of this language.
            weights: of the language SFT and of the task SFT where they are composed. The task SFT alone, and the
                supervised one, count whole: they are what the composition is compared with.

        Raises:
            CompositionError: an SFT does not fit the base or the others.
        """
        spoken: list[Part] = [] if language is None else [(language, weights.language)]
        alone = [self._tag(data.test, [(task, 1.0)]) for task in tasks]
        composed_scores = [self._tag(data.test, [*spoken, (task, weights.task)]) for task in tasks] if spoken else alone
        metrics = _summary(composed_scores, alone)
        metrics["test_sentences"] = float(len({example.sentence for example in data.test}))
        if data.majority is not None:
            metrics["score_majority"] = self._objective.majority_score(data.majority, data.test)
        outcomes, outcomes_alone = {}, {}
        for task, with_language, without in zip(tasks, composed_scores, alone, strict=True):
            seed = task.details["recipe"]["seed"]
            outcomes[int(seed)] = as_outcomes(with_language)
            outcomes_alone[int(seed)] = as_outcomes(without)
            metrics[f"score.seed.{seed}"] = with_language.score
            metrics[f"score_task_only.seed.{seed}"] = without.score
        if supervised is not None:
            whole: list[Part] = [(sft, 1.0) for sft, _ in spoken]
            metrics["score_supervised"] = self._tag(data.test, [*whole, (supervised, 1.0)]).score
        if language is not None and source is not None:
            if not _is_stacked(language, tasks[0]):
                metrics |= interference(language, tasks[0]).metrics(details=True)
            metrics |= self._functional(data, language, tasks[0], source, weights)
        if spoken:
            gain = difference_of_means(outcomes, outcomes_alone, confidence=CONFIDENCE)
            metrics |= {"gain_lower": gain.lower, "gain_upper": gain.upper}
        return CellScore(metrics, outcomes, outcomes_alone)

    def outcomes(self, test: Sequence[Any], parts: Sequence[Part]) -> Outcomes:
        """Give (correct, counted) of each test sentence under a composition, shape (sentences, 2)."""
        return as_outcomes(self._tag(test, parts))

    def language_loss_change(self, text: Sequence[Any], language: Sequence[Part], tasks: Sequence[Part]) -> float:
        """Give the nats that adding the task SFTs to the language's adds to its masked-LM loss."""
        return self._language_loss(text, language, tasks) - self._language_loss(text, language)

    def _functional(
        self, data: CellData, language: SFT, task: SFT, source: SFT, weights: PartWeights
    ) -> dict[str, float]:
        metrics = {}
        if len(data.text):
            plain = self._language_loss(data.text, [])
            spoken: list[Part] = [(language, weights.language)]
            alone = self._language_loss(data.text, spoken)
            both = self._language_loss(data.text, spoken, [(task, weights.task)])
            metrics = {
                "functional.base_loss": plain,
                "functional.language_loss": alone,
                "functional.language_loss_change": both - alone,
            }
        if data.source_dev:
            trained_over: Part = (source, 1.0)
            before = self._tag(data.source_dev, [trained_over, (task, weights.task)]).score
            metrics["functional.source_score"] = before
            if not _is_stacked(language, source):  # these are swapped, and do not add up
                extra: list[Part] = [] if language.subject == source.subject else [(language, weights.language)]
                after = self._tag(data.source_dev, [trained_over, *extra, (task, weights.task)]).score
                metrics["functional.source_score_change"] = after - before
        return metrics

    def _tag(self, examples: Sequence[Any], parts: Sequence[Part]) -> Evaluation:
        model = self._tagger.switch(parts)
        with autocast(self.precision, self._device):
            return self._objective.evaluate(model, examples)

    def _language_loss(self, text: Sequence[Any], language: Sequence[Part], tasks: Sequence[Part] = ()) -> float:
        """Give the masked-LM loss; of the task SFTs only the diffs count, their heads have no place in this model."""
        headless = [(replace(task, head={}, labels=()), weight) for task, weight in tasks]
        model = self._language_model.switch([*language, *headless])
        with autocast(self.precision, self._device):
            return self._masked_lm.evaluate(model, text).metrics["loss"]


def _summary(composed_scores: Sequence[Evaluation], alone: Sequence[Evaluation]) -> dict[str, float]:
    """Give means over seeds: of compositions, and of the task SFTs alone."""
    scores, without = [e.score for e in composed_scores], [e.score for e in alone]
    metrics = {
        "score": fmean(scores),
        "score_std": deviation(scores),
        "gain": fmean(scores) - fmean(without),
        "score_task_only": fmean(without),
        "score_task_only_std": deviation(without),
        "test_size": composed_scores[0].metrics["size"],
        "seeds": float(len(scores)),
    }
    for name in sorted(composed_scores[0].metrics.keys() - {"size", "words"}):
        metrics[f"test.{name}"] = fmean(e.metrics[name] for e in composed_scores)
        metrics[f"test_task_only.{name}"] = fmean(e.metrics[name] for e in alone)
    return metrics


def as_outcomes(evaluation: Evaluation) -> Outcomes:
    """Give the outcomes of an evaluation as an array, shape (sentences, 2), float64."""
    return np.asarray(evaluation.outcomes, dtype=np.float64).reshape(-1, 2)


def _is_stacked(*sfts: SFT) -> bool:
    """Say whether one of these is of a method whose products stay modules, without diffs to compare or to add."""
    return any(method_named(sft.method).is_stacked for sft in sfts)


def _ready(model: PreTrainedModel, device: str) -> PreTrainedModel:
    nn.Module.to(model, device)
    model.eval()
    return model
