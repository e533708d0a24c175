"""Settings of consistency in the training of a task SFT (xTune, Zheng et al. 2021, arXiv 2106.08226).

What is learnt from them is in ``ltsft/training/consistent.py``, how examples are augmented in
``ltsft/training/augmentation.py``.
"""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from ltsft.config.frozen import Frozen
from ltsft.config.source import Source, Sources

__all__ = ["Augmentations", "CodeSwitch", "Consistency", "Noise", "SubwordSampling"]


class SubwordSampling(Frozen):
    """Words are cut into other sub-words, drawn from the tokenizer's unigram model (Kudo 2018)."""

    share: float = Field(0.5, gt=0, le=1, description="share of the words that are cut anew")
    alpha: float = Field(0.3, gt=0, le=1, description="low: all ways to cut a word are alike; 1: as the model has it")


class Noise(Frozen):
    """Gaussian noise is added to the word embeddings."""

    deviation: float = Field(0.1, gt=0, description="in shares of the root mean square of the embeddings of the batch")


class CodeSwitch(Frozen):
    """Words are replaced by their translations in bilingual word lists."""

    words: Sources = Field(description="bilingual word lists, of the scheme tsv:")
    share: float = Field(0.3, gt=0, le=1, description="share of the words that are looked up")

    @field_validator("words")
    @classmethod
    def _tables(cls, words: tuple[Source, ...]) -> tuple[Source, ...]:
        for source in words:
            if source.scheme != "tsv":
                raise ValueError(f"a bilingual word list is of the scheme tsv:, got {source}")
        return words


class Augmentations(Frozen):
    """What is done to an example; with several, all: a translation is cut into other sub-words, noise comes last."""

    subword_sampling: SubwordSampling | None = None
    noise: Noise | None = None
    code_switch: CodeSwitch | None = None

    @model_validator(mode="after")
    def _some(self) -> Augmentations:
        if self == Augmentations.model_construct():
            raise ValueError("name one at least: subword_sampling, noise or code_switch")
        return self


class Consistency(Frozen):
    """Penalties on outputs that change where the meaning of an example does not."""

    example: float = Field(
        1.0, ge=0, description="weight of example consistency, lambda_1 of the paper: in the full and the sparse phase"
    )
    model: float = Field(
        0.0,
        ge=0,
        description="weight of model consistency, lambda_2: in the sparse phase alone",
    )
    augmentations: Augmentations = Field(description="what is done to the examples")

    @property
    def sources(self) -> tuple[Source, ...]:
        """The bilingual word lists."""
        return self.augmentations.code_switch.words if self.augmentations.code_switch is not None else ()
