"""How a project file says that SFTs are composed. Rules are in ``ltsft/composition/rules.py``, weights in
``ltsft/composition/weights.py``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ltsft.config.frozen import Frozen

__all__ = ["CompositionSettings", "OwnWeights", "PartWeights"]

_Factor = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Weight = _Factor | Annotated[dict[str, _Factor], Field(min_length=1)]


class PartWeights(Frozen):
    """What the diffs of each part of a composition are multiplied by: a number, or numbers by part of the network."""

    language: _Weight = Field(1.0, description="of the language SFT")
    task: _Weight = Field(1.0, description="of the task SFT")


class OwnWeights(Frozen):
    """Weights of one language, in place of those of the project."""

    language: _Weight | None = Field(None, description="of the language SFT")
    task: _Weight | None = Field(None, description="of the task SFT")


class CompositionSettings(Frozen):
    """How a language SFT and a task SFT are put together: the rule, and how much each of them counts."""

    rule: str = Field("sum", description="how the diffs are put together: sum, ties or ties_sum")
    weights: PartWeights = PartWeights()
    by_language: dict[str, OwnWeights] = Field({}, description="other weights for some target languages")

    def weights_of(self, language: str) -> PartWeights:
        """Give the weights with which a language is composed."""
        own = self.by_language.get(language, OwnWeights())
        return PartWeights(
            language=self.weights.language if own.language is None else own.language,
            task=self.weights.task if own.task is None else own.task,
        )

    def key_parts(self, language: str) -> dict[str, Any]:
        """Give what goes into the key of a cell of this language: weights are left out where they are all 1."""
        weights = self.weights_of(language)
        return {"rule": self.rule, **({"weights": weights.model_dump()} if weights != PartWeights() else {})}
