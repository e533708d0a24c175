"""Reading whole texts, or pairs of them: one label for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ltsft.objectives import OBJECTIVES, ClassifiedText, TextRow
from ltsft.release import Composition
from ltsft.serving.answers import TOKENIZING, Input, Output, Prepared, refuse_form, refuse_long
from ltsft.serving.limits import Limits
from ltsft.serving.results import LabelResult, Result

__all__ = ["TextReader"]


class TextReader:
    """Give each text, or each pair of texts, a label.

    Args:
        tokenizer: the base's tokenizer.
        composition: what answers: its labels, whether it takes pairs, and its `max_length`: what is longer loses the
            end of the longer text, as when the task was learnt.
        limits: of the server.
    """

    result: ClassVar[type[Result]] = LabelResult
    inputs: ClassVar[Mapping[str, Any]] = {"text": str, "pair": str}
    outputs: ClassVar[Mapping[str, Any]] = {"label": str, "score": float}

    def __init__(self, tokenizer: PreTrainedTokenizerBase, composition: Composition, limits: Limits) -> None:
        self.labels = composition.labels
        self._tokenizer = tokenizer
        self.forms = ("text and pair",) if composition.takes_pairs else ("text",)
        self._max_length = composition.max_length
        objective = OBJECTIVES[composition.objective]
        self._objective = objective(tokenizer, labels=self.labels, max_length=self._max_length)
        self._limits = limits

    def build_shell(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Build a sequence classifier."""
        shell: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
        return shell

    def prepare(self, item: Input) -> Prepared:
        """Split a text or a pair into sub-words."""
        refuse_form(item, self.forms)
        row = TextRow(item.text or "", item.pair, self.labels[0], 0, "a request")
        with TOKENIZING:
            [piece] = self._objective.examples([row])
            whole = self._tokenizer(row.text, row.pair)["input_ids"]
        if len(whole) > len(piece.input_ids):
            refuse_long(self._limits, self._max_length)
        return Prepared(item, (piece,), is_cut=len(whole) > len(piece.input_ids))

    def forward(self, model: PreTrainedModel, pieces: Sequence[ClassifiedText]) -> list[Output]:
        """Give logits, (labels,) for each piece."""
        batch = self._objective.collate(pieces, torch.Generator())
        (logits,) = self._objective.scores(model, batch)
        return [(row,) for row in logits]

    def read(self, prepared: Prepared, outputs: Sequence[Output]) -> LabelResult:
        """Give the most probable label, and the probability of each."""
        [(logits,)] = outputs
        scores = dict(zip(self.labels, torch.softmax(logits, dim=-1).tolist(), strict=True))
        label = self.labels[int(logits.argmax())]
        return LabelResult(label=label, score=scores[label], scores=scores, is_cut=prepared.is_cut)

    @staticmethod
    def asked(row: TextRow) -> Input:
        """Give the text or the pair."""
        return Input(text=row.text, pair=row.pair)

    @staticmethod
    def right(row: TextRow, answer: Mapping[str, Any]) -> tuple[float, float]:
        """Say whether the label is right."""
        return float(answer["label"] == row.label), 1.0
