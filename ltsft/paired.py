"""Paired bootstrap: how sure one may be that one model is not worse than another on the same test set.

Both models answered the same sentences. Sentences, not words, are drawn again, for the words of a sentence are not
independent (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; Koehn, EMNLP 2004, for paired
comparison).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ltsft.errors import ConfigError

__all__ = ["Outcomes", "PairedDifference", "paired_bootstrap"]

Outcomes = npt.NDArray[np.float64]
"""For each sentence of a test set (correct, counted), shape (sentences, 2)."""

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


def paired_bootstrap(
    candidate: Outcomes, champion: Outcomes, *, confidence: float, resamples: int, seed: int = 0
) -> PairedDifference:
    """Compare two models on the same sentences.

    Each resample draws as many sentences as there are, with replacement, the same for both models; a score is the sum
    of what was correct over the sum of what was counted. The bound is the (1 - confidence) quantile of the differences
    (percentile method).

    Args:
        candidate: outcomes of the candidate, shape (sentences, 2): correct and counted.
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
            f"a paired comparison takes (correct, counted) of the same sentences, got shapes {a.shape} and {b.shape}"
        )
    if not np.array_equal(a[:, 1], b[:, 1]):
        raise ConfigError("the two models were not scored on the same sentences: what was counted differs")
    if not a[:, 1].sum():
        raise ConfigError("nothing was counted in the test set")
    gain, counted = a[:, 0] - b[:, 0], a[:, 1]
    differences = _resampled(gain, counted, resamples=resamples, rng=np.random.default_rng(seed))
    return PairedDifference(
        difference=float(gain.sum() / counted.sum()),
        lower=float(np.quantile(differences, 1.0 - confidence)),
        standard_error=float(differences.std()),
        probability_worse=float((differences < 0).mean()),
        sentences=len(a),
    )


def _resampled(
    gain: npt.NDArray[np.float64], counted: npt.NDArray[np.float64], *, resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    sentences = len(gain)
    found = []
    step = max(1, _DRAWN_AT_ONCE // sentences)
    for start in range(0, resamples, step):
        drawn = rng.integers(0, sentences, size=(min(step, resamples - start), sentences))
        total = counted[drawn].sum(axis=1)
        found.append(np.where(total > 0, gain[drawn].sum(axis=1) / np.maximum(total, 1), 0.0))
    return np.concatenate(found)
