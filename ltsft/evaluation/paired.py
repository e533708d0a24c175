"""Paired bootstrap: how sure one may be that one model is not worse than another on the same test set.

Both models answered the same sentences. Sentences, not words, are drawn again, for the words of a sentence are not
independent (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; Koehn, EMNLP 2004, for paired
comparison).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

import numpy as np
import numpy.typing as npt

from ltsft.errors import ConfigError

__all__ = [
    "Interval",
    "Outcomes",
    "PairedDifference",
    "deviation",
    "difference_of_means",
    "interval_of",
    "paired_bootstrap",
    "resampled_differences",
]

Outcomes = npt.NDArray[np.float64]
"""For each sentence of a test set (numerator, denominator) of its share of the score, shape (sentences, 2).

The score is the sum of the first over the sum of the second: (correct, counted) for accuracy, (2 x hits, found + looked
for) for an F1, whose denominators two models do not share.
"""

_DRAWN_AT_ONCE = 8_000_000  # counts in memory, 64 MB


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two scores on one test set, candidate less champion.

    Attributes:
        difference: of the two scores, in [-1, 1].
        lower: one-sided lower bound of the difference at the confidence asked for.
        standard_error: standard deviation of the difference over the resamples.
        probability_worse: share of the resamples in which the candidate is worse.
        sentences: of the test set.
    """

    difference: float
    lower: float
    standard_error: float
    probability_worse: float
    sentences: int


def deviation(scores: Sequence[float]) -> float:
    """Give the standard deviation of scores over seeds, as of a sample; 0 for one seed."""
    return stdev(scores) if len(scores) > 1 else 0.0


def paired_bootstrap(
    candidate: Outcomes, champion: Outcomes, *, confidence: float, resamples: int, seed: int = 0
) -> PairedDifference:
    """Compare two models on the same sentences.

    Each resample draws as many sentences as there are, with replacement, the same for both models; a score is the sum
    of the numerators over that of the denominators, 0 where nothing is counted. The bound is the (1 - confidence)
    quantile of the differences (percentile method).

    Args:
        candidate: outcomes of the candidate, shape (sentences, 2).
        champion: outcomes of the champion on the same sentences in the same order.
        confidence: of the one-sided bound, in (0, 1).
        resamples: how often to draw.
        seed: of the drawing; the same inputs give the same figures.

    Returns:
        The difference with its bound.

    Raises:
        ConfigError: the two are not outcomes of the same sentences, or there are none.
    """
    a, b = np.asarray(candidate, dtype=np.float64), np.asarray(champion, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] != 2 or not len(a):
        raise ConfigError(
            "a paired comparison takes outcomes, (numerator, denominator), of the same sentences, got shapes "
            f"{a.shape} and {b.shape}"
        )
    if not a[:, 1].sum() and not b[:, 1].sum():
        raise ConfigError("nothing was counted in the test set")
    differences = _resampled(a, b, resamples=resamples, rng=np.random.default_rng(seed))
    return PairedDifference(
        difference=float(_score(a.sum(axis=0)) - _score(b.sum(axis=0))),
        lower=float(np.quantile(differences, 1.0 - confidence)),
        standard_error=float(differences.std()),
        probability_worse=float((differences < 0).mean()),
        sentences=len(a),
    )


@dataclass(frozen=True)
class Interval:
    """A difference of two scores and where it lies.

    Attributes:
        difference: as it was measured, the mean over the seeds, in [-1, 1].
        lower: lower end of the two-sided interval.
        upper: its upper end.
    """

    difference: float
    lower: float
    upper: float

    @property
    def is_decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.lower > 0 or self.upper < 0


