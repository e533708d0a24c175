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
