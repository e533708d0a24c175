"""The paired bootstrap against every resample there is, and against the closed form of its variance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ltsft.errors import ConfigError
from ltsft.evaluation.paired import difference_of_means, paired_bootstrap

CANDIDATE = np.array([[3, 4], [1, 5], [2, 2], [0, 3]])
CHAMPION = np.array([[1, 4], [3, 5], [1, 2], [0, 3]])


def every_resample(candidate: np.ndarray, champion: np.ndarray) -> np.ndarray:
    """The differences of all n^n equally likely resamples."""
    n = len(candidate)
    found = []
    for drawn in product(range(n), repeat=n):
        rows = list(drawn)
        counted = candidate[rows, 1].sum()
        found.append((candidate[rows, 0].sum() - champion[rows, 0].sum()) / counted)
    return np.sort(found)


def test_the_bound_is_the_quantile_over_every_possible_resample() -> None:
    exact = every_resample(CANDIDATE, CHAMPION)

    found = paired_bootstrap(CANDIDATE, CHAMPION, confidence=0.9, resamples=200_000)

    assert found.difference == pytest.approx((6 - 5) / 14)
    assert exact[int(0.095 * len(exact))] <= found.lower <= exact[int(0.105 * len(exact))]
    assert found.standard_error == pytest.approx(exact.std(), rel=0.01)
    assert found.probability_worse == pytest.approx((exact < 0).mean(), abs=0.005)
    assert found.sentences == 4


def test_with_sentences_of_one_length_the_error_is_that_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    a, b = (np.stack([rng.binomial(10, p, 500), np.full(500, 10)], axis=1) for p in (0.8, 0.7))

    found = paired_bootstrap(a, b, confidence=0.95, resamples=20_000)

    gains = (a[:, 0] - b[:, 0]) / 10
    error = gains.std() / np.sqrt(500)
    assert found.standard_error == pytest.approx(error, rel=0.03)
    assert found.lower == pytest.approx(gains.mean() - 1.645 * error, abs=0.1 * error)


def test_a_model_is_exactly_as_good_as_itself_and_the_figures_repeat() -> None:
    same = paired_bootstrap(CANDIDATE, CANDIDATE, confidence=0.95, resamples=500)
    assert (same.difference, same.lower, same.standard_error) == (0.0, 0.0, 0.0)
    first, second = (paired_bootstrap(CANDIDATE, CHAMPION, confidence=0.95, resamples=500) for _ in range(2))
    assert first == second


def test_an_f1_whose_denominators_two_models_do_not_share_is_compared_as_a_whole() -> None:
    rng = np.random.default_rng(2)
    gold = rng.integers(0, 4, 300)
    a, b = (np.stack([2 * rng.binomial(gold, p), gold + rng.integers(0, 5, 300)], axis=1) for p in (0.8, 0.6))

    found = paired_bootstrap(a, b, confidence=0.95, resamples=4_000)

    differences = []
    for _ in range(4_000):
        drawn = rng.integers(0, 300, 300)
        differences.append(a[drawn, 0].sum() / a[drawn, 1].sum() - b[drawn, 0].sum() / b[drawn, 1].sum())
    assert found.difference == pytest.approx(a[:, 0].sum() / a[:, 1].sum() - b[:, 0].sum() / b[:, 1].sum())
    assert found.lower == pytest.approx(np.quantile(differences, 0.05), abs=0.1 * np.std(differences))
    assert found.standard_error == pytest.approx(np.std(differences), rel=0.05)


@pytest.mark.parametrize(
    ("candidate", "champion", "message"),
    [
        (CANDIDATE, CHAMPION[:3], "same sentences"),
        (CANDIDATE[:0], CHAMPION[:0], "same sentences"),
        (CANDIDATE * np.array([1, 0]), CHAMPION * np.array([1, 0]), "nothing was counted"),
    ],
)
def test_outcomes_of_other_sentences_are_refused(candidate: np.ndarray, champion: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        paired_bootstrap(candidate, champion, confidence=0.95, resamples=100)


def test_the_interval_of_one_seed_each_holds_nine_tenths_of_every_possible_resample() -> None:
    exact = every_resample(CANDIDATE, CHAMPION)

    found = difference_of_means({1: CANDIDATE}, {1: CHAMPION}, confidence=0.9, resamples=200_000)

    assert found.difference == pytest.approx((6 - 5) / 14)
    assert exact[int(0.045 * len(exact))] <= found.lower <= exact[int(0.055 * len(exact))]
    assert exact[int(0.945 * len(exact))] <= found.upper <= exact[int(0.955 * len(exact))]
    assert not found.is_decided


def test_a_mean_over_seeds_is_compared_with_the_one_that_is_live_on_the_same_sentences() -> None:
    better = np.column_stack([CHAMPION[:, 0] + (CHAMPION[:, 0] < CHAMPION[:, 1]), CHAMPION[:, 1]])

    found = difference_of_means({1: better, 2: CHAMPION}, {7: CHAMPION}, confidence=0.95, resamples=2000)

    assert found.difference == pytest.approx((4 / 14) / 2), "half of what one of the two seeds gains"
    assert 0 <= found.lower <= found.difference <= found.upper
    alike = difference_of_means({1: CHAMPION, 2: CHAMPION}, {7: CHAMPION}, confidence=0.95, resamples=2000)
    assert (alike.lower, alike.upper) == (0, 0), "the same sentences were drawn for both"


def test_means_over_other_sentences_are_not_compared() -> None:
    with pytest.raises(ConfigError, match=r"same sentences, got outcomes of shape \(3, 2\) and \(4, 2\)"):
        difference_of_means({1: CANDIDATE}, {1: CHAMPION[:3]}, confidence=0.95)
    with pytest.raises(ConfigError, match="same sentences"):
        difference_of_means({}, {1: CHAMPION}, confidence=0.95)
