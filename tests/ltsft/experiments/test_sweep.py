"""A sweep of densities: means over what every pair has, the optimum, and how sure it is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ltsft.errors import ConfigError
from ltsft.experiments.figures import sweep_figure
from ltsft.experiments.scope import Scope
from ltsft.experiments.sweep import DensitySweep, ScoredCell, sweep_points


def cell(score: float, overlap: float, *, seeds: int = 2) -> ScoredCell:
    """A cell of 300 sentences of 10 words."""
    rng = np.random.default_rng(round(1000 * score))
    outcomes = {s: np.stack([rng.binomial(10, score, 300), np.full(300, 10)], axis=1) for s in range(1, seeds + 1)}
    by_seed = {f"score.seed.{s}": float(o[:, 0].sum() / 3000) for s, o in outcomes.items()}
    measured = {"interference.overlap": overlap, "interference.energy": overlap, "score_task_only": 0.3}
    return ScoredCell({"score": sum(by_seed.values()) / seeds, **by_seed, **measured}, outcomes)


def make(scores: dict[tuple[float, float], float], **more: Any) -> DensitySweep:
    cells = {pair: {c: cell(s, pair[0] * pair[1]) for c in ("aa", "bb", "cc")} for pair, s in scores.items()}
    first = next(iter(cells))
    del cells[first]["cc"]
    fits = {pair: (0.9 + 0.1 * pair[1], 0.9) for pair in scores}
    return sweep_points(
        cells,
        fits,
        scope=Scope("pos", "accuracy", **more),
        languages=["bb", "cc"],
        source="aa",
    )


PEAKED = {(0.1, 0.1): 0.6, (0.1, 1.0): 0.65, (1.0, 0.1): 0.8, (1.0, 1.0): 0.5}


def test_means_are_over_languages_that_every_pair_has_and_the_optimum_is_found() -> None:
    sweep = make(PEAKED, artificial=True)

    assert sweep.languages == ("bb",)
    assert (sweep.best.language_density, sweep.best.task_density) == (1.0, 0.1)
    assert sweep.best.gap == pytest.approx(0.01)
    assert sweep.best.source_score is not None
    assert sweep.against_dense is not None
    assert 0.25 < sweep.against_dense.lower < sweep.best.score - sweep.densest.score < sweep.against_dense.upper
    told = " ".join(sweep.summary())
    assert "The best pair is language 100 % x task 10 %" in told
    assert "more than chance" in told
    assert (
        "Rank correlation of the overlap of supports with density: +1.00 with that of the language SFT, "
        "+1.00 with that of the task SFT."
    ) in told
    assert "of the score with density: +0.00 with that of the language SFT, +0.00 with that of the task SFT." in told, (
        "up in one row and down in the other"
    )


def test_a_measure_that_rises_with_one_density_and_falls_with_the_other_is_told_as_such() -> None:
    densities = (0.1, 0.3, 1.0)
    sweep = make({(a, b): 0.5 + 0.1 * b - 0.2 * a for a in densities for b in densities})
    told = " ".join(sweep.summary())
    assert "of the score with density: -1.00 with that of the language SFT, +1.00 with that of the task SFT." in told


def test_a_sweep_of_one_density_alone_tells_the_correlations_with_it() -> None:
    told = " ".join(make({(0.1, 0.1): 0.5, (0.1, 1.0): 0.6}).summary())
    assert "of the score with density: +1.00 with that of the task SFT." in told
    assert "with that of the language SFT" not in told


def test_a_sweep_that_refutes_the_claim_says_so() -> None:
    sweep = make({(0.1, 0.1): 0.5, (1.0, 1.0): 0.7})
    assert sweep.against_dense is None
    assert "here the optimum is not at a lower density" in " ".join(sweep.summary())


def test_table_csv_and_plot_show_every_pair() -> None:
    sweep = make(PEAKED, gaps={"language 1 task 1: cell pos cc": "no text"})

    assert len(sweep.csv().splitlines()) == 1 + len(PEAKED)
    assert sweep.csv().startswith("language_density,task_density,score,std,task_only")
    assert "no text" in sweep.text()
    assert "no text" in sweep.markdown()
    assert (
        json.loads(json.dumps([p.as_row() for p in sweep.points]))[0]["score.bb"] == sweep.points[0].by_language["bb"]
    )
    figure = sweep_figure(sweep)
    assert [axes.get_title(loc="left") for axes in figure.axes][:2] == ["Target score", "Overfitting"]
    assert all(len(axes.lines) >= 2 for axes in figure.axes[:3])


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(ConfigError, match="no target language is scored at every pair"):
        sweep_points({}, {}, scope=Scope("pos", "accuracy"), languages=["bb"], source="aa")
