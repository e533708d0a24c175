"""The claims of LT-SFT on the artificial family: composed beats the task SFT alone, and sparse beats dense."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean

import pytest

from ltsft.base import Base, load_base
from ltsft.composition.compose import composed
from ltsft.config.recipe import PhaseSettings, Recipe
from ltsft.config.source import Source
from ltsft.data.sources import read_rows, read_text
from ltsft.evaluation.paired import Outcomes, interval_of, resampled_differences
from ltsft.evaluation.scoring import as_outcomes
from ltsft.objectives.masked_lm import MaskedLM, pack_text, split_held_out
from ltsft.objectives.token_classification import TaggedPiece, TokenClassification
from ltsft.sft.sft import SFT
from ltsft.toy.family import make_toy
from ltsft.toy.settings import BASE, BaseSettings, ToyConfig
from ltsft.training.prepare import Training, TrainingData
from ltsft.training.train import train_sft

LABELS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "NOUN"),
    *("NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "VERB"),
)
SMALL = ToyConfig(
    unseen=3,
    nouns=16,
    verbs=12,
    adjectives=8,
    adverbs=4,
    names=4,
    text_lines=2000,
    train=800,
    base=BaseSettings(steps=700),
)
GAIN = 0.05
"""Mean gain of composing over the unseen languages that is asked for, in accuracy.

The families of the seeds 1 to 4 gave 0.25, 0.19, 0.27 and 0.14; the demo is larger and is to give 0.10 at least.
"""
LOSS = 0.05
"""What dense language SFTs have to lose to sparse ones in each family, in accuracy.

At this learning rate the families of the seeds 1 to 4 gave 0.26, 0.29, 0.12 and 0.31; at 3e-3 it was 0.08, 0.05, 0.03
and -0.04: there the claim does not hold in each (docs/experiments.md).
"""
SEEDS = (1, 2, 3, 4)
LITTLE_TEXT = 400
"""Lines of raw text of a language, of the 2,000 that there are."""


def phase(steps: int, rate: float) -> PhaseSettings:
    return PhaseSettings(epochs=1, min_steps=steps, max_steps=steps, learning_rate=rate)


class Family:
    """The artificial family with its base, and how its SFTs are learnt and scored."""

    def __init__(self, folder: Path, seed: int = SMALL.seed) -> None:
        self.folder = make_toy(folder / "toy", replace(SMALL, seed=seed))
        self.work = folder
        self.base: Base = load_base(str(self.folder / BASE))
        self.tagging = TokenClassification(self.base.tokenizer, labels=LABELS, max_length=64)
        self._model = self.tagging.build_model(self.base, seed=0)
        self._model.train(False)

    def pieces(self, code: str, split: str) -> list[TaggedPiece]:
        source = Source(scheme="conllu", location=str(self.folder / "treebanks" / code / f"{split}.conllu.gz"))
        return self.tagging.encode((row.words, row.upos) for row in read_rows(source))

    def language_sft(self, code: str, recipe: Recipe, *, lines: int | None = None) -> SFT:
        work = self.work / f"{code}-{recipe.density}-{lines}"
        work.mkdir()
        source = Source(scheme="text", location=str(self.folder / "text" / f"{code}.txt.gz"))
        text = islice(read_text([source]), lines)
        packed = pack_text(text, self.base.tokenizer, max_length=recipe.max_length, file=work / "tokens")
        return train_sft(
            self.base,
            Training(
                objective=MaskedLM(self.base.tokenizer, mask_probability=recipe.mask_probability),
                kind="language",
                subject=code,
                recipe=recipe,
                seed=1,
                data=TrainingData(*split_held_out(packed, 32)),
            ),
            folder=work,
            device="cpu",
        )

    def task_sft(self, source: SFT) -> SFT:
        return train_sft(
            self.base,
            Training(
                objective=self.tagging,
                kind="task",
                subject="pos",
                recipe=Recipe(
                    density=0.2,
                    full=phase(150, 1e-3),
                    sparse=phase(150, 1e-3),
                    batch_size=16,
                    max_length=64,
                    warmup=0.1,
                ),
                seed=1,
                data=TrainingData(self.pieces("qaa", "train"), self.pieces("qaa", "dev")),
                applied=[source],
            ),
            folder=self.work / f"task-{source.density}-{len(source.diffs)}",
            device="cpu",
        )

    def outcomes(self, code: str, *parts: SFT) -> Outcomes:
        with composed(self._model, [(part, 1.0) for part in parts], base=self.base.ref):
            return as_outcomes(self.tagging.evaluate(self._model, self.pieces(code, "test")))

    def score(self, code: str, *parts: SFT) -> float:
        correct, counted = self.outcomes(code, *parts).sum(axis=0)
        return float(correct / counted)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("family"))


def language_recipe(density: float, steps: int, rate: float, freeze: tuple[str, ...]) -> Recipe:
    return Recipe(
        density=density,
        full=phase(steps, rate),
        sparse=phase(steps, rate),
        batch_size=32,
        max_length=32,
        mask_probability=0.2,
        warmup=0.1,
        dropout=0.0,
        evaluations=1,
        freeze=freeze,
    )


def test_composed_beats_task_only_on_unseen_languages(family: Family) -> None:
    recipe = language_recipe(0.3, 100, 2e-2, ("encoder.*",))
    source = family.language_sft("qaa", recipe)
    task = family.task_sft(source)
    gains = {
        code: family.score(code, family.language_sft(code, recipe), task) - family.score(code, task)
        for code in SMALL.unseen_codes
    }
    assert family.score("qaa", source, task) > 0.9
    assert fmean(gains.values()) > GAIN, gains


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_sweep_of_densities_has_its_optimum_below_100_percent(seed: int, tmp_path: Path) -> None:
    """All layers learn, from little text, at one high learning rate: a dense language SFT moves the whole encoder.

    Where the encoder is frozen, as in the demo, or text is plentiful, the toy family shows no such loss.
    """
    family = Family(tmp_path, seed)
    targets = SMALL.unseen_codes[:2]
    outcomes: dict[float, list[Outcomes]] = {}
    for density in (0.05, 1.0):
        recipe = language_recipe(density, 150, 1e-2, ())
        sfts = {code: family.language_sft(code, recipe, lines=LITTLE_TEXT) for code in ("qaa", *targets)}
        task = family.task_sft(sfts["qaa"])
        outcomes[density] = [family.outcomes(code, sfts[code], task) for code in targets]
    drawn = [
        resampled_differences([sparse], [dense], resamples=1000)
        for sparse, dense in zip(outcomes[0.05], outcomes[1.0], strict=True)
    ]
    assert interval_of(drawn, confidence=0.99).lower > LOSS


@pytest.fixture(autouse=True)
def long_enough(request: pytest.FixtureRequest) -> None:
    """The pre-training takes longest: give it time on a busy machine."""
    request.node.add_marker(pytest.mark.timeout(1200))