def resampled_differences(
    candidate: Sequence[Outcomes], reference: Sequence[Outcomes], *, resamples: int, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Give the differences of two methods on resamples of one test set, for each seed that both were trained with.

    Each resample draws as many sentences as there are, with replacement, the same for both methods and for all seeds.
    A score is the sum of what was correct over the sum of what was counted; for an F1, what is counted may differ from
    one method to the other.

    Args:
        candidate: outcomes by seed, (sentences, 2) each.
        reference: outcomes of the other method, of the same seeds on the same sentences in the same order.
        resamples: how often to draw.
        seed: of the drawing; the same inputs give the same figures.

    Returns:
        Candidate less reference, shape (1 + resamples, seeds); the first row is what was measured.

    Raises:
        ConfigError: the two are not outcomes of the same seeds and sentences, or there are none.
    """
    shapes = {np.shape(outcomes) for outcomes in (*candidate, *reference)}
    if len(candidate) != len(reference) or len(shapes) != 1:
        raise ConfigError(
            f"two methods are compared by the same seeds on the same sentences, got {len(candidate)} and "
            f"{len(reference)} seeds with outcomes of shape {' and '.join(map(str, sorted(shapes)))}"
        )
    a, b = _resampled_scores(candidate, reference, resamples=resamples, seed=seed)
    return a - b


def difference_of_means(
    candidate: Mapping[int, Outcomes],
    reference: Mapping[int, Outcomes],
    *,
    confidence: float,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Give the interval of the difference of two mean scores on one test set, each the mean over its own seeds.

    Sentences are drawn again, the same for both. Where both have the same seeds these are drawn again, too; where one
    of them has others, such as the one seed that is live, the interval is about these very seeds.

    Args:
        candidate: outcomes by seed, (sentences, 2) each.
        reference: outcomes by seed of the other one, on the same sentences in the same order.
        confidence: of the two-sided interval, in (0, 1).
        resamples: how often to draw.
        seed: of the drawing; the same inputs give the same figures.

    Raises:
        ConfigError: the two are not outcomes of the same sentences, or there are none.
    """
    shapes = {np.shape(outcomes) for outcomes in (*candidate.values(), *reference.values())}
    if not candidate or not reference or len(shapes) != 1:
        raise ConfigError(
            "two means are compared on the same sentences, got outcomes of shape "
            f"{' and '.join(map(str, sorted(shapes))) or 'none'}"
        )
    is_same = candidate.keys() == reference.keys()
    a, b = _resampled_scores(
        [candidate[s] for s in sorted(candidate)],
        [reference[s] for s in sorted(reference)],
        resamples=resamples,
        seed=seed,
    )
    found = a - b if is_same else a.mean(axis=1, keepdims=True) - b.mean(axis=1, keepdims=True)
    return interval_of([found], confidence=confidence, seed=seed, draws_seeds=is_same)


def interval_of(
    differences: Sequence[npt.NDArray[np.float64]], *, confidence: float, seed: int = 0, draws_seeds: bool = True
) -> Interval:
    """Give the interval of the mean difference over test sets and seeds (percentile method).

    Sentences of each test set were drawn again, independently. Seeds are drawn again here, with replacement, the same
    for all test sets, because one task SFT is behind all of them. Test sets are not: the interval is about these
    languages, not about others like them.

    Args:
        differences: of each test set, what `resampled_differences` gave.
        confidence: of the two-sided interval, in (0, 1).
        seed: of the drawing.
        draws_seeds: False for an interval about these very seeds.
    """
    mean = np.mean(np.stack(differences), axis=0)  # (1 + resamples, seeds)
    resampled = mean[1:]
    if draws_seeds:
        drawn = np.random.default_rng(seed).integers(0, mean.shape[1], size=resampled.shape)
        resampled = np.take_along_axis(resampled, drawn, axis=1)
    tail = (1.0 - confidence) / 2
    lower, upper = np.quantile(resampled.mean(axis=1), [tail, 1.0 - tail])
    return Interval(float(mean[0].mean()), float(lower), float(upper))


def _resampled_scores(
    candidate: Sequence[Outcomes], reference: Sequence[Outcomes], *, resamples: int, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Score both on the test set and on resamples of it, the same for both: (1 + resamples, seeds) each."""
    a, b = (np.asarray(outcomes, dtype=np.float64) for outcomes in (candidate, reference))
    if a.ndim != 3 or a.shape[2] != 2 or not a.shape[1]:
        raise ConfigError(f"outcomes are (correct, counted) of each sentence, got shape {a.shape[1:]}")
    sentences = a.shape[1]
    rng = np.random.default_rng(seed)
    ones = np.ones((1, sentences))
    found = [(_scores(ones, a), _scores(ones, b))]
    step = max(1, _DRAWN_AT_ONCE // sentences)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        times = rng.multinomial(sentences, np.full(sentences, 1 / sentences), size=count).astype(np.float64)
        found.append((_scores(times, a), _scores(times, b)))
    first, second = zip(*found, strict=True)
    return np.concatenate(first), np.concatenate(second)


def _scores(times: npt.NDArray[np.float64], outcomes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Score each resample, (resamples, sentences) of how often each was drawn, for each seed: (resamples, seeds)."""
    correct, counted = times @ outcomes[:, :, 0].T, times @ outcomes[:, :, 1].T
    scores: npt.NDArray[np.float64] = np.where(counted > 0, correct / np.maximum(counted, 1e-12), 0.0)
    return scores


def _resampled(a: Outcomes, b: Outcomes, *, resamples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    sentences = len(a)
    found = []
    step = max(1, _DRAWN_AT_ONCE // sentences)
    for start in range(0, resamples, step):
        drawn = rng.integers(0, sentences, size=(min(step, resamples - start), sentences))
        scores = [_score(np.stack([one[:, i][drawn].sum(axis=1) for i in (0, 1)], axis=-1)) for one in (a, b)]
        found.append(scores[0] - scores[1])
    return np.concatenate(found)


def _score(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Divide the sums of the numerators, (..., 0), by those of the denominators, (..., 1); 0 where there are none."""
    top, bottom = sums[..., 0], sums[..., 1]
    return np.divide(top, bottom, out=np.zeros_like(top, dtype=np.float64), where=bottom > 0)
