"""What settles a toy family and its base (`ltsft.toy.family`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ltsft.errors import ConfigError
from ltsft.toy.grammar import CLOSED_CLASSES

BASE = "base"
"""Folder of the base in that of the family."""
CODES = tuple(f"qa{chr(c)}" for c in range(ord("a"), ord("z") + 1))
"""Codes for private use (ISO 639-2: qaa to qtz)."""


@dataclass(frozen=True)
class BaseSettings:
    """The toy base and its pre-training.

    Attributes:
        hidden: width; the feed-forward layers are twice as wide.
        layers: number of layers.
        heads: attention heads in a layer.
        steps: optimizer steps of pre-training.
        batch_size: sequences in a step.
        max_length: sub-words in a sequence.
        learning_rate: its peak.
        mask_probability: share of sub-words to predict.
        dropout: during pre-training, and what the base is saved with.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    steps: int = 1000
    batch_size: int = 32
    max_length: int = 32
    learning_rate: float = 3e-3
    mask_probability: float = 0.2
    dropout: float = 0.0


@dataclass(frozen=True)
class ToyConfig:
    """What settles a toy family; the same config gives the same text and treebanks, byte for byte.

    Attributes:
        seed: of everything.
        seen: languages that the base reads; the first is the source language.
        unseen: languages that it does not read.
        nouns: number of nouns; likewise the other open classes.
        open_share: share of nouns, verbs, adjectives and adverbs that are cognates; names always are.
        closed_share: share of function words that are cognates.
        affix_share: share of affixes that are inherited.
        exponent: of Zipf's law, by which words are drawn.
        text_lines: lines of raw text of each language.
        train: sentences of each language's train split; likewise dev and test.
        base: the base and its pre-training.
    """

    seed: int = 1
    seen: int = 4
    unseen: int = 4
    nouns: int = 30
    verbs: int = 24
    adjectives: int = 12
    adverbs: int = 6
    names: int = 8
    open_share: float = 0.45
    closed_share: float = 0.65
    affix_share: float = 0.4
    exponent: float = 0.5
    text_lines: int = 4000
    train: int = 1500
    dev: int = 150
    test: int = 300
    base: BaseSettings = field(default_factory=BaseSettings)

    def __post_init__(self) -> None:
        """Refuse what cannot be made.

        Raises:
            ConfigError: naming the value and what is allowed.
        """
        if self.seen < 1 or self.unseen < 0 or self.seen + self.unseen > len(CODES):
            raise ConfigError(
                f"a toy family has 1 to {len(CODES)} languages, at least one of them seen; "
                f"got {self.seen} seen and {self.unseen} unseen"
            )
        for name in ("open_share", "closed_share", "affix_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def seen_codes(self) -> tuple[str, ...]:
        """Codes of the languages that the base reads, the source language first."""
        return CODES[: self.seen]

    @property
    def unseen_codes(self) -> tuple[str, ...]:
        """Codes of the languages that the base does not read."""
        return CODES[self.seen : self.seen + self.unseen]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of concepts of each part of speech."""
        open_classes = {
            "NOUN": self.nouns,
            "VERB": self.verbs,
            "ADJ": self.adjectives,
            "ADV": self.adverbs,
            "PROPN": self.names,
        }
        return {**open_classes, **CLOSED_CLASSES}
