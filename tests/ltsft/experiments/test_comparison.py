"""Methods compared: figures worked out by hand, intervals against every resample there is, and what is refused."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest

from ltsft.errors import ConfigError
from ltsft.evaluation.paired import interval_of, resampled_differences
from ltsft.experiments.comparison import Comparison, MethodScores, compare_methods
from ltsft.experiments.figures import comparison_figure
from ltsft.experiments.scope import Scope

OURS = [np.array([[3, 4], [1, 5], [2, 3]]), np.array([[4, 4], [1, 2], [0, 3]])]
THEIRS = [np.array([[1, 4], [3, 5], [1, 2]]), np.array([[4, 4], [2, 5], [1, 3]])]


def scored(method: str, language: str, outcomes: list[np.ndarray]) -> MethodScores:
    scores = {seed: float(o[:, 0].sum() / o[:, 1].sum()) for seed, o in enumerate(outcomes, 1)}
    return MethodScores(method, language, scores, dict(enumerate(outcomes, 1)))


def ratio(outcomes: np.ndarray) -> float:
    return float(outcomes[:, 0].sum() / outcomes[:, 1].sum())


def test_sentences_and_seeds_are_drawn_together_for_both_methods() -> None:
    exact = []  # every way to draw three sentences and, of two seeds, two
    for drawn in product(range(3), repeat=3):
        rows = list(drawn)
        by_seed = [ratio(a[rows]) - ratio(b[rows]) for a, b in zip(OURS, THEIRS, strict=True)]
        exact += [np.mean([by_seed[i], by_seed[j]]) for i, j in product(range(2), repeat=2)]
    exact = np.sort(exact)

    found = resampled_differences(OURS, THEIRS, resamples=100_000)
    interval = interval_of([found], confidence=0.8)

    assert interval.difference == pytest.approx(np.mean([6 / 12 - 5 / 11, 5 / 9 - 7 / 12]))
    assert exact[int(0.08 * len(exact))] <= interval.lower <= exact[int(0.12 * len(exact))]
    assert exact[int(0.88 * len(exact))] <= interval.upper <= exact[int(0.92 * len(exact))]
    held = interval_of([found], confidence=0.8, draws_seeds=False)
    assert held.upper - held.lower < interval.upper - interval.lower


def test_the_mean_over_test_sets_is_narrower_by_the_root_of_their_number_and_a_method_equals_itself() -> None:
    rng = np.random.default_rng(3)

    def test_set(p: float) -> list[np.ndarray]:
        return [np.stack([rng.binomial(10, p, 400), np.full(400, 10)], axis=1)]

    drawn = [resampled_differences(test_set(0.7), test_set(0.6), resamples=4000, seed=i) for i in range(4)]
    one, four = interval_of(drawn[:1], confidence=0.95), interval_of(drawn, confidence=0.95)
    assert (four.upper - four.lower) / (one.upper - one.lower) == pytest.approx(0.5, rel=0.15)
    assert four.difference == pytest.approx(np.mean([d[0] for d in drawn]))
    same = interval_of([resampled_differences(OURS, OURS, resamples=50)], confidence=0.95)
    assert (same.difference, same.lower, same.upper, same.is_decided) == (0.0, 0.0, 0.0, False)


@pytest.fixture
def comparison() -> Comparison:
    rng = np.random.default_rng(1)
    found = []
    for method, p in (("lt_sft", 0.6), ("better", 0.75), ("same", 0.6)):
        for language in ("aa", "bb"):
            outcomes = [np.stack([rng.binomial(10, p, 200), np.full(200, 10)], axis=1) for _ in range(3)]
            found.append(scored(method, language, outcomes))
    found.append(scored("lt_sft", "cc", outcomes))
    return compare_methods(
        found,
        reference="lt_sft",
        scope=Scope("pos", "accuracy", {"better: cell pos cc": "its text is missing"}, artificial=True),
        names={"aa": "Language A", "bb": "Language B", "cc": "Language C"},
    )


def test_every_method_is_told_by_language_and_on_average_over_what_all_have(comparison: Comparison) -> None:
    assert comparison.methods == ("lt_sft", "better", "same")
    assert list(comparison.names) == ["aa", "bb"], "a language that one method lacks is in no mean"
    mean = comparison.row("better")
    assert mean.score == pytest.approx(
        (comparison.row("better", "aa").score + comparison.row("better", "bb").score) / 2
    )
    assert mean.difference is not None
    assert mean.difference.difference == pytest.approx(mean.score - comparison.row("lt_sft").score)
    assert mean.difference.lower > 0.1
    assert comparison.row("lt_sft").difference is None
    better, same = comparison.summary()
    assert ", better; better in 2, worse in 0 of 2 languages" in better
    assert ", not decided at this size;" in same


def test_table_csv_and_plot_show_the_same_figures(comparison: Comparison) -> None:
    mean = comparison.row("better")
    assert mean.difference is not None
    text, markdown, rows = comparison.text(), comparison.markdown(), comparison.csv().splitlines()
    for shown in (text, markdown):
        assert "Language A (aa)" in shown
        assert shown.count("mean of 2") == 2, "scores, and differences"
        assert f"{100 * mean.score:.1f} ±" in shown
        assert re.search(rf"\+{100 * mean.difference.difference:.1f} \[\+\d+\.\d, \+\d+\.\d\] \*", shown)
        assert "better: cell pos cc: its text is missing" in shown
        assert "paired bootstrap over sentences and seeds, not over languages" in shown
    assert "(artificial languages)" in markdown
    assert rows[0].startswith("method,language,score,std,supervised,difference,lower,upper")
    assert len(rows) == 1 + 3 * 3
    figure = comparison_figure(comparison)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["better", "same"]


def test_the_plot_of_one_method_says_that_there_is_nothing_to_compare() -> None:
    alone = compare_methods(
        [scored("lora", "aa", OURS)], reference="lora", scope=Scope("pos", "accuracy"), names={"aa": "A"}
    )
    (panel,) = comparison_figure(alone).axes
    assert [text.get_text() for text in panel.texts] == ["lora alone: there is nothing to compare it with"]


def test_other_seeds_or_sentences_are_refused() -> None:
    names = {"aa": "Language A"}
    for other, message in (
        ([OURS[0]], r"trained with seeds \[1\], lt_sft with \[1, 2\]"),
        ([o[:2] for o in OURS], "same seeds on the same sentences"),
    ):
        found = [scored("lt_sft", "aa", THEIRS), scored("lora", "aa", other)]
        with pytest.raises(ConfigError, match=message):
            compare_methods(found, reference="lt_sft", scope=Scope("pos", "accuracy"), names=names)
    with pytest.raises(ConfigError, match="no language is scored by all of lt_sft, lora"):
        compare_methods(found[1:], reference="lt_sft", scope=Scope("pos", "accuracy"), names=names)
