"""Reading questions with their contexts: the part of the context that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from transformers import AutoModelForQuestionAnswering, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ltsft.objectives import OBJECTIVES, QuestionAnswering, QuestionRow, Window, answer_f1, best_span
from ltsft.release import Composition
from ltsft.serving.answers import TOKENIZING, Input, Output, Prepared, refuse_form, refuse_long
from ltsft.serving.limits import Limits
from ltsft.serving.results import Result, SpanResult

__all__ = ["QuestionReader"]


class QuestionReader:
    """Point at the answer to a question.

    Args:
        tokenizer: the base's tokenizer.
        composition: what answers, with its `max_length`: a longer context is read in windows that overlap, and the end
            of a question that takes more than half of one is left out, as when the task was learnt.
        limits: of the server.
    """

    forms = ("question and context",)
    result: ClassVar[type[Result]] = SpanResult
    inputs: ClassVar[Mapping[str, Any]] = {"question": str, "context": str}
    outputs: ClassVar[Mapping[str, Any]] = {"answer": str, "start": int, "end": int, "score": float}

    def __init__(self, tokenizer: PreTrainedTokenizerBase, composition: Composition, limits: Limits) -> None:
        self._max_length = composition.max_length
        objective = cast(type[QuestionAnswering], OBJECTIVES[composition.objective])
        self._objective = objective(tokenizer, max_length=self._max_length)
        self._limits = limits

    def build_shell(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Build a model that points at answers."""
        shell: PreTrainedModel = AutoModelForQuestionAnswering.from_config(config)
        return shell

    def prepare(self, item: Input) -> Prepared:
        """Split a question and its context into windows."""
        refuse_form(item, self.forms)
        row = QuestionRow(item.question or "", item.context or "", (("", 0),), 0, "a request")
        with TOKENIZING:
            windows = tuple(self._objective.examples([row]))
            is_cut = self._objective.shortened(row.question) != row.question
        if is_cut or len(windows) > 1:
            refuse_long(self._limits, self._max_length)
        return Prepared(item, windows, is_cut=is_cut)

    def forward(self, model: PreTrainedModel, pieces: Sequence[Window]) -> list[Output]:
        """Give logits of start and end, (length,) each, for each window; behind its end they are as low as can be."""
        batch = self._objective.collate(pieces, torch.Generator())
        return list(zip(*self._objective.scores(model, batch), strict=True))

    def read(self, prepared: Prepared, outputs: Sequence[Output]) -> SpanResult:
        """Give the span with the highest sum of logits over all windows."""
        found = [
            (best_span(window, starts, ends), starts, ends)
            for window, (starts, ends) in zip(prepared.pieces, outputs, strict=True)
        ]
        best, starts, ends = max(found, key=lambda one: one[0].score)
        told = {"pieces": len(prepared.pieces), "is_cut": prepared.is_cut}
        if best.first < 0:
            return SpanResult(text="", start=0, end=0, score=0.0, **told)
        chance = torch.log_softmax(starts, 0)[best.first] + torch.log_softmax(ends, 0)[best.last]
        return SpanResult(text=best.text, start=best.start, end=best.end, score=float(chance.exp()), **told)

    @staticmethod
    def asked(row: QuestionRow) -> Input:
        """Give the question with its context."""
        return Input(question=row.question, context=row.context)

    @staticmethod
    def right(row: QuestionRow, answer: Mapping[str, Any]) -> tuple[float, float]:
        """Give the F1 with the answer of people that it is most like."""
        return max(answer_f1(str(answer["answer"]), gold) for gold, _ in row.answers), 1.0
