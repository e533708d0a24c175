"""On the artificial family, composing a language SFT with a task SFT beats the task SFT alone."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from ltsft.base import load_base
from ltsft.compose import composed
from ltsft.config import Phase, Recipe, Source
from ltsft.objectives.masked_lm import MaskedLM, pack_text, split_held_out
from ltsft.objectives.token_classification import TaggedPiece, TokenClassification
from ltsft.sft import SFT
from ltsft.sources import read_rows, read_text
from ltsft.toy import BASE, BaseSettings, ToyConfig, make_toy
from ltsft.train import TrainingData, train_sft

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
MARGIN = 0.05
"""Mean gain over the unseen languages that is asked for, in accuracy.

The families of the seeds 1 to 4 gave 0.25, 0.19, 0.27 and 0.14; the demo is larger and is to give 0.10 at least.
"""


def phase(steps: int, rate: float) -> Phase:
    return Phase(epochs=1, min_steps=steps, max_steps=steps, learning_rate=rate)


def test_composed_beats_task_only_on_unseen_languages(tmp_path: Path) -> None:
    folder = make_toy(tmp_path / "toy", SMALL)
    base = load_base(str(folder / BASE))
    tagging = TokenClassification(base.tokenizer, labels=LABELS, max_length=64)

    def pieces(code: str, split: str) -> list[TaggedPiece]:
        source = Source(scheme="conllu", location=str(folder / "treebanks" / code / f"{split}.conllu.gz"))
        return tagging.encode((row.words, row.upos) for row in read_rows(source))

    def language_sft(code: str) -> SFT:
        work = tmp_path / code
        work.mkdir()
        source = Source(scheme="text", location=str(folder / "text" / f"{code}.txt.gz"))
        packed = pack_text(read_text([source]), base.tokenizer, max_length=32, file=work / "tokens")
        recipe = Recipe(
            density=0.3,
            full=phase(100, 2e-2),
            sparse=phase(100, 2e-2),
            batch_size=32,
            max_length=32,
            mask_probability=0.2,
            warmup=0.1,
            dropout=0.0,
            evaluations=1,
            freeze=("encoder.*",),
        )
        return train_sft(
            base,
            MaskedLM(base.tokenizer, mask_probability=recipe.mask_probability),
            kind="language",
            subject=code,
            recipe=recipe,
            seed=1,
            data=TrainingData(*split_held_out(packed, 32)),
            folder=work,
            device="cpu",
        )

    source_sft = language_sft("qaa")
    recipe = Recipe(
        density=0.2, full=phase(150, 1e-3), sparse=phase(150, 1e-3), batch_size=16, max_length=64, warmup=0.1
    )
    task = train_sft(
        base,
        tagging,
        kind="task",
        subject="pos",
        recipe=recipe,
        seed=1,
        data=TrainingData(pieces("qaa", "train"), pieces("qaa", "dev")),
        folder=tmp_path / "task",
        applied=[source_sft],
        device="cpu",
    )
    model = tagging.build_model(base, seed=0)
    model.train(False)

    def score(code: str, *parts: SFT) -> float:
        with composed(model, [(part, 1.0) for part in parts], base=base.ref):
            return tagging.evaluate(model, pieces(code, "test")).score

    gains = {code: score(code, language_sft(code), task) - score(code, task) for code in SMALL.unseen_codes}
    assert score("qaa", source_sft, task) > 0.9
    assert fmean(gains.values()) > MARGIN, gains


@pytest.fixture(autouse=True)
def long_enough(request: pytest.FixtureRequest) -> None:
    """The pre-training takes longest: give it time on a busy machine."""
    request.node.add_marker(pytest.mark.timeout(1200))
