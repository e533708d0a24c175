"""Several source languages: each batch is of one language, with that language's SFT in place for that batch.

As in LT-SFT's multi-source training (Ansell et al. 2022, section 3.3): the task SFT learns what helps whatever language
SFT it is composed with. The language SFT is put in place before a batch is run and taken out again before the optimizer
steps, from saved copies, so what is trained is base + task diffs, bit for bit, whichever language comes next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel

from ltsft.base import Base
from ltsft.composition import Part, composed
from ltsft.config import Precision
from ltsft.errors import TrainingError
from ltsft.methods import Bottlenecks, as_diffs, bottlenecks_of, stack_of
from ltsft.objectives import Evaluation, Objective
from ltsft.sft import SFT

__all__ = ["FromLanguage", "Mixture", "SeveralSources", "sampling_shares"]

SOURCE = "source"
"""In a batch: the number of its language."""


@dataclass(frozen=True)
class FromLanguage:
    """An example and the number of its language."""

    language: int
    example: Any


class Mixture(Sequence[FromLanguage]):
    """The examples of several languages, and in which order they are trained on.

    Args:
        examples: by language.
        shares: how often each language is drawn for a batch; they sum to 1.
    """

    def __init__(self, examples: Mapping[str, Sequence[Any]], shares: Mapping[str, float]) -> None:
        self._of_language = [
            [FromLanguage(number, example) for example in found] for number, found in enumerate(examples.values())
        ]
        empty = [language for language, found in examples.items() if not len(found)]
        if empty:
            raise TrainingError(f"source language {empty[0]} has nothing to train on")
        self._all = [example for found in self._of_language for example in found]
        self._shares = torch.tensor([shares[language] for language in examples], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, i: Any) -> Any:
        return self._all[i]

    def order(self, batches: int, size: int, *, seed: int) -> Tensor:
        """Say which example comes when.

        Args:
            batches: how many there are.
            size: examples in a batch.
            seed: settles all of it.

        Returns:
            Numbers of examples, (batches x size,): each batch is of one language, drawn by its share; the examples of
            a language come in an order shuffled anew each time that all of them have been used.
        """
        generator = torch.Generator().manual_seed(seed)
        languages = torch.multinomial(self._shares, batches, replacement=True, generator=generator)
        starts = torch.tensor([0, *map(len, self._of_language)]).cumsum(0)
        order = torch.empty(batches, size, dtype=torch.int64)
        for number, found in enumerate(self._of_language):
            own = languages == number
            needed = int(own.sum()) * size
            epochs = -(-needed // len(found))
            shuffled = [torch.randperm(len(found), generator=generator) for _ in range(epochs)]
            if needed:
                order[own] = torch.cat(shuffled)[:needed].reshape(-1, size) + starts[number]
        return order.reshape(-1)


def sampling_shares(sizes: Mapping[str, int], *, temperature: float, weights: Mapping[str, float]) -> dict[str, float]:
    """Say how often each language is drawn.

    Args:
        sizes: number of examples by language.
        temperature: shares are proportional to size ** (1 / temperature): 1 keeps the sizes, a high one evens them out.
        weights: fixed ones, by language, in place of the sizes; none if empty.

    Returns:
        Shares by language, which sum to 1.

    Example:
        >>> sampling_shares({"en": 900, "eu": 100}, temperature=2.0, weights={})
        {'en': 0.75, 'eu': 0.25}
    """
    raw = {language: weights[language] if weights else size ** (1 / temperature) for language, size in sizes.items()}
    return {language: share / sum(raw.values()) for language, share in raw.items()}


class SeveralSources(Objective):
    """An objective over several languages: the same loss, with the language SFT of the batch in place.

    Attributes:
        objective: what is learnt.

    Args:
        objective: what is learnt.
        sfts: the language SFT of each source language, in the order of the numbers in the examples; None for a language
            that has none.
        base: the base.
    """

    def __init__(self, objective: Objective, sfts: Mapping[str, SFT | None], base: Base) -> None:
        self.labels = objective.labels
        self.objective = objective
        self._sfts = {language: as_diffs(sft) if sft is not None else None for language, sft in sfts.items()}
        self._base = base
        self._model: PreTrainedModel | None = None
        self._modules: dict[int, Bottlenecks] = {}
        self._encoder: dict[str, nn.Parameter] = {}
        self._follower: dict[str, nn.Parameter] = {}
        self._saved: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._in_place: int | None = None

    def build_model(self, base: Base, *, seed: int) -> PreTrainedModel:
        """Load the base with the head of the objective; its weights are those that are put in and taken out."""
        model = self.objective.build_model(base, seed=seed)
        self._model, self._modules = model, {}
        self._encoder = dict(model.base_model.named_parameters())
        return model

    def lengths(self, examples: Sequence[FromLanguage]) -> list[int] | None:
        """Give the sub-words of each example."""
        return self.objective.lengths([e.example for e in examples])

    def collate(self, examples: Sequence[FromLanguage], generator: Generator) -> dict[str, Tensor]:
        """Make a batch of examples of one language; `source` is the number of that language."""
        batch = self.objective.collate([e.example for e in examples], generator)
        return {**batch, SOURCE: torch.tensor(examples[0].language)}

    def order(self, examples: Sequence[FromLanguage], batches: int, size: int, *, seed: int) -> Tensor | None:
        """Say which example comes when, where languages are mixed; see `Mixture.order`."""
        return examples.order(batches, size, seed=seed) if isinstance(examples, Mixture) else None

    def begin_phase(self, phase: str) -> None:
        """Tell what is learnt."""
        self.objective.begin_phase(phase)

    def keep_first_stage(self, model: nn.Module, precision: Precision) -> nn.Module | None:
        """Have what is learnt keep a copy; the SFTs are put into that as well."""
        first_stage = self.objective.keep_first_stage(model, precision)
        if first_stage is not None:
            self._follow(first_stage)
        return first_stage

    def drop_first_stage(self) -> None:
        """Have what is learnt let go of its copy."""
        self.objective.drop_first_stage()
        self._follow(None)

    def figures(self) -> dict[str, float]:
        """Give what was measured in what is learnt."""
        return self.objective.figures()

    def _follow(self, model: nn.Module | None) -> None:
        """Put the SFTs into another model too; None: into no other any more."""
        self.before_step()
        encoder: Any = model.base_model if model is not None else None
        self._follower = dict(encoder.named_parameters()) if encoder is not None else {}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Give the loss with the language SFT of the batch in place; it stays there until `before_step`."""
        self.before_batch(batch)
        return self.objective.loss(model, {name: value for name, value in batch.items() if name != SOURCE})

    @torch.no_grad()
    def before_step(self) -> None:
        """Put back the weights that the language SFT in place has changed, bit for bit."""
        for weights, indices, values in self._saved:
            weights.view(-1)[indices] = values
        if self._in_place in self._modules and self._model is not None:
            stack_of(self._model).compose([])
        self._saved, self._in_place = [], None

    @torch.no_grad()
    def before_batch(self, batch: Mapping[str, Tensor]) -> None:
        """Put the language SFT of a batch in place, unless it is there.

        It has to happen before anything looks at the weights for this batch: autograd refuses views that are changed.
        """
        number = int(batch[SOURCE])
        if number == self._in_place:
            return
        self.before_step()
        sft = list(self._sfts.values())[number]
        if sft is not None and sft.adapter and self._model is not None:
            if number not in self._modules:
                self._modules[number] = bottlenecks_of(sft, self._model)
            stack_of(self._model).compose([self._modules[number]])
        for name, diff in sft.diffs.items() if sft is not None else ():
            for encoder in (self._encoder, self._follower) if diff.support_size else ():
                if name not in encoder:
                    continue
                weights = encoder[name]
                indices = diff.indices.to(weights.device).long()
                before = weights.view(-1)[indices]
                self._saved.append((weights, indices, before))
                weights.view(-1)[indices] = (before + diff.values.to(weights.device)).to(weights.dtype)
        self._in_place = number

    @torch.no_grad()
    def evaluate(self, model: PreTrainedModel, examples: Sequence[FromLanguage]) -> Evaluation:
        """Score each language with its own SFT; the score and each figure are means over languages.

        Languages without an example are left out. Figures of a language are there as ``<figure>.<language>``; outcomes
        are those of all languages in turn.
        """
        self.before_step()
        found = {}
        for number, (language, sft) in enumerate(self._sfts.items()):
            own = [e.example for e in examples if e.language == number]
            if not own:
                continue
            parts: list[Part] = [] if sft is None else [(sft, 1.0)]
            with composed(model, parts, base=self._base.ref, heads=False):
                found[language] = self.objective.evaluate(model, own)
        metrics = {name: fmean(e.metrics[name] for e in found.values()) for name in next(iter(found.values())).metrics}
        for language, evaluation in found.items():
            metrics |= {f"{name}.{language}": value for name, value in evaluation.metrics.items()}
        outcomes = tuple(outcome for e in found.values() for outcome in e.outcomes)
        return Evaluation(fmean(e.score for e in found.values()), metrics, outcomes)
