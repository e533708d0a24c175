"""The score of a cell: each figure against the parts it is computed from."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ltsft.base import Base, load_base
from ltsft.composition.compose import composed
from ltsft.errors import CompositionError
from ltsft.evaluation.scoring import CellData, CellScore, Scorer
from ltsft.objectives.token_classification import TokenClassification, most_frequent
from ltsft.sft.sft import SFT
from ltsft.training.prepare import Training
from ltsft.training.train import train_sft


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


@pytest.fixture(scope="module")
def sfts(base: Base, learning: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SFT]:
    """SFTs of two languages and of the task with two seeds."""
    found = {}
    for name, kind, seed in (("aa", "language", 1), ("bb", "language", 2), ("pos", "task", 1), ("pos 2", "task", 2)):
        folder = tmp_path_factory.mktemp("sft")
        text = learning.masked_lm(base.tokenizer, folder)
        objective, data = text if kind == "language" else learning.tagging(base.tokenizer)
        found[name] = train_sft(
            base,
            Training(
                objective=objective,
                kind=kind,
                subject=name.partition(" ")[0],
                recipe=learning.make_recipe(rate=1e-2, steps=4),
                seed=seed,
                data=data,
                applied=[found["aa"]] if kind == "task" else [],
                source_languages=("aa",) if kind == "task" else (),
            ),
            folder=folder,
            device="cpu",
        )
    return found


@pytest.fixture(scope="module")
def parts(base: Base, learning: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, CellData]:
    """Objectives, and data to score on; the last sentence has a word that the labels call PUNCT three times."""
    tagging, data = learning.tagging(base.tokenizer)
    masked_lm, text = learning.masked_lm(base.tokenizer, tmp_path_factory.mktemp("text"))
    sentences = [*learning.make_sentences(20, seed=9), ([".", ".", "."], ["PUNCT"] * 3)]
    return tagging, masked_lm, CellData(tagging.encode(sentences), data.held_out, text.held_out, majority="NOUN")


@pytest.fixture(scope="module")
def scorer(base: Base, parts: tuple[Any, Any, CellData]) -> Scorer:
    return Scorer(base, parts[0], parts[1], precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def score(scorer: Scorer, parts: tuple[Any, Any, CellData], sfts: dict[str, SFT]) -> CellScore:
    tasks = [sfts["pos"], sfts["pos 2"]]
    return scorer.score(parts[2], language=sfts["bb"], tasks=tasks, source=sfts["aa"], supervised=sfts["pos 2"])


def accuracy(base: Base, tagging: TokenClassification, pieces: Any, *parts: SFT) -> float:
    """Score a composition in a model of its own."""
    model = base.token_classifier(tagging.labels, seed=5).eval()
    with composed(model, [(part, 1.0) for part in parts], base=base.ref):
        return tagging.evaluate(model, pieces).score


def test_scores_are_those_of_the_compositions(
    base: Base, parts: tuple[Any, Any, CellData], sfts: dict[str, SFT], score: CellScore
) -> None:
    tagging, _, data = parts
    composed_scores = [accuracy(base, tagging, data.test, sfts["bb"], sfts[name]) for name in ("pos", "pos 2")]
    alone = [accuracy(base, tagging, data.test, sfts[name]) for name in ("pos", "pos 2")]
    metrics = score.metrics
    assert metrics["score"] == pytest.approx(sum(composed_scores) / 2)
    assert metrics["score_std"] == pytest.approx(abs(composed_scores[0] - composed_scores[1]) / 2**0.5)
    assert [metrics["score.seed.1"], metrics["score.seed.2"]] == composed_scores
    assert metrics["score_task_only"] == pytest.approx(sum(alone) / 2)
    assert [metrics["score_task_only.seed.1"], metrics["score_task_only.seed.2"]] == alone
    assert metrics["score_supervised"] == composed_scores[1]
    assert metrics["seeds"] == 2.0


def test_the_majority_class_and_the_test_set_are_counted(
    learning: ModuleType, parts: tuple[Any, Any, CellData], score: CellScore
) -> None:
    labels = [label for _, row in learning.make_sentences(20, seed=9) for label in row] + ["PUNCT"] * 3
    assert score.metrics["test_size"] == len(labels)
    assert score.metrics["test_sentences"] == 21.0
    assert score.metrics["score_majority"] == pytest.approx(labels.count("NOUN") / len(labels))


def test_functional_interference_is_a_difference_of_scores(
    base: Base, parts: tuple[Any, Any, CellData], sfts: dict[str, SFT], score: CellScore
) -> None:
    tagging, masked_lm, data = parts
    before = accuracy(base, tagging, data.source_dev, sfts["aa"], sfts["pos"])
    after = accuracy(base, tagging, data.source_dev, sfts["aa"], sfts["bb"], sfts["pos"])
    assert score.metrics["functional.source_score"] == before
    assert score.metrics["functional.source_score_change"] == pytest.approx(after - before)
    model = base.masked_lm().eval()
    losses = [masked_lm.evaluate(model, data.text).metrics["loss"]]
    with composed(model, [(sfts["bb"], 1.0)], base=base.ref):
        losses.append(masked_lm.evaluate(model, data.text).metrics["loss"])
        with composed(model, [(sfts["pos"], 1.0)], base=base.ref, heads=False):
            losses.append(masked_lm.evaluate(model, data.text).metrics["loss"])
    assert score.metrics["functional.base_loss"] == losses[0]
    assert score.metrics["functional.language_loss"] == losses[1]
    assert score.metrics["functional.language_loss_change"] == pytest.approx(losses[2] - losses[1])


def test_a_cell_of_the_source_language_takes_nothing_from_itself(
    scorer: Scorer, parts: tuple[Any, Any, CellData], sfts: dict[str, SFT]
) -> None:
    found = scorer.score(parts[2], language=sfts["aa"], tasks=[sfts["pos"]], source=sfts["aa"]).metrics
    assert found["functional.source_score_change"] == 0.0
    assert found["score_std"] == 0.0
    assert "score_supervised" not in found


def test_scoring_again_gives_the_same_figures_whatever_was_scored_between(
    scorer: Scorer, parts: tuple[Any, Any, CellData], sfts: dict[str, SFT], score: CellScore
) -> None:
    tasks = [sfts["pos"], sfts["pos 2"]]
    scorer.score(parts[2], language=sfts["aa"], tasks=tasks[:1], source=sfts["aa"])
    again = scorer.score(parts[2], language=sfts["bb"], tasks=tasks, source=sfts["aa"], supervised=sfts["pos 2"])
    assert again.metrics == score.metrics


def test_an_sft_of_another_base_is_refused_and_the_scorer_stays_usable(
    scorer: Scorer, parts: tuple[Any, Any, CellData], sfts: dict[str, SFT], make_sft: Any, tiny_model: Any
) -> None:
    foreign = make_sft(tiny_model("bert"))
    with pytest.raises(CompositionError):
        scorer.score(parts[2], language=foreign, tasks=[sfts["pos"]], source=sfts["aa"])
    with torch.no_grad():
        assert scorer.score(parts[2], language=sfts["aa"], tasks=[sfts["pos"]], source=sfts["aa"]).metrics["seeds"] == 1


def test_the_most_frequent_label_is_the_first_of_equals() -> None:
    assert most_frequent([["VERB", "NOUN"], ["NOUN", "VERB", "X"]]) == "NOUN"
    assert most_frequent([["X", "X"], ["A"]]) == "X"


def test_outcomes_of_every_sentence_add_up_to_the_score_of_each_seed(
    scorer: Scorer, parts: tuple[Any, Any, CellData], sfts: dict[str, SFT], score: CellScore
) -> None:
    assert set(score.outcomes) == {1, 2}
    for seed, outcomes in score.outcomes.items():
        assert outcomes.shape == (21, 2)
        assert outcomes[:, 0].sum() / outcomes[:, 1].sum() == pytest.approx(score.metrics[f"score.seed.{seed}"])
    again = scorer.outcomes(parts[2].test, [(sfts["bb"], 1.0), (sfts["pos"], 1.0)])
    assert (again == score.outcomes[1]).all()
