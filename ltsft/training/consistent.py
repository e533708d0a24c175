"""Consistency in the training of a task SFT (xTune, Zheng et al. 2021, «Consistency Regularization for Cross-Lingual
Fine-Tuning», section 3): what a model says should not change where the meaning of an example does not.

    loss = L(x) + example * R1 + model * R2
    R1   = KL(stop(f(x)) || f(A(x))) + KL(stop(f(A(x))) || f(x))      in the full and the sparse phase
    R2   = KL(f*(A(x)) || f(A(x)))                                    in the sparse phase

f is the model, f* the frozen full-phase model, A(x) the augmented example, stop lets no gradient through. A divergence
is a mean over what is answered (words, examples), as the loss is; an objective that answers twice (head and relation,
start and end) puts the two together as its loss does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from random import Random
from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel

from ltsft.base import Base
from ltsft.config import Consistency, Precision
from ltsft.objectives import Belief, Evaluation, Objective, TargetObjective, padded
from ltsft.training.augmentation import Augmenter, Respelling

__all__ = ["Consistent", "divergence", "symmetric_divergence"]

PREFIX = "augmented."
STRETCHES, STRETCHES_BEFORE, SEED = f"{PREFIX}stretches", f"{PREFIX}stretches_before", f"{PREFIX}seed"
LOWEST = -1e4
"""Stands for the logarithm of 0."""


class Consistent(Objective):
    """An objective with penalties on outputs that augmentation changes.

    Args:
        objective: what is learnt.
        settings: weights of the penalties.
        augmenter: what augments.
        max_length: sub-words in an augmented example, at most.
    """

    def __init__(
        self, objective: TargetObjective, settings: Consistency, augmenter: Augmenter, *, max_length: int
    ) -> None:
        self.labels = objective.labels
        self.first_stage: PreTrainedModel | None = None
        self._objective = objective
        self._settings = settings
        self._augmenter = augmenter
        self._max_length = max_length
        self._phase = ""
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    @property
    def _is_active(self) -> bool:
        wanted = self._settings.example > 0 or self.first_stage is not None
        return self._phase in ("full", "sparse") and wanted

    def begin_phase(self, phase: str) -> None:
        """Take note of the phase: a head phase, which nothing is left of but a start, goes without penalties."""
        self._phase = phase
        self._sums, self._batches = {}, 0

    def keep_first_stage(self, model: nn.Module, precision: Precision) -> nn.Module | None:
        """Keep a frozen copy of the model as it is, where there is model consistency.

        The copy is in bfloat16 if training is, in float32 otherwise. It lives in the sparse phase, which has neither
        the gradients nor the optimizer state of the full phase: that is still where a training needs most memory.
        """
        if not self._settings.model:
            return None
        copied: Any = deepcopy(model).requires_grad_(False)
        if precision == "bf16":
            copied.to(torch.bfloat16)
        copied.train(False)
        self.first_stage = copied
        return self.first_stage

    def drop_first_stage(self) -> None:
        """Let go of the copy."""
        self.first_stage = None

    def build_model(self, base: Base, *, seed: int) -> PreTrainedModel:
        """Load the base with the head of the objective."""
        return self._objective.build_model(base, seed=seed)

    def lengths(self, examples: Sequence[Any]) -> list[int] | None:
        """Give the sub-words of each example."""
        return self._objective.lengths(examples)

    def collate(self, examples: Sequence[Any], generator: Generator) -> dict[str, Tensor]:
        """Make a batch, and beside it that of the augmented examples, under names that begin with ``augmented.``.

        The examples themselves come out as without augmentation. What is changed depends on the generator alone.
        """
        batch = self._objective.collate(examples, generator)
        if not self._is_active:
            return batch
        seed = torch.randint(2**62, (1,), generator=generator)
        random = Random(int(seed))
        changed, before, after = [], [], []
        for example in examples:
            spans = self._objective.words(example) if self._augmenter.changes_subwords else []
            room = self._max_length - len(example.input_ids)
            words = self._augmenter.augment([example.input_ids[a:b] for a, b in spans], room, random)
            changed.append(self._objective.respelled(example, [word.ids for word in words]) if spans else example)
            stretches = _number_stretches(len(example.input_ids), spans, words)
            before.append(stretches[0])
            after.append(stretches[1])
        augmented = self._objective.collate(changed, generator)
        more = {STRETCHES_BEFORE: padded(before, -1), STRETCHES: padded(after, -1), SEED: seed}
        return {**batch, **{f"{PREFIX}{name}": value for name, value in augmented.items()}, **more}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Give the loss of the objective and, in the phases that have them, the penalties; in nats."""
        given = {name: value for name, value in batch.items() if not name.startswith(PREFIX)}
        if STRETCHES not in batch:
            return self._objective.loss(model, given)
        own = (STRETCHES, STRETCHES_BEFORE, SEED)
        augmented = {n.removeprefix(PREFIX): v for n, v in batch.items() if n.startswith(PREFIX) and n not in own}
        scores = self._objective.scores(model, given)
        loss = self._objective.loss_of(scores, given)
        with self._noise(model, batch):
            said = self._objective.beliefs(self._objective.scores(model, augmented), augmented, batch[STRETCHES])
        penalties: dict[str, Tensor] = {}
        if self._settings.example:
            plainly = self._objective.beliefs(scores, given, batch[STRETCHES_BEFORE])
            penalties["example"] = _compared(symmetric_divergence, plainly, said)
            loss = loss + self._settings.example * penalties["example"]
        if self.first_stage is not None:
            with torch.no_grad(), self._noise(self.first_stage, batch):
                found = self._objective.scores(self.first_stage, augmented)
                before = self._objective.beliefs(found, augmented, batch[STRETCHES])
            penalties["model"] = _compared(divergence, before, said)
            loss = loss + self._settings.model * penalties["model"]
        self._add(penalties)
        return loss

    def evaluate(self, model: PreTrainedModel, examples: Sequence[Any]) -> Evaluation:
        """Score a model; penalties have no part in it."""
        return self._objective.evaluate(model, examples)

    def figures(self) -> dict[str, float]:
        """Give the mean of each penalty, without its weight, since this was last asked."""
        means = {f"{name}_consistency": float(total) / self._batches for name, total in self._sums.items()}
        self._sums, self._batches = {}, 0
        return means

    def _add(self, penalties: Mapping[str, Tensor]) -> None:
        for name, value in penalties.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach()
        self._batches += 1

    @contextmanager
    def _noise(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Add noise to the word embeddings of a model, the same for the same batch."""
        deviation = self._augmenter.noise_deviation
        if deviation is None:
            yield
            return
        encoder: Any = model.base_model
        embeddings = encoder.get_input_embeddings()
        generator = torch.Generator(embeddings.weight.device).manual_seed(int(batch[SEED]))

        def add(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            size = output.detach().float().square().mean().sqrt()
            noise = torch.randn(output.shape, generator=generator, device=output.device)
            return output + (deviation * size * noise).to(output.dtype)

        handle = embeddings.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


def _compared(measure: Callable[[Tensor, Tensor], Tensor], first: Sequence[Belief], second: Sequence[Belief]) -> Tensor:
    """Put together what a measure finds between each two beliefs, with their weights."""
    return torch.stack([w * measure(p, q) for (w, p), (_, q) in zip(first, second, strict=True)]).sum()


def divergence(target: Tensor, said: Tensor) -> Tensor:
    """Give the mean Kullback-Leibler divergence KL(target || said), in nats; no gradient goes through the target.

    Args:
        target: log-probabilities, (items, outcomes); minus infinity where there is no such outcome.
        said: the same, of what is compared with it.

    Returns:
        A scalar; 0 without items.

    Example:
        >>> half, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> round(float(divergence(half, sure)), 4)  # 0.5 ln 2 + 0.5 ln 2/3
        0.1438
    """
    target = target.detach().clamp(min=LOWEST)
    terms = target.exp() * (target - said.clamp(min=LOWEST))
    return terms.sum() / max(len(terms), 1)


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Give KL(stop(first) || second) + KL(stop(second) || first); arguments and result as for `divergence`."""
    return divergence(first, second) + divergence(second, first)


def _number_stretches(
    length: int, spans: Sequence[tuple[int, int]], words: Sequence[Respelling]
) -> tuple[list[int], list[int]]:
    """Number the stretches of an example for its sub-words before and after; those in no word are one each."""
    before: list[int] = []
    after: list[int] = []
    count = 0
    ends = {start: (stop, word) for (start, stop), word in zip(spans, words, strict=True)}
    place = 0
    while place < length:
        stop, word = ends.get(place, (place + 1, None))
        first, then = ((0,), (0,)) if word is None else (word.before, word.after)
        before += [count + i for i in first]
        after += [count + i for i in then]
        count = max(before) + 1
        place = stop
    return before, after
